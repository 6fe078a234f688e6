"""The route that tells how the whole hub stands, for its admins: what their first page shows, for programs."""

from datetime import datetime
from typing import Any, Final

from pydantic import Field

from ...domain import prices
from ...orm import EnvironmentState
from ..api import Call, Needs, Route, Shape
from ..pages import View
from . import overview

STATES: Final = [one.value for one in EnvironmentState if one != EnvironmentState.DELETED]


class GpusCounted(Shape):
    """GPUs by what can be done with them; each is counted once."""

    held: int
    free: int
    foreign: int = Field(description="Used by somebody outside this hub.")
    broken: int
    off: int = Field(description="In maintenance, or their host is not online.")
    total: int


class ModelCounted(GpusCounted):
    model: str


class HolderShown(Shape):
    name: str
    display_name: str
    runs: int = Field(description="Environments that hold something now.")
    gpu_millis: int = Field(description="Thousandths of GPUs.")
    per_hour_micros: int


class ConcernShown(Shape):
    kind: overview.Kind
    urgent: bool
    message: str
    page: str = Field(description="Where it is mended, below `/services/workspaces/`; empty where no page does.")
    since: datetime | None


class HubShown(Shape):
    gpus: GpusCounted
    models: list[ModelCounted] = Field(description="Most GPUs first.")
    environments: dict[str, int] = Field(description="How many are in each state.")
    runs: int = Field(description="Environments that hold something now.")
    per_hour_micros: int = Field(description="What all that runs costs.")
    currency: str
    users: list[HolderShown] = Field(description="Who hold most, at most 8.")
    workspaces: list[HolderShown] = Field(description="Which hold most, at most 8.")
    concerns: list[ConcernShown] = Field(description="What needs attention, at most 10 of a kind.")
    more_concerns: int = Field(description="That are not listed.")


def read_hub_overview(call: Call) -> Any:
    currency = prices.currency(call.session)
    found = overview.read(call.session, View("en", currency=currency), now=call.now)
    return {
        "gpus": _counted(found.all_gpus),
        "models": [{"model": one.model, **_counted(one)} for one in found.stacks],
        "environments": {state: found.states.get(state, 0) for state in STATES},
        "runs": found.running,
        "per_hour_micros": found.per_hour,
        "currency": currency,
        "users": [_holder(one) for one in found.users],
        "workspaces": [_holder(one) for one in found.workspaces],
        "concerns": [
            {"kind": one.kind, "urgent": one.level == "bad", "message": one.says, "page": one.path, "since": one.since}
            for one in found.concerns
        ],
        "more_concerns": found.more,
    }


def _counted(stack: overview.Stack) -> dict[str, int]:
    counts = stack.counts
    return {
        **{kind: counts[kind] for kind in ("held", "free", "foreign", "off")}, "broken": counts["bad"],
        "total": stack.total,
    }  # fmt: skip


def _holder(one: overview.Holder) -> dict[str, Any]:
    return {
        "name": one.plain, "display_name": one.name, "runs": one.runs, "gpu_millis": one.gpu_millis,
        "per_hour_micros": one.per_hour,
    }  # fmt: skip


READ: Final = Route("GET", "overview", "The hub at a glance, and what needs attention", Needs.HUB_ADMIN,
                    read_hub_overview, answers=HubShown)  # fmt: skip
ROUTES = [READ]
