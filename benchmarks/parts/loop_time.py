"""Measures, inside a hub of a benchmark, how long each callback keeps the loop busy and how much of that is spent in
frames of our code, without what the hub's own spawner does when ours calls it.

    loop_time.install("times.json", ours=[RemoteGPUMixin, …], theirs=[LocalProcessSpawner, Spawner])

On SIGUSR2 the process writes what it saw since the last time, and begins anew.
"""

import functools
import inspect
import json
import signal
import threading
from asyncio import events
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

OURS, THEIRS = "ours", "theirs"


class Meter:
    """Time of the loop's thread, told apart by whose frame is the innermost wrapped one."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.whole: list[float] = []
        self.ours: list[tuple[float, str]] = []
        """Milliseconds of each callback that had any, and the function of ours in which the most went."""
        self._stack: list[tuple[str, str]] = []
        self._spent: dict[str, float] = {}
        self._since = 0.0

    def enter(self, kind: str, name: str) -> None:
        self._settle()
        self._stack.append((kind, name))

    def leave(self) -> None:
        self._settle()
        self._stack.pop()

    def _settle(self) -> None:
        now = perf_counter()
        if self._stack and self._stack[-1][0] == OURS:
            name = self._stack[-1][1]
            self._spent[name] = self._spent.get(name, 0.0) + now - self._since
        self._since = now

    def watch(self, run: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap what the loop calls for each callback."""

        @functools.wraps(run)
        def watched(handle: Any) -> None:
            if threading.get_ident() != self.thread:
                return run(handle)
            self._spent = {}
            begin = perf_counter()
            try:
                run(handle)
            finally:
                self.whole.append(1000 * (perf_counter() - begin))
                if self._spent:
                    most = max(self._spent, key=lambda name: self._spent[name])
                    self.ours.append((1000 * sum(self._spent.values()), most))

        return watched

    def write(self, file: Path) -> None:
        whole, ours = self.whole, self.ours
        self.whole, self.ours = [], []
        said = {
            "whole": {"longest_ms": max(whole, default=0), "total_ms": sum(whole), "callbacks": len(whole)},
            "ours": {
                "longest_ms": max(ours, default=(0.0, ""))[0],
                "total_ms": sum(one[0] for one in ours),
                "callbacks": len(ours),
                "worst": sorted(ours, reverse=True)[:5],
            },
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
    signal.signal(signal.SIGUSR2, lambda *_: meter.write(Path(file)))


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
