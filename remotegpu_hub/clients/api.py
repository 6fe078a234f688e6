"""Our own REST API, asked from outside: where it is, with which token, and what its refusals mean. It knows neither
routes nor what they answer."""

import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from ..errors import Denied, Invalid, NotFound, RemoteGPUError, Unavailable

SERVICE: Final = "services/workspaces/api/"
REACH: Final = "access:services!service=workspaces"
"""The scope with which a token reaches the service at all."""
JSON: Final = "application/json"
SILENCE_SECONDS: Final = 45.0
"""A stream of events says every 15 seconds that it is still there."""
TIMEOUT_SECONDS: Final = 90.0
"""A restart waits a minute for the stop."""
TRIES: Final = 3
PATIENCE_SECONDS: Final = 60.0
"""How long one request waits in all where the API says that it is asked too often."""
_AWAY: Final = frozenset({502, 503, 504})


class Said(RemoteGPUError):
    """What the API refused, in its own words, code and facts."""

    def __init__(self, status: int, code: str, message: str, facts: Mapping[str, Any]) -> None:
        super().__init__(message.replace("{", "{{").replace("}", "}}"), **facts)
        self.status, self.code = status, code  # type: ignore[misc]


class NoLogin(Denied):
    """The hub does not take this token for the API."""


@dataclass(frozen=True)
class Answer:
    """What came back, and the ETag with which it can be edited."""

    value: Any
    tag: str = ""


@dataclass(frozen=True)
class Address:
    """Where a hub is, and the token that goes there and is never shown."""

    url: str
    token: str = field(repr=False)


def hub_token(text: str) -> str:
    """A token as it was pasted. Raises: Invalid, without repeating it."""
    token = text.strip()
    if not token or len(token) > 1000 or not (token.isascii() and token.isprintable()) or " " in token:
        raise Invalid("This is no token: it is one word, as the hub showed it once.")
    return token


def hub_url(text: str, *, allow_http: bool = False) -> str:
    """The hub's own address, ending with `/`, from what was copied out of a browser.

    Raises: Invalid, also for one that would carry the token in clear over a network.
    """
    parts = urlsplit(text.strip() if "://" in text else f"https://{text.strip()}")
    try:
        host, _port = parts.hostname, parts.port
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise Invalid("{url} is not the address of a hub: write one such as https://hub.example.org/.", url=_bare(text))
    if parts.scheme == "http" and not allow_http and not _loopback(host):
        raise Invalid("{url} would carry the token in clear over the network: write https://.", url=_bare(text))
    path = parts.path
    for inside in ("/hub/", "/services/", "/user/"):
        path = (path + "/").split(inside)[0]
    return f"{parts.scheme}://{parts.netloc.lower()}{path.rstrip('/')}/"


def _bare(text: str) -> str:
    """Without what may be a password."""
    return text.rpartition("@")[2][:200]


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ApiClient:
    """Asks one hub's API with one token; a context manager.

    Redirects are not followed: the token goes to this address only. Certificates are checked against the system's.
    """

    def __init__(self, address: Address, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.address, self._sleep = address, sleep
        self._client = httpx.Client(
            headers={"Authorization": f"token {address.token}", "Accept": JSON},
            timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=10.0),
            verify=ssl.create_default_context(),
            trust_env=address.url.startswith("https:"),  # a proxy would see what goes by http
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, method: str, path: str, names: Mapping[str, str], *, query: Mapping[str, Any] | None = None,
        body: Any = None, match: str = "", key: str = "",
    ) -> Answer:  # fmt: skip
        """Send one request of a route; one that only reads or has an Idempotency-Key again when its answer is lost.

        Raises: Said, NoLogin, NotFound, Unavailable.
        """
        url = self._url(path, names)
        headers = {name: value for name, value in (("If-Match", match), ("Idempotency-Key", key)) if value}
        given = {name: value for name, value in (query or {}).items() if value is not None}
        again = method == "GET" or bool(key)
        answer = self._send(method, url, headers, given, body, again)
        if not answer.is_success:
            raise self._refusal(answer, again)
        return Answer(_json(answer) if answer.content else None, answer.headers.get("ETag", ""))

    def lines(self, path: str, names: Mapping[str, str], *, query: Mapping[str, Any]) -> Iterator[str]:
        """Read a route that answers line by line, for as long as it goes on. Raises: like `ask`."""
        with self._stream(path, names, query) as answer:
            yield from answer.iter_lines()

    def events(self, path: str, names: Mapping[str, str], *, query: Mapping[str, Any]) -> Iterator[Any]:
        """Items of a list as they come, by server-sent events
        (https://html.spec.whatwg.org/multipage/server-sent-events.html); each stands in one line of data.

        It ends when the API ends it, or says nothing for longer than it ever does. Raises: like `ask`.
        """
        given = {name: value for name, value in query.items() if value is not None}
        rest = ""
        with self._stream(path, names, given, accept="text/event-stream", silence_seconds=SILENCE_SECONDS) as answer:
            for text in answer.iter_text():
                *lines, rest = (rest + text).split("\n")
                yield from (json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:"))

    @contextmanager
    def _stream(
        self, path: str, names: Mapping[str, str], query: Mapping[str, Any], *, accept: str = JSON,
        silence_seconds: float | None = None,
    ) -> Iterator[httpx.Response]:  # fmt: skip
        patient = httpx.Timeout(TIMEOUT_SECONDS, connect=10.0, read=silence_seconds)
        url = self._url(path, names)
        try:
            with self._client.stream(
                "GET", url, params=dict(query), timeout=patient, headers={"Accept": accept}
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer, again=True)
                yield answer
        except httpx.HTTPError as error:
            raise self._lost(_why(error), again=True) from None

    def _url(self, path: str, names: Mapping[str, str]) -> str:
        filled = path.format(**{name: quote(value, safe="") for name, value in names.items()})
        return f"{self.address.url}{SERVICE}{filled}"

    def _send(
        self, method: str, url: str, headers: dict[str, str], query: dict[str, Any], body: Any, again: bool
    ) -> httpx.Response:
        tries, patience = TRIES if again else 1, PATIENCE_SECONDS
        while True:
            tries -= 1
            try:
                answer = self._client.request(method, url, headers=headers, params=query, json=body)
            except httpx.ConnectError as error:
                raise Unavailable(
                    "{url} cannot be reached: {reason}.", url=self.address.url, reason=_why(error)
                ) from None
            except httpx.HTTPError as error:
                if tries > 0:
                    self._sleep(1)
                    continue
                slow = isinstance(error, httpx.TimeoutException)
                raise self._lost("it took too long" if slow else _why(error), again) from None
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS and patience > 0:
                pause = _seconds(answer.headers.get("Retry-After"))
                if pause <= patience:
                    patience -= pause
                    tries += 1
                    self._sleep(pause)
                    continue
            if answer.status_code in _AWAY and tries > 0:
                self._sleep(1)
                continue
            return answer

    def _lost(self, reason: str, again: bool) -> Unavailable:
        """`again`: nothing can have come of it that a repetition would not bring about."""
        if again:
            return Unavailable("{url} does not answer: {reason}.", url=self.address.url, reason=reason)
        return Unavailable(
            "The answer of {url} was lost: {reason}. Look whether it was done before you try again.",
            url=self.address.url, reason=reason,
        )  # fmt: skip

    def _refusal(self, answer: httpx.Response, again: bool) -> RemoteGPUError:
        told = _json(answer)
        error = told.get("error") if isinstance(told, dict) else None
        if answer.status_code in (401, 403) and (not isinstance(error, dict) or error.get("code") == "http"):
            return self._no_login()
        if isinstance(error, dict) and {"code", "message"} <= error.keys():
            facts = error.get("facts")
            return Said(answer.status_code, str(error["code"]), str(error["message"]),
                        facts if isinstance(facts, dict) else {})  # fmt: skip
        if answer.is_redirect:
            return Unavailable("{url} sends elsewhere. Log in again with the address that a browser shows in the end.",
                               url=self.address.url)  # fmt: skip
        if answer.status_code == httpx.codes.NOT_FOUND:
            return NotFound(f"The service of remotegpu-hub at {self.address.url}")
        return self._lost(f"it answers {answer.status_code}", again)

    def _no_login(self) -> NoLogin:
        """Why the API does not take the token, by what the hub itself says of it."""
        try:
            known = self._client.get(self.address.url + "hub/api/user", timeout=10)
        except httpx.HTTPError:
            known = None
        if known is not None and known.is_success:
            return NoLogin(
                "This token lacks the scope {scope}. Make another one at {page}.", scope=REACH, page=self.token_page
            )
        return NoLogin("The hub does not know this token, or it has expired. Make another one at {page}.",
                       page=self.token_page)  # fmt: skip

    @property
    def token_page(self) -> str:
        """Where a user makes a token."""
        return f"{self.address.url}hub/token"


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        if answer.is_success:
            raise Unavailable(
                "What answers at {url} is no API of ours.", url=str(answer.url.copy_with(query=None))
            ) from None
        return None


def _seconds(text: str | None) -> float:
    try:
        return max(1.0, float(text or ""))
    except ValueError:
        return 5.0


def _why(error: httpx.HTTPError) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
