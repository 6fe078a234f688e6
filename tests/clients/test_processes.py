"""Real processes: loops, double forks, new sessions, cleared env vars, dead leaders."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from remotegpu_hub import errors
from remotegpu_hub.clients import cgroups, processes

ALLOCATION = 7


class Lab:
    """Starts marked processes of a hub of its own and ends whatever they became."""

    def __init__(self, folder: Path) -> None:
        self.hub_id = f"test{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        program: str,
        *,
        allocation_id: int = ALLOCATION,
        hub_id: str | None = None,
        preexec: Callable[[], None] | None = None,
        marked: bool = True,
        new_session: bool = True,
    ) -> subprocess.Popen[bytes]:
        mark = processes.environment(hub_id or self.hub_id, allocation_id) if marked else {}
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", textwrap.dedent(program)],
            env={"PATH": os.environ["PATH"], "FOLDER": str(self.folder), **mark},
            preexec_fn=preexec,  # noqa: PLW1509
            start_new_session=new_session,
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)
        return process

    def pid_of(self, name: str) -> int:
        """Wait for the pid that a program wrote into a file of this name."""
        path = self.folder / name
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), f"{name} was not written")
        return int(path.read_text())

    def tree(self) -> set[int]:
        return {process.pid for process in processes.processes(self.hub_id, ALLOCATION)}

    def stop(self, grace_seconds: float = 0.3) -> bool:
        return processes.stop_tree(self.hub_id, ALLOCATION, grace_seconds=grace_seconds)

    def close(self) -> None:
        for path in self.folder.iterdir():
            with suppress(ValueError, OSError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def wait_until(check: Callable[[], object], message: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        processes.mark_of(pid)
    except errors.NotFound:
        return True
    return False


SLEEP = "import time\ntime.sleep(1000)\n"

TOLD = """
    import os, sys, time
    def tell(name):
        with open(os.environ['FOLDER'] + '/' + name + '.new', 'w') as file:
            file.write(str(os.getpid()) + '\\n')
        os.rename(os.environ['FOLDER'] + '/' + name + '.new', os.environ['FOLDER'] + '/' + name)
    def bare(name):
        # exec without any env var: only the shell's own argument tells where to write the pid
        path = os.environ['FOLDER'] + '/' + name
        os.execve('/bin/sh', ['sh', '-c', f'echo $$ > {path}; exec sleep 1000'], {})
"""


def test_a_marked_process_is_a_run_with_the_mark_of_its_leader(lab: Lab) -> None:
    leader = lab.start(SLEEP)
    wait_until(lambda: processes.runs(lab.hub_id), "the run was not seen")
    (run,) = processes.runs(lab.hub_id)
    assert (run.allocation_id, run.mark, run.alive) == (ALLOCATION, processes.mark_of(leader.pid), True)
    assert processes.is_alive(run.mark)
    assert run.mark.startswith(f"{leader.pid}:")


def test_two_hubs_never_see_each_others_runs(lab: Lab) -> None:
    lab.start(SLEEP)
    other = lab.start(SLEEP, hub_id=lab.hub_id + "x")
    wait_until(lambda: processes.runs(lab.hub_id + "x") and processes.runs(lab.hub_id), "both run")
    assert len(processes.runs(lab.hub_id)) == 1
    assert lab.stop()
    assert processes.runs(lab.hub_id) == []
    assert not gone(other.pid)


def test_another_allocation_of_the_hub_is_left_alone(lab: Lab) -> None:
    lab.start(SLEEP)
    other = lab.start(SLEEP, allocation_id=71)
    wait_until(lambda: len(processes.runs(lab.hub_id)) == 2, "both run")
    assert lab.stop()
    assert [run.allocation_id for run in processes.runs(lab.hub_id)] == [71]
    assert not gone(other.pid)


def test_a_number_that_only_begins_alike_is_another_allocation(lab: Lab) -> None:
    lab.start(SLEEP, allocation_id=ALLOCATION * 10)
    wait_until(lambda: processes.runs(lab.hub_id), "it runs")
    assert lab.tree() == set()


def test_a_zombie_is_gone(lab: Lab) -> None:
    leader = lab.start("pass")
    mark = processes.mark_of(leader.pid)
    os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.is_alive(mark)
    assert processes.runs(lab.hub_id) == []
    assert lab.stop()


def test_a_zombie_leader_with_living_threads_is_not_gone(lab: Lab) -> None:
    leader = lab.start(
        """
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=(1000,)).start()
        ctypes.CDLL(None).pthread_exit(None)
        """
    )
    wait_until(lambda: Path(f"/proc/{leader.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "no zombie")
    assert lab.tree() == {leader.pid}
    assert processes.is_alive(processes.mark_of(leader.pid))
    assert lab.stop()
    assert gone(leader.pid)


def test_a_reused_pid_is_not_the_process(lab: Lab) -> None:
    leader = lab.start(SLEEP)
    pid, start, boot = processes.mark_of(leader.pid).split(":")
    assert not processes.is_alive(f"{pid}:{int(start) - 1}:{boot}")
    assert not processes.is_alive(f"{pid}:{start}:00000000")
    assert not processes.is_alive("a-pod-uid")
    before = processes.Process(int(pid), int(start) - 1)
    assert not processes.send(before, signal.SIGKILL)
    assert not gone(leader.pid)


def test_the_mark_of_nobody_is_not_found() -> None:
    with pytest.raises(errors.NotFound, match="was not found"):
        processes.mark_of(2**22 + 1)


def test_a_polite_server_is_interrupted_first_and_alone(lab: Lab) -> None:
    leader = lab.start(
        TOLD
        + """
    import signal
    child = os.fork()
    name = 'child' if child == 0 else 'leader'
    def note(number, frame):
        tell(f'{name}-{signal.Signals(number).name}')
        if name == 'leader':
            os.kill(child, signal.SIGKILL)
        os._exit(0)
    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    tell(name)
    while True:
        time.sleep(1)
    """
    )
    lab.pid_of("leader")
    lab.pid_of("child")
    assert lab.stop(grace_seconds=5)
    assert gone(leader.pid)
    assert (lab.folder / "leader-SIGINT").exists()
    assert not (lab.folder / "child-SIGINT").exists()
    assert not (lab.folder / "leader-SIGTERM").exists()


def test_a_stubborn_tree_is_killed(lab: Lab) -> None:
    leader = lab.start(
        TOLD
        + """
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.fork()
    os.fork()
    tell(f'deaf-{os.getpid()}')
    while True:
        time.sleep(1)
    """
    )
    wait_until(lambda: len(list(lab.folder.glob("deaf-*[0-9]"))) == 4, "four processes")
    assert len(lab.tree()) == 4
    assert lab.stop(grace_seconds=0.1)
    assert gone(leader.pid)
    assert lab.tree() == set()


def test_a_double_forked_child_in_its_own_session_is_stopped_by_its_mark(lab: Lab) -> None:
    leader = lab.start(
        TOLD
        + """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            tell('daemon')
            time.sleep(1000)
        os._exit(0)
    os.wait()
    """
    )
    daemon = lab.pid_of("daemon")
    leader.wait()
    (run,) = processes.runs(lab.hub_id)
    assert run.mark == processes.mark_of(daemon)
    assert lab.stop()
    assert gone(daemon)


def test_a_child_without_env_vars_is_found_as_a_descendant(lab: Lab) -> None:
    leader = lab.start(
        TOLD
        + """
    if os.fork() == 0:
        os.setsid()
        bare('bare')
    time.sleep(1000)
    """
    )
    bare = lab.pid_of("bare")
    assert lab.tree() == {leader.pid, bare}
    assert lab.stop()
    assert gone(bare)


def test_an_orphan_without_env_vars_is_found_by_the_session_of_the_run(lab: Lab) -> None:
    leader = lab.start(
        TOLD
        + """
    if os.fork() == 0:
        if os.fork() == 0:
            bare('bare')
        os._exit(0)
    os.wait()
    time.sleep(1000)
    """
    )
    bare = lab.pid_of("bare")
    assert bare in lab.tree()
    assert lab.stop()
    assert gone(bare)
    assert gone(leader.pid)


def test_clearing_environ_in_a_running_process_hides_nothing(lab: Lab) -> None:
    leader = lab.start(TOLD + "    tell('cleared'); os.environ.clear(); tell = None; time.sleep(1000)")
    lab.pid_of("cleared")
    time.sleep(0.05)
    assert lab.tree() == {leader.pid}


ESCAPE = (
    TOLD
    + """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            bare('bare')
        os._exit(0)
    os.wait()
    time.sleep(1000)
    """
)


def test_an_orphan_of_a_server_that_adopts_is_found_whatever_it_cleared(lab: Lab) -> None:
    lab.start(ESCAPE, preexec=processes.adopt_orphans)
    bare = lab.pid_of("bare")
    assert bare in lab.tree()
    assert lab.stop()
    assert gone(bare)


def test_what_was_seen_before_the_server_was_stopped_is_stopped_after_it(lab: Lab) -> None:
    leader = lab.start(ESCAPE, preexec=processes.adopt_orphans)
    bare = lab.pid_of("bare")
    known = processes.processes(lab.hub_id, ALLOCATION)
    leader.kill()
    leader.wait()
    assert lab.tree() == set()
    assert processes.stop_tree(lab.hub_id, ALLOCATION, grace_seconds=0.1, known=known)
    assert gone(bare)


def test_without_adoption_and_control_group_such_an_orphan_is_out_of_sight(lab: Lab) -> None:
    """The known limit, kept here so that nobody believes more than is true."""
    lab.start(ESCAPE)
    bare = lab.pid_of("bare")
    assert bare not in lab.tree()
    assert lab.stop()
    assert not gone(bare)


def test_an_escaped_orphan_is_found_by_the_control_group_even_without_its_server(lab: Lab) -> None:
    group = cgroups.create(cgroups.name_of(lab.hub_id, ALLOCATION), None, None)
    if not group.tracked:
        pytest.skip("control groups cannot be written here")
    leader = lab.start(ESCAPE, preexec=lambda: cgroups.join(group.procs))
    bare = lab.pid_of("bare")
    leader.kill()
    leader.wait()
    (run,) = processes.runs(lab.hub_id)
    assert (run.allocation_id, run.mark) == (ALLOCATION, processes.mark_of(bare))
    assert lab.stop()
    assert gone(bare)
    assert cgroups.names(lab.hub_id) == {}


def test_children_forked_while_it_stops_are_stopped_too(lab: Lab) -> None:
    """Three processes replace themselves by a child in a session of its own, for as long as the test may take."""
    lab.start(
        TOLD
        + """
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell('hopper')
    end = time.time() + 20
    for hopper in range(3):
        if os.fork() == 0:
            while time.time() < end:
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(0.005)
                else:
                    os._exit(0)
            os._exit(0)
    time.sleep(1000)
    """,
        preexec=processes.adopt_orphans,
    )
    lab.pid_of("hopper")
    wait_until(lambda: len(lab.tree()) >= 2, "hoppers")
    assert lab.stop(grace_seconds=0.1)
    time.sleep(0.2)
    assert lab.tree() == set()


def test_the_callers_session_is_never_swept_up(lab: Lab) -> None:
    """A marked process that shares our session takes neither us nor our unmarked children with it."""
    lab.start(SLEEP, new_session=False)
    bystander = lab.start(SLEEP, marked=False, new_session=False)
    wait_until(lambda: processes.runs(lab.hub_id), "it runs")
    assert bystander.pid not in lab.tree()
    assert lab.stop()
    assert not gone(bystander.pid)


def test_stopping_what_does_not_run_is_true_at_once(lab: Lab) -> None:
    before = time.monotonic()
    assert lab.stop(grace_seconds=60)
    assert time.monotonic() - before < 60


def test_who_has_too_many_files_open_does_not_take_living_processes_for_ended(lab: Lab) -> None:
    leader = lab.start(SLEEP)
    looks = """
import os, resource, sys
from remotegpu_hub.clients import processes
from remotegpu_hub.errors import Unavailable
processes.parse_mark(sys.argv[1])  # the boot is read once
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
try:
    while True:
        os.dup(0)
except OSError:
    pass
for look in (lambda: processes.is_alive(sys.argv[1]), lambda: processes.runs("nobody")):
    try:
        print(look())
    except Unavailable as error:
        print(error)
"""
    mark = processes.mark_of(leader.pid)
    found = subprocess.run([sys.executable, "-c", looks, mark], capture_output=True, text=True, check=True)
    assert found.stdout == "The process table cannot be read: Too many open files.\n" * 2


def test_a_hub_without_rights_says_that_it_cannot_watch_other_users() -> None:
    """In a child that gave up root, so that the capabilities are really missing."""
    if os.geteuid() != 0:
        reason = processes.blindness()
        assert reason and "CAP_SYS_PTRACE" in reason
        return
    assert processes.blindness() is None
    program = textwrap.dedent(
        """
        import os
        from remotegpu_hub import errors
        from remotegpu_hub.clients import processes
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        print(processes.blindness())
        assert processes.runs('any') == []
        for call in (lambda: processes.runs('any', other_users=True),
                     lambda: processes.stop_tree('any', 1, grace_seconds=0, other_users=True)):
            try:
                call()
            except errors.Unavailable as error:
                print(error)
            else:
                raise SystemExit('it concluded from what it cannot see')
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CAP_SYS_PTRACE and CAP_KILL missing") == 3


def test_a_look_at_500_processes_takes_well_under_50_ms(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    crowd = lab.start(
        TOLD
        + """
    for number in range(500):
        if os.fork() == 0:
            time.sleep(1000)
            os._exit(0)
    tell('crowd')
    time.sleep(1000)
    """,
        marked=True,
    )
    lab.pid_of("crowd")
    entries = sum(name.isdecimal() for name in os.listdir("/proc"))
    times = []
    for _ in range(10):
        before = time.thread_time()
        found = processes.runs(lab.hub_id)
        times.append((time.thread_time() - before) * 1000)
    assert [run.mark for run in found] == [processes.mark_of(crowd.pid)]
    before = time.perf_counter()
    assert lab.stop(grace_seconds=2)
    stopped = (time.perf_counter() - before) * 1000
    with capsys.disabled():
        print(f"\na look at {entries} processes, 501 of a run: {min(times):.1f} ms; ended in {stopped:.0f} ms")
