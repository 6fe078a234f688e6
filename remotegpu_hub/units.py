"""Units of what is held and charged: integers only, one rounding, in one place.

Money is an integer of millionths of the hub's one currency. Quantities are integers of the smallest unit
times seconds. Nothing here knows a table or a clock.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Final, NewType
from zoneinfo import ZoneInfo

from .errors import Invalid

Money = NewType("Money", int)
"""Millionths of the hub's currency."""

MICROS: Final = 1_000_000
GIB: Final = 2**30
WHOLE_GPU: Final = 1000
"""A whole GPU in `gpu_millis`; a share of four is 250, a seventh 142 (rounded down: parts never exceed the whole)."""

UNLIMITED: Final = 2**63 - 1
"""An unlimited quota is written explicitly, as the largest value of the column, so that comparing just works."""

HOUR_SECONDS: Final = 3600
GPU_HOUR: Final = WHOLE_GPU * HOUR_SECONDS
"""Limits and uses of `gpu_hours` are counted in milli-GPU-seconds."""


def spell_limit(value: int | None) -> int | str | None:
    """A limit as it is kept for people and told to programs: unlimited is the word."""
    return "unlimited" if value is not None and value >= UNLIMITED else value


def per_hour(resource: str) -> int:
    """How many quantity units one price unit spans: `gpu:*` is slot-seconds priced per slot-hour,
    `cpu` milli-core-seconds per core-hour, `memory` and `storage` byte-seconds per GiB-hour."""
    if resource.startswith("gpu:"):
        return HOUR_SECONDS
    return {"cpu": 1000, "memory": GIB, "storage": GIB}[resource] * HOUR_SECONDS


def price_unit(resource: str) -> str:
    """The unit a price of this resource is for, as written on pages and invoices."""
    if resource.startswith("gpu:"):
        return "GPU-hour"
    return {"cpu": "core-hour", "memory": "GiB-hour", "storage": "GiB-hour"}[resource]


def charge(resource: str, quantity: int, unit_price: int) -> Money:
    """Price a quantity, rounding half to even to a millionth: the only place where money is rounded."""
    whole, rest = divmod(quantity * unit_price, per_hour(resource))
    twice = 2 * rest
    if twice > per_hour(resource) or (twice == per_hour(resource) and whole % 2):
        whole += 1
    return Money(whole)


def floor_second(moment: datetime) -> datetime:
    """Cut to a whole second: runs begin and end on whole seconds, so billed seconds are exact."""
    if moment.tzinfo is None:
        raise ValueError("times are aware UTC")
    return moment.astimezone(UTC).replace(microsecond=0)


def ceil_second(moment: datetime) -> datetime:
    """The first whole second at or after: a run is billed from here on, so never for a part of a second before it."""
    whole = floor_second(moment)
    return whole if moment == whole else whole + timedelta(seconds=1)


def seconds_between(start: datetime, end: datetime) -> int:
    """Whole seconds of the half-open period; both ends lie on whole seconds."""
    delta = end - start
    return delta.days * 86400 + delta.seconds


def month_of(moment: datetime, time_zone: str) -> str:
    """The calendar month, such as `2026-11`, in which an instant lies in that zone."""
    return moment.astimezone(ZoneInfo(time_zone)).strftime("%Y-%m")


def month_bounds(month: str, time_zone: str) -> tuple[datetime, datetime]:
    """First instant of a month and of the next one in that zone, in UTC."""
    year, number = map(int, month.split("-"))
    zone = ZoneInfo(time_zone)
    start = datetime(year, number, 1, tzinfo=zone)
    end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=zone)
    return start.astimezone(UTC), end.astimezone(UTC)


_BYTES = re.compile(r"\s*(\d{1,18})(?:\.(\d{1,6}))?\s*(?:([KMGT])(?:i?B?)?|B)?\s*", re.IGNORECASE)
_POWERS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str) -> int:
    """Read `512M`, `16G`, `1.5 TiB` as binary bytes, without a float in between; a part of a byte is left out.

    Raises: Invalid.
    """
    match = _BYTES.fullmatch(text)
    if not match:
        raise Invalid("{value} is not a size: write a number with K, M, G or T, such as 16G.", value=text)
    millionths = int(match[1]) * MICROS + int((match[2] or "").ljust(6, "0"))
    return millionths * _POWERS.get((match[3] or "").upper(), 1) // MICROS


def parse_cores(text: str) -> int:
    """Read `2`, `0.5` or `500m` cores as milli-cores. Raises: Invalid."""
    match = re.fullmatch(r"\s*(\d{1,6})(?:\.(\d{1,3}))?\s*(m?)\s*", text)
    if not match or (match[3] and match[2]):
        raise Invalid("{value} is not a number of cores: write one such as 4, 0.5 or 500m.", value=text)
    if match[3]:
        return int(match[1])
    return int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0"))


def parse_money(text: str) -> Money:
    """Read `9.50` as millionths, without a float in between. Raises: Invalid."""
    match = re.fullmatch(r"\s*(\d{1,12})(?:\.(\d{1,6}))?\s*", text)
    if not match:
        raise Invalid("{value} is not an amount: write one such as 9.50.", value=text)
    return Money(int(match[1]) * MICROS + int((match[2] or "").ljust(6, "0")))


def show_bytes(value: int) -> str:
    """Bytes for people: GiB with at most one decimal, MiB below one GiB."""
    if value < GIB:
        return f"{value / 2**20:.0f} MiB"
    return f"{value / GIB:.1f}".removesuffix(".0") + " GiB"


def show_thousandths(value: int) -> str:
    """Milli-cores or milli-GPUs for people: `2`, `0.5`, `0.142`."""
    return f"{value / 1000:.3f}".rstrip("0").rstrip(".")


def iso(moment: datetime | None) -> str | None:
    """An instant for programs: ISO 8601 in UTC, such as `2026-11-23T04:00:00Z`."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def exact(value: int, per: int) -> str:
    """A count as a number of a larger unit, to the last digit: `exact(1536 * 2**20, GIB)` is `1.5`."""
    with localcontext(prec=60):
        text = f"{Decimal(value) / per:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def read_exact(text: str, per: int) -> int:
    """Read what `exact` writes, without a float in between. Raises: Invalid, also for what is finer than is counted."""
    if not re.fullmatch(r"\d{1,18}(\.\d{1,30})?", text.strip(), re.ASCII):
        raise Invalid("{value} is not an amount: write a number such as 4 or 0.5.", value=text)
    with localcontext(prec=60):
        value = Decimal(text.strip()) * per
    if value != int(value):
        raise Invalid("{value} is finer than can be counted.", value=text)
    if value >= UNLIMITED:
        raise Invalid("{value} is too much: choose unlimited.", value=text)
    return int(value)
