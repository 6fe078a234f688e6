"""Starts and ends that go wrong at every step, in a real hub: what is held runs, what runs is held, and in the end
everything is free again."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import psutil
import pytest
from sqlalchemy import text

from remotegpu_hub import workers
from remotegpu_hub.clients import processes
from remotegpu_hub.orm import Allocation, AllocationState, EndReason
from tests import postgres as pg
from tests.gpu_hubs import A100, STEPS, GpuHub, Life

VICTIMS = tuple(f"at-{step}" for step in STEPS)
FAST = """
import remotegpu_hub.hub.spawner
remotegpu_hub.hub.spawner.LATE_THREAD_SECONDS = 2
c.Spawner.start_timeout = c.Spawner.http_timeout = 8
c.Spawner.consecutive_failure_limit = 0
c.JupyterHub.cleanup_servers = False
"""
GPU = {"workspace": "lab", "image": "local:plain", "gpu_model": A100, "gpus": 1}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuHub]:
    members = ("alice", "bob", "carol", *VICTIMS)
    with GpuHub(tmp_path_factory.mktemp("hub"), FAST, gated=True, gpus=8, members=members) as running:
        yield running


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("hub", "on_postgres"):
        if name in request.fixturenames:
            used: GpuHub = request.getfixturevalue(name)
            if used.process is None or used.process.poll() is not None:
                used.start()
                raise AssertionError("the hub ended")
            left = used.stop_all()
            assert left == []
            used.check()


class Cut:
    """A way to a database that can be cut and mended: a TCP proxy on a port of its own."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open = True
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                if not self.open:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self._pairs += [client, server]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while part := one.recv(65536):
                other.sendall(part)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.open = False
        for one in self._pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        self.open = True

    def close(self) -> None:
        self.cut()
        self.listener.close()


@pytest.fixture(scope="module")
def cut(postgres: pg.Postgres) -> Iterator[Cut]:
    way = Cut(postgres.port)
    yield way
    way.close()


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory, postgres: pg.Postgres, cut: Cut) -> Iterator[GpuHub]:
    name = postgres.create_database()
    url = postgres.url(name).replace(f":{postgres.port}/", f":{cut.port}/")
    members = ("alice", "bob", *VICTIMS)
    with GpuHub(tmp_path_factory.mktemp("pg"), FAST, gated=True, gpus=8, members=members, db_url=url) as running:
        yield running


@contextmanager
def standing(hub: GpuHub) -> Iterator[ThreadPoolExecutor]:
    """One start that stands at each step; at the end the gates are open."""
    with ThreadPoolExecutor(len(STEPS)) as pool, ExitStack() as gates:
        arrivals = [gates.enter_context(hub.gate(step, f"at-{step}")) for step in STEPS[:-1]]
        gates.enter_context(hub.gate("listen", "at-listen"))
        for user in VICTIMS:
            pool.submit(hub.ask, user, GPU)
        for arrived in arrivals:
            arrived()
        hub.until(lambda: run_exists(hub, "at-listen"), "the server stands before it listens")
        yield pool


def run_exists(hub: GpuHub, user: str) -> bool:
    return any(one.state == AllocationState.ACTIVE for one in hub.held_by(user))


def assert_all_free(hub: GpuHub) -> None:
    for user in VICTIMS:
        hub.until_free(user)
    hub.check()
    assert hub.used() == (0, 0)
    assert hub.trees() == {}
    workers.meter(hub.runtime)
    billed = {record.subject_id for record in hub.world.records()}
    for user in VICTIMS:
        for run in hub.all_runs(user):
            assert run.started_at is not None or run.id not in billed, "billed for what never ran"


def assert_all_start(hub: GpuHub) -> None:
    """Nothing sticks: the same users start and stop as if nothing had been."""
    for user in VICTIMS:
        assert hub.ask(user, GPU).status_code in {201, 202}
    for user in VICTIMS:
        hub.until(lambda user=user: hub.model(user).get("ready"), f"{user} runs")  # type: ignore[misc]
    assert len({gpu for user in VICTIMS for gpu in hub.gpus_of(user)}) == len(VICTIMS)
    for user in VICTIMS:
        hub.api("DELETE", hub.path(user))
    for user in VICTIMS:
        hub.until_free(user)


def ends(hub: GpuHub) -> set[tuple[EndReason | None, bool]]:
    """Why the newest runs ended, and whether the environment says more of it."""
    newest = [hub.all_runs(user)[-1:] for user in VICTIMS]
    return {(run.end_reason, "in time" in run.environment.message) for runs in newest for run in runs}


def test_a_start_that_times_out_at_any_step_holds_nothing(hub: GpuHub) -> None:
    with standing(hub):
        assert hub.used()[0] == len(STEPS) - 1, "all but the one before its admission hold something"
        hub.until(
            lambda: not [user for user in VICTIMS if hub.model(user).get("pending") == "spawn"], "all were given up"
        )
    assert_all_free(hub)
    assert ends(hub) == {(EndReason.TIMEOUT, True)}, "with a reason and a sentence"
    assert_all_start(hub)


def test_a_start_that_is_deleted_at_any_step_holds_nothing(hub: GpuHub) -> None:
    with standing(hub) as pool:
        answers = list(pool.map(lambda user: hub.api("DELETE", hub.path(user)), VICTIMS))
        assert {answer.status_code for answer in answers} <= {202, 204}, [answer.text for answer in answers]
        time.sleep(4)  # longer than the end of a run waits for a late thread of its start
    assert_all_free(hub)
    found = ends(hub)
    assert (EndReason.USER, False) in found, "its user took it back"
    assert found <= {(EndReason.USER, False), (EndReason.TIMEOUT, True)}, "or it took too long until all stood"
    assert_all_start(hub)


def test_a_start_that_breaks_at_any_step_holds_nothing(hub: GpuHub) -> None:
    for step in STEPS[:-1]:
        with hub.gate(step, f"at-{step}", "break"):
            answer = hub.ask(f"at-{step}", GPU)
            assert answer.status_code == 500, step
            assert "Traceback" not in answer.text
    assert_all_free(hub)


@pytest.mark.prove
def test_a_database_that_is_lost_at_any_step_refuses_and_leaves_nothing(on_postgres: GpuHub, cut: Cut) -> None:
    hub = on_postgres
    with standing(hub):
        cut.cut()
    time.sleep(3)  # every start goes on, and meets the missing database
    assert len(hub.trees()) <= len(VICTIMS)
    cut.mend()
    hub.until(lambda: hub.api("GET", "users").is_success, "the hub has its database again")
    with suppress(AssertionError):  # a hub that loses its database in a stop calls it pending until it is restarted
        hub.until(lambda: not [user for user in VICTIMS if hub.model(user).get("pending")], "it waits for none", 15)
    for user in VICTIMS:
        with suppress(AssertionError):
            hub.api("DELETE", hub.path(user))
    hub.restart()  # what an earlier hub began cannot be on its way
    time.sleep(5)
    hub.reconcile()
    assert_all_free(hub)
    assert_all_start(hub)


@pytest.mark.parametrize("step", STEPS)
def test_a_start_whose_database_goes_away_is_refused_in_a_sentence_and_the_next_one_works(
    hub: GpuHub, step: str
) -> None:
    user = f"at-{step}"
    with ThreadPoolExecutor(1) as pool, hub.gate("database", user, "break"):
        broken = hub.folder / f"break-database-{user}"
        broken.unlink()
        with hub.gate(step, user) as arrived:
            asked = pool.submit(hub.ask, user, GPU)
            if step == "listen":
                hub.until(lambda: run_exists(hub, user), "it stands before it listens")
            else:
                arrived()
            broken.touch()
            if step == "listen":
                assert hub.api("DELETE", hub.path(user)).status_code in {202, 204}
        answer = asked.result()
        if step in ("admit", "activate"):
            assert answer.status_code == 503
            assert (
                answer.json()["message"] == "The database does not answer. Nothing was changed; try again in a minute."
            )
        hub.until(lambda: not hub.model(user).get("pending"), "the hub waits for nothing")
        if answer.is_success and hub.model(user):
            hub.api("DELETE", hub.path(user))
        hub.until(lambda: not hub.model(user), "the hub forgot it")
        assert not hub.trees(), "nothing runs"
    hub.start_server(user, GPU)
    hub.stop_server(user)


def test_a_start_waits_for_a_sqlite_file_that_is_locked_for_a_while(hub: GpuHub) -> None:
    lock = sqlite3.connect(hub.folder / "jupyterhub.sqlite", isolation_level=None)
    with hub.gate("admit", "bob") as arrived, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(hub.ask, "bob", GPU)
        arrived()
        lock.execute("BEGIN EXCLUSIVE")
        (hub.folder / "gate-admit-bob").unlink()
        time.sleep(1.5)
        lock.execute("ROLLBACK")
        assert asked.result().status_code in {201, 202}
    lock.close()
    hub.until(lambda: hub.model("bob").get("ready"), "it runs")
    hub.stop_server("bob")


def test_a_stop_that_raises_still_ends_the_run(hub: GpuHub) -> None:
    life = hub.start_server("alice", GPU)
    with hub.gate("stop", "alice", "break"):
        hub.api("DELETE", hub.path("alice"))
        hub.until_free("alice")
    assert not psutil.pid_exists(life.pid)
    hub.start_server("alice", GPU)
    hub.stop_server("alice")


def test_a_killed_hub_that_starts_again_keeps_what_runs_ends_what_it_cannot_see_and_signals_no_stranger(
    hub: GpuHub,
) -> None:
    """Carol's run goes on and is billed without a gap. The poll of alice's raises: its GPU is free only when its process
    is gone. Bob's pid has become a stranger's."""
    lives = {user: hub.start_server(user, GPU) for user in ("alice", "bob", "carol")}
    before = hub.run_of("carol")
    stranger = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    try:
        hub.kill()
        os.kill(lives["bob"].pid, signal.SIGKILL)
        give_pid(hub, "bob", stranger.pid)
        with hub.gate("poll", "alice", "break"), hub.gate("clear", "alice") as clearing:
            starting = threading.Thread(target=hub.start)
            starting.start()
            clearing()
            assert psutil.pid_exists(lives["alice"].pid)
            assert hub.gpus_of("alice"), "its GPU is held while its process lives"
        starting.join()
        for user in ("alice", "bob"):
            hub.until_free(user)
        assert not psutil.pid_exists(lives["alice"].pid)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert_goes_on(hub, "carol", lives["carol"], before)


def give_pid(hub: GpuHub, user: str, pid: int) -> None:
    """Let the hub think that the user's server is this process."""
    found = text(
        "SELECT spawners.id, spawners.state FROM spawners JOIN users ON users.id = user_id WHERE users.name = :user"
    )
    with hub.engine.begin() as connection:
        row = connection.execute(found, {"user": user}).one()
        state = json.dumps({**json.loads(row.state), "pid": pid})
        connection.execute(text("UPDATE spawners SET state = :state WHERE id = :id"), {"state": state, "id": row.id})


def assert_goes_on(hub: GpuHub, user: str, life: Life, before: Allocation) -> None:
    """The same allocation with the same GPU, from before the hub died until its user stops it, in one bill."""
    hub.until(lambda: hub.model(user).get("ready"), "the hub knows the server")
    after = hub.run_of(user)
    assert (after.id, after.state, hub.gpus_of(user)) == (
        before.id, AllocationState.ACTIVE, life.env["CUDA_VISIBLE_DEVICES"].split(","),
    )  # fmt: skip
    assert psutil.pid_exists(life.pid)
    hub.reconcile()
    assert before.seen_at and after.seen_at
    assert hub.run_of(user).seen_at > before.seen_at
    hub.stop_server(user)
    ended = hub.run_of(user)
    assert ended.started_at == before.started_at
    assert ended.ended_at and ended.ended_at > after.seen_at
    workers.meter(hub.runtime)
    cpu = [record for record in hub.world.records() if (record.subject_id, record.resource) == (ended.id, "cpu")]
    assert sum(record.quantity for record in cpu) == ended.cpu_millis * (ended.ended_at - before.started_at).seconds


@pytest.mark.parametrize("image", ["family", "stubborn"])
def test_a_gpu_is_not_given_out_while_a_child_of_the_killed_server_lives(hub: GpuHub, image: str) -> None:
    life = hub.start_server("alice", {**GPU, "image": f"local:{image}", "gpus": 8})
    with hub.gate("clear", "alice") as clearing:
        os.kill(life.pid, signal.SIGKILL)
        clearing()
        run = hub.run_of("alice")
        hub.until(lambda: hub.run_of("alice").state == AllocationState.ENDING, "its end began")
        assert [child.pid for child in hub.trees()[run.id]], "the child lives"
        refused = hub.ask("bob", GPU)
        assert (refused.status_code, "0 of 8" in refused.json()["message"]) == (409, True)
    hub.until_free("alice")
    assert run.id not in hub.trees()
    assert hub.run_of("alice").end_reason == EndReason.EXITED
    hub.start_server("bob", {**GPU, "gpus": 8})
    hub.stop_server("bob")


def test_the_same_user_is_told_that_the_last_run_is_still_stopping(hub: GpuHub) -> None:
    life = hub.start_server("alice", {**GPU, "image": "local:stubborn"})
    with hub.gate("release", "alice") as releasing:
        os.kill(life.pid, signal.SIGKILL)
        releasing()
        hub.until(lambda: not hub.trees(), "nothing lives")
        assert hub.used() == (1, 1)
    hub.until_free("alice")


def test_a_server_that_ignores_polite_signals_is_killed(hub: GpuHub) -> None:
    life = hub.start_server("alice", {**GPU, "image": "local:deaf"})
    hub.stop_server("alice")
    assert not psutil.pid_exists(life.pid)
    ended = hub.run_of("alice")
    assert ended.end_reason == EndReason.USER
    assert ended.started_at and ended.ended_at
    assert 0 <= (ended.ended_at - ended.started_at).total_seconds() <= hub.life(ended.id).seconds


def test_killed_services_come_back_and_environments_start_without_them(hub: GpuHub) -> None:
    pids = {name: hub.service_pid(name) for name in ("workspaces", "billing")}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    hub.start_server("alice", GPU)
    hub.stop_server("alice")
    token = hub.token_of("alice")

    def answers(name: str) -> bool:
        path = "api/me" if name == "workspaces" else "api/usage?workspace=lab"
        with suppress(httpx.HTTPError):
            return hub.service(name, path, token=token).status_code == 200
        return False

    for name, pid in pids.items():
        hub.until(lambda name=name: answers(name), f"{name} answers again", seconds=120)  # type: ignore[misc]
        assert hub.service_pid(name) != pid


@pytest.mark.prove
def test_two_hubs_on_one_machine_never_touch_each_other(hub: GpuHub, on_postgres: GpuHub) -> None:
    ours, theirs = hub.start_server("alice", GPU), on_postgres.start_server("alice", GPU)
    other = on_postgres.run_of("alice")
    assert hub.runtime.settings.hub_id != on_postgres.runtime.settings.hub_id
    time.sleep(6)
    assert hub.reconcile() == on_postgres.reconcile() == []
    # Even a hub that thinks this number is one of its own ended runs finds nothing of it.
    assert processes.stop_tree(hub.runtime.settings.hub_id, 10_000 + other.id, grace_seconds=0)
    hub.stop_server("alice")
    assert not psutil.pid_exists(ours.pid)
    assert psutil.pid_exists(theirs.pid)
    hub.restart(killed=True)
    assert psutil.pid_exists(theirs.pid)
    assert on_postgres.run_of("alice").state == AllocationState.ACTIVE
    on_postgres.stop_server("alice")
