"""A real hub with us in it: `configure(c)`, the services, simulated GPUs, and small servers that start in a moment and
write down what they were given and when they lived.

    with GpuHub(folder) as hub:
        hub.start_server("alice", {"workspace": "lab", "gpus": 1, "gpu_model": A100})
        hub.check()
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sqlalchemy import Engine, select

from remotegpu_hub import workers
from remotegpu_hub.clients import processes
from remotegpu_hub.clients.hub import HubClient
from remotegpu_hub.db import begin, open_engine
from remotegpu_hub.domain import users
from remotegpu_hub.orm import Allocation, AllocationState, Host, HostModel, QuotaScope, Role, TickLease, Workspace
from remotegpu_hub.runtime import Runtime

from .hubs import TRUST, RealHub
from .worlds import A100, World

T = TypeVar("T")

GPUS = 4
MEMORY = "64M"

SERVER = r"""
import http.server, json, os, signal, sys, threading, time, urllib.parse
how, runs, home = sys.argv[1:4]
name = runs + "/" + os.environ["REMOTEGPU_ALLOCATION_ID"]

def born():
    stat = open("/proc/self/stat").read()
    ticks = int(stat[stat.rindex(")") + 2:].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))

def beat(path, first=None):
    with open(path, "a") as file:
        while True:
            file.write(repr(first or time.time()) + "\n")
            file.flush()
            first = None
            time.sleep(0.1)

def ignore():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

with open(name + ".part", "w") as file:
    json.dump({"env": dict(os.environ), "pid": os.getpid(), "uid": os.getuid(), "cwd": os.getcwd()}, file)
os.rename(name + ".part", name + ".json")
if how == "crash":
    sys.exit(3)
if how in ("stubborn", "family") and os.fork() == 0:
    ignore()
    if how == "stubborn":
        os.setsid()
    beat(name + ".child")
if how == "deaf":
    ignore()
threading.Thread(target=beat, args=(name + ".beats", born()), daemon=True).start()
while how == "mute" or os.path.exists(home + "/gate-listen-" + os.environ["JUPYTERHUB_USER"]):
    time.sleep(0.05)

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b'{"version": "small"}'
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6.1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *said): pass

url = urllib.parse.urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
try:
    http.server.ThreadingHTTPServer((url.hostname, url.port), Answer).serve_forever()
except KeyboardInterrupt:
    pass
"""
"""What an image runs. `how` it behaves: plain; crash; mute (never answers); deaf (ignores polite signals); family and
stubborn (leave a child behind that ignores them, in the server's session or one of its own)."""

HOWS = ("plain", "crash", "mute", "deaf", "family", "stubborn")

GATES = """
import asyncio, time
from dataclasses import replace
from functools import cache
from pathlib import Path
from remotegpu_hub.hub.local import DemoSpawner
from remotegpu_hub.runtime import Runtime

@cache
def without_database(path):
    return Runtime(replace(Runtime.read(path).settings, db_url="sqlite:////proc/none/here.sqlite"))

class Gated(DemoSpawner):
    # Waits while there is a file gate-STEP-USER, after making a file at-STEP-USER; breaks where break-STEP-USER is.
    # With break-database-USER our database is away, while the hub has its own.

    @property
    def runtime(self):
        if Path(f"break-database-{self.user.name}").exists():
            return without_database(self.runtime_file)
        return super().runtime

    def _waiting(self, step):
        who = f"{step}-{self.user.name}"
        Path(f"at-{who}").touch()
        while Path(f"gate-{who}").exists():
            yield
        if Path(f"break-{who}").exists():
            raise OSError(f"broken by a test: {who}")

    def _pass(self, step):
        for _ in self._waiting(step):
            time.sleep(0.02)

    async def _apass(self, step):
        for _ in self._waiting(step):
            await asyncio.sleep(0.02)

    def _admit(self, *given):
        self._pass("admit")
        held = super()._admit(*given)
        self._pass("admitted")
        return held

    async def prepare(self, held):
        await self._apass("prepare")
        await super().prepare(held)

    async def mark(self):
        await self._apass("mark")
        return await super().mark()

    def _activate(self, *given):
        self._pass("activate")
        super()._activate(*given)
        self._pass("activated")

    async def stop(self, now=False):
        await self._apass("stop")
        await super().stop(now)

    async def clear(self, run):
        await self._apass("clear")
        return await super().clear(run)

    async def poll(self):
        await self._apass("poll")
        return await super().poll()

    def _mark_ending(self, *given):
        self._pass("ending")
        super()._mark_ending(*given)

    def _release(self, *given):
        self._pass("release")
        super()._release(*given)

c.JupyterHub.spawner_class = Gated
"""
STEPS = ("admit", "admitted", "prepare", "mark", "activate", "activated", "listen")
"""Of a start, in order."""

QUICK = """
from jupyterhub.services import service
class Soon(service._ServiceSpawner):  # the hub sees after a second, not after half a minute, that a service ended
    poll_interval = 1
service._ServiceSpawner = Soon
c.Spawner.poll_interval = 1
c.Spawner.consecutive_failure_limit = 5
c.Spawner.http_timeout = 5
c.LocalProcessSpawner.interrupt_timeout = 1
c.LocalProcessSpawner.term_timeout = 1
c.LocalSpawner.clear_grace_seconds = 0.3
"""


@dataclass(frozen=True)
class Life:
    """What one run's processes wrote of themselves."""

    env: dict[str, str]
    pid: int
    uid: int
    began: float
    ended: float
    """The last beat of the server or its child, at most 0.1 s before the end of both; seconds since 1970."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def apart(work: Coroutine[Any, Any, T]) -> T:
    """Run it in a thread of its own: where a browser is driven, this one has a loop already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class GpuHub(RealHub):
    """A hub with `configure(c)` at the end of its configuration, and a seeded workspace `lab`."""

    def __init__(
        self,
        folder: Path,
        before: str = "",
        *,
        after: str = "",
        gated: bool = False,
        quick: str = QUICK,
        gpus: int = GPUS,
        members: Sequence[str] = ("alice", "bob"),
        python: str = sys.executable,
        **given: Any,
    ) -> None:
        """`before` and `after` stand above and below `configure(c)`; `python` runs the small servers."""
        self.gpus, self.model_of_gpus = gpus, A100
        self.runs = folder.resolve() / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.members = members
        program = self.runs / "server.py"
        program.write_text(SERVER)
        self.images = {
            f"local:{how}": {
                "display_name": f"{number} {how}",
                "cmd": [python, "-S", "-E", str(program)],
                "args": [how, str(self.runs), str(folder.resolve())],
            }
            for number, how in enumerate(HOWS)
        }
        ours = f"""
from remotegpu_hub.configure import configure
c.RemoteGPU.insecure_demo = True
c.RemoteGPU.simulated_gpus = [{{"model": "{A100}", "memory_mib": 81920, "count": {gpus}}}]
c.RemoteGPU.default_cpu, c.RemoteGPU.default_memory = "0.1", "{MEMORY}"
c.RemoteGPU.reserve_cpu, c.RemoteGPU.reserve_memory = "0", "0"
c.RemoteGPU.images = {self.images!r}
c.RemoteGPU.personal_quota = {{"cpu": "1", "memory": "1G", "environments": 3}}
{quick}{GATES if gated else ""}{before}
configure(c)
{after}"""
        super().__init__(folder, ours, **given)

    def start(self, timeout_seconds: float = 180) -> None:
        super().start(timeout_seconds)
        self.until(lambda: self.ticked("sync") and self.ticked("reconcile"), "the services ticked")
        if not self.world.read(select(Workspace.id).where(Workspace.name == "lab")):
            self.seed()

    def close(self) -> None:
        try:
            super().close()
        finally:
            if "engine" in vars(self):
                self.engine.dispose()

    @property
    def runtime_file(self) -> Path:
        return self.folder / "remotegpu-runtime.json"

    @property
    def runtime(self) -> Runtime:
        return Runtime.read(str(self.runtime_file))

    @cached_property
    def engine(self) -> Engine:
        return open_engine(self.db_url)

    @property
    def world(self) -> World:
        return World(self.engine, datetime.now(UTC).replace(microsecond=0))

    def seed(self) -> None:
        """Quotas that allow much, prices that every second tells, and a team `lab`."""
        self.add_users(*self.members)
        world = self.world
        world.workspace("lab", owner=self.members[0], members=dict.fromkeys(self.members[1:], Role.MEMBER))
        world.quota(QuotaScope.USER_DEFAULT)
        world.quota(QuotaScope.WORKSPACE_DEFAULT)
        for resource, amount in {f"gpu:{A100}": 3600, "cpu": 36, "memory": 1}.items():
            world.price(resource, amount)

    def add_users(self, *names: str) -> None:
        """Make the hub's users and ours, as the next sync would."""
        answer = self.api("POST", "users", json={"usernames": list(names)})
        assert answer.status_code in {201, 409}, answer.text
        self.with_site(lambda site: workers.sync(self.runtime, site))

    # servers

    def image(self, how: str) -> str:
        """The image whose server behaves like this."""
        return f"local:{how}"

    def path(self, user: str, server: str = "") -> str:
        return f"users/{user}/servers/{server}" if server else f"users/{user}/server"

    def ask(self, user: str, options: Mapping[str, Any] | None = None, *, server: str = "") -> httpx.Response:
        """Ask the hub for a start."""
        body = None if options is None else {"user_options": dict(options), "display_name": server}
        return self.api("POST", self.path(user, server), json=body)

    def start_server(self, user: str, options: Mapping[str, Any] | None = None, *, server: str = "") -> Life:
        """Start and wait until it answers; what the process was given."""
        answer = self.ask(user, options, server=server)
        assert answer.status_code in {201, 202}, f"{answer.status_code} {answer.text}\n{self.log_tail()}"
        self.until(lambda: self.model(user, server).get("ready"), f"{user}/{server} is ready")
        return self.life(self.run_of(user, server).id)

    def stop_server(self, user: str, server: str = "") -> None:
        """Stop and wait until nothing is held any more."""
        answer = self.api("DELETE", self.path(user, server))
        assert answer.status_code in {202, 204}, answer.text
        self.until_free(user, server)

    def stop_all(self) -> list[str]:
        """Stop what still holds something, for the next test; the servers that did."""
        left = []
        for run in self.open_runs():
            with begin(self.engine, read_only=True) as session:
                found = session.get_one(Allocation, run.id)
                user, server = found.user.name, found.environment.server_name
            left.append(f"{user}/{server}")
            self.api("DELETE", self.path(user, server))
        self.until(lambda: not self.open_runs(), "nothing is held")
        return left

    def model(self, user: str, server: str = "") -> dict[str, Any]:
        """What the hub says of a server; empty when it does not run."""
        found: dict[str, Any] = self.api("GET", f"users/{user}").json().get("servers", {}).get(server, {})
        return found

    def until_free(self, user: str, server: str = "", *, seconds: float = 60) -> None:
        self.until(lambda: not self.held_by(user, server), f"{user}/{server} holds nothing", seconds)
        self.until(lambda: not self.model(user, server), f"the hub forgot {user}/{server}", seconds)

    def until(self, true: Callable[[], Any], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.log_tail()}"
            time.sleep(0.05)

    # gates

    @contextmanager
    def gate(self, step: str, user: str, kind: str = "gate") -> Iterator[Callable[[], None]]:
        """Keep this user's starts from passing a step, or `break` them there; what is given waits until one came."""
        at, door = self.folder / f"at-{step}-{user}", self.folder / f"{kind}-{step}-{user}"
        at.unlink(missing_ok=True)
        door.touch()
        try:
            yield lambda: self.until(at.exists, f"{user} came to {step}")
        finally:
            door.unlink(missing_ok=True)

    # what is true

    def open_runs(self) -> list[Allocation]:
        return self.world.open_runs()

    def held_by(self, user: str, server: str = "") -> list[Allocation]:
        return [one for one in self.all_runs(user, server) if one.state != AllocationState.ENDED]

    def all_runs(self, user: str, server: str = "") -> list[Allocation]:
        """Every run of this server of the live user of this name, oldest first."""
        with begin(self.engine, read_only=True) as session:
            row = users.current(session, name=user)
            query = select(Allocation).where(Allocation.user_id == row.id).order_by(Allocation.id)
            found = [one for one in session.scalars(query) if one.environment.server_name == server]
            for one in found:
                session.refresh(one, ["slots", "ports", "environment", "workspace", "user"])
            return found

    def run_of(self, user: str, server: str = "") -> Allocation:
        """The newest run."""
        return self.all_runs(user, server)[-1]

    def gpus_of(self, user: str, server: str = "") -> list[str]:
        with begin(self.engine, read_only=True) as session:
            run = session.get_one(Allocation, self.run_of(user, server).id)
            return [slot.gpu.uuid for slot in run.slots if slot.open]

    def life(self, allocation_id: int) -> Life:
        path = self.runs / f"{allocation_id}.json"
        self.until(path.exists, f"run {allocation_id} wrote what it was given")
        said = json.loads(path.read_text())
        times = []
        for kind in ("beats", "child"):
            path = self.runs / f"{allocation_id}.{kind}"
            times += [float(line) for line in path.read_text().splitlines()] if path.exists() else []
        return Life(said["env"], said["pid"], said["uid"], min(times, default=0.0), max(times, default=0.0))

    def trees(self) -> dict[int, frozenset[processes.Process]]:
        """Living processes of this hub's runs."""
        return dict(processes.read(self.runtime.settings.hub_id).trees)

    def ticked(self, name: str) -> bool:
        """Whether a tick was done since this hub process began."""
        if not self.runtime_file.exists():
            return False
        with begin(self.engine, read_only=True) as session:
            lease = session.get(TickLease, name)
            return lease is not None and lease.last_done_at is not None and (
                lease.last_done_at > self.runtime.settings.started
            )  # fmt: skip

    @asynccontextmanager
    async def site(self) -> AsyncIterator[workers.Site]:
        """Where this hub's runs live."""
        yield workers.box(self.runtime)

    def with_site(self, work: Callable[[workers.Site], Awaitable[T]]) -> T:
        async def once() -> T:
            async with self.site() as site:
                return await work(site)

        return apart(once())

    def reconcile(self) -> list[workers.Repair]:
        """Compare and repair once, as the service does each minute."""

        async def once(site: workers.Site) -> list[workers.Repair]:
            async with HubClient(self.api_url, self.token) as client:
                return await workers.reconcile(self.runtime, client.servers, site)

        return self.with_site(once)

    def service_pid(self, name: str) -> int:
        """The process of a service that answers now."""
        return int(Path(f"{self.runtime_file}.{name}.pid").read_text())

    def service(self, name: str, path: str, *, token: str | None = None) -> httpx.Response:
        """Ask a service of ours through the proxy."""
        return httpx.get(
            f"{self.url}services/{name}/{path}",
            headers={"Authorization": f"token {token}"} if token else {},
            timeout=30,
            verify=TRUST,
            trust_env=False,
        )

    def used(self) -> tuple[int, int]:
        """Environments and GPU slots that the host's counters call held."""
        with begin(self.engine, read_only=True) as session:
            hosts, models = session.scalars(select(Host)).all(), session.scalars(select(HostModel)).all()
            return sum(host.used_environments for host in hosts), sum(model.used for model in models)

    def check(self) -> None:
        """Assert that what is held runs, that what runs is held, and that all sums are right."""
        self.world.check()
        self.until(lambda: set(self.trees()) == {run.id for run in self.open_runs()}, "what lives is held", seconds=10)
