"""The catalogue for admins of the hub: flavors with what an hour of each costs, and images with who may start them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlencode

from sqlalchemy import select
from sqlalchemy.orm import Session
from tornado.web import HTTPError

from ... import plain, words
from ...domain import inventory, prices
from ...errors import Invalid, RemoteGPUError
from ...orm import Flavor, ImageStatus, Workspace
from ...units import GIB, parse_bytes, parse_cores, show_thousandths
from .. import api
from ..api import Call, Route, call_of, tag
from ..pages import Page, View
from ..paging import MOST_CURSOR
from . import catalogue, machines

_ROUTES: Final[dict[Callable[..., Any], Route]] = {route.work: route for route in (*machines.ROUTES, *catalogue.ROUTES)}
IMAGES: Final = _ROUTES[machines.list_images]
FILTERS: Final = ("search", "status", "cursor")
FLAVOR_FIELDS: Final = ("name", "display_name", "gpu_model", "gpu_slots", "cpu", "memory", "workspace")
IMAGE_FIELDS: Final = ("display_name", "status", "visibility", "workspace")


@dataclass(frozen=True)
class FlavorRow:
    flavor: dict[str, Any]
    """As the API shows it."""
    per_hour: int | None
    """Millionths, at the prices in force; None where something of it has no price, so that it cannot start."""


def read_flavors(call: Call) -> list[FlavorRow]:
    """All flavors that can be chosen, and then the retired ones, in the order of the spawn page."""
    order = (Flavor.retired, Flavor.gpu_slots, Flavor.gpu_model, Flavor.cpu_millis, Flavor.name)
    in_force = {name: row.unit_price for name, row in prices.at(call.session, now=call.now).items()}
    return [
        FlavorRow(plain.flavor(call.session, one), _per_hour(one, in_force))
        for one in call.session.scalars(select(Flavor).order_by(*order))
    ]


def _per_hour(flavor: Flavor, in_force: dict[str, int]) -> int | None:
    parts = {"cpu": flavor.cpu_millis, "memory": flavor.memory_bytes}
    if flavor.gpu_model:
        parts[f"gpu:{flavor.gpu_model}"] = flavor.gpu_slots
    try:
        return sum(prices.hourly(parts, in_force).values())
    except Invalid:
        return None


NEW_FLAVOR: Final = replace(_ROUTES[catalogue.put_flavor], work=partial(catalogue.put_flavor, new=True))


class Catalog(Page):
    """Flavors and images."""

    async def get(self, name: str = "") -> None:
        if name:  # the address of a form that was refused
            self.back("admin/catalog")
            return
        await self.show_catalog()

    async def post(self, name: str = "") -> None:
        """Retire a flavor."""
        if not name:
            raise HTTPError(405)
        try:
            await self.do(_ROUTES[catalogue.retire_flavor], {"name": name})
        except RemoteGPUError as error:
            self.set_status(error.status)
            await self.show_catalog(error)
            return
        self.back("admin/catalog")

    async def show_catalog(self, error: RemoteGPUError | None = None) -> None:
        view = View(self.language, currency=self.runtime.settings.currency)
        given = {name: self.get_query_argument(name, "")[:MOST_CURSOR].replace("\0", "") for name in FILTERS}

        def work(session: Session) -> tuple[list[FlavorRow], list[Any], str | None, RemoteGPUError | None]:
            call = call_of(self, session, IMAGES, {}, None, None)
            flavors = read_flavors(call)
            try:
                asked = api.check(machines.ImagesAsked, {name: value for name, value in given.items() if value})
                images, following = machines.list_images(replace(call, query=asked))
            except Invalid as wrong:
                return flavors, [], None, wrong
            return flavors, images, following, None

        flavors, images, following, wrong = await self.ask(work)
        if wrong is not None:
            self.set_status(wrong.status)

        def link(**changed: str) -> str:
            kept = {name: value for name, value in {**given, "cursor": "", **changed}.items() if value}
            return self.address("admin/catalog") + (f"?{urlencode(kept)}" if kept else "")

        self.show(
            "catalog.html", view, title=view.say("Catalogue"), here="admin/catalog", flavors=flavors, images=images,
            following=following, given=given, link=link, error=error or wrong, Status=ImageStatus,
            term=lambda text: words.term(view.language, text), quote=lambda text: quote(text, safe=""),
        )  # fmt: skip


class EditFlavor(Page):
    """Make a flavor, or change the one that the path names."""

    async def get(self, name: str = "") -> None:
        await self._form(name)

    async def post(self, name: str = "") -> None:
        given = {field: self.get_body_argument(field, "").strip()[:300] for field in FLAVOR_FIELDS}
        try:
            body = api.check(catalogue.FlavorPut, _as_flavor(given))
            route = _ROUTES[catalogue.put_flavor] if name else NEW_FLAVOR
            seen = self.get_body_argument("seen", "") or None
            await self.do(route, {"name": name or given["name"]}, body, seen=seen)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await self._form(name, given, error)
            return
        self.back("admin/catalog")

    async def _form(self, name: str, given: dict[str, str] | None = None, error: RemoteGPUError | None = None) -> None:
        read = _ROUTES[catalogue.read_flavor]

        def work(session: Session) -> tuple[Any, list[str], list[tuple[str, str]]]:
            call = call_of(self, session, read, {"name": name}, None, None)
            shown = catalogue.read_flavor(call) if name else None
            return shown, sorted(inventory.known_models(session)), _spaces(session)

        shown, models, spaces = await self.ask(work)
        view = View(self.language)
        values = given or _as_fields(shown) if shown else given or dict.fromkeys(FLAVOR_FIELDS, "")
        title = view.say("Change the flavor {name}", name=name) if name else view.say("New flavor")
        # After a refusal the form keeps what its reader had seen, or a second try would pass over another's change.
        seen = self.get_body_argument("seen", "") if given is not None else tag(read, shown) if shown else ""
        self.show("flavor.html", view, title=title, here="admin/catalog", name=name, given=values, error=error,
                  models=models, spaces=spaces, seen=seen)  # fmt: skip


def _as_flavor(given: dict[str, str]) -> dict[str, Any]:
    """The body of the API's route from what the form sent. Raises: Invalid."""
    slots = given["gpu_slots"] or "0"
    if not slots.isascii() or not slots.isdigit() or len(slots) > 6:
        raise Invalid("{value} is not a whole number.", value=slots)
    return {
        "display_name": given["display_name"],
        "gpu_model": given["gpu_model"] or None,
        "gpu_slots": int(slots),
        "cpu_millis": parse_cores(given["cpu"]),
        "memory_bytes": parse_bytes(given["memory"]),
        "workspace": given["workspace"] or None,
    }


def _as_fields(shown: dict[str, Any]) -> dict[str, str]:
    """What the form shows of a flavor: sizes such that they are read back without loss."""
    memory = shown["memory_bytes"]
    return {
        "name": shown["name"],
        "display_name": shown["display_name"],
        "gpu_model": shown["gpu_model"] or "",
        "gpu_slots": str(shown["gpu_slots"]),
        "cpu": show_thousandths(shown["cpu_millis"]),
        "memory": f"{memory // GIB} GiB" if memory % GIB == 0 else f"{memory} B",
        "workspace": shown["workspace"] or "",
    }


def _spaces(session: Session) -> list[tuple[str, str]]:
    """Workspaces that something of the catalogue may be kept for."""
    named = select(Workspace.name, Workspace.display_name).where(Workspace.name.not_like("~%"))
    return list(session.execute(named.order_by(Workspace.name).limit(500)).tuples())


class EditImage(Page):
    """Change what the catalogue says of an image."""

    async def get(self, id: str) -> None:
        await self._form(id)

    async def post(self, id: str) -> None:
        given = {field: self.get_body_argument(field, "").strip()[:300] for field in IMAGE_FIELDS}
        if given["visibility"] != "workspace":
            given["workspace"] = ""
        try:
            body = api.check(catalogue.ImageEdit, {name: value for name, value in given.items() if value})
            seen = self.get_body_argument("seen", "") or None
            await self.do(_ROUTES[catalogue.edit_image], {"id": id}, body, seen=seen)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await self._form(id, given, error)
            return
        self.back("admin/catalog")

    async def _form(self, id: str, given: dict[str, str] | None = None, error: RemoteGPUError | None = None) -> None:
        read = _ROUTES[catalogue.read_image]

        def work(session: Session) -> tuple[Any, list[tuple[str, str]]]:
            return catalogue.read_image(call_of(self, session, read, {"id": id}, None, None)), _spaces(session)

        shown, spaces = await self.ask(work)
        view = View(self.language)
        values = given or {name: shown[name] or "" for name in IMAGE_FIELDS}
        seen = self.get_body_argument("seen", "") if given is not None else tag(read, shown)
        self.show("image.html", view, title=view.say("Change an image"), here="admin/catalog", image=shown,
                  given=values, error=error, spaces=spaces, seen=seen,
                  term=lambda text: words.term(view.language, text))  # fmt: skip


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"admin/catalog", Catalog, {}),
    (r"admin/catalog/flavors", EditFlavor, {}),
    (r"admin/catalog/flavors/(?P<name>[^/]+)", EditFlavor, {}),
    (r"admin/catalog/flavors/(?P<name>[^/]+)/retire", Catalog, {}),
    (r"admin/catalog/images/(?P<id>[0-9]+)", EditImage, {}),
]
