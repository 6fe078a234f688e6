"""What a list of measured times says."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

Spans = Sequence[tuple[float, float]]
"""Begin and end of each piece of one worker's work, in seconds of one clock, in order."""


@dataclass(frozen=True)
class Rate:
    """What several workers did together."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """CPU time of clients and server for each piece."""


def rate(rounds: Sequence[Sequence[Spans]], *, cpu_ms: float) -> Rate:
    """Count what ended while every worker of a round was busy: from when the last one began until the first one was
    done. Latencies are of all pieces."""
    ended, seconds, latencies = 0, 0.0, []
    for workers in rounds:
        begin = max(spans[0][0] for spans in workers)
        end = min(spans[-1][1] for spans in workers)
        ended += sum(begin < span[1] <= end for spans in workers for span in spans)
        seconds += end - begin
        latencies += [1000 * (span[1] - span[0]) for spans in workers for span in spans]
    return Rate(ended / seconds, percentile(latencies, 50), percentile(latencies, 99), cpu_ms)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def median_interval(values: Sequence[float], *, resamples: int = 10_000) -> tuple[float, float, float]:
    """The median and its 95 % interval, by resampling with replacement (percentile bootstrap, fixed seed)."""
    chance = random.Random(1)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(resamples))
    return median(values), medians[int(0.025 * resamples)], medians[int(0.975 * resamples)]


def verdict(passed: bool) -> str:
    return "pass" if passed else "FAIL"
