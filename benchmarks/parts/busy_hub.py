"""A real hub in which many environments run: users with four each, in forty workspaces, on hosts × 8 simulated GPUs.

Their runs went through the street, one admission each, and began three hours ago, which the ledger has. Each is a
process that only sleeps and carries the mark of its run, and the hub knows each as a server that is ready, so that its
polls, the reconciler and the sync find what they would find, and leave it alone. All servers answer at one address, as
far as the hub asks.
"""

import http.server
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jupyterhub import __version__ as hub_version
from jupyterhub import orm as hub_orm
from sqlalchemy import select
from sqlalchemy.orm import Session

from remotegpu_hub import workers
from remotegpu_hub.clients import processes
from remotegpu_hub.db import begin
from remotegpu_hub.domain import users
from remotegpu_hub.domain.environments import Choice
from remotegpu_hub.orm import Allocation, QuotaScope, Role
from remotegpu_hub.units import GIB
from tests.gpu_hubs import GpuHub
from tests.hubs import RealHub
from tests.worlds import A100, Prepared, World, host

SERVERS_EACH = 4
WORKSPACES = 40
GPUS_PER_HOST = 8
THREADS = 8
LOGINS = 4
"""At once: the hub makes them on its one loop."""
RUN_FOR = timedelta(hours=3)
SLEEP = ("sleep", "7200")
"""Ends by itself, should this program be killed."""
QUIET = """
c.JupyterHub.log_level = "WARN"
c.Spawner.http_timeout = 120
"""


@dataclass(frozen=True)
class Reader:
    """A user with a browser that has logged in: what it sends to the pages of the service, and to the hub's own."""

    name: str
    cookie: str
    xsrf: str
    hub_cookie: str


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", hub_version)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_said: object) -> None:
        pass


@contextmanager
def _answering() -> Iterator[int]:
    """A port at which every server seems to answer, as the hub asks each once when it starts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class BusyHub(GpuHub):
    """Once started it is empty; `fill` lets it run, and starts it anew."""

    def __init__(self, folder: Path, *, users: int, db_url: str) -> None:
        names = [f"user-{number}" for number in range(users)]
        super().__init__(folder, QUIET, quick="", members=names, db_url=db_url)
        self.sleeping: list[subprocess.Popen[bytes]] = []

    @property
    def servers(self) -> list[tuple[str, str, str]]:
        """User, server and workspace of all that run; each user works in two workspaces."""
        return [
            (user, f"s-{number}", self.space(place + number % 2 * 7))
            for place, user in enumerate(self.members)
            for number in range(SERVERS_EACH)
        ]

    def space(self, number: int) -> str:
        number %= min(WORKSPACES, len(self.members))
        return f"space-{number}" if number else "lab"

    def start(self, timeout_seconds: float = 600) -> None:
        RealHub.start(self, timeout_seconds)
        self.until(lambda: self.ticked("sync") and self.ticked("reconcile"), "the services ticked", 300)

    def close(self) -> None:
        """An orderly end would stop each server by itself, which takes minutes."""
        self.kill()
        super().close()
        for process in self.sleeping:
            process.wait()

    def fill(self) -> None:
        """Let everything run that is to run."""
        self._people()
        self._hosts()
        self.stop()
        with _answering() as port:
            self._run(port)
            self.start()
            self.until(lambda: len(self.ready()) == len(self.servers), "the hub knows all servers", 300)
        workers.meter(self.runtime)
        assert len(self.open_runs()) == len(self.servers)

    def _people(self) -> None:
        self.add_users(*self.members)
        world = self.world
        world.quota(QuotaScope.USER_DEFAULT, gpu_millis=8000, cpu_millis=64_000, memory_bytes=512 * GIB,
                    storage_bytes=1000 * GIB, environments=8, gpu_hours=1000)  # fmt: skip
        world.quota(QuotaScope.WORKSPACE_DEFAULT)
        for resource, amount in {f"gpu:{A100}": 12, "cpu": 0.5, "memory": 0.25}.items():
            world.price(resource, amount)
        for number in range(min(WORKSPACES, len(self.members))):
            name = self.space(number)
            there = {user for user, _server, space in self.servers if space == name} - {self.members[number]}
            world.workspace(name, owner=self.members[number], members=dict.fromkeys(sorted(there), Role.MEMBER),
                            display_name=f"Research group {number}")  # fmt: skip

    def _hosts(self) -> None:
        """In a pool that the sync of this machine does not speak for."""
        count = -(-len(self.servers) // 2 // GPUS_PER_HOST)
        self.world.see(*(host(f"node-{number}", GPUS_PER_HOST, pool="played") for number in range(count)))

    def _run(self, port: int) -> None:
        """Admit, start and activate each; then write what the hub keeps of a server that runs."""
        with ThreadPoolExecutor(THREADS) as threads:
            runs = list(threads.map(self._run_one, range(len(self.servers))))
        now = datetime.now(UTC).replace(tzinfo=None)
        with Session(self.engine) as session, session.begin():
            ids = {user.name: user.id for user in session.scalars(select(hub_orm.User))}
            for (user, server, _space), (run, pid) in zip(self.servers, runs, strict=True):
                kept = {"attempt": run.attempt, "allocation_id": run.id, "mark": run.mark}
                session.add(
                    hub_orm.Spawner(
                        user_id=ids[user], name=server, started=now, last_activity=now, user_options={},
                        state={"pid": pid, "remotegpu": kept},
                        server=hub_orm.Server(ip="127.0.0.1", port=port, base_url=f"/user/{user}/{server}/"),
                    )
                )  # fmt: skip

    def choice(self, number: int) -> dict[str, Any]:
        """What the server of this number is to be; half of them have a GPU."""
        return {
            "image": self.image("plain"), "gpu_model": A100 if number % 2 else None, "gpus": number % 2,
            "cpu_millis": 2000, "memory_bytes": 16 * GIB,
            "name": f"Experiment {number % SERVERS_EACH + 1} of {self.servers[number][0]}",
        }  # fmt: skip

    def _run_one(self, number: int) -> tuple[Allocation, int]:
        world = World(self.engine, self.world.now - RUN_FOR)
        user, server, space = self.servers[number]
        choice = Choice(workspace=space, **self.choice(number))
        wish = world.resolve(user, choice, server=server)
        with begin(self.engine, read_only=True) as session:
            prepared = Prepared(users.by_name(session, name=user), server, wish)
        admitted = world.start(prepared, attempt=f"built-{number}")
        marks = processes.environment(self.runtime.settings.hub_id, admitted.id)
        process = subprocess.Popen(SLEEP, env={**os.environ, **marks, "TEST_HUB_MARK": self._mark}, cwd="/",
                                   stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        self.sleeping.append(process)
        return world.activate(admitted.attempt, mark=processes.mark_of(process.pid)), process.pid

    def ready(self) -> list[tuple[str, str]]:
        """Servers that the hub calls ready."""
        found, offset = [], 0
        while page := self.api("GET", f"users?state=ready&limit=50&offset={offset}").json():
            found += [(user["name"], name) for user in page for name, one in user["servers"].items() if one["ready"]]
            offset += len(page)
        return found

    def ends(self) -> list[str]:
        """What ended, when and why, though all were to run on."""
        with begin(self.engine, read_only=True) as session:
            ended = session.scalars(select(Allocation).where(Allocation.ended_at.is_not(None)).order_by(Allocation.id))
            return [
                f"{one.ended_at}: {one.user.name}/{one.environment.server_name}: {one.end_reason} {one.message}"
                for one in ended
            ]

    def log_in(self, users: Sequence[str]) -> list[Reader]:
        """Log each in as a browser does, and open the service's first page once."""
        with ThreadPoolExecutor(LOGINS) as threads:
            return list(threads.map(self._log_in, users))

    def _log_in(self, name: str) -> Reader:
        page = f"{self.url}services/workspaces/"
        with self.login(name, timeout_seconds=120) as client:
            text = client.get(page).raise_for_status().text
            assert f">{name}<" in text, text[:2000]
            sent = [client.build_request("GET", url).headers["cookie"] for url in (page, f"{self.url}hub/home")]
        return Reader(name, sent[0], text.split('name="xsrf" content="')[1].split('"')[0], sent[1])
