"""Admissions per second: ours beside the same statements without our code, on the same server in the same run.

PostgreSQL: 16 workers on 100, 1,000 and 10,000 hosts × 8 GPUs with 1,000 running environments; the peers are pgbench
and bare psycopg 3. SQLite: 4 threads; the peer is bare sqlite3, and the longest write lock is printed.

    python benchmarks/admission.py [--quick]
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parts import town
from benchmarks.parts.figures import Rate, Spans, percentile, rate, verdict
from benchmarks.parts.machine import CORES, Spent, Stopwatch, describe
from benchmarks.parts.replay import take_down
from benchmarks.parts.workers import OURS, PGBENCH, PSYCOPG, SQLITE3, Threads, Workers, run_pgbench
from remotegpu_hub import migrations
from remotegpu_hub.db import open_engine, prepare_sqlite
from remotegpu_hub.domain.environments import Rules
from tests import postgres

FLOOR_PER_SECOND = 300
FLOOR_OF_PSYCOPG, AIM_OF_PSYCOPG = 1 / 4, 1 / 2
MOST_COST_GROWTH = 1.5
LONGEST_LOCK_MS = 20


@dataclass(frozen=True)
class Size:
    """How much is measured. Each worker admits `warm` times unmeasured, then `turns` times in each round."""

    hosts: Sequence[int]
    clients: int
    threads: int
    rounds: int
    warm: int
    turns: int
    ended: int


FULL = Size(hosts=(100, 1000, 10_000), clients=16, threads=4, rounds=6, warm=12, turns=20, ended=town.ENDED_RUNS)
QUICK = Size(hosts=(20, 40), clients=2, threads=2, rounds=1, warm=6, turns=40, ended=200)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="only show that it works; the numbers mean nothing")
    size = QUICK if options.parse_args().quick else FULL
    print(describe())
    print("Admissions a second, each from the begin of its transaction to its commit; p50 and p99; CPU of clients and "
          "server for each.\nRatios are ours to the peer's. `others` is what other processes took of the machine "
          "meanwhile.")  # fmt: skip
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres.running({}))
        except postgres.PostgresMissing as missing:
            print(f"PostgreSQL was NOT MEASURED: {missing}")
        else:
            on_postgresql(server, size)
    on_sqlite(size)


def on_postgresql(server: postgres.Postgres, size: Size) -> None:
    with server.connect() as connection:
        version = connection.execute("SHOW server_version").fetchone()
    print(f"\nPostgreSQL {version[0] if version else ''} with its own defaults (fsync, synchronous_commit and "
          f"full_page_writes on), {size.clients} workers, pgbench -M prepared")  # fmt: skip
    _head(OURS, PSYCOPG, PGBENCH)
    measured = {hosts: _postgresql_at(server, size, hosts) for hosts in size.hosts}
    slowest = min(found[OURS].per_second for found in measured.values())
    most_cpu = max(found[OURS].cpu_ms for found in measured.values())
    lowest = min(found[OURS].per_second / found[PSYCOPG].per_second for found in measured.values())
    first, last = measured[size.hosts[0]], measured[size.hosts[-1]]
    growth = {name: first[name].per_second / last[name].per_second for name in first}
    print(
        f"  floor {FLOOR_PER_SECOND}/s: slowest {slowest:.0f}/s: {verdict(slowest >= FLOOR_PER_SECOND)}   "
        f"({CORES} cores without others would do {1000 * CORES / most_cpu:.0f}/s at {most_cpu:.1f} ms of CPU each)"
    )
    print(
        f"  floor {FLOOR_OF_PSYCOPG} of bare psycopg: lowest {lowest:.2f}: {verdict(lowest >= FLOOR_OF_PSYCOPG)}"
        f"   (aim {AIM_OF_PSYCOPG}: {verdict(lowest >= AIM_OF_PSYCOPG)})"
    )
    print(f"  cost at {size.hosts[-1]} hosts, at most {MOST_COST_GROWTH} × that at {size.hosts[0]}: "
          f"{growth[OURS]:.2f} ×: {verdict(growth[OURS] <= MOST_COST_GROWTH)}   "
          f"(psycopg {growth[PSYCOPG]:.2f} ×, pgbench {growth[PGBENCH]:.2f} ×)")  # fmt: skip


def _postgresql_at(server: postgres.Postgres, size: Size, hosts: int) -> dict[str, Rate]:
    database = server.create_database()
    url = server.url(database)
    engine = open_engine(url)
    migrations.init(engine)
    clock = town.Clock(engine, town.build(engine, hosts=hosts, ended=size.ended))
    statements = take_down(engine, town.start_number(0), Rules())
    clock.turn_back()
    engine.dispose()
    workers = Workers(url, statements, size.clients)
    for who in (OURS, PSYCOPG):
        workers.run(who, range(size.warm))
        clock.turn_back()

    def once(who: str, turns: range) -> list[Spans]:
        if who == PGBENCH:
            return run_pgbench(server, database, statements, size.clients, size.warm, size.turns)
        return workers.run(who, turns)

    rates, spent = _rounds(clock, size, size.clients, (OURS, PSYCOPG, PGBENCH), once)
    workers.close()
    engine.dispose()
    server.drop_database(database)
    _row(hosts, len(statements), rates, spent)
    return rates


def on_sqlite(size: Size) -> None:
    print(f"\nSQLite, WAL, synchronous=NORMAL, {size.threads} threads of one process")
    _head(OURS, SQLITE3)
    longest = max(_sqlite_at(size, hosts) for hosts in size.hosts)
    print(
        f"  longest write lock, at most {LONGEST_LOCK_MS} ms: {longest:.1f} ms: {verdict(longest <= LONGEST_LOCK_MS)}"
    )


def _sqlite_at(size: Size, hosts: int) -> float:
    with tempfile.TemporaryDirectory(prefix="remotegpu-sqlite-") as folder:
        path = Path(folder) / "hub.sqlite"
        prepare_sqlite(f"sqlite:///{path}")
        engine = open_engine(f"sqlite:///{path}")
        migrations.init(engine)
        clock = town.Clock(engine, town.build(engine, hosts=hosts, ended=size.ended))
        statements = take_down(engine, town.start_number(0), Rules())
        clock.turn_back()
        workers = Threads(path, statements, size.threads)
        workers.run(OURS, range(size.warm))
        clock.turn_back()
        locks: dict[str, list[float]] = {OURS: [], SQLITE3: []}

        def once(who: str, turns: range) -> list[Spans]:
            workers.locked_ms.clear()
            spans = workers.run(who, turns)
            locks[who] += workers.locked_ms
            return spans

        rates, spent = _rounds(clock, size, size.threads, (OURS, SQLITE3), once)
        workers.close()
        engine.dispose()
    _row(hosts, len(statements), rates, spent)
    print("        write lock p50, p99, longest: " + "; ".join(
        f"{who} {percentile(times, 50):.1f}, {percentile(times, 99):.1f}, {max(times):.1f} ms"
        for who, times in locks.items()))  # fmt: skip
    return max(locks[OURS])


def _rounds(
    clock: town.Clock, size: Size, clients: int, names: Sequence[str], once: Callable[[str, range], list[Spans]]
) -> tuple[dict[str, Rate], Spent]:
    """Let each of them admit in every round, another one first each time, so that caches help none more often."""
    turns = range(size.warm, size.warm + size.turns)
    spans: dict[str, list[list[Spans]]] = {name: [] for name in names}
    spent = {name: Spent() for name in names}
    for number in range(size.rounds):
        for who in (*names[number % len(names) :], *names[: number % len(names)]):
            watch = Stopwatch()
            spans[who].append(once(who, turns))
            spent[who] += watch.read()
            _check(clock, who, clients * size.turns)
    rates = {}
    for who in names:
        made = size.rounds * clients * (size.turns + (size.warm if who == PGBENCH else 0))
        rates[who] = rate(spans[who], cpu_ms=1000 * spent[who].own / made)
    return rates, sum(spent.values(), Spent())


def _check(clock: town.Clock, who: str, expected: int) -> None:
    """Every admission must have got its run and its GPU; then all is put back."""
    runs, slots = clock.admitted()
    if runs != expected or slots != expected:
        raise SystemExit(f"{who} made {runs} runs with {slots} GPUs; {expected} were to be made.")
    clock.turn_back()


def _head(*names: str) -> None:
    ratios = "".join(f"  of {name:<8}" for name in names[1:])
    print(f"{'hosts':>7} {'statements':>10} " + " ".join(f"{name:>32}" for name in names) + ratios + "  others")


def _row(hosts: int, statements: int, rates: dict[str, Rate], spent: Spent) -> None:
    """BEGIN and COMMIT count as statements."""
    ours, *peers = rates.values()
    shown = " ".join(_show(one) for one in (ours, *peers))
    ratios = "".join(f"  {ours.per_second / peer.per_second:<11.2f}" for peer in peers)
    print(f"{hosts:>7} {statements + 2:>10} {shown}{ratios}  {spent.others_percent:.0f} %", flush=True)


def _show(one: Rate) -> str:
    return f"{one.per_second:>6.0f}/s {one.p50_ms:>5.1f} {one.p99_ms:>6.1f} {one.cpu_ms:>4.1f} ms"


if __name__ == "__main__":
    main()
