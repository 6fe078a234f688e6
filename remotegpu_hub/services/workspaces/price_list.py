"""Routes of prices: what a unit of each resource costs from an instant on."""

from typing import Annotated, Any

from pydantic import Field, StrictInt
from sqlalchemy import or_, select

from ... import plain
from ...domain import prices
from ...orm import Price
from ...units import Money
from ..api import LARGEST, Call, Moment, Needs, Route, Shape
from ..paging import Paging, page


class PriceShown(Shape):
    resource: str = Field(description="`cpu`, `memory`, `storage` or `gpu:MODEL`.")
    unit: str = Field(description="What costs as much: `core-hour`, `GiB-hour` or `GPU-hour`.")
    unit_price_micros: int = Field(description="Millionths of the currency.")
    currency: str
    effective_from: str
    in_force: bool


class PricesAsked(Paging):
    old: bool = Field(False, description="Also those that others replaced.")


class NewPrice(Shape):
    resource: str = Field(min_length=1, max_length=100)
    unit_price_micros: Annotated[StrictInt, Field(ge=0, le=LARGEST, description="Millionths of the currency.")]
    effective_from: Moment | None = Field(None, description="Null: now. Never in the past, once it had a price.")


def list_prices(call: Call) -> Any:
    in_force = {one.id for one in prices.at(call.session, now=call.now).values()}
    query = select(Price)
    if not call.query.old:
        query = query.where(or_(Price.id.in_(in_force), Price.effective_from > call.now))
    currency = prices.currency(call.session)
    return page(
        call.session, query, call.query, sorts={"resource": (Price.resource, Price.effective_from)}, sort="resource",
        shown=lambda one: plain.price(one, currency=currency, in_force=one.id in in_force),
    )  # fmt: skip


def create_price(call: Call) -> Any:
    given: NewPrice = call.body
    since = given.effective_from or call.now
    row = prices.put(
        call.session, resource=given.resource, unit_price=Money(given.unit_price_micros), effective_from=since,
        actor=call.actor, now=call.now,
    )  # fmt: skip
    return plain.price(row, currency=prices.currency(call.session), in_force=row.effective_from <= call.now)


ROUTES = [
    Route("GET", "prices", "List the prices in force and those to come", Needs.SELF, list_prices, answers=PriceShown,
          query=PricesAsked, listing=True),
    Route("POST", "prices", "Set what a unit costs from a moment on; what ran is never repriced", Needs.HUB_ADMIN,
          create_price, answers=PriceShown, body=NewPrice, status=201),
]  # fmt: skip
