"""The hub and its services are killed at random moments of starting and stopping: after a restart and one reconcile
nothing leaks, nothing runs unheld, and nobody is billed for what did not run."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import select

from remotegpu_hub import workers
from remotegpu_hub.orm import AllocationState, EndReason, HostModel
from tests.gpu_hubs import GpuHub

USERS = ("alice", "bob", "carol", "dave")
IMAGES = ("plain", "plain", "deaf", "family", "stubborn")
SEED = 20261124
SETTLED_SECONDS = 6.0
"""The reconciler leaves runs alone that are younger than the facts it compares."""


@dataclass
class Tally:
    """What was counted, for the report."""

    database: str
    kills: int = 0
    interrupted: Counter[str] = field(default_factory=Counter)
    """Open runs by state at the moments of the kills."""
    repairs: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    never_ran: int = 0
    billed_seconds: int = 0
    ran_seconds: float = 0.0
    most_unbilled_seconds: float = 0.0
    cut_short: set[int] = field(default_factory=set)
    """Runs whose end had begun and was finished by the reconciler."""


class Busy:
    """Users who start and stop all the time, whatever the hub says, until they are asked to pause."""

    def __init__(self, hub: GpuHub, seed: int) -> None:
        self.hub = hub
        self.going = threading.Event()
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._live, args=(user, seed + number), daemon=True)
                        for number, user in enumerate(USERS)]  # fmt: skip
        self.idle = [threading.Event() for _ in USERS]

    def _live(self, user: str, seed: int) -> None:
        chance = random.Random(seed)
        idle = self.idle[USERS.index(user)]
        while not self.ended.is_set():
            if not self.going.wait(0.05):
                idle.set()
                continue
            idle.clear()
            wish: dict[str, Any] = {"workspace": "lab", "image": self.hub.image(chance.choice(IMAGES))}
            count = chance.randrange(3)
            wish |= {"gpu_model": self.hub.model_of_gpus if count else "", "gpus": count}
            with suppress(httpx.HTTPError):
                self.hub.ask(user, wish)
            self._pause(chance.choice([0.0, chance.uniform(0, 0.5), chance.uniform(0, 3)]))
            if self.going.is_set():
                with suppress(httpx.HTTPError):
                    self.hub.api("DELETE", self.hub.path(user))
                self._pause(chance.uniform(0, 0.5))

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.going.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)

    def __enter__(self) -> "Busy":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.going.clear()
        self.ended.set()
        for thread in self.threads:
            thread.join(60)

    def rest(self) -> None:
        self.going.clear()
        for idle in self.idle:
            assert idle.wait(60)


def wait_for_a_moment(hub: GpuHub, chance: random.Random) -> None:
    """Some time, then until a run is on its way, or is ending, or runs, and then a little more."""
    time.sleep(chance.uniform(0.2, 1.5))
    wanted = chance.choice(list(AllocationState)[:3])
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and not any(run.state == wanted for run in hub.open_runs()):
        time.sleep(0.002)
    time.sleep(chance.choice([0.0, chance.uniform(0, 0.02), chance.uniform(0, 0.3)]))


def kill_everything_of_ours(hub: GpuHub, chance: random.Random) -> None:
    """The hub's process and its services, in any order; proxy and servers live on."""
    assert hub.process
    victims = [hub.pid]
    for child in psutil.Process(hub.pid).children():
        with suppress(psutil.Error):
            if "remotegpu_hub.services" in " ".join(child.cmdline()):
                victims.append(child.pid)
    chance.shuffle(victims)
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    hub.kill()


@contextmanager
def hub_on(database: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[GpuHub]:
    url = None
    if database == "postgresql":
        server = request.getfixturevalue("postgres")
        url = server.url(server.create_database())
    with GpuHub(folder, "c.JupyterHub.cleanup_servers = False", members=USERS, db_url=url) as hub:
        yield hub


@pytest.mark.parametrize(
    ("database", "kills"),
    [
        pytest.param("sqlite", 1, id="one"),
        pytest.param("sqlite", 30, id="full on SQLite", marks=pytest.mark.prove),
        pytest.param("postgresql", 30, id="full on PostgreSQL", marks=pytest.mark.prove),
    ],
)
def test_killed_at_any_moment_nothing_leaks_and_nobody_pays_for_what_did_not_run(
    tmp_path: Path, request: pytest.FixtureRequest, record_property: Any, database: str, kills: int
) -> None:
    tally = Tally(database)
    with hub_on(database, tmp_path, request) as hub:
        kill_often(hub, tally, kills)
    report(tally, record_property)


def kill_often(hub: GpuHub, tally: Tally, kills: int) -> None:
    """Kill at random moments while users start and stop, and check after each."""
    chance = random.Random(SEED)
    with Busy(hub, SEED) as users:
        for _ in range(kills):
            users.going.set()
            wait_for_a_moment(hub, chance)
            kill_everything_of_ours(hub, chance)
            killed_at = time.monotonic()
            users.going.clear()
            tally.kills += 1
            tally.interrupted.update(run.state.value for run in hub.open_runs())
            tally.cut_short |= {run.id for run in hub.open_runs() if run.state == AllocationState.ENDING}
            users.rest()
            hub.start()
            repair_and_check(hub, tally, killed_at)
    hub.stop_all()
    hub.check()
    assert hub.used() == (0, 0)
    check_ledger(hub, tally)
    tally.repairs.update(entry.detail["fault"] for entry in hub.world.audit("allocation.repair"))


def repair_and_check(hub: GpuHub, tally: Tally, killed_at: float) -> None:
    """Reconcile after everything is older than the facts; soon nothing may be wrong any more. What a node is slow to
    end, a first look only asks to end."""
    time.sleep(max(0.0, killed_at + SETTLED_SECONDS - time.monotonic()))
    hub.until(lambda: not any(hub.model(user).get("pending") for user in USERS), "the hub waits for nothing")
    hub.reconcile()
    hub.check()
    hub.until(lambda: hub.reconcile() == [], "a reconcile finds nothing more to put right")
    hub.check()
    (usable, used) = hub.world.read(select(HostModel.usable, HostModel.used))[0]
    held = sum(run.gpu_slots for run in hub.open_runs())
    assert (usable, used) == (hub.gpus, held)
    hub.until(
        lambda: all(bool(hub.model(user).get("ready")) == bool(hub.held_by(user)) for user in USERS),
        "the hub knows exactly what runs",
        seconds=10,
    )


def check_ledger(hub: GpuHub, tally: Tally) -> None:
    """Billed seconds of each run lie between what its process wrote of its own life, less what nobody saw, and that."""
    workers.meter(hub.runtime)
    assert workers.meter(hub.runtime) == 0
    billed: Counter[int] = Counter()
    cores = {run.id: run.cpu_millis for user in USERS for run in hub.all_runs(user)}
    for one in hub.world.records():
        if one.resource == "cpu":
            assert one.quantity % cores[one.subject_id] == 0
            billed[one.subject_id] += one.quantity // cores[one.subject_id]
    hub.world.check()
    for user in USERS:
        for run in hub.all_runs(user):
            tally.runs += 1
            tally.billed_seconds += billed[run.id]
            if not (hub.runs / f"{run.id}.beats").exists():
                tally.never_ran += 1
                assert billed[run.id] == 0, f"run {run.id} never ran"
                continue
            life = hub.life(run.id)
            tally.ran_seconds += life.seconds
            unbilled = life.seconds - billed[run.id]
            tally.most_unbilled_seconds = max(tally.most_unbilled_seconds, unbilled)
            told = f"run {run.id} of {life.seconds:.2f} s, {run.end_reason}, is billed {billed[run.id]} s"
            assert unbilled > -0.3, told  # the last of the beats, 0.1 s apart, is a little before the end
            assert unbilled <= workers.TICK_SECONDS + 1, told
            if run.end_reason == EndReason.USER and run.started_at is not None and run.id not in tally.cut_short:
                assert unbilled <= 5, told  # stopped under the hub's eyes: the end is what it saw itself


def report(tally: Tally, record_property: Any) -> None:
    line = {"test": "kills", **vars(tally), "cut_short": len(tally.cut_short), "interrupted": dict(tally.interrupted),
            "repairs": dict(tally.repairs), "ran_seconds": round(tally.ran_seconds, 1),
            "most_unbilled_seconds": round(tally.most_unbilled_seconds, 2)}  # fmt: skip
    for name, value in line.items():
        record_property(name, value)
    path = os.environ.get("REMOTEGPU_PROVE_REPORT")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")
