"""The page to try the API: every route as it was declared, with a form that sends it as the reader."""

import json
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from pydantic import BaseModel

from ..api import Route
from ..openapi import describe
from ..pages import Page, View
from .routes import ROUTES as API

EXAMPLES: dict[str, Any] = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": [], "object": {}}


@dataclass(frozen=True)
class Operation:
    """One verb on one path, as the page shows it."""

    route: Route
    described: dict[str, Any]
    example: str
    """A body to begin with; empty where it takes none."""


@cache
def operations() -> list[tuple[str, list[Operation]]]:
    """All routes by the first part of their path."""
    description = describe(API, title="remotegpu-hub")
    found = [
        Operation(route, description["paths"]["/" + route.path][route.method.lower()], _example(route.body))
        for route in API
    ]  # fmt: skip
    return [(tag, list(some)) for tag, some in groupby(found, key=lambda one: one.described["tags"][0])]


def _example(shape: type[BaseModel] | None) -> str:
    """The names that a body may have: with what is taken where nothing is said, or an empty value of its kind."""
    if shape is None:
        return ""
    schema = shape.model_json_schema()
    values = {}
    for name, one in schema.get("properties", {}).items():
        if name in schema.get("required", ()):
            values[name] = (one.get("enum") or [EXAMPLES.get(one.get("type", "string"))])[0]
    return json.dumps(values, ensure_ascii=False, indent=2)


class TryPage(Page):
    """Every route, to read and to send."""

    async def get(self) -> None:
        view = View(self.language)
        self.show("try.html", view, title="API", here="api", groups=operations(), root=self.address("api/"))


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [(r"api", TryPage, {})]
