"""Routes that tell at a glance: who asks, and how a workspace stands."""

from typing import Any, Literal

from pydantic import Field

from ...domain import billing, budgets, quotas
from ...orm import QUOTA_RESOURCES
from ...units import GPU_HOUR, UNLIMITED
from ..api import ADMIN, READ, WRITE, Call, Needs, Route, Shape
from .spaces import WorkspaceListed, listed

SHOWN = {"gpu_millis": "gpus", "cpu_millis": "cpu", "memory_bytes": "memory", "storage_bytes": "storage"}


class WhoShown(Shape):
    name: str
    kind: Literal["user", "service"]
    hub_admin: bool
    scopes: list[str] = Field(description="Those of ours that the token carries.")


class LimitShown(Shape):
    resource: str = Field(description="`gpus`, `cpu`, `memory`, `storage`, `environments`, `gpu_hours`, `gpu:MODEL`.")
    held: int = Field(description="In the resource's own unit; of `gpu_hours` in thousandths of GPU-seconds.")
    limit: int | None = Field(description="Null: unlimited.")


class MonthShown(Shape):
    month: str = Field(description="The current one in the workspace's time zone, such as 2026-11.")
    spent_micros: int
    budget_micros: int | None = Field(description="Null: there is no budget.")
    per_hour_micros: int | None = Field(description="What all that runs costs an hour; null without a budget.")
    currency: str


class OverviewShown(WorkspaceListed):
    limits: list[LimitShown]
    month: MonthShown


def read_who(call: Call) -> Any:
    caller = call.caller
    return {
        "name": caller.name,
        "kind": "user" if caller.user is not None else "service",
        "hub_admin": caller.hub_admin,
        "scopes": sorted(caller.scopes & {READ, WRITE, ADMIN}),
    }


def read_overview(call: Call) -> Any:
    return {**listed(call.session, [call.space])[0], "limits": _limits(call), "month": _month(call)}


def _limits(call: Call) -> list[dict[str, Any]]:
    """What the workspace holds beside what it may hold."""
    space = call.space
    level = quotas.levels(
        call.session, user_id=0, workspace_id=space.id, time_zone=space.time_zone, now=call.now
    )["workspace"]  # fmt: skip
    amounts = {SHOWN.get(name, name): (level.held[name], level.limits[name]) for name in QUOTA_RESOURCES}
    hours = level.limits["gpu_hours"]
    amounts["gpu_hours"] = (level.gpu_time, hours if hours == UNLIMITED else hours * GPU_HOUR)
    amounts |= {f"gpu:{model}": (level.held_slots[model], slots) for model, slots in sorted(level.slot_limits.items())}
    return [
        {"resource": name, "held": held, "limit": None if limit == UNLIMITED else limit}
        for name, (held, limit) in amounts.items()
    ]


def _month(call: Call) -> dict[str, Any]:
    """The current month's money: spent so far, and the budget where there is one."""
    usage = billing.usage_of(call.session, workspace=call.space, month=None, now=call.now)
    status = budgets.status_of(call.session, workspace=call.space, now=call.now)
    return {
        "month": usage.month,
        "spent_micros": usage.total,
        "budget_micros": status.amount if status else None,
        "per_hour_micros": status.per_hour if status else None,
        "currency": usage.currency,
    }


ROUTES = [
    Route("GET", "whoami", "Who you are here, and what your token carries", Needs.SELF, read_who, answers=WhoShown),
    Route("GET", "workspaces/{workspace}/overview", "Read what it holds of its limits, and the month's money",
          Needs.MEMBER, read_overview, answers=OverviewShown),
]  # fmt: skip
