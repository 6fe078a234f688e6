"""Write docs/api.md and docs/openapi.json from the routes' declarations: `python tools/api_page.py`."""

import json
from itertools import groupby
from pathlib import Path

from remotegpu_hub.services.api import Route
from remotegpu_hub.services.openapi import describe
from remotegpu_hub.services.workspaces.routes import ROUTES

# ruff: noqa: E501 - prose for a page

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, DESCRIPTION = DOCS / "api.md", DOCS / "openapi.json"

HEAD = """# API

The service `workspaces` answers below `/services/workspaces/api/`, with a hub token that has the scope
`access:services!service=workspaces` (every user has it) in the header `Authorization: token …`. [openapi.json](openapi.json)
describes every route for programs (OpenAPI 3.1); a running hub serves the same at `/services/workspaces/api/openapi.json`.
How an environment is started with a choice, and what the spawn page shows, is on [REST](rest.md).

- **Rights** are the role in the database *and* what the token carries: reads need `custom:remotegpu:read`, `:write` or
  `:admin`, changes `:write`, changes for hub admins `:admin`. A token carries them all unless it was made with fewer; the token
  inside a user's server carries none. Roles are read at each request. What is not the caller's answers 404 like what is not there.
- **Errors** are `{"error": {"code", "message", "facts", "request_id"}}`; the message says what to do. The request id is in the header
  `X-Request-Id` and in the audit log.
- **Lists** answer `{"items": […], "next": cursor}`, at most 200 a page: pass `next` as `cursor` until it is null. None is skipped
  or told twice while the list changes.
- **Edits** heed `If-Match` with the `ETag` of what was read: 412 where somebody else changed it meanwhile. A change that cannot heed it
  answers 400 to it. `If-None-Match` saves reading what has not changed.
- **Creations**, and every other POST, heed `Idempotency-Key`: repeated under the same key within 24 hours, they make nothing twice and answer
  alike. Another request under the key answers 409, and so does one whose first answer is not known yet.
- **Events**: `GET events` lists what happened in the last week of what the caller may see. With `Accept: text/event-stream` it goes on as a
  stream: `curl -N -H "Authorization: token $TOKEN" -H "Accept: text/event-stream" …/api/events`. Each `data:` is one item, `id:` its id; after a
  break go on with `Last-Event-ID` or `?after=`. A comment comes every 15 s, rights are read anew all the time, and the stream ends with the
  token. At most 5 streams for each user, logs being read among them, else 429. [Webhooks](admin-guide.md#webhooks) are for programs that do not listen.
- **Limits**: 120 requests at once and then 30 a second for each user, else 429 with `Retry-After`; a body of at most 1 MB, JSON only, else 413 or 415
  (whoever sends more than 100 MB, or more than 1 MB without saying how much, is cut off).
- **Units**: money is integer millionths of the currency, GPUs and cores are thousandths, sizes bytes, times ISO 8601 in UTC.

"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    nouns = list(dict.fromkeys(_noun(route) for route in ROUTES))
    ordered = sorted(ROUTES, key=lambda route: nouns.index(_noun(route)))
    for name, routes in groupby(ordered, key=_noun):
        parts.append(f"## {name}\n\n| | for | |\n|---|---|---|\n")
        parts += [f"| `{one.method} {one.path}` | {one.needs} | {one.summary} |\n" for one in routes]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def _noun(route: Route) -> str:
    return route.path.split("/")[0]


def description() -> str:
    """The OpenAPI description as text."""
    told = describe(ROUTES, title="remotegpu-hub")
    told["info"]["version"] = "0"  # the running service tells its own
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    DESCRIPTION.write_text(description())
