"""HTML pages of our services: the hub's look and login, the reader's language, and nothing that the page's own
Content-Security-Policy would have to be loosened for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jupyterhub.utils import url_path_join
from markupsafe import Markup
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from tornado.web import HTTPError, StaticFileHandler, authenticated

from .. import units, words
from ..errors import Conflict, NotFound, RemoteGPUError, TooMany
from .api import Buckets, Route, call_of, check, check_unchanged
from .base import Request

FOLDER: Final = Path(__file__).parent
LANGUAGE_COOKIE: Final = "remotegpu_lang"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, auto_reload=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


@dataclass(frozen=True)
class View(words.Voice):
    """What templates say and show, in one language."""

    currency: str = "USD"
    time_zone: str = "UTC"
    """Of a reader without a script; a script shows the reader's own."""

    def quantity(self, resource: str, amount: int) -> str:
        return words.quantity(resource, amount, self.language)

    def gpus(self, millis: int) -> str:
        """Milli-GPUs as a bare number."""
        return words.gpus(millis)

    def duration(self, seconds: float) -> str:
        return words.duration(int(seconds), self.language)

    def moment(self, at: datetime) -> Markup:
        shown = words.moment(at, self.time_zone, self.language)
        return Markup('<time datetime="{}">{}</time>').format(at.isoformat(), shown)

    def stored(self, text: str) -> str:
        """A sentence that was kept with its facts in it."""
        return words.sentence(self.language, text)


@dataclass(frozen=True)
class Bar:
    """A limit as a bar: what is held of it, in percent of the width and in words."""

    label: str
    numbers: str
    percent: float
    unlimited: bool = False

    @property
    def first(self) -> str:
        """The number that is looked at; `rest` says of what."""
        return self.numbers.partition(" ")[0]

    @property
    def rest(self) -> str:
        return self.numbers.partition(" ")[2]

    @property
    def level(self) -> str:
        return "over" if self.percent >= 100 else "near" if self.percent >= 90 else "warm" if self.percent >= 80 else ""


def bar(view: View, label: str, resource: str, held: int, limit: int) -> Bar:
    """Lay what is held beside its limit."""
    if limit >= units.UNLIMITED:
        numbers = view.say("{held}, unlimited", held=view.quantity(resource, held))
        return Bar(label, numbers, 0.0, unlimited=True)
    numbers = view.say("{held} of {limit}", held=words.bare(resource, held), limit=view.quantity(resource, limit))
    return Bar(label, numbers, min(100.0, 100.0 * held / limit if limit else 100.0 * bool(held)))


class Page(Request):
    """One page. A reader who is not logged in is sent to the hub's login and comes back."""

    buckets = Buckets()

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", POLICY)

    @property
    def language(self) -> str:
        return words.language(self.request.headers.get("Accept-Language"), self.get_cookie(LANGUAGE_COOKIE))

    @property
    def hub_prefix(self) -> str:
        return str(self.hub_auth.hub_prefix)

    def address(self, path: str = "") -> str:
        """A page of this service."""
        return str(url_path_join(self.settings["prefix"], path))

    def show(self, template: str, view: View, *, title: str, here: str, **given: Any) -> None:
        """Render a page."""
        settings = self.runtime.settings
        self.finish(
            _templates()
            .get_template(template)
            .render(
                view=view,
                t=view.say,
                title=title,
                here=here,
                at=self.address,
                static=lambda name: self.address(f"static/{name}"),
                hub=lambda path: url_path_join(self.hub_prefix, path),
                base=self.hub_prefix.removesuffix("hub/"),
                user=self.current_user["name"],
                admin=bool(self.current_user.get("admin")),
                xsrf=self.xsrf_token.decode() if isinstance(self.xsrf_token, bytes) else self.xsrf_token,
                demo=settings.insecure_demo,
                simulated=bool(settings.simulated_gpus) or any(one.get("simulated") for one in settings.pools),
                told=self.get_query_argument("told", ""),
                wrong=self._wrong_field(given.get("error")),
                **given,
            )
        )

    def _wrong_field(self, error: RemoteGPUError | None) -> str:
        """The name of the field that the error is about, where it can be told: the one that it names, or the only one
        in which stood what it cites, such as the name at the end of `The user ada`."""
        if error is None:
            return ""
        sent = {name: self.get_argument(name) for name in self.request.arguments}
        named = [one["at"] for one in error.facts.get("problems", ()) if one["at"] in sent]
        facts = [fact for fact in error.facts.values() if isinstance(fact, str)]
        cited = [
            name for name, value in sent.items() if value and any(f" {fact}".endswith(f" {value}") for fact in facts)
        ]
        return named[0] if named else cited[0] if len(cited) == 1 else ""

    async def prepare(self) -> None:
        """Only for people: a token's holder has the API."""
        await self.know_caller()
        self._check_reader()

    @authenticated
    def _check_reader(self) -> None:
        if self.current_user.get("kind") != "user":
            raise HTTPError(403, reason="This page is for users of the hub.")
        self.buckets.take(f"user:{self.current_user['name']}")

    async def do(
        self, route: Route, path: dict[str, str], body: Any = None, *, seen: str | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """What the API's route does, as the reader of this page, who saw what has the ETag `seen`.

        Raises what the route raises; Changed when somebody else was faster.
        """
        if not route.scopes & set(self.current_user.get("scopes", ())):
            raise HTTPError(403)

        def work(session: Session) -> Any:
            call = call_of(self, session, route, path, check(route.query, query or {}), body)
            check_unchanged(route, call, seen)
            return route.work(call)

        try:
            result = await self.ask(work, read_only=not route.changes)
        except IntegrityError as error:
            raise Conflict("Somebody else changed it at the same moment. Look again, then repeat it.") from error
        act = getattr(result, "act", None)
        return await act() if act else result

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        view = View(self.language)
        if isinstance(error, RemoteGPUError):
            self.set_status(error.status)
            if isinstance(error, TooMany):
                self.set_header("Retry-After", str(error.facts["after_seconds"]))
            told: Any = view.explain(error)
        elif status_code == 404:
            told = view.say("{what} was not found.", what=view.say("This page"))
        elif status_code == 403 and self.request.method == "POST":
            told = view.say(
                "You are logged out, or the page is too old; nothing was changed. Go back, load it again and repeat it."
            )
        elif status_code == 403:
            told = view.say("You may not see this page.")
        elif status_code < 500:
            told = view.say("The page did not understand what was sent; nothing was changed. Go back and try again.")
        else:
            told = view.say("Something broke here. The hub's log has it under {id}.", id=self.request_id)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(
            _templates().get_template("error.html").render(
                view=view, t=view.say, title=view.say("This did not work"), message=told,
                home=self.address(), hub=lambda path: url_path_join(self.hub_prefix, path),
                static=lambda name: self.address(f"static/{name}"),
            )
        )  # fmt: skip

    def back(self, path: str = "", *, told: str = "", **asked: str) -> None:
        """Answer a form: the page anew, by a GET, with one sentence on it; of a long list the part that was seen."""
        query = urlencode({**asked, "told": told} if told else asked)
        self.redirect(self.address(path) + (f"?{query}" if query else ""), status=303)


class NoPage(Page):
    """Every address without a page. Who reads with a browser gets a page that leads back."""

    async def prepare(self) -> None:
        raise NotFound("This page")


def slug(name: str, taken: Sequence[str]) -> str:
    """The server name of a new environment, from its display name in any script: letters and digits that a URL shows
    as they are, and a number where that is taken or nothing is left."""
    base = (
        re.sub(r"[^a-z0-9]+", "-", name.lower().encode("ascii", "ignore").decode()).strip("-")[:30].strip("-") or "env"
    )
    number = 1
    found = base if base != "env" else "env-1"
    while found in taken:
        number += 1
        found = f"{base}-{number}"
    return found


class Static(StaticFileHandler):
    """Style sheet and scripts; nothing in them is anybody's."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "max-age=300")


STATIC: Final = (r"static/([a-z]+\.(?:css|js))", Static, {"path": str(FOLDER / "static")})
