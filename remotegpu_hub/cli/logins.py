"""The hub that one is logged in to: its address and token, in a file that only its owner can read, or in env vars."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..clients.api import Address, hub_token, hub_url
from .stop import Refused, Usage

HUB_VARIABLE: Final = "REMOTEGPU_HUB_URL"
TOKEN_VARIABLE: Final = "REMOTEGPU_TOKEN"
TOKEN_FILE_VARIABLE: Final = "REMOTEGPU_HUB_TOKEN_FILE"
HTTP_VARIABLE: Final = "REMOTEGPU_ALLOW_HTTP"


@dataclass(frozen=True)
class Login:
    """What is kept. `allow_http` was asked for when it was made."""

    address: Address
    allow_http: bool = False


def path() -> Path:
    """Where the login is kept."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return Path(home if home and os.path.isabs(home) else Path.home() / ".config") / "remotegpu" / "login.json"


def read() -> Login | None:
    """The login that is kept, or None. Raises: Refused for a file that others can read, or that is none of ours."""
    try:
        with path().open(encoding="utf-8") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
                raise Refused(
                    f"{path()} holds a token and others may have read it: make another token, and log in again with "
                    "`remotegpu login`."
                )
            kept = json.load(file)
        allow = bool(kept.get("allow_http"))
        return Login(Address(hub_url(kept["url"], allow_http=allow), hub_token(kept["token"])), allow)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{path()} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"{path()} is broken: log in again with `remotegpu login`.") from None


def write(login: Login) -> None:
    """Keep a login, whole or not at all, readable by its owner only. Raises: Refused."""
    place = path()
    partial = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.parent.chmod(0o700)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                kept = {"url": login.address.url, "token": login.address.token, "allow_http": login.allow_http}
                json.dump(kept, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Refused(f"{place} cannot be written: {error.strerror}.") from None


def forget() -> bool:
    """Delete what is kept; whether there was something."""
    try:
        path().unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Refused(f"{path()} cannot be deleted: {error.strerror}.") from None
    return True


def named_by() -> str:
    """What names the hub where the command line does not."""
    return f"${HUB_VARIABLE}" if os.environ.get(HUB_VARIABLE) else str(path())


def may_use_http() -> bool:
    return os.environ.get(HTTP_VARIABLE, "") not in ("", "0")


def to(text: str) -> Address:
    """A hub that was named, with the token for it: of the env vars, else of the login. A token goes only to the hub
    that it was given for. Raises: Refused when there is none, Invalid."""
    named = os.environ.get(HUB_VARIABLE)
    kept = read() if _given_token(named, text) is None else None
    allow = may_use_http() or (kept is not None and kept.allow_http and kept.address.url == _url(text, allow=True))
    url = _url(text, allow=allow)
    token = _given_token(named, text)
    if token is not None:
        return Address(url, hub_token(token))
    if kept is not None and kept.address.url == url:
        return kept.address
    raise Refused(f"You are not logged in to {url}: `remotegpu login {url}`.")


def _url(text: str, *, allow: bool) -> str:
    return hub_url(text, allow_http=allow)


def _given_token(named: str | None, text: str) -> str | None:
    """The env vars' token, where it is for this hub. Raises: Usage, Refused."""
    if named and _url(named, allow=True) != _url(text, allow=True):
        return None
    token, file = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_FILE_VARIABLE)
    if token and file:
        raise Usage(f"Both {TOKEN_VARIABLE} and {TOKEN_FILE_VARIABLE} are set: one is enough.")
    if not file:
        return token or None
    return token_in(file)


def token_in(file: str) -> str:
    """The token that stands alone in a file. Raises: Refused."""
    try:
        return Path(file).read_text(encoding="utf-8")[:2000]
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not a text'}.") from None
