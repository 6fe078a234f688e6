"""Measures, inside a hub of a benchmark, how long each callback keeps the loop busy and how much of that is spent in
frames of our code, without what the hub's own spawner does when ours calls it.

Each is measured twice: in CPU time of the loop's thread, which is what the code takes, and by the clock, which also
counts the waits for a core while fifty servers start on the same machine, and for the interpreter. The interpreter's
garbage collection, which falls on whoever happens to run, is told by itself.

    loop_time.install("times.json", ours=[RemoteGPUMixin, …], theirs=[LocalProcessSpawner, Spawner])

On SIGUSR2 the process writes what it saw since the last time, and begins anew.
"""

import functools
import gc
import inspect
import json
import os
import signal
import threading
import time
from asyncio import events
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

FILE = "loop.json"
OURS, THEIRS, GARBAGE = "ours", "theirs", "garbage"


class Meter:
    """Time of the loop's thread, told apart by whose frame is the innermost wrapped one."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.whole: list[tuple[float, float]] = []
        """Milliseconds of each callback: CPU, and by the clock."""
        self.ours: list[tuple[float, float, str]] = []
        """The same of each callback that spent any in our code, and the function of ours in which the most CPU went."""
        self.garbage: list[tuple[float, float, str]] = []
        """Collections on the loop's thread."""
        self._collecting = (0.0, 0.0)
        self._stack: list[tuple[str, str]] = []
        self._spent: dict[str, float] = {}
        self._waited = 0.0
        self._since = (0.0, 0.0)

    def enter(self, kind: str, name: str) -> None:
        self._settle()
        self._stack.append((kind, name))

    def leave(self) -> None:
        self._settle()
        self._stack.pop()

    def _settle(self) -> None:
        now = thread_time(), perf_counter()
        if self._stack and self._stack[-1][0] == OURS:
            name = self._stack[-1][1]
            self._spent[name] = self._spent.get(name, 0.0) + now[0] - self._since[0]
            self._waited += now[1] - self._since[1]
        self._since = now

    def collect(self, phase: str, _info: dict[str, int]) -> None:
        """What `gc` calls before and after a collection."""
        if threading.get_ident() != self.thread:
            return
        if phase == "start":
            self.enter(GARBAGE, "")
            self._collecting = self._since
        else:
            self.leave()
            cpu, clock = (1000 * (now - then) for now, then in zip(self._since, self._collecting, strict=True))
            self.garbage.append((cpu, clock, ""))

    def watch(self, run: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap what the loop calls for each callback."""

        @functools.wraps(run)
        def watched(handle: Any) -> None:
            if threading.get_ident() != self.thread:
                return run(handle)
            self._spent, self._waited = {}, 0.0
            cpu, clock = thread_time(), perf_counter()
            try:
                run(handle)
            finally:
                self.whole.append((1000 * (thread_time() - cpu), 1000 * (perf_counter() - clock)))
                if self._spent:
                    most = max(self._spent, key=lambda name: self._spent[name])
                    self.ours.append((1000 * sum(self._spent.values()), 1000 * self._waited, most))

        return watched

    def write(self, file: Path) -> None:
        whole, ours, garbage = self.whole, self.ours, self.garbage
        self.whole, self.ours, self.garbage = [], [], []
        said = {
            name: {
                "cpu_longest_ms": max((one[0] for one in found), default=0),
                "cpu_total_ms": sum(one[0] for one in found),
                "clock_longest_ms": max((one[1] for one in found), default=0),
                "clock_total_ms": sum(one[1] for one in found),
                "callbacks": len(found),
                "worst": max((one[2] for one in sorted(ours)[-1:]), default="-"),
            }
            for name, found in (("whole", whole), ("ours", ours), ("garbage", garbage))
        }
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(said))
        partial.rename(file)


class _Steps:
    """A coroutine each of whose steps is counted."""

    def __init__(self, work: Coroutine[Any, Any, Any], enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self.work, self.enter, self.leave = work, enter, leave

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        while True:
            self.enter()
            try:
                waiting = self.work.throw(error) if error is not None else self.work.send(value)
            except StopIteration as done:
                return done.value
            finally:
                self.leave()
            value, error = None, None
            try:
                value = yield waiting
            except BaseException as raised:
                error = raised


def install(file: str, *, ours: Sequence[type] = (), theirs: Sequence[type] = ()) -> None:
    """Begin to measure in this process, whose thread is the loop's."""
    meter = Meter()
    for kind, classes in ((OURS, ours), (THEIRS, theirs)):
        for one in classes:
            for name, value in list(vars(one).items()):
                if inspect.isfunction(value) and not name.startswith("__") and not inspect.isasyncgenfunction(value):
                    setattr(one, name, _counted(meter, kind, value))
    events.Handle._run = meter.watch(events.Handle._run)  # type: ignore[method-assign]
    gc.callbacks.append(meter.collect)
    signal.signal(signal.SIGUSR2, lambda *_: meter.write(Path(file)))


def told(pid: int, folder: Path) -> dict[str, Any]:
    """What the hub with this process and folder saw of its loop since the last call, as `Meter.write` has it."""
    file = folder / FILE
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + 30
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _counted(meter: Meter, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    name = function.__qualname__

    @functools.wraps(function)
    async def stepwise(*given: Any, **named: Any) -> Any:
        return await _Steps(function(*given, **named), lambda: meter.enter(kind, name), meter.leave)

    @functools.wraps(function)
    def at_once(*given: Any, **named: Any) -> Any:
        if threading.get_ident() != meter.thread:
            return function(*given, **named)
        meter.enter(kind, name)
        try:
            return function(*given, **named)
        finally:
            meter.leave()

    return stepwise if inspect.iscoroutinefunction(function) else at_once
