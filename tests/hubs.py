"""A real JupyterHub with its proxy on free loopback ports, in a folder of its own, for tests and benchmarks.

    with RealHub(folder, CONFIG) as hub:
        hub.api("POST", "users/alice").raise_for_status()

`CONFIG` is the text of a jupyterhub_config.py; it is read after the part that sets ports and paths, so it may overwrite
any of that. Nothing that was started outlives the `with`, whatever was killed in between.
"""

import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from remotegpu_hub.clients import processes

ROOT = Path(__file__).resolve().parent.parent
ADMIN = "admin"
PASSWORD = "a-password-for-tests"
TRUST = httpx.create_ssl_context()
"""Certificates that are read once. Else each request reads them, for 30 ms, though no hub here speaks HTTPS."""

BASE_CONFIG = """
import os
c = get_config()
c.JupyterHub.bind_url = os.environ["TEST_HUB_URL"]
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.hub_port = int(os.environ["TEST_HUB_PORT"])
c.JupyterHub.db_url = os.environ["TEST_HUB_DB_URL"]
c.JupyterHub.cookie_secret_file = os.path.abspath("cookie_secret")
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:" + os.environ["TEST_HUB_PROXY_PORT"]
c.ConfigurableHTTPProxy.command = [os.environ["TEST_HUB_PROXY"]]
c.ConfigurableHTTPProxy.pid_file = os.path.abspath("proxy.pid")
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["TEST_HUB_PASSWORD"]
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}
c.JupyterHub.allow_named_servers = True
c.JupyterHub.services = [
    {"name": "test-starter", "api_token": os.environ["TEST_HUB_STARTER_TOKEN"], "admin": True}
]
c.Spawner.environment = {"TEST_HUB_MARK": os.environ["TEST_HUB_MARK"]}
"""

SMALL_SERVER = """
import http.server, os, urllib.parse
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b'{"version": "small"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *said): pass
url = urllib.parse.urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.ThreadingHTTPServer((url.hostname, url.port), Answer).serve_forever()
"""
"""A single-user server that answers 200 to everything, some 50 ms after its start."""

SMALL_SPAWNER = f"""
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = os.path.abspath("home-{{username}}")
c.Spawner.cmd = {[sys.executable, "-S", "-E", "-c", SMALL_SERVER]!r}
"""
"""Config of a hub without us: every user as the hub's own user, with the small server."""


class HubFailed(Exception):
    """The hub did not start or did not stop; the text ends with the end of its log."""


class RealHub:
    """A hub process that can be started, stopped, killed and started again on the same ports and database."""

    def __init__(
        self,
        folder: Path,
        config: str = SMALL_SPAWNER,
        *,
        environment: Mapping[str, str] | None = None,
        db_url: str | None = None,
        base_url: str = "/",
        arguments: Sequence[str] = (),
    ) -> None:
        """`db_url` defaults to an SQLite file in the folder; `arguments` go to the hub's command line."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.hub_port, self.proxy_port = free_ports(3)
        self.base_url = base_url
        self.url = f"http://127.0.0.1:{self.port}{base_url}"
        """Through the proxy, as a browser sees it."""
        self.api_url = f"http://127.0.0.1:{self.hub_port}{base_url}hub/api"
        """Without the proxy, as services see it."""
        self.db_url = db_url or f"sqlite:///{self.folder / 'jupyterhub.sqlite'}"
        self.log = self.folder / "hub.log"
        self.token = ""
        """An API token of the user `admin`, with all of an admin's scopes."""
        self.arguments = tuple(arguments)
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = secrets.token_hex(8)
        self._starter_token = secrets.token_hex(16)
        self._environment = dict(environment or {})
        self.config_file = self.folder / "jupyterhub_config.py"
        self.configure(config)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self.process, "the hub was not started"
        return self.process.pid

    def configure(self, config: str) -> None:
        """Write the config that the next start reads."""
        self.config_file.write_text(BASE_CONFIG + config)

    def begin(self) -> None:
        """Start the process and do not wait for anything."""
        assert self.process is None or self.process.poll() is not None, "the hub runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(self.config_file), *self.arguments],
                cwd=self.folder,
                env=self._env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Whoever runs the tests in the background of a shell ignores SIGINT; the hub must not inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )

    def start(self, timeout_seconds: float = 180) -> None:
        """Start it and wait until users can log in through the proxy. Raises: HubFailed."""
        self.begin()
        self.wait_ready(timeout_seconds)
        answer = self._ask("GET", "user", self.token) if self.token else None
        if answer is None or not answer.is_success:
            self.token = self.token_of(ADMIN)

    def wait_ready(self, timeout_seconds: float = 180) -> None:
        """Wait until the hub answers through the proxy. Raises: HubFailed."""
        deadline = time.monotonic() + timeout_seconds
        assert self.process
        while True:
            if self.process.poll() is not None:
                raise HubFailed(f"The hub ended with {self.process.returncode}.\n{self.log_tail()}")
            try:
                if httpx.get(f"{self.url}hub/health", timeout=2, verify=TRUST, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise HubFailed(f"The hub did not answer within {timeout_seconds:g} s.\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self, timeout_seconds: float = 30) -> None:
        """End it as an operator does, and wait. Raises: HubFailed."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise HubFailed(f"The hub did not stop within {timeout_seconds:g} s.\n{self.log_tail()}") from None

    def kill(self) -> None:
        """End the hub process alone, at once: proxy, services and servers live on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self, *, killed: bool = False) -> None:
        """Stop or kill it, then start it again."""
        if killed:
            self.kill()
        else:
            self.stop()
        self.start()

    def close(self) -> None:
        """Stop it if it runs, then end everything that it left behind."""
        try:
            self.stop()
        finally:
            self.kill()
            self.sweep()

    def sweep(self, timeout_seconds: float = 10) -> None:
        """Kill what carries this hub's mark or its API address: proxy, services, servers. Raises: HubFailed."""
        deadline = time.monotonic() + timeout_seconds
        while left := list(self.leftovers()):
            if time.monotonic() > deadline:
                raise HubFailed(f"These do not end: {left}")
            for process in left:
                processes.send(process, signal.SIGKILL)
            time.sleep(0.02)

    def leftovers(self) -> Iterator[processes.Process]:
        """Living processes that this hub started, at any depth, as far as they kept their env vars."""
        wanted = (
            f"\0TEST_HUB_MARK={self._mark}\0".encode(),
            f"\0JUPYTERHUB_API_URL=http://127.0.0.1:{self.hub_port}{self.base_url}hub/api\0".encode(),
        )
        for entry in os.listdir("/proc"):
            if not entry.isdecimal() or int(entry) in {os.getpid(), self.process.pid if self.process else 0}:
                continue
            try:
                text = b"\0" + Path(f"/proc/{entry}/environ").read_bytes() + b"\0"
                process = (
                    processes.parse_mark(processes.mark_of(int(entry))) if any(w in text for w in wanted) else None
                )
            except Exception:  # it ended meanwhile, or is not ours to read
                continue
            if process:
                yield process

    def api(
        self, method: str, path: str, *, token: str | None = None, json: Any = None, timeout_seconds: float = 30
    ) -> httpx.Response:
        """Call the hub's REST API, as the admin unless another token is given."""
        return self._ask(method, path, token or self.token, json=json, timeout_seconds=timeout_seconds)

    def token_of(self, user_name: str, scopes: Sequence[str] | None = None) -> str:
        """Make an API token of a user, who is made when missing; all of the user's scopes unless some are named."""
        self._ask("POST", f"users/{user_name}", self._starter_token)
        wish = {"note": "test"} | ({"scopes": list(scopes)} if scopes is not None else {})
        answer = self._ask("POST", f"users/{user_name}/tokens", self._starter_token, json=wish)
        assert answer.is_success, answer.text
        return str(answer.json()["token"])

    @contextmanager
    def login(self, user_name: str, password: str = PASSWORD, *, timeout_seconds: float = 30) -> Iterator[httpx.Client]:
        """Log in as a browser does; the client keeps the cookies and follows redirects."""
        with httpx.Client(
            base_url=self.url, follow_redirects=True, timeout=timeout_seconds, verify=TRUST, trust_env=False
        ) as client:
            xsrf = xsrf_of(client.get("hub/login"))
            answer = client.post("hub/login", data={"username": user_name, "password": password, "_xsrf": xsrf})
            assert not answer.url.path.endswith("/login"), f"{user_name} could not log in: {answer.text[:500]}"
            yield client

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def _ask(
        self, method: str, path: str, token: str, *, json: Any = None, timeout_seconds: float = 30
    ) -> httpx.Response:
        return httpx.request(
            method,
            f"{self.api_url}/{path}",
            json=json,
            headers={"Authorization": f"token {token}"},
            timeout=timeout_seconds,
            verify=TRUST,
            trust_env=False,
        )

    def _env(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTERHUB_", "CONFIGPROXY_"))}
        return {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
            "PYTHONUNBUFFERED": "1",
            "TEST_HUB_URL": self.url,
            "TEST_HUB_PORT": str(self.hub_port),
            "TEST_HUB_PROXY_PORT": str(self.proxy_port),
            "TEST_HUB_PROXY": proxy_command(),
            "TEST_HUB_DB_URL": self.db_url,
            "TEST_HUB_PASSWORD": PASSWORD,
            "TEST_HUB_STARTER_TOKEN": self._starter_token,
            "TEST_HUB_MARK": self._mark,
            **self._environment,
        }


def xsrf_of(page: httpx.Response) -> str:
    """The token that a form of this page must send back."""
    match = re.search(r'name="_xsrf" value="([^"]+)"', page.text)
    assert match, page.text[:500]
    return match[1]


def proxy_command() -> str:
    """Where set-up put the proxy."""
    beside = Path(sys.executable).parent / "configurable-http-proxy"
    command = str(beside) if beside.exists() else shutil.which("configurable-http-proxy")
    if not command:
        raise HubFailed("configurable-http-proxy is missing: `make test` installs it.")
    return command


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, outside the range that the kernel uses for outgoing connections."""
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise HubFailed("no free ports")
