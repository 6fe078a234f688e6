"""The OpenAPI 3.1 description of declared routes (https://spec.openapis.org/oas/v3.1.0)."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from .api import Route

_REFERENCE = "#/components/schemas/{model}"
ERRORS = {
    "400": "Something given is wrong; the message says what.",
    "403": "Nobody is logged in, the token does not carry it, or the role does not allow it.",
    "404": "It is not there, or not the caller's to see: both answer alike.",
    "409": "The state does not allow it now; the message says what to do first.",
    "412": "It changed since it was read (If-Match).",
    "413": "The body is larger than 1 MB.",
    "415": "The body is not JSON.",
    "429": "Too many requests; Retry-After says how many seconds to wait.",
    "503": "The database or the hub does not answer; nothing was changed.",
}
_STREAM = (
    "Server-sent events, where `Accept: text/event-stream` is sent: what happens from now on, or since the id in "
    "`Last-Event-ID` or `after`. `data` is one item of the list as JSON, `id` its id; a comment every 15 s shows that "
    "the line is alive. At most 5 streams for each user, logs being read among them. It ends when the token does; "
    "begin again with the last id."
)
_PROBLEM = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "facts", "request_id"],
            "properties": {
                "code": {"type": "string", "description": "For programs."},
                "message": {"type": "string", "description": "For people: what happened and what to do."},
                "facts": {"type": "object"},
                "request_id": {"type": "string", "description": "Also in the audit log."},
            },
        }
    },
}


def describe(routes: Sequence[Route], *, title: str, server: str = "") -> dict[str, Any]:
    """The whole description, as a JSON object."""
    shapes: dict[type[BaseModel], JsonSchemaMode] = {}
    for route in routes:
        if route.body is not None:
            shapes[route.body] = "validation"
        if route.answers is not None:
            shapes[route.answers] = "serialization"
    keyed, definitions = models_json_schema(list(shapes.items()), ref_template=_REFERENCE)
    schemas = definitions.get("$defs", {})
    references = {shape: keyed[shape, mode] for shape, mode in shapes.items()}
    schemas["Problem"] = _PROBLEM
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault("/" + route.path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version("remotegpu-hub")},
        "servers": [{"url": server or "/services/workspaces/api"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "Authorization",
                          "description": "`token ` and an API token of the hub."}
            },
        },
    }  # fmt: skip


def _operation(route: Route, references: dict[type[BaseModel], Any]) -> dict[str, Any]:
    answers = {status: _problem(text) for status, text in ERRORS.items() if _may_answer(route, status)}
    content: Any = {"application/json": {"schema": _answer(route, references)}} if route.answers else None
    if route.lines:
        content = {"text/plain": {"schema": {"type": "string"}}}
    if content and route.streams:
        content["text/event-stream"] = {"schema": {"type": "string", "description": _STREAM}}
    status = str(route.status if route.answers or route.lines else 204)
    answers[status] = {"description": "Done.", **({"content": content} if content else {})}
    if route.etag and not route.changes and not route.volatile:
        answers["304"] = {"description": "It is still what If-None-Match names."}
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "description": f"For {route.needs}. "
        + ("Any token." if route.bare else f"The token carries one of: {', '.join(sorted(route.scopes))}."),
        "tags": [route.path.split("/")[0]],
        "parameters": [*_of_path(route), *_of_query(route), *_of_headers(route)],
        "responses": dict(sorted(answers.items())),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True, "content": {"application/json": {"schema": references[route.body]}},
        }  # fmt: skip
    return operation


def _may_answer(route: Route, status: str) -> bool:
    if status in ("413", "415"):
        return route.body is not None
    if status == "412":
        return route.shows is not None
    return status != "409" or route.changes or route.lines


def _problem(text: str) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(model="Problem")}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _answer(route: Route, references: dict[type[BaseModel], Any]) -> dict[str, Any]:
    one: dict[str, Any] = references[route.answers]  # type: ignore[index]
    if not route.listing:
        return one
    return {
        "type": "object",
        "required": ["items", "next"],
        "properties": {
            "items": {"type": "array", "items": one},
            "next": {"type": ["string", "null"], "description": "Cursor of the next page; null at the end."},
        },
    }


def _of_path(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]


def _of_query(route: Route) -> list[dict[str, Any]]:
    schema = route.query.model_json_schema()
    if "$defs" in schema:  # an enum: written out where it is used
        definitions = schema["$defs"]

        def inline(part: Any) -> Any:
            if isinstance(part, dict):
                if "$ref" in part:
                    return inline(definitions[part["$ref"].rsplit("/", 1)[1]])
                return {key: inline(value) for key, value in part.items()}
            return [inline(one) for one in part] if isinstance(part, list) else part

        schema = {**schema, "properties": inline(schema["properties"])}
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": _without_null(one)}
        for name, one in schema.get("properties", {}).items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query argument is there or it is not."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key not in ("anyOf", "default")}, **kinds[0]}


def _of_headers(route: Route) -> list[dict[str, Any]]:
    found = []
    if route.shows is not None:
        found.append(("If-Match", "ETag of what was read: refuse the change if it is another by now."))
    if route.streams:
        found.append(("Last-Event-ID", "Of a stream: go on behind this id; counts before `after`."))
    if route.method == "POST":
        found.append(("Idempotency-Key", "Repeating a request under its key makes nothing twice, for 24 hours."))
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in found
    ]
