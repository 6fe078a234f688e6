"""What the machine is, and how much of it a measurement had for itself."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import psutil

CORES = len(os.sched_getaffinity(0))


def describe() -> str:
    """One line that stands above all numbers."""
    memory_gib = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return (
        f"{CORES} cores, {memory_gib:.0f} GiB, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, load average before the run {load:.1f}"
    )


@dataclass
class Spent:
    """CPU seconds over some time: of this benchmark with everything it started, and of everybody else."""

    own: float = 0.0
    others: float = 0.0
    wall: float = 0.0

    def __add__(self, more: "Spent") -> "Spent":
        return Spent(self.own + more.own, self.others + more.others, self.wall + more.wall)

    @property
    def others_percent(self) -> float:
        """How much of the machine others took, the hypervisor's share included."""
        return 100 * self.others / (self.wall * CORES) if self.wall else 0.0


class Stopwatch:
    """Counts from its making to `read`."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = perf_counter(), _busy(), _own()

    def read(self) -> Spent:
        own = _own() - self._own
        return Spent(own, max(_busy() - self._busy - own, 0.0), perf_counter() - self._wall)


def _busy() -> float:
    """CPU seconds of the whole machine that were not idle, since it started."""
    ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, hard, soft, stolen = ticks
    return float(user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """CPU seconds of this process and all below it, those that ended included."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total
