"""What years leave in the tables that lists read: on top of a town, many environments with a run each that is over, one
with very many runs, a workspace that has half of everything, many personal workspaces, and a long audit log."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, String, case, cast, func, literal, select, text

from remotegpu_hub.orm import (
    Allocation,
    AllocationState,
    AuditEntry,
    EndReason,
    Environment,
    EnvironmentState,
    Host,
    Image,
    Quota,
    QuotaScope,
    User,
    Workspace,
    WorkspaceKind,
)
from remotegpu_hub.units import GIB, MICROS, WHOLE_GPU

from .town import ENVIRONMENTS_PER_USER, FIRST, IMAGE, MODEL, NOW, USERS, WORKSPACES, build, make, numbers, settle

TOWN = USERS * ENVIRONMENTS_PER_USER
BIG = "space-0"
"""Its workspace has half of all environments."""
BUSY = FIRST[Environment] + 3
"""The environment that has very many runs; it is the first user's."""
ACTIONS = ("allocation.admit", "allocation.activate", "allocation.release", "quota.put", "member.put", "key.add")
RARE_ACTION = "workspace.archive"
LONG_AGO = NOW - timedelta(days=1000)


@dataclass(frozen=True)
class Long:
    """How many rows each table gets; of environments a town has 2,000."""

    environments: int
    audit: int
    runs_of_one: int
    personal: int
    """Workspaces and their quotas."""
    hosts: int
    images: int


def fill_long(engine: Engine, size: Long) -> None:
    """Fill a database that has our tables and nothing in them."""
    build(engine, hosts=size.hosts, ended=TOWN)
    with engine.begin() as connection:
        if size.environments > TOWN:
            _environments(connection, size.environments - TOWN)
        _runs(connection, size.runs_of_one, "busy", BUSY, 0)
        _personal(connection, size.personal)
        _images(connection, size.images)
        _audit(connection, size.audit)
    settle(engine)


def seconds_after(connection: Connection, n: Any, each: int) -> Any:
    """A time that grows with n, in the form in which the database keeps times."""
    if connection.dialect.name == "postgresql":
        return literal(LONG_AGO) + n * text(f"interval '{each} seconds'")
    return func.strftime("%Y-%m-%d %H:%M:%S.000000", LONG_AGO.isoformat(" ")[:19], cast(n * each, String) + " seconds")


def _word(n: Any, *words: str) -> Any:
    return case(*((n % len(words) == k, literal(word)) for k, word in enumerate(words[:-1])), else_=literal(words[-1]))


def _environments(connection: Connection, count: int) -> None:
    """One in ten was deleted, one in a thousand ended by an error; each ran once."""
    n = numbers(count)
    first, states = FIRST[Environment] + TOWN, Environment.__table__.c.state.type
    make(connection, Environment, {
        "id": first + n, "user_id": FIRST[User] + n % USERS, "server_name": "old-" + cast(n, String),
        "display_name": _word(n, "Training ", "Evaluation ", "训练 ", "Notebook ") + cast(n * 7919 % count, String),
        "workspace_id": FIRST[Workspace] + case((n % 2 == 0, literal(0)), else_=n % WORKSPACES), "image_id": 1,
        "gpu_slots": 0, "cpu_millis": 1000, "memory_bytes": GIB, "ports": [], "message": "", "created_at": NOW,
        "state": case((n % 10 == 7, literal(EnvironmentState.DELETED, states)),
                      (n % 1000 == 5, literal(EnvironmentState.ERROR, states)),
                      else_=literal(EnvironmentState.STOPPED, states)),
    })  # fmt: skip
    _runs(connection, count, "old", first, 1)


def _runs(connection: Connection, count: int, label: str, first: int, step: int) -> None:
    """An hour each, long ago: of environment `first`, `first + step`, …"""
    n = numbers(count)
    top = connection.scalar(select(func.max(Allocation.id))) or 0
    began, over = LONG_AGO, LONG_AGO + timedelta(hours=1)
    make(connection, Allocation, {
        "id": top + 1 + n, "attempt": f"{label}-" + cast(n, String), "environment_id": first + n * step,
        "host_id": FIRST[Host] + n % GPU_HOSTS, "workspace_id": FIRST[Workspace], "user_id": FIRST[User] + n % USERS,
        "gpu_model": MODEL, "gpu_slots": 1, "gpu_millis": WHOLE_GPU, "cpu_millis": 1000, "memory_bytes": GIB,
        "image_reference": IMAGE, "price_per_hour": 12 * MICROS, "prices": {}, "state": AllocationState.ENDED,
        "requested_at": began, "admitted_at": began, "started_at": began, "seen_at": over, "ended_at": over,
        "metered_until": over, "metered": True, "end_reason": EndReason.USER,
    })  # fmt: skip


GPU_HOSTS = 20
"""As many as every size has at least."""


def _personal(connection: Connection, count: int) -> None:
    n = numbers(count)
    first = FIRST[Workspace] + WORKSPACES
    make(connection, Workspace, {
        "id": first + n, "name": "~person-" + cast(n, String), "kind": WorkspaceKind.PERSONAL,
        "display_name": "Person " + cast(n * 7919 % count, String),
        "owner_id": FIRST[User] + n % USERS, "time_zone": "UTC",
        "created_at": seconds_after(connection, n, 60),
    })  # fmt: skip
    n = numbers(count)
    make(connection, Quota, {
        "id": FIRST[Quota] + 1000 + n, "scope": QuotaScope.WORKSPACE, "workspace_id": first + n, "gpu_millis": 0,
    })  # fmt: skip


def _images(connection: Connection, count: int) -> None:
    n = numbers(count)
    make(connection, Image, {
        "id": 2 + n, "reference": "registry.example.org/team/image:" + cast(n, String),
        "display_name": "Image " + cast(n * 7919 % count, String),
    })  # fmt: skip


def _audit(connection: Connection, count: int) -> None:
    """A row each minute and a half; one actor and one action in a thousand are rare."""
    n = numbers(count)
    top = connection.scalar(select(func.max(AuditEntry.id))) or 0
    make(connection, AuditEntry, {
        "id": top + 1 + n, "at": seconds_after(connection, n, 80_000_000 // count),
        "actor": case((n % 1000 == 500, literal("auditor")), else_="user-" + cast(n % USERS, String)),
        "action": case((n % 1000 == 300, literal(RARE_ACTION)), else_=_word(n, *ACTIONS)),
        "entity": _word(n, "allocation", "allocation", "allocation", "quota", "workspace", "key"),
        "entity_id": 1 + n % 100_000, "detail": {"before": {"gpus": 1}, "after": {"gpus": 2}},
        "request_id": "0123456789abcdef", "address": "192.0.2.7",
    })  # fmt: skip
