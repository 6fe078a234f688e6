"""Long lists: every list of the API by each sort and filter, on few rows and on very many, on both databases.

100,000 environments (a tenth deleted, each with a run that is over), 10,000 runs of one of them, 10,000 personal
workspaces and quotas, 1,000 hosts with 8,000 GPUs, 5,000 images and 1,000,000 audit rows, beside 2,000 environments
and 1,000 of the others (100 hosts). A page of 50 is read as the API reads it and made into JSON, without HTTP and the
hub: the first one, and one in the middle by its cursor. Ratios are many rows to few. Of a slow page it is told what the
database reads row by row, or sorts.

    python benchmarks/long_lists.py [--quick]
"""

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from benchmarks.parts.figures import verdict
from benchmarks.parts.long_tables import BIG, BUSY, LONG_AGO, RARE_ACTION, Long, fill_long
from benchmarks.parts.machine import Stopwatch, describe
from benchmarks.parts.town import FIRST
from remotegpu_hub import migrations
from remotegpu_hub.db import begin, open_engine, prepare_sqlite
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.orm import Allocation, AuditEntry, Environment, Flavor, Gpu, Host, Image, Quota, User, Workspace
from remotegpu_hub.runtime import Runtime, Settings, utcnow
from remotegpu_hub.services import api, paging
from remotegpu_hub.services.api import Call, Caller, Route
from remotegpu_hub.services.workspaces.routes import ROUTES
from tests import postgres

SLOW = re.compile(r"(Parallel )?Seq Scan|Sort|Sort Key|SCAN (?!.*USING)|USE TEMP B-TREE")
MOST_MS = 50
"""A page without a search."""
SHOWN_MS = 20
"""Of what takes longer it is told why."""
REPEATS = 5
FEW = Long(environments=2000, audit=1000, runs_of_one=1000, personal=1000, hosts=100, images=1000)
MANY = Long(environments=100_000, audit=1_000_000, runs_of_one=10_000, personal=10_000, hosts=1000, images=5000)
QUICK_FEW = Long(environments=2000, audit=100, runs_of_one=20, personal=20, hosts=20, images=20)
QUICK_MANY = Long(environments=3000, audit=2000, runs_of_one=50, personal=50, hosts=20, images=50)

TABLES: Mapping[str, Any] = {
    "list_environments": Environment, "list_all_environments": Environment,
    "list_environments_of_workspace": Environment, "list_runs": Allocation, "list_workspaces": Workspace,
    "list_quotas": Quota, "list_hosts": Host, "list_gpus": Gpu, "list_images": Image, "list_flavors": Flavor,
    "list_audit": AuditEntry,
}  # fmt: skip
"""What the lists that have pages list."""
_OF_ENVIRONMENTS: list[dict[str, Any]] = [
    {"state": "running"}, {"state": "error"}, {"running": True}, {"running": False}, {"user": "user-7"},
    {"search": "train"}, {"search": "nothing has it"},
]  # fmt: skip
_LONG_AGO = {
    "since": (LONG_AGO + timedelta(days=400)).isoformat(),
    "until": (LONG_AGO + timedelta(days=401)).isoformat(),
}
FILTERS: Mapping[str, list[dict[str, Any]]] = {
    "list_environments": [{"state": "running"}, {"running": False}, {"search": "train"}],
    "list_all_environments": _OF_ENVIRONMENTS,
    "list_environments_of_workspace": _OF_ENVIRONMENTS,
    "list_workspaces": [{"mine": False, "search": "person 9"}, {"mine": False, "search": "nothing has it"},
                        {"mine": False, "status": "archived"}],
    "list_quotas": [{"scope": "workspace"}, {"scope": "user-default"}],
    "list_hosts": [{"status": "offline"}, {"pool": "benchmark"}, {"search": "9"}, {"search": "nothing has it"}],
    "list_images": [{"status": "blocked"}, {"search": "nothing has it"}],
    "list_audit": [{"actor": "user-7"}, {"actor": "auditor"}, {"action": "quota.put"}, {"action": RARE_ACTION},
                   {"entity": "quota"}, {"entity": "allocation", "entity_id": 77}, _LONG_AGO,
                   {**_LONG_AGO, "actor": "auditor"}, {**_LONG_AGO, "action": RARE_ACTION}],
}  # fmt: skip
ALL: Mapping[str, dict[str, Any]] = {"list_workspaces": {"mine": False}}
"""What must be said to see everything."""


@dataclass(frozen=True)
class Case:
    """One list, in one order, of some rows."""

    route: Route
    sort: str
    given: Mapping[str, Any]

    @property
    def name(self) -> str:
        said = [f"{name}={str(value)[:16]}" for name, value in self.given.items() if (name, value) != ("mine", False)]
        return " ".join([self.route.path.replace("{workspace}", BIG), f"sort={self.sort}" if self.sort else "", *said])

    @property
    def searches(self) -> bool:
        return "search" in self.given


@dataclass
class Seen:
    """What a case took on one database."""

    first_ms: float
    middle_ms: float
    statements: int
    plan: list[str]


def cases() -> Iterator[Case]:
    for route in ROUTES:
        name = route.work.__name__
        if name not in TABLES:
            continue
        asked = route.query.model_fields.get("sort")
        for sort in get_args(asked.annotation) if asked else ("",):
            everything = ALL.get(name, {})
            for given in ({}, *FILTERS.get(name, ())):
                yield Case(route, sort, {**everything, **given})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="only show that it works; the numbers mean nothing")
    sizes = (QUICK_FEW, QUICK_MANY) if options.parse_args().quick else (FEW, MANY)
    print(describe())
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres.running({}))
        except postgres.PostgresMissing as missing:
            print(f"PostgreSQL was NOT MEASURED: {missing}")
        else:
            compare("PostgreSQL", [server.url(server.create_database()) for _ in sizes], sizes)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remotegpu-lists-")))
        urls = [f"sqlite:///{folder}/{number}.sqlite" for number in range(len(sizes))]
        for url in urls:
            prepare_sqlite(url)
        compare("SQLite", urls, sizes)
    print(f"Other processes took {watch.read().others_percent:.0f} % of the machine meanwhile.")


def compare(database: str, urls: Sequence[str], sizes: Sequence[Long]) -> None:
    seen: list[dict[str, Seen]] = []
    print(f"\n{database}")
    for url, size in zip(urls, sizes, strict=True):
        engine = open_engine(url)
        migrations.init(engine)
        start = perf_counter()
        fill_long(engine, size)
        print(f"  {size.environments:,} environments and {size.audit:,} audit rows, made in "
              f"{perf_counter() - start:.0f} s", flush=True)  # fmt: skip
        runtime = Runtime(Settings(db_url=url))
        seen.append({case.name: measure(engine, runtime, case) for case in cases()})
        engine.dispose()
    few, many = seen
    print(f"  {'first page':>18} {'in the middle':>19} statements")
    for case in cases():
        before, after = few[case.name], many[case.name]
        slow = max(after.first_ms, after.middle_ms) > SHOWN_MS
        print(f"  {_show(before.first_ms, after.first_ms)} {_show(before.middle_ms, after.middle_ms)}"
              f" {after.statements:>10}  {case.name}"
              + (f"   [{'; '.join(after.plan)}]" if after.plan and slow else ""), flush=True)  # fmt: skip
    for searching in (False, True):
        chosen = [(max(many[one.name].first_ms, many[one.name].middle_ms), one.name)
                  for one in cases() if one.searches == searching]  # fmt: skip
        slowest, name = max(chosen)
        over = sum(ms > MOST_MS for ms, _name in chosen)
        print(f"  {len(chosen)} lists with{'' if searching else 'out'} a search: slowest {slowest:.1f} ms ({name}); "
              f"over {MOST_MS} ms: {over}: {verdict(not over)}", flush=True)  # fmt: skip


def _show(few: float, many: float) -> str:
    return f"{many:>8.1f} ms {many / few:>5.1f} ×"


def measure(engine: Engine, runtime: Runtime, case: Case) -> Seen:
    with begin(engine, read_only=True) as session:
        call = call_of(session, runtime, case, None)
        cursor = cursor_of(session, case)
        statements, plan = plan_of(engine, session, call, case)
    first = timed(engine, runtime, case, None)
    return Seen(first, timed(engine, runtime, case, cursor) if cursor else first, statements, plan)


def timed(engine: Engine, runtime: Runtime, case: Case, cursor: str | None) -> float:
    """Milliseconds for a page, the median of a few; each in a transaction of its own."""
    took = []
    for _ in range(REPEATS + 1):
        start = perf_counter()
        with begin(engine, read_only=True) as session:
            api.write(case.route, case.route.work(call_of(session, runtime, case, cursor)))
        took.append(1000 * (perf_counter() - start))
    return median(took[1:])


def call_of(session: Session, runtime: Runtime, case: Case, cursor: str | None) -> Call:
    user = session.get_one(User, FIRST[User])
    asked = {**case.given, **({"sort": case.sort} if case.sort else {}), **({"cursor": cursor} if cursor else {})}
    space = session.get_one(Workspace, FIRST[Workspace])
    return Call(
        session=session, runtime=runtime, caller=Caller(user.name, user, frozenset({api.ADMIN}), True),
        path={"workspace": space.name, "id": str(BUSY)}, query=api.check(case.route.query, asked), body=None,
        now=utcnow(), actor=Actor(user.name), workspace=space,
    )  # fmt: skip


def cursor_of(session: Session, case: Case) -> str | None:
    """The cursor of a row in the middle of the whole table, by the order of the list."""
    table, sort = (
        TABLES[case.route.work.__name__],
        case.sort or ("id" if case.route.path in ("quotas", "gpus") else "-id"),
    )
    key = getattr(table, sort.removeprefix("-"))
    unique = sort.removeprefix("-") in ("id", "name")
    columns = (key,) if unique else (key, table.id)
    count = session.scalar(select(func.count()).select_from(table)) or 0
    row = session.execute(select(table).order_by(*columns).offset(count // 2).limit(1)).scalars().first()
    return paging._cursor(sort, [paging._value(row, column) for column in columns]) if row is not None else None


def plan_of(engine: Engine, session: Session, call: Call, case: Case) -> tuple[int, list[str]]:
    """How many statements make a page, and what the slowest of them reads row by row, or sorts."""
    found: list[tuple[float, str, Any]] = []

    def begins(_connection: Any, _cursor: Any, _text: str, _given: Any, context: Any, _many: bool) -> None:
        context.begun = perf_counter()

    def ends(_connection: Any, _cursor: Any, text: str, given: Any, context: Any, _many: bool) -> None:
        found.append((perf_counter() - context.begun, text, given))

    event.listen(engine, "before_cursor_execute", begins)
    event.listen(engine, "after_cursor_execute", ends)
    try:
        case.route.work(call)
    finally:
        event.remove(engine, "before_cursor_execute", begins)
        event.remove(engine, "after_cursor_execute", ends)
    _took, text, given = max(found, key=lambda one: one[0])
    how = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    rows = session.connection().exec_driver_sql(f"{how} {text}", given).all()
    lines = [str(row[-1]).strip().removeprefix("->").strip() for row in rows]
    told = [re.split(r"  \(", line)[0].replace("remotegpu_", "") for line in lines if SLOW.match(line)]
    return len(found), told


if __name__ == "__main__":
    main()
