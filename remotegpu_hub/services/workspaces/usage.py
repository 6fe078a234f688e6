"""Routes of what a workspace used: by day and member."""

from datetime import date
from typing import Any

from pydantic import Field

from ...domain import billing
from ..api import Call, Needs, Route, Shape


class MemberUsage(Shape):
    user: str
    amounts: list[int] = Field(description="Millionths of the currency, by day.")
    gpu_times: list[int] = Field(description="Milli-GPU-seconds, by day.")


class UsageShown(Shape):
    workspace: str
    month: str
    time_zone: str = Field(description="Days begin at its midnight.")
    currency: str
    days: list[date] = Field(description="Up to today.")
    members: list[MemberUsage] = Field(description="Who used something, most expensive first.")


class UsageAsked(Shape):
    month: str | None = Field(
        None, pattern="^2[0-9]{3}-(0[1-9]|1[0-2])$", description="Such as 2026-11. Default: the current one."
    )


def read_usage(call: Call) -> Any:
    return billing.by_day(call.session, workspace=call.space, month=call.query.month, now=call.now)


ROUTES = [
    Route("GET", "workspaces/{workspace}/usage", "What each member used on each day of a month", Needs.MEMBER,
          read_usage, answers=UsageShown, query=UsageAsked),
]  # fmt: skip
