"""What a start costs with us in the hub, beside the plain spawner with the same command in a hub of its own.

1. Request to the server's own first 200, in pairs: the paired median difference; and the admission's part of it.
2. The hub's loop while 50 environments start: the longest and all of our callbacks, beside everything else's.
3. Memory of the hub's process for 1,000 environments that run and that nobody uses.

    python benchmarks/spawn.py [--quick]
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts.figures import median_interval, percentile, verdict
from benchmarks.parts.machine import Stopwatch, describe
from benchmarks.parts.pair import LAB, ONE_GPU, SMALL, Side, pair

AIM_SLOWER_PERCENT = 5
LONGEST_CALLBACK_MS = 5
TINY = {"cpu": "0.01", "memory": "64M"}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    command: Sequence[str]
    pairs: int
    starts: int
    rounds: int
    users: int
    servers_each: int


FULL = Size(LAB, pairs=20, starts=50, rounds=3, users=50, servers_each=4)
QUICK = Size(SMALL, pairs=2, starts=3, rounds=1, users=3, servers_each=1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="only show that it works; the numbers mean nothing")
    quick = options.parse_args().quick
    size = QUICK if quick else FULL
    users = [f"user-{number}" for number in range(max(size.users, size.starts))]
    print(describe())
    watch = Stopwatch()
    with tempfile.TemporaryDirectory(prefix="remotegpu-spawn-") as name:
        folder = Path(name)
        if quick:
            with pair(folder, SMALL, users=users, wish=TINY, watched=True) as sides:
                first_answers(sides, size)
                loop_while_many_start(sides, size, users)
                memory_of_idle(sides, size, users)
            print(f"\nOther processes took {watch.read().others_percent:.0f} % of the machine meanwhile.")
            return
        with pair(
            folder / "first", size.command, users=users[:1], wish={**ONE_GPU, "cpu": "2", "memory": "4G"}
        ) as both:
            first_answers(both, size)
        with pair(folder / "loop", SMALL, users=users, wish={**ONE_GPU, **TINY}, watched=True) as both:
            loop_while_many_start(both, size, users)
        with pair(folder / "memory", SMALL, users=users, wish=TINY) as both:
            memory_of_idle(both, size, users)
    print(f"\nOther processes took {watch.read().others_percent:.0f} % of the machine meanwhile.")


def first_answers(sides: tuple[Side, Side], size: Size) -> None:
    """Interleave starts of both, the first of each pair by turns."""
    ours, plain = sides
    seconds: dict[str, list[float]] = {ours.name: [], plain.name: []}
    for number in range(size.pairs):
        for side in sides if number % 2 else sides[::-1]:
            seconds[side.name].append(side.first_answer("user-0"))
            side.stop_all()
    slower = [100 * (a - b) / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    middle, low, high = median_interval(slower)
    more = [1000 * (a - b) for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    print(f"Request to the server's own first 200, {size.pairs} interleaved pairs")
    print(f"  ours {median(seconds['ours']):.3f} s, plain {median(seconds['plain']):.3f} s (medians)")
    print(f"  paired median difference {middle:+.1f} %, 95 % interval {low:+.1f} to {high:+.1f} %, "
          f"{median(more):+.0f} ms; "
          f"aim at most +{AIM_SLOWER_PERCENT} %: {verdict(middle <= AIM_SLOWER_PERCENT)}")  # fmt: skip
    admits = [float(line) for line in (ours.hub.folder / "admit-ms").read_text().split()]
    print(f"  of that the admission (user, choice, limits, placement, commit; SQLite): median {median(admits):.1f} ms, "
          f"p99 {percentile(admits, 99):.1f} ms", flush=True)  # fmt: skip


def loop_while_many_start(sides: tuple[Side, Side], size: Size, users: Sequence[str]) -> None:
    """Start many small servers at once in each hub, round by round."""
    found: dict[str, list[dict]] = {side.name: [] for side in sides}
    for _ in range(size.rounds):
        for side in sides:
            with _quiet(side):
                side.loop_times()
                side.start_all([(user, "") for user in users[: size.starts]], at_once=size.starts)
                found[side.name].append(side.loop_times())
    print(f"\nThe hub's loop while {size.starts} environments start at once, {size.rounds} rounds")
    ours = [one["ours"] for one in found["ours"]]
    worst = max(ours, key=lambda one: one["cpu_longest_ms"])
    longest = worst["cpu_longest_ms"]
    print(f"  in frames of our code: longest {longest:.1f} ms of CPU (mostly {worst['worst']}), "
          f"total {median(one['cpu_total_ms'] for one in ours):.0f} ms in "
          f"{median(one['callbacks'] for one in ours):.0f} callbacks; "
          f"longest under {LONGEST_CALLBACK_MS} ms: {verdict(longest < LONGEST_CALLBACK_MS)}\n    "
          f"by the clock, waits for a core included: longest {max(one['clock_longest_ms'] for one in ours):.1f} ms, "
          f"total {median(one['clock_total_ms'] for one in ours):.0f} ms")  # fmt: skip
    for side in sides:
        whole = [one["whole"] for one in found[side.name]]
        print(f"  everything on the loop, {side.name}: longest {max(one['cpu_longest_ms'] for one in whole):.0f} ms of "
              f"CPU, total {median(one['cpu_total_ms'] for one in whole):.0f} ms; by the clock longest "
              f"{max(one['clock_longest_ms'] for one in whole):.0f} ms, "
              f"total {median(one['clock_total_ms'] for one in whole):.0f} ms\n"
              "    of that garbage collection: longest "
              f"{max(one['garbage']['cpu_longest_ms'] for one in found[side.name]):.0f} ms of CPU",
              flush=True)  # fmt: skip


def memory_of_idle(sides: tuple[Side, Side], size: Size, users: Sequence[str]) -> None:
    """Run environments that nobody uses, four of each user, and compare the hub's resident memory."""
    servers = [(user, f"s-{number}") for user in users[: size.users] for number in range(size.servers_each)]
    print(f"\nMemory of the hub's process: {len(servers)} environments of {size.users} users, scaled to 1,000")
    for side in sides:
        before = side.resident_mib()
        side.start_all(servers, at_once=min(10, len(servers)))
        running = side.resident_mib()
        side.stop_all()
        stopped = side.resident_mib()
        scale = 1000 / len(servers)
        print(f"  {side.name}: {before:.0f} MiB without any, {running:.0f} MiB with all running, {stopped:.0f} MiB "
              f"when all had stopped: {scale * (running - before):.0f} MiB per 1,000 running and idle, "
              f"{scale * (stopped - before):.0f} MiB per 1,000 stopped", flush=True)  # fmt: skip


@contextmanager
def _quiet(side: Side) -> Iterator[None]:
    yield
    side.stop_all()


if __name__ == "__main__":
    main()
