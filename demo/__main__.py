"""`python -m demo`: start the demo hub, say where it is and who can log in, and end it cleanly.

Env vars: PORT (default 8000), STATE (folder, default ./.demo), TOKEN (an API token of the hub's admin, at least
8 characters). Everything that is written lies in STATE; every port is a loopback port.
"""

import ctypes
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import psutil

from remotegpu_hub import db, migrations
from remotegpu_hub.errors import RemoteGPUError

from . import offering
from .logins import LOGINS
from .seed import seed

ROOT = Path(__file__).resolve().parent.parent
MARK = "REMOTEGPU_DEMO_STATE"
"""Env var of the hub and its proxy: by it they are found again, whatever pid files say."""
START_SECONDS = 180
STOP_SECONDS = 60


class Trouble(Exception):
    """A sentence for the person at the terminal."""


class Stop(BaseException):
    """Somebody asked for the end."""


@dataclass(frozen=True)
class Wish:
    port: int
    state: Path
    token: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.state}/jupyterhub.sqlite"


def read_wish(environment: dict[str, str]) -> Wish:
    """Read PORT, STATE and TOKEN. Raises: Trouble."""
    text = environment.get("PORT") or "8000"
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise Trouble(f"PORT is {text!r}: it must be a number from 1 to 65535.")
    token = environment.get("TOKEN", "")
    if token and (len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token):
        raise Trouble("TOKEN must have at least 8 printable characters without spaces.")
    state = Path(environment.get("STATE") or ".demo").expanduser().resolve()
    if any(mark in str(state) for mark in "?#%"):
        raise Trouble(f"STATE is {state}: choose a folder without ?, # and % in its path.")
    return Wish(int(text), state, token)


def open_state(wish: Wish) -> None:
    """Make the folder, private, with the password; and the token's file where there is a token. Raises: Trouble."""
    state = wish.state
    password = state / "password"
    try:
        if state.exists() and not password.exists() and {path.name for path in state.iterdir()} - {"lock"}:
            raise Trouble(f"STATE is {state}, which holds other things: choose an empty folder or a new one.")
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
        if not password.exists():
            write_private(password, secrets.token_urlsafe(9))
        token = state / "admin-token"
        token.unlink(missing_ok=True)
        if wish.token:
            write_private(token, wish.token)
    except OSError as error:
        raise Trouble(f"STATE is {state}, which cannot be used: {error.strerror}.") from error


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 600, whole or not at all."""
    fresh = path.with_name(f".{path.name}-new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    fresh.replace(path)


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Keep a second demo out of the same folder. Raises: Trouble."""
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble(f"A demo runs already in {state}: stop it, or set STATE to another folder.") from None
        yield


def end_leftovers(state: Path) -> None:
    """End the hub and the proxy of a demo that was killed in this folder. A reused pid is never touched."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(state):
                process.terminate()
                left.append(process)
        except psutil.Error:
            continue
    if left:
        print(f"demo: ending {len(left)} processes of an earlier run", flush=True)
    for process in psutil.wait_procs(left, timeout=10)[1]:
        process.kill()
    (state / "proxy.pid").unlink(missing_ok=True)


def check_port(port: int) -> None:
    """Raises: Trouble when the port cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise Trouble(f"Port {port} needs more rights: choose one from 1024 on, such as PORT=8123.") from None
        except OSError:
            raise Trouble(f"Port {port} is in use: stop what uses it, or choose another, such as PORT=8123.") from None


def hub_port(state: Path) -> int:
    """The hub's inner port: the same as last time if it is free, since servers that still run call back there."""
    remembered = state / "hub-port"
    try:
        port = int(remembered.read_text())
        check_port(port)
    except (OSError, ValueError, Trouble):
        port = free_port()
        remembered.write_text(str(port))
    return port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done while it is done, and how long it took."""
    began = time.monotonic()
    print(f"demo: {what} ...", flush=True)
    yield
    print(f"demo: {what}: {time.monotonic() - began:.1f} s", flush=True)


def make_tables(wish: Wish) -> None:
    db.prepare_sqlite(wish.database_url)
    engine = db.open_engine(wish.database_url)
    try:
        migrations.upgrade(engine)
    finally:
        engine.dispose()


def start_hub(wish: Wish) -> "subprocess.Popen[bytes]":
    """Start JupyterHub in a session of its own, so that Ctrl-C reaches it only through us."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TOKEN", "PORT", "STATE")}
    environment.update(
        {
            MARK: str(wish.state),
            "REMOTEGPU_DEMO_PORT": str(wish.port),
            "REMOTEGPU_DEMO_HUB_PORT": str(hub_port(wish.state)),
            "REMOTEGPU_DEMO_PROXY_PORT": str(free_port()),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
    )
    with (wish.state / "hub.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(ROOT / "demo" / "jupyterhub_config.py")],
            cwd=wish.state,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_follow_us,  # noqa: PLW1509 - this program has no threads
        )


def _follow_us() -> None:
    """Undo what a shell's `&` does to SIGINT, and ask the kernel to end the hub when we are killed."""
    pr_set_pdeathsig = 1
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def wait_for_login(wish: Wish, hub: "subprocess.Popen[bytes]") -> None:
    """Wait until the login page answers through the proxy. Raises: Trouble."""
    deadline = time.monotonic() + START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if hub.poll() is not None:
            raise Trouble(f"The hub ended while it started. {last_lines(wish)}")
        try:
            with direct.open(f"{wish.address}hub/login", timeout=5) as page:
                if page.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.2)
    raise Trouble(f"The hub did not answer within {START_SECONDS} s. {last_lines(wish)}")


def last_lines(wish: Wish) -> str:
    log = wish.state / "hub.log"
    lines = log.read_text(errors="replace").splitlines()[-12:]
    return "\n".join([f"The end of {log}:", *lines])


def fill(wish: Wish) -> None:
    engine = db.open_engine(wish.database_url)
    try:
        seed(engine, now=datetime.now(UTC))
    finally:
        engine.dispose()


def show(wish: Wish) -> None:
    password = (wish.state / "password").read_text().strip()
    rows = [("login", "password", "who"), *((login.name, password, login.who) for login in LOGINS)]
    print(f"\n  {wish.address}\n")
    for row in rows:
        print("  {:<8} {:<14} {}".format(*row))
    print("\n  No isolation: everybody runs as you. Only for trying out, on this machine.")
    if not offering.real_gpus():
        print("  The GPUs are simulated: this machine has none.")
    print(f"  Log: {wish.state / 'hub.log'}. Ctrl-C stops.\n")
    print(f"ready {wish.address}", flush=True)


def stop_hub(hub: "subprocess.Popen[bytes]", state: Path) -> None:
    """Let the hub end its servers and its proxy; a second request, or too long a wait, kills what is left."""
    try:
        if hub.poll() is None:
            with step("stopping"):
                hub.send_signal(signal.SIGTERM)
                hub.wait(STOP_SECONDS)
    except (Stop, subprocess.TimeoutExpired):
        hub.kill()
        hub.wait()
    finally:
        end_leftovers(state)


def run(wish: Wish) -> int:
    """Serve until somebody asks for the end. Raises: Trouble."""
    open_state(wish)
    with only_one(wish.state):
        end_leftovers(wish.state)
        check_port(wish.port)
        with step("tables"):
            make_tables(wish)
        hub = start_hub(wish)
        try:
            with step("hub"):
                wait_for_login(wish, hub)
            with step("workspaces, quotas, prices"):
                fill(wish)
            show(wish)
            hub.wait()
            raise Trouble(f"The hub ended by itself. {last_lines(wish)}")
        except Stop:
            return 0
        finally:
            stop_hub(hub, wish.state)


def main() -> int:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stop

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        return run(read_wish(dict(os.environ)))
    except (Trouble, RemoteGPUError) as trouble:
        print(f"demo: {trouble}", file=sys.stderr)
        return 1
    except Stop:
        return 0


if __name__ == "__main__":
    sys.exit(main())
