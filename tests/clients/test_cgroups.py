"""Control groups for real, where this machine lets us make them."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from remotegpu_hub.clients import cgroups

MIB = 2**20


@pytest.fixture
def hub_id() -> Iterator[str]:
    if not cgroups.available():
        pytest.skip("NO CONTROL GROUPS CAN BE WRITTEN HERE, so nothing is shown about them")
    hub_id = f"test{uuid.uuid4().hex[:8]}"
    yield hub_id
    for name in cgroups.names(hub_id).values():
        assert cgroups.kill(name)
        assert cgroups.remove(name)


def start(group: cgroups.Group, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, preexec_fn=lambda: cgroups.join(group.procs), start_new_session=True)  # noqa: PLW1509


def sleepers(group: cgroups.Group) -> int:
    return sum(Path(f"/proc/{pid}/comm").read_text() == "sleep\n" for pid in cgroups.pids(group.name))


def need(group: cgroups.Group, resource: str) -> None:
    if resource not in group.enforced:
        pytest.skip(f"{resource.upper()} CANNOT BE BOUNDED HERE, so nothing is shown about it")


def held_back(group: cgroups.Group) -> int:
    """How often the kernel stopped the group because its share of a period was used up."""
    lines = [line for procs in group.procs for line in stat(Path(procs).with_name("cpu.stat"))]
    return sum(int(line.split()[1]) for line in lines if line.startswith("nr_throttled "))


def stat(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_process_that_takes_more_than_its_memory_is_killed(hub_id: str) -> None:
    group = cgroups.create(cgroups.name_of(hub_id, 1), 1000, 64 * MIB)
    need(group, "memory")
    greedy = start(group, sys.executable, "-c", f"bytearray({200 * MIB})")
    modest = start(group, sys.executable, "-c", f"bytearray({20 * MIB})")
    assert greedy.wait(20) == -9
    assert modest.wait(20) == 0


def test_a_process_gets_no_more_than_its_cores(hub_id: str) -> None:
    group = cgroups.create(cgroups.name_of(hub_id, 1), 200, None)
    need(group, "cpu")
    busy = "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
    subprocess.run([sys.executable, "-c", busy], preexec_fn=lambda: cgroups.join(group.procs), check=True)
    assert held_back(group) > 0, "the kernel never held back a process that wanted a whole core and has a fifth"


def test_bounds_can_be_set_anew(hub_id: str) -> None:
    name = cgroups.name_of(hub_id, 1)
    first = cgroups.create(name, 1000, 64 * MIB)
    need(first, "memory")
    assert cgroups.create(name, 2000, 512 * MIB) == first
    assert start(first, sys.executable, "-c", f"bytearray({200 * MIB})").wait(20) == 0


def test_a_group_names_every_process_whatever_it_became(hub_id: str) -> None:
    group = cgroups.create(cgroups.name_of(hub_id, 12), None, None)
    leader = start(group, "sh", "-c", "setsid env -i sh -c 'sleep 1000 & sleep 1000' & sleep 1000")
    deadline = time.monotonic() + 10
    while sleepers(group) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sleepers(group) == 3
    assert leader.pid in cgroups.pids(group.name)
    assert os.getpid() not in cgroups.pids(group.name)
    assert cgroups.names(hub_id) == {12: group.name}
    assert not cgroups.remove(group.name, timeout_seconds=0)
    assert cgroups.kill(group.name)
    assert leader.wait() == -9
    assert cgroups.pids(group.name) == set()
    assert cgroups.remove(group.name)
    assert cgroups.names(hub_id) == {}


def test_what_forks_for_ever_is_killed_too(hub_id: str) -> None:
    group = cgroups.create(cgroups.name_of(hub_id, 1), None, None)
    hop = "import os\nfor n in range(3): os.fork()\nwhile True:\n if os.fork(): os._exit(0)"
    leader = start(group, sys.executable, "-S", "-c", hop)
    leader.wait()
    assert cgroups.pids(group.name)
    assert cgroups.kill(group.name)
    time.sleep(0.1)
    assert cgroups.pids(group.name) == set()


def test_version_1_alone_kills_by_freezing(hub_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only = [tree for tree in cgroups.hierarchies() if tree.version == 1]
    if not any("freezer" in tree.controllers for tree in only):
        pytest.skip("NO VERSION 1 FREEZER HERE")
    monkeypatch.setattr(cgroups, "hierarchies", lambda: only)
    group = cgroups.create(cgroups.name_of(hub_id, 1), None, None)
    hop = "import os\nfor n in range(3): os.fork()\nwhile True:\n if os.fork(): os._exit(0)"
    start(group, sys.executable, "-S", "-c", hop).wait()
    assert cgroups.kill(group.name)
    assert cgroups.remove(group.name)


def test_version_2_alone_kills_at_once(hub_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only = [tree for tree in cgroups.hierarchies() if tree.version == 2]
    monkeypatch.setattr(cgroups, "hierarchies", lambda: only)
    group = cgroups.create(cgroups.name_of(hub_id, 1), None, None)
    if not group.tracked:
        pytest.skip("VERSION 2 CANNOT BE WRITTEN HERE")
    leader = start(group, "sh", "-c", "sleep 1000 & sleep 1000")
    assert cgroups.kill(group.name)
    assert leader.wait() == -9
    assert cgroups.remove(group.name)


def test_groups_of_two_hubs_and_like_numbers_are_told_apart(hub_id: str) -> None:
    for other, number in ((hub_id, 1), (hub_id, 11), (hub_id + "-x", 1)):
        cgroups.create(cgroups.name_of(other, number), None, None)
    try:
        assert sorted(cgroups.names(hub_id)) == [1, 11]
    finally:
        assert cgroups.remove(cgroups.name_of(hub_id + "-x", 1))


def test_where_nothing_can_be_written_a_run_is_counted_and_not_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    read_only = cgroups.Hierarchy(1, frozenset({"cpu", "memory"}), Path("/proc/sys"))
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [read_only])
    group = cgroups.create("remotegpu-x-1", 1000, MIB)
    assert (group.tracked, group.enforced) == (False, frozenset())
    assert not cgroups.available()
    assert cgroups.pids("remotegpu-x-1") == set()
    assert cgroups.kill("remotegpu-x-1")
    assert cgroups.remove("remotegpu-x-1")
