import os
import re
import shutil
import socket
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text, update

from remotegpu_hub import workers
from remotegpu_hub.cli import machine
from remotegpu_hub.clients import processes
from remotegpu_hub.observed import Part, Run
from remotegpu_hub.orm import BillingRecord, Gpu, GpuStatus, Host, HostModel, MemberMonth, Quota, Workspace
from remotegpu_hub.runtime import Runtime

from ..hubs import ROOT
from .test_app import CONFIG

GUIDE = ROOT / "docs" / "admin-guide.md"


@pytest.fixture
def doctor(remotegpu, world, engine):
    """Run the doctor; returns what it said by (subject, level)."""

    def look(*words: str, code: int = 0):
        found = {}
        for check in remotegpu("doctor", "--json", *words, code=code).json["checks"]:
            found.setdefault((check["subject"], check["level"]), []).append(check["text"])
        return found

    return look


def change(engine, *statements):
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_healthy_hub_has_no_problem(doctor, remotegpu, world, engine):
    change(engine, update(Host).values(last_seen_at=datetime.now(UTC)))
    run = world.run("bob", gpus=2)
    world.pass_time(minutes=59)
    world.seen(run)
    world.end(run.attempt)
    world.meter()
    found = doctor()
    assert not [key for key in found if key[1] == "problem"]
    for subject in ("python", "jupyterhub", "database", "prices", "quotas", "hosts", "gpus", "counters", "months"):
        assert (subject, "ok") in found, subject
    lines = remotegpu("doctor").out.splitlines()
    assert all(line.startswith(("ok       ", "warn     ")) for line in lines)


WRONG = {
    "unpriced": (update(HostModel).values(model="H100"), "prices", "problem", "no price for gpu:H100"),
    "no default quota": (text("DELETE FROM remotegpu_quotas"), "quotas", "warn", "no default quota of a user"),
    "wrong sum of a host": (
        *(update(Host).values(used_cpu_millis=Host.used_cpu_millis + 1), "counters", "problem", "host-1, host-2"),
    ),
    "wrong count of a model": (
        *(update(HostModel).values(used=HostModel.used + 1), "counters", "problem", "host-1 (A100-80GB)"),
    ),
    "lost money": (
        update(MemberMonth).values(amount=MemberMonth.amount - 1_000_000),
        *("months", "problem", "lab: the months add up to $1.00 less than"),
    ),
    "too much GPU time": (
        update(MemberMonth).values(gpu_time=MemberMonth.gpu_time + 9_000_000),
        *("months", "problem", "lab: the months add up to 2.50 GPU hours more than"),
    ),
    "sums of another month": (
        *(update(MemberMonth).values(month="2001-01"), "months", "warn", "lab: records and months are"),
    ),
    "gpu in error": (
        *(update(Gpu).where(Gpu.index == 2).values(status=GpuStatus.ERROR), "gpus", "problem", "host-1:2, host-2:2"),
    ),
    "gpu missing": (update(Gpu).where(Gpu.index == 1).values(missing=True), "gpus", "warn", "missing"),
    "gpu of others": (update(Gpu).where(Gpu.index == 1).values(foreign=True), "gpus", "warn", "used by others"),
    "host offline": (
        *(text("UPDATE remotegpu_hosts SET status = 'offline' WHERE name = 'host-2'"), "hosts", "warn"),
        "host-2 (offline)",
    ),
    "slot of an ended run": (
        *(text("UPDATE remotegpu_allocation_slots SET open = true"), "runs", "problem", "still hold a GPU"),
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_inside_the_database_is_found(doctor, world, engine, fault):
    statement, subject, level, said = WRONG[fault]
    run = world.run("bob", gpus=1)
    world.pass_time(minutes=10)
    world.end(run.attempt)
    world.meter()
    change(engine, statement)
    found = doctor(code=1 if level == "problem" else 0)
    assert any(said in line for line in found[subject, level]), found


def test_the_configuration_is_looked_at_as_the_hub_would_read_it(doctor, folder, database_url):
    config = folder / "jupyterhub_config.py"
    config.write_text(CONFIG.format(url=database_url))
    found = doctor()
    assert found["configuration", "ok"] == ["jupyterhub_config.py ends with configure(c)."]
    assert "insecure_demo" in found["configuration", "warn"][0]
    config.write_text(
        CONFIG.format(url=database_url) + 'c.JupyterHub.spawner_class = "simple"\nc.JupyterHub.services = []\n'
    )
    problems = doctor(code=1)["configuration", "problem"]
    assert "SimpleLocalProcessSpawner" in problems[0]
    assert "services was assigned after" in problems[1]
    config.write_text("c = get_config()\n")
    assert "does not call configure(c)" in doctor(code=1)["configuration", "problem"][0]


def test_what_the_hub_wrote_is_compared_with_what_is_configured(
    doctor, folder, hub_was_here, world, engine, monkeypatch
):
    assert doctor()["hub", "warn"] == ["it does not run now: nothing is reconciled or metered."]
    service = f"{socket.gethostname()} {processes.mark_of(os.getppid())}"
    workers.take_lease(engine, name="sync", holder=service, seconds=9, not_since=world.now, now=datetime.now(UTC))
    assert doctor()["hub", "ok"] == ["its services run and tick."]
    (folder / "remotegpu-runtime.json").chmod(0o644)
    assert "others can read it" in doctor(code=1)["hub", "problem"][0]
    written = (folder / "remotegpu-runtime.json").read_text()
    (folder / "remotegpu-runtime.json").write_text(written.replace(hub_was_here.db_url, "sqlite:////elsewhere.sqlite"))
    assert any("sqlite:////elsewhere.sqlite, not" in line for line in doctor(code=1)["hub", "problem"])


def test_runs_of_which_nothing_lives_are_told(doctor, hub_was_here, world):
    run = world.run("bob", gpus=1)
    late = world.run("alice")
    world.mark_ending(late.attempt)
    found = doctor(code=1)["runs", "problem"]
    assert found[0].startswith(f"held, but nothing of them runs: {run.id} of bob.")
    assert found[1].startswith("stopping for longer than 3 minutes")


class Restored:
    """What a cluster still has after its hub's database was restored from a backup."""

    def __init__(self, run: int, volume: int) -> None:
        self.run, self.volume = run, volume

    async def runs(self):
        return [Run(1, "uid-1"), Run(self.run, "uid-2")]

    async def parts(self):
        return [Part("services/a", allocation_id=self.run), Part("persistentvolumeclaims/b", volume_id=self.volume)]

    async def close(self):
        pass


def test_numbers_on_the_cluster_that_the_database_has_yet_to_give_are_told(
    doctor, hub_was_here, world, engine, monkeypatch
):
    run = world.run("bob")
    there = replace(hub_was_here, local=False)
    Runtime(replace(there, db_url="sqlite:///another-hubs.sqlite")).write("remotegpu-runtime.json")
    monkeypatch.setattr(workers, "site_of", lambda _runtime: Restored(run.id + 5, 7))
    assert ("numbers", "problem") not in doctor(code=1), "another hub's cluster says nothing of this database"
    Runtime(there).write("remotegpu-runtime.json")
    site = Restored(run.id + 5, 7)
    monkeypatch.setattr(workers, "site_of", lambda _runtime: site)
    (told,) = doctor(code=1)["numbers", "problem"]
    assert f"allocations {site.run}, volumes 7. The highest are allocations {site.run}, volumes 7:" in told
    postgresql, sqlite = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(), re.S)
    statements = postgresql if engine.dialect.name == "postgresql" else sqlite
    for statement in statements.replace("4711", str(site.run)).replace("815", str(site.volume)).strip().splitlines():
        change(engine, text(statement.rstrip(";")))
    assert doctor()["numbers", "ok"]
    assert world.run("alice").id == site.run + 1


@pytest.mark.parametrize("prepare", ["no file", "no tables", "no database"])
def test_a_database_that_cannot_be_looked_into_stops_no_other_check(
    call, folder, monkeypatch, empty_sqlite_url, prepare
):
    url = {
        "no file": "sqlite:////nowhere/hub.sqlite",
        "no tables": empty_sqlite_url,
        "no database": "postgresql://hub:hunter2@127.0.0.1:9/hub",
    }[prepare]
    monkeypatch.setenv("REMOTEGPU_DB_URL", url)
    said = call("doctor")
    assert said.code == 1
    lines = said.out.splitlines()
    assert sum(line.startswith("problem  database: ") for line in lines) == 1
    assert any(": counted, not enforced" in line or "enforced by control groups" in line for line in lines)
    assert said.err == "remotegpu: 1 problem found.\n"
    assert "hunter2" not in said.out


def test_sqlite_without_wal_is_told(doctor, call, engine, sqlite_url, monkeypatch, tmp_path):
    copy = tmp_path / "copy.sqlite"
    shutil.copy(sqlite_url.removeprefix("sqlite:///"), copy)
    plain = sqlite3.connect(copy)
    plain.execute("PRAGMA journal_mode=DELETE")
    plain.close()
    monkeypatch.setenv("REMOTEGPU_DB_URL", f"sqlite:///{copy}")
    assert "problem  wal: off (the mode is delete)" in call("doctor").out


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/hub/hub.sqlite", "nfs4"),
        ("/srv/hubs/x", "ext4"),
        ("/srv/a b/x", "tmpfs"),
        ("/over/x", "xfs"),
        ("/x", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:9 / /srv/hub rw - nfs4 server:/hub rw\n"
        "3 1 0:9 / /srv/a\\040b rw shared:1 - tmpfs none rw\n"
        "4 1 0:9 / /over rw - tmpfs none rw\n"
        "5 1 0:9 / /over rw - xfs /dev/sdb rw\n"
    )
    assert machine.filesystem(Path(path), str(mounts)) == kind


def test_the_doctor_changes_nothing(remotegpu, world, engine):
    run = world.run("bob", gpus=1)
    before = (
        world.counters(),
        len(world.audit()),
        world.read(Quota.__table__.select()),
        world.read(BillingRecord.__table__.select()),
    )
    remotegpu("doctor")
    after = (
        world.counters(),
        len(world.audit()),
        world.read(Quota.__table__.select()),
        world.read(BillingRecord.__table__.select()),
    )
    assert before == after
    assert [one.id for one in world.open_runs()] == [run.id]
    assert world.read(Workspace.__table__.select())
