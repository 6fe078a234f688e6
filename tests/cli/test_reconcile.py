import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from jupyterhub import orm as hub_orm
from sqlalchemy import insert

from remotegpu_hub import workers
from remotegpu_hub.cli import reconcile
from remotegpu_hub.clients import processes
from remotegpu_hub.orm import AllocationState

from .conftest import HUB_ID


@contextmanager
def process_of(allocation_id: int):
    """A process that carries the mark of a run of this hub."""
    env = {**os.environ, **processes.environment(HUB_ID, allocation_id)}
    started = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"],
                               env=env, stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip
    assert started.stdout is not None
    started.stdout.readline()
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


@pytest.fixture
def knows(engine):
    """Let the hub's tables say that a user's default server runs."""

    def server(number: int, name: str) -> None:
        tables = hub_orm.Base.metadata.tables
        with engine.begin() as connection:
            created = datetime(2026, 1, 1)  # noqa: DTZ001 - as the hub writes it
            connection.execute(insert(tables["users"]).values(id=number, name=name, created=created, cookie_id=name))
            connection.execute(insert(tables["servers"]).values(id=number, ip="127.0.0.1", port=1, cookie_name="x"))
            connection.execute(
                insert(tables["spawners"]).values(user_id=number, server_id=number, name="", state={}, user_options={})
            )

    return server


@pytest.fixture(autouse=True)
def no_hub_listens(folder, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_API_URL", "http://127.0.0.1:9/hub/api")


def test_while_the_hub_is_down_what_ended_is_given_back_and_what_leaked_is_stopped(
    remotegpu, world, hub_was_here, knows
):
    ended = world.run("bob", gpus=2)
    lives = world.run("alice", gpus=1)
    knows(7, "alice")
    orphan = world.run("bob", server="second")
    leaked = world.run("bob", server="third")
    world.end(leaked.attempt)
    with process_of(lives.id) as kept, process_of(leaked.id) as gone, process_of(orphan.id) as unknown:
        rows = {row["allocation_id"]: row for row in remotegpu("reconcile", "--json").json["repairs"]}
        assert kept.poll() is None
        assert gone.wait(10) is not None
        assert unknown.wait(10) is not None
    assert {key: (row["fault"], row["outcome"]) for key, row in rows.items()} == {
        ended.id: ("ended", "repaired"),
        orphan.id: ("orphan", "repaired"),
        leaked.id: ("leaked", "repaired"),
    }
    assert [one.id for one in world.open_runs()] == [lives.id]
    world.check()
    assert world.audit()[-1].action == "reconcile"
    assert world.audit()[-1].actor.startswith("cli:")


def test_a_start_that_the_dead_hub_left_is_given_back(remotegpu, world, hub_was_here):
    world.pass_time(minutes=59)
    admitted = world.admit("bob", gpus=1)
    assert admitted.state == AllocationState.ADMITTED
    said = remotegpu("reconcile").out
    assert said.splitlines()[0].split() == ["RUN", "FOUND", "NOW", "BESIDE"]
    assert said.splitlines()[1].split() == [str(admitted.id), "ghost", "repaired", "-"]
    assert world.open_runs() == []
    assert remotegpu("reconcile").out == "Everything that is held runs, and nothing else does.\n"


def test_a_process_with_a_number_that_was_never_given_is_told_and_left_alone(remotegpu, world, hub_was_here):
    with process_of(987654) as foreign:
        said = remotegpu("reconcile", code=1)
        assert foreign.poll() is None
    assert "987654  unknown  left alone" in said.out
    assert "1 of 1 could not be put right" in said.err


def test_while_the_hub_runs_it_must_be_asked(remotegpu, world, hub_was_here, engine, monkeypatch):
    now = datetime.now(UTC)
    service = f"{socket.gethostname()} {processes.mark_of(os.getppid())}"
    workers.take_lease(engine, name="sync", holder=service, seconds=9, not_since=world.now, now=now)
    world.run("bob")
    said = remotegpu("reconcile", code=1)
    assert "The hub runs" in said.err
    assert len(world.open_runs()) == 1
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "a-token")
    said = remotegpu("reconcile", code=1)
    assert "cannot be reached" in said.err
    assert len(world.open_runs()) == 1


def test_where_no_hub_ever_started_there_is_nothing_to_compare(remotegpu, world):
    assert "the hub has not started here yet" in remotegpu("reconcile", code=1).err


def test_another_database_than_the_hubs_is_refused(remotegpu, world, hub_was_here, folder):
    path = folder / "remotegpu-runtime.json"
    path.write_text(path.read_text().replace(hub_was_here.db_url, "sqlite:////elsewhere.sqlite"))
    assert "The hub was started with the database sqlite:////elsewhere.sqlite" in remotegpu("reconcile", code=1).err


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ("", "http://127.0.0.1:8081/hub/api"),
        ("c.JupyterHub.hub_port = 9001\nc.JupyterHub.hub_ip = '0.0.0.0'", "http://127.0.0.1:9001/hub/api"),
        ("c.JupyterHub.bind_url = 'http://:8000/jupyter/'", "http://127.0.0.1:8081/jupyter/hub/api"),
        ("c.JupyterHub.hub_connect_url = 'http://10.0.0.5:99'", "http://10.0.0.5:99/hub/api"),
        ("c.JupyterHub.base_url = '/a/b/'", "http://127.0.0.1:8081/a/b/hub/api"),
    ],
)
def test_the_hubs_api_is_where_its_configuration_says(folder, monkeypatch, config, url):
    from remotegpu_hub.cli.database import find

    monkeypatch.delenv("JUPYTERHUB_API_URL")
    (folder / "jupyterhub_config.py").write_text(f"c = get_config()\n{config}\n")
    assert reconcile.api_url(find(config_file=None, db_file=None)) == url
