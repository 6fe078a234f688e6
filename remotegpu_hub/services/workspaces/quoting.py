"""The route of what the caller may start now: everything that the spawn page shows, with a quote for a choice."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from ... import choices
from ...domain.offers import offers
from ..api import Api, Call, Needs, Route, Shape
from ..base import plain

PREFIX = "opt-"
"""Of options in links to the spawn page; here they may stand without."""
Text = Annotated[str | None, Field(None, max_length=600)]


class OffersAsked(Shape):
    """A choice as far as it is made. What cannot be read of it, or is not there, is left out and told in `problems`."""

    server_name: str = Field("", max_length=255, description="Of the environment that it is for.")
    workspace: Text
    image: Text
    flavor: Text
    gpu_model: Text
    gpus: Text
    cpu: Text
    memory: Text
    ports: list[Annotated[str, Field(max_length=64)]] = Field([], max_length=20, description="One each time.")
    name: Text


class Why(Shape):
    code: str
    message: str
    facts: dict[str, Any]


class Chosen(Shape):
    workspace: str | None
    image: str | None
    flavor: str | None
    gpu_model: str | None
    gpus: int | None
    cpu_millis: int | None
    memory_bytes: int | None
    ports: list[str] | None
    name: str | None


class WorkspaceOffered(Shape):
    name: str
    display_name: str
    role: str
    gpu_millis_left: int = Field(description="What the caller may still hold here: the least of the three levels.")
    budget_left: int | None = Field(description="Millionths left this month; null without a budget.")
    reason: Why | None = Field(description="Why nothing can be started here.")


class ImageOffered(Shape):
    reference: str
    display_name: str
    category: str
    framework: str | None
    python_version: str | None
    cuda_version: str | None
    size_bytes: int | None
    deprecated: bool
    reason: Why | None


class GpuOffered(Shape):
    model: str
    memory_mib: int
    gpu_millis: int = Field(description="Thousandths of a GPU that one of it is.")
    free: int
    usable: int
    hosts_free: int
    unit_price: int | None = Field(description="Millionths an hour; null: it has no price and cannot start.")
    simulated: bool
    reason: Why | None = Field(description="Why not even one can be started now.")


class FlavorOffered(Shape):
    name: str
    display_name: str
    gpu_model: str | None
    gpus: int
    cpu_millis: int
    memory_bytes: int
    price_per_hour: int | None
    reason: Why | None


class QuoteLine(Shape):
    resource: str
    quantity: int
    amount: int = Field(description="Millionths an hour.")


class QuoteLimit(Shape):
    scope: str
    name: str
    resource: str
    held: int
    wanted: int
    limit: int


class QuoteShown(Shape):
    price_per_hour: int | None
    lines: list[QuoteLine]
    limits: list[QuoteLimit] = Field(description="Before and after this start, without unlimited ones.")
    budget_lasts_until: datetime | None
    budget_lasts_month: bool
    host: str | None = Field(description="Where it would run now.")
    hosts_that_fit: int
    refusal: Why | None = Field(description="What would refuse it now; null: it can start.")


class OffersShown(Shape):
    now: datetime
    time_zone: str
    currency: str
    user: str
    server_name: str
    choice: Chosen = Field(description="With every gap filled in.")
    workspaces: list[WorkspaceOffered]
    images: list[ImageOffered]
    flavors: list[FlavorOffered]
    gpus: list[GpuOffered]
    port_services: list[str]
    quote: QuoteShown | None = Field(description="Null where there is no workspace or no image to quote for.")
    simulated: bool
    insecure_demo: bool
    enforced: bool
    max_gpus: int
    problems: list[Why]


def read_offers(call: Call) -> Any:
    asked: OffersAsked = call.query
    given = asked.model_dump(exclude_none=True, exclude={"server_name"})
    query = {name: value if isinstance(value, list) else [value] for name, value in given.items() if value != []}
    return plain(
        offers(
            call.session, user=call.caller.person, server_name=asked.server_name, choice=choices.prefill(query),
            rules=call.runtime.rules, now=call.now, insecure_demo=call.runtime.settings.insecure_demo,
        )
    )  # fmt: skip


class Offers(Api):
    """Takes options also as links to the spawn page spell them."""

    def given(self) -> dict[str, Any]:
        found = {}
        for name, values in self.request.query_arguments.items():
            texts = [value.decode("utf-8", "replace") for value in values]
            found[name.removeprefix(PREFIX)] = texts if name.removeprefix(PREFIX) == "ports" else texts[-1]
        return found


ROUTES = [
    Route("GET", "offers", "What you may start now, with price, limits and place of a choice", Needs.SELF, read_offers,
          answers=OffersShown, query=OffersAsked, bare=True),
]  # fmt: skip
