"""Pages under load: users read their page and let it renew itself, while everything of theirs runs.

2,000 environments run in a real hub on PostgreSQL. 500 users, each with a browser's cookies, open the page "My
environments" through the proxy, spread over the time between two renewals. It listens to the stream of events, and
renews itself for a minute: every thirty seconds, as the page's script does of what rests, or with `--every 10` as often
as it does where no stream comes through and something starts or stops. Limit: p95 under 300 ms, no error, no memory
gained. The peer is the hub's own home page, read in the same way by the same users afterwards. All ticks go on
meanwhile: sync, reconcile, meter, and the hub's own polls.

    python benchmarks/pages_load.py [--quick] [--every SECONDS]
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.parts.busy_hub import SERVERS_EACH, WORKSPACES, BusyHub, Reader
from benchmarks.parts.figures import percentile, verdict
from benchmarks.parts.machine import CORES, Stopwatch, describe
from benchmarks.parts.readers import Plan, Reading, begin, readings
from tests import postgres as pg

MOST_P95_MS = 300
MOST_GROWTH = 1.05
"""Of the service's memory from the first interval, in which its caches fill, to the end."""


@dataclass(frozen=True)
class Measured:
    """What some time of reading showed."""

    readings: Sequence[Reading]
    resident_mib: Sequence[float]
    """Of the service's process: after the first interval, in the middle, at the end."""
    cores: Mapping[str, float]
    """What each part took of the machine from the first interval to the end."""
    others_percent: float

    def percentile(self, percent: float) -> float:
        return percentile([one.ms for one in self.readings], percent)

    @property
    def errors(self) -> list[str]:
        return [one.error for one in self.readings if one.error]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    users: int
    seconds: float
    every: float
    peer_seconds: float


FULL = Size(users=500, seconds=60, every=30, peer_seconds=30)
QUICK = Size(users=10, seconds=3, every=1, peer_seconds=2)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="only show that it works; the numbers mean nothing")
    options.add_argument("--every", type=float, metavar="SECONDS", help="between two renewals of a page")
    given = options.parse_args()
    size = QUICK if given.quick else FULL
    size = replace(size, every=given.every or size.every)
    print(describe())
    with (
        tempfile.TemporaryDirectory(prefix="remotegpu-pages-load-") as name,
        pg.running({}) as postgres,
        BusyHub(Path(name), users=size.users, db_url=postgres.url(postgres.create_database())) as hub,
    ):
        start = time.perf_counter()
        hub.fill()
        print(f"{len(hub.servers)} environments of {size.users} users in {WORKSPACES} workspaces run, admitted one by "
              f"one, known to the hub as ready; made in {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        start = time.perf_counter()
        people = hub.log_in(hub.members)
        print(f"{len(people)} users logged in through the hub's form and the service's OAuth in "
              f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        measure(hub, postgres, people, size)
        left = len(hub.open_runs())
        print(f"afterwards {left} environments run: {verdict(left == len(hub.servers))}")
        for line in hub.ends():
            print(f"    {line}")


def measure(hub: BusyHub, postgres: pg.Postgres, people: Sequence[Reader], size: Size) -> None:
    parts = parts_of(hub, postgres)
    pages = f"{hub.url}services/workspaces/"
    ours = Plan(
        url=pages, cookies=[one.cookie for one in people], xsrf=[one.xsrf for one in people],
        must_hold=[f"Experiment {SERVERS_EACH} of {one.name}" for one in people],
        beside=[f"{pages}static/{name}" for name in ("pages.css", "theme.js", "pages.js")],
        stream=f"{pages}api/events?mine=true", seconds=size.seconds, every=size.every,
    )  # fmt: skip
    home = Plan(
        url=f"{hub.url}hub/home", cookies=[one.hub_cookie for one in people], xsrf=["" for _ in people],
        must_hold=[f"/user/{one.name}" for one in people], beside=[], stream="", seconds=size.peer_seconds,
        every=size.every,
    )  # fmt: skip
    print(f"\n{'':<18}{'pages':>7} {'a second':>9} {'p50':>7} {'p95':>7} {'p99':>7} {'longest':>8}  errors  others")
    found, peer = read("my environments", ours, parts), read("the hub's home", home, parts)
    p95, (first, middle, last) = found.percentile(95), found.resident_mib
    print(f"  limit {MOST_P95_MS} ms for p95: {p95:.0f} ms, {p95 / MOST_P95_MS:.2f} of it: "
          f"{verdict(p95 < MOST_P95_MS)}   ({p95 / peer.percentile(95):.2f} of the hub's own home)")  # fmt: skip
    print(f"  no error: {len(found.errors)}: {verdict(not found.errors)}")
    for error, count in Counter(found.errors + peer.errors).most_common(5):
        print(f"    {count} × {error}")
    print(f"  memory of the service after {size.every:g} s, in the middle and at the end {first:.1f}, {middle:.1f} and "
          f"{last:.1f} MiB, at most {MOST_GROWTH} ×: {last / first:.2f} ×: "
          f"{verdict(last / first <= MOST_GROWTH)}")  # fmt: skip
    for name, one in (("my environments", found), ("the hub's home", peer)):
        most = max(one.cores, key=lambda part: one.cores[part])
        print(f"  cores taken for {name}: " + ", ".join(f"{part} {taken:.2f}" for part, taken in one.cores.items())
              + f" of {CORES}; most by {most}")  # fmt: skip


def parts_of(hub: BusyHub, postgres: pg.Postgres) -> dict[str, list[psutil.Process]]:
    """The processes of each part that may be the limiting one."""
    services = {name: psutil.Process(hub.service_pid(name)) for name in ("workspaces", "billing")}
    proxy = [one for one in psutil.Process(hub.pid).children() if "configurable-http-proxy" in " ".join(one.cmdline())]
    return {
        "service": [services["workspaces"]], "hub": [psutil.Process(hub.pid)], "proxy": proxy,
        "billing": [services["billing"]], "database": [psutil.Process(postgres.process.pid)],
    }  # fmt: skip


def seconds_of(part: Sequence[psutil.Process]) -> float:
    """CPU time of processes, with that of children that ended."""
    return sum(sum(one.cpu_times()[:4]) for one in part)


def read(name: str, plan: Plan, parts: Mapping[str, Sequence[psutil.Process]]) -> Measured:
    """Let all read, look at the parts meanwhile, and print a row."""
    watch = Stopwatch()
    process = begin(plan)
    running = {**parts, "readers": [psutil.Process(process.pid)]}
    database = running["database"][0]
    start, looks = time.monotonic(), []
    for at in (plan.every, plan.seconds / 2, plan.seconds - 0.3):
        time.sleep(max(0.0, start + at - time.monotonic()))
        running["database"] = [database, *database.children()]
        looks.append((time.monotonic(), {part: seconds_of(some) for part, some in running.items()},
                      running["service"][0].memory_info().rss / 2**20))  # fmt: skip
    (begun, before, _), (ended, after, _) = looks[0], looks[-1]
    cores = {part: (after[part] - before[part]) / (ended - begun) for part in running}
    found = Measured(readings(process), [look[2] for look in looks], cores, watch.read().others_percent)
    rate = len(found.readings) / plan.seconds
    print(f"{name:<18}{len(found.readings):>7} {rate:>9.1f} "
          + " ".join(f"{found.percentile(one):>4.0f} ms" for one in (50, 95, 99, 100))
          + f"{len(found.errors):>9} {found.others_percent:>6.0f} %", flush=True)  # fmt: skip
    return found


if __name__ == "__main__":
    main()
