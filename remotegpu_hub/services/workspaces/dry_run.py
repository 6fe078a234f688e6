"""What other limits would have refused in a past month: a route that replays its runs."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from datetime import datetime, timedelta
from threading import BoundedSemaphore
from typing import Annotated, Any, Final

from pydantic import Field, StrictInt
from sqlalchemy import Engine, select

from ...db import begin
from ...domain import policy
from ...domain.policy import Limits, Refusal, Start
from ...errors import Busy, Invalid
from ...orm import Environment, User, Workspace
from ...runtime import Runtime
from ...units import UNLIMITED, iso, month_bounds
from ..api import Call, Later, Needs, Route, Shape

BATCH: Final = 5000
"""Runs that one transaction reads."""
MOST_LISTED: Final = 50
"""Of users, of workspaces, and of refused starts."""
MOST_AT_ONCE: Final = 2
"""Dry runs of a process."""
AFTER_SECONDS: Final = 5
_turns: Final = BoundedSemaphore(MOST_AT_ONCE)
Slots = Annotated[StrictInt, Field(ge=0, lt=UNLIMITED)]
Amount = Slots | None
ModelName = Annotated[str, Field(min_length=1, max_length=80)]


class LimitsGiven(Shape):
    """Of each user, or of each workspace; null does not limit."""

    gpu_millis: Amount = Field(default=None, description="Thousandths of GPUs held at once.")
    cpu_millis: Amount = Field(default=None, description="Thousandths of cores held at once.")
    memory_bytes: Amount = None
    environments: Amount = Field(default=None, description="Environments that run at once.")
    gpu_hours: Amount = Field(default=None, description="In the month.")
    storage_bytes: Amount = Field(default=None, description="Of volumes, which stay when what uses them ends.")
    models: dict[ModelName, Slots] = Field(
        default_factory=dict, max_length=50, description="Slots of one GPU model held at once."
    )

    @property
    def empty(self) -> bool:
        return not self.models and all(value is None for name, value in self if name != "models")

    @property
    def limits(self) -> Limits:
        return Limits(**dict(self))


class DryRun(Shape):
    month: str = Field(pattern=r"^20\d\d-(0[1-9]|1[0-2])$", description="Such as 2026-10, in UTC.")
    user: LimitsGiven = Field(default_factory=LimitsGiven, description="What each user may hold everywhere.")
    workspace: LimitsGiven = Field(default_factory=LimitsGiven, description="What each workspace may hold.")


class Share(Shape):
    name: str
    starts: int
    refused: int


class LimitBroken(Shape):
    scope: str = Field(description="`user` or `workspace`.")
    resource: str
    refused: int


class BreachShown(Shape):
    scope: str
    resource: str
    wanted: int
    held: int
    limit: int


class RefusedStart(Shape):
    at: datetime
    user: str
    workspace: str
    environment: str
    breaches: list[BreachShown] = Field(description="Every limit that it would have broken.")


class DryRunShown(Shape):
    month: str
    starts: int
    refused: int
    users: list[Share] = Field(description="Those with refused starts, the most first; at most 50.")
    workspaces: list[Share]
    limits: list[LimitBroken]
    first: list[RefusedStart] = Field(description="The first refused starts, at most 50.")


def dry_run_policy(call: Call) -> Any:
    asked: DryRun = call.body
    check(asked)
    runtime = call.runtime

    async def act() -> dict[str, Any]:
        return await asyncio.wrap_future(begin_replay(runtime, asked))

    return Later(act, hub=False)


def begin_replay(runtime: Runtime, asked: DryRun) -> "Future[dict[str, Any]]":
    """Replay in a thread of its own, which goes on even if nobody waits for it. Raises: Busy while two do already: each
    holds a month of runs in memory."""
    if not _turns.acquire(blocking=False):
        raise Busy(count=MOST_AT_ONCE, after_seconds=AFTER_SECONDS)

    def work() -> dict[str, Any]:
        try:
            return replay(runtime.engine, asked)
        finally:
            _turns.release()

    try:
        begun: Future[dict[str, Any]] = runtime.submit(work)
    except RuntimeError:  # the process is ending
        _turns.release()
        raise
    return begun


def check(asked: DryRun) -> None:
    """Raises: Invalid when nothing would be limited."""
    if asked.user.empty and asked.workspace.empty:
        raise Invalid("Name at least one limit, of each user or of each workspace.")


def replay(engine: Engine, asked: DryRun) -> dict[str, Any]:
    """Read the month in transactions that are short, replay it, and tell it with names."""
    first, end = month_bounds(asked.month, "UTC")
    runs: list[Start] = []
    after = 0
    while True:
        with begin(engine, read_only=True) as session:
            part = policy.starts(session, begin=first, end=end, after=after, limit=BATCH)
        runs += part
        if len(part) < BATCH:
            break
        after = part[-1].id
    with begin(engine, read_only=True) as session:
        sizes = policy.sizes(session, end=end)
    runs.sort(key=lambda one: (one.admitted_at, one.id))
    refused = policy.replay(
        runs, user=asked.user.limits, workspace=asked.workspace.limits, begin=first, end=end, sizes=sizes
    )
    within = [one for one in runs if one.admitted_at >= first]
    listed = refused[:MOST_LISTED]
    users, spaces = _shares(within, refused, "user_id"), _shares(within, refused, "workspace_id")
    names = _Names(engine, users, spaces, listed)
    broken = Counter((two.scope, two.resource) for one in refused for two in one.breaches)
    return {
        "month": asked.month,
        "starts": len(within),
        "refused": len(refused),
        "users": [{"name": names.users.get(key, ""), "starts": all_, "refused": bad} for key, all_, bad in users],
        "workspaces": [
            {"name": names.spaces.get(key, ""), "starts": all_, "refused": bad} for key, all_, bad in spaces
        ],
        "limits": [
            {"scope": scope, "resource": resource, "refused": count}
            for (scope, resource), count in sorted(broken.items(), key=lambda item: (-item[1], item[0]))
        ],
        "first": [_told(one, names) for one in listed],
    }


def _shares(within: Iterable[Start], refused: Iterable[Refusal], name: str) -> list[tuple[int, int, int]]:
    """Id, starts and refused starts of those who had any refused, the most first."""
    starts = Counter(getattr(one, name) for one in within)
    bad = Counter(getattr(one.start, name) for one in refused)
    return [(key, starts[key], count) for key, count in sorted(bad.items(), key=lambda item: (-item[1], item[0]))][
        :MOST_LISTED
    ]


class _Names:
    """What the ids of a result are called."""

    def __init__(
        self, engine: Engine, users: list[tuple[int, int, int]], spaces: list[tuple[int, int, int]],
        listed: list[Refusal],
    ) -> None:  # fmt: skip
        user_ids = {key for key, *_ in users} | {one.start.user_id for one in listed}
        space_ids = {key for key, *_ in spaces} | {one.start.workspace_id for one in listed}
        wanted = (
            (User.id, User.name, user_ids),
            (Workspace.id, Workspace.display_name, space_ids),
            (Environment.id, Environment.display_name, {one.start.environment_id for one in listed}),
        )
        with begin(engine, read_only=True) as session:
            self.users, self.spaces, self.environments = (
                dict(session.execute(select(key, name).where(key.in_(ids))).tuples().all()) for key, name, ids in wanted
            )


def _told(one: Refusal, names: _Names) -> dict[str, Any]:
    return {
        "at": iso(one.start.admitted_at),
        "user": names.users.get(one.start.user_id, ""),
        "workspace": names.spaces.get(one.start.workspace_id, ""),
        "environment": names.environments.get(one.start.environment_id, ""),
        "breaches": [
            {name: getattr(two, name) for name in ("scope", "resource", "wanted", "held", "limit")}
            for two in one.breaches
        ],
    }


def month_before(now: datetime) -> str:
    """The last whole month, in UTC."""
    return f"{now.replace(day=1) - timedelta(days=1):%Y-%m}"


ROUTES = [
    Route("POST", "policy/dry-run", "Say which starts of a month other limits would have refused; changes nothing",
          Needs.HUB_ADMIN, dry_run_policy, answers=DryRunShown, body=DryRun),
]  # fmt: skip
