"""The dry run of a policy as a page: limits in, who would have been refused out. Its address holds the question, so it
can be kept and shared."""

import asyncio
import re
from typing import Any, Final

from sqlalchemy.orm import Session

from ... import words
from ...domain import inventory
from ...errors import Invalid, RemoteGPUError, TooMany
from ...runtime import utcnow
from ...units import parse_bytes, parse_cores
from .. import api
from ..api import Call, Needs, Route, call_of
from ..pages import Page, View
from . import dry_run

SCOPES: Final = ("user", "workspace")
LIMITS: Final = ("gpus", "environments", "gpu_hours", "cpu", "memory", "storage")


def known_models(call: Call) -> Any:
    return sorted(inventory.known_models(call.session))


MODELS: Final = Route("GET", "policy/models", "What can be limited", Needs.HUB_ADMIN, known_models)


class Policy(Page):
    """Who would have been refused last month."""

    async def get(self) -> None:
        view, now = View(self.language), utcnow()

        def work(session: Session) -> list[str]:
            found: list[str] = known_models(call_of(self, session, MODELS, {}, None, None))
            return found

        models = await self.ask(work)
        given = self._given(models)
        month = self.get_query_argument("month", "")[:10]
        found, error = None, None
        if month:
            try:
                asked = api.check(dry_run.DryRun, {"month": month, **read_limits(given, models)})
                dry_run.check(asked)
                found = await asyncio.wrap_future(dry_run.begin_replay(self.runtime, asked))
            except RemoteGPUError as wrong:
                error = wrong
                self.set_status(wrong.status)
                if isinstance(wrong, TooMany):
                    self.set_header("Retry-After", str(wrong.facts["after_seconds"]))
        self.show(
            "policy.html", view, title=view.say("Try a policy"), here="admin", given=given, models=models,
            month=month or dry_run.month_before(now), found=found, error=error, scopes=SCOPES, limits=LIMITS,
            breach=lambda one: breach(view, one), resource=lambda name: resource(view, name),
        )  # fmt: skip

    def _given(self, models: list[str]) -> dict[str, str]:
        names = [f"{scope}-{name}" for scope in SCOPES for name in (*LIMITS, *(f"gpu:{one}" for one in models))]
        return {name: self.get_query_argument(name, "").strip()[:40] for name in names}


def read_limits(given: dict[str, str], models: list[str]) -> dict[str, dict[str, Any]]:
    """The limits of the API's body from what the form sent. Raises: Invalid."""
    found: dict[str, dict[str, Any]] = {}
    for scope in SCOPES:
        text = {name.removeprefix(f"{scope}-"): value for name, value in given.items() if name.startswith(f"{scope}-")}
        limits: dict[str, Any] = {"models": {one: _whole(text[f"gpu:{one}"]) for one in models if text[f"gpu:{one}"]}}
        if text["gpus"]:
            limits["gpu_millis"] = _gpus(text["gpus"])
        if text["cpu"]:
            limits["cpu_millis"] = parse_cores(text["cpu"])
        if text["memory"]:
            limits["memory_bytes"] = parse_bytes(text["memory"])
        if text["storage"]:
            limits["storage_bytes"] = parse_bytes(text["storage"])
        for name in ("environments", "gpu_hours"):
            if text[name]:
                limits[name] = _whole(text[name])
        found[scope] = limits
    return found


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Invalid("{value} is not a whole number.", value=text)
    return int(text)


def _gpus(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6})(?:\.([0-9]{1,3}))?", text)
    if not match:
        raise Invalid("{value} is not a number of GPUs: write one such as 4 or 0.5.", value=text)
    return int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0"))


def resource(view: View, name: str) -> str:
    """What a limit is on."""
    said = {
        "gpus": view.say("GPUs"), "cpu": view.say("Cores"), "memory": view.say("Main memory"),
        "environments": view.say("Running environments"), "gpu_hours": view.say("GPU hours in the month"),
        "storage": view.say("Storage"),
    }  # fmt: skip
    return said.get(name, name.removeprefix("gpu:"))


def breach(view: View, one: dict[str, Any]) -> str:
    """One limit that a start would have broken, with what was held and wanted."""
    name = one["resource"]
    facts = {fact: words.bare(name, one[fact]) for fact in ("held", "wanted", "limit")}
    if name == "gpu_hours":
        return view.say("{limit_of}: {held} of {limit} used", limit_of=resource(view, name), **facts)
    return view.say("{limit_of}: {held} held, {wanted} wanted, {limit} allowed", limit_of=resource(view, name), **facts)


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [(r"admin/policy", Policy, {})]
