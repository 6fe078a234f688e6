"""Two real hubs side by side: one with us in it, one with the plain spawner and the same command, each with its proxy,
its SQLite file, and one folder. Servers tell their address, so that a benchmark can ask them without the hub."""

import http.client
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import psutil

from benchmarks.parts.loop_time import told
from tests.gpu_hubs import A100, GpuHub
from tests.hubs import ROOT, SMALL_SERVER, RealHub

LAB = [sys.executable, "-m", "jupyterhub.singleuser", "--allow-root"]
SMALL = [sys.executable, "-S", "-E", "-c", SMALL_SERVER]
PROBE_SECONDS = 0.002
"""Between two looks at whether a server answers."""

TOLD = 'echo "$JUPYTERHUB_SERVICE_URL" > {folder}/told-$JUPYTERHUB_USER.part; ' \
    'mv {folder}/told-$JUPYTERHUB_USER.part {folder}/told-$JUPYTERHUB_USER; exec "$0" "$@"'  # fmt: skip

COMMON = """
c.JupyterHub.concurrent_spawn_limit = 0
c.Spawner.http_timeout = 120
c.Spawner.start_timeout = 120
c.JupyterHub.log_level = "WARN"
"""
PLAIN = (
    COMMON
    + """
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = os.path.abspath("home-{{username}}")
c.Spawner.cmd = {command!r}
"""
)
OURS_BEFORE = (
    COMMON
    + """
c.RemoteGPU.images = {{"local:measured": {{"display_name": "measured", "cmd": {command!r}}}}}
"""
)
OURS_AFTER = """
import time as _time
from remotegpu_hub.clients import cgroups as _cgroups
from remotegpu_hub.hub import spawner as _spawner

_admit, _create = _spawner.RemoteGPUMixin._admit, _cgroups.create

def _timed(self, *given):
    begin = _time.perf_counter()
    try:
        return _admit(self, *given)
    finally:
        with open("admit-ms", "a") as file:
            file.write(str(1000 * (_time.perf_counter() - begin)) + "\\n")

_spawner.RemoteGPUMixin._admit = _timed
# Without a cap on cores: the plain spawner has none, and a small machine has too few to share among so many.
_cgroups.create = lambda name, cpu_millis, memory_bytes: _create(name, None, memory_bytes)
"""
WATCHED = """
import sys as _sys
_sys.path.insert(0, {root!r})
from jupyterhub.spawner import LocalProcessSpawner as _Local, Spawner as _Base
from benchmarks.parts import loop_time as _loop_time
{ours}
_loop_time.install(os.path.abspath("loop.json"), ours=_ours, theirs=[_Local, _Base])
"""
OURS_CLASSES = """
from remotegpu_hub.hub import local as _local, spawner as _spawner
_ours = [_spawner.RemoteGPUMixin, _local.LocalSpawner, _local.DemoSpawner]
"""


@dataclass
class Side:
    """One of the two hubs, and how to start a server in it."""

    name: str
    hub: RealHub
    options: dict[str, Any] | None
    """What a start asks of us; the plain spawner is asked for nothing."""

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            headers={"Authorization": f"token {self.hub.token}"}, timeout=150, trust_env=False,
            limits=httpx.Limits(max_connections=100),
        )  # fmt: skip

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        return self.client.request(method, f"{self.hub.api_url}/{path}", **given)

    def start(self, user: str, server: str = "") -> None:
        body = {"user_options": self.options} if self.options else {}
        answer = self.ask("POST", _path(user, server), json=body)
        if answer.status_code not in {201, 202}:
            raise SystemExit(f"{self.name}: {answer.status_code} {answer.text}\n{self.hub.log_tail()}")

    def first_answer(self, user: str) -> float:
        """Start a server and return the seconds from the request to its own first 200."""
        told = self.hub.folder / f"told-{user}"
        told.unlink(missing_ok=True)
        with ThreadPoolExecutor(1) as pool:
            begin = time.perf_counter()
            asked = pool.submit(self.start, user)
            deadline = begin + 120
            while not told.exists():
                time.sleep(PROBE_SECONDS)
                if asked.done():
                    asked.result()
                if time.perf_counter() > deadline:
                    raise SystemExit(f"{self.name}: no server was started.\n{self.hub.log_tail()}")
            address = urlparse(told.read_text().strip())
            while not _answers(address.hostname, address.port, f"{address.path}api"):
                time.sleep(PROBE_SECONDS)
                if time.perf_counter() > deadline:
                    raise SystemExit(f"{self.name}: the server does not answer.\n{self.hub.log_tail()}")
            seconds = time.perf_counter() - begin
            asked.result()
        self.until_all(1, ready=True)
        return seconds

    def start_all(self, servers: Sequence[tuple[str, str]], *, at_once: int) -> None:
        """Start many and wait until the hub calls each of them ready."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda one: self.start(*one), servers))
        self.until_all(len(servers), ready=True)

    def stop_all(self) -> None:
        running = [(user, server) for user, server, _ready in self.servers()]
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda one: self.ask("DELETE", _path(*one)), running))
        self.until_all(0, ready=False)
        if isinstance(self.hub, GpuHub):
            self.hub.until(lambda: not self.hub.open_runs(), "nothing is held", 120)  # type: ignore[attr-defined]

    def servers(self) -> list[tuple[str, str, bool]]:
        """User, name and readiness of each server that is not stopped."""
        users = self.ask("GET", "users?state=active&limit=200").json()
        return [
            (user["name"], name, server["ready"]) for user in users for name, server in user["servers"].items()
        ]  # fmt: skip

    def until_all(self, count: int, *, ready: bool) -> None:
        deadline = time.monotonic() + 300
        while len(found := self.servers()) != count or (ready and not all(one[2] for one in found)):
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name}: {len(found)} of {count} servers.\n{self.hub.log_tail()}")
            time.sleep(0.1)

    def resident_mib(self) -> float:
        """Memory of the hub's own process."""
        return float(psutil.Process(self.hub.pid).memory_info().rss / 2**20)

    def loop_times(self) -> dict[str, Any]:
        """What a watched hub saw of its loop since the last call."""
        return told(self.hub.pid, self.hub.folder)


@contextmanager
def pair(
    folder: Path, command: Sequence[str], *, users: Sequence[str], wish: dict[str, Any], watched: bool = False
) -> Iterator[tuple[Side, Side]]:
    """Ours and the plain one, warm: each has started and stopped a server. `wish` is what a start asks of us."""
    with ExitStack() as stack:
        sides = []
        for name, make in (("ours", _ours), ("plain", _plain)):
            place = folder / name
            place.mkdir(parents=True)
            told = ["/bin/sh", "-c", TOLD.format(folder=place), *command]
            hub = stack.enter_context(make(place, told, users, watched))
            side = Side(name, hub, {"workspace": "lab", "image": "local:measured", **wish} if name == "ours" else None)
            stack.callback(side.client.close)
            if name == "plain":
                side.ask("POST", "users", json={"usernames": list(users)})
            side.first_answer(users[0])
            side.stop_all()
            (place / "admit-ms").unlink(missing_ok=True)
            sides.append(side)
        yield sides[0], sides[1]


def _ours(folder: Path, command: Sequence[str], users: Sequence[str], watched: bool) -> RealHub:
    watch = WATCHED.format(root=str(ROOT), ours=OURS_CLASSES) if watched else ""
    before = OURS_BEFORE.format(command=list(command))
    return GpuHub(folder, before, after=OURS_AFTER + watch, quick="", gpus=64, members=users)


def _plain(folder: Path, command: Sequence[str], users: Sequence[str], watched: bool) -> RealHub:
    watch = WATCHED.format(root=str(ROOT), ours="_ours = []") if watched else ""
    return RealHub(folder, PLAIN.format(command=list(command)) + watch)


def _path(user: str, server: str) -> str:
    return f"users/{user}/servers/{server}" if server else f"users/{user}/server"


def _answers(host: str | None, port: int | None, path: str) -> bool:
    connection = http.client.HTTPConnection(host or "", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


ONE_GPU = {"gpu_model": A100, "gpus": 1}
Work = Callable[[Side], Any]
