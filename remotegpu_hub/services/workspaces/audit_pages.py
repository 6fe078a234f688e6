"""The audit log for admins of the hub: a page with filters, and the same entries as a CSV file."""

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy.orm import Session

from ... import sheets
from ...errors import Invalid, RemoteGPUError
from ...orm import AuditEntry
from ...runtime import utcnow
from ...sheets import MOST_IN_A_FILE
from .. import api
from ..api import Call, call_of
from ..pages import Page, View
from ..paging import MOST_A_PAGE
from . import entries, trail

FILTERS: Final = ("actor", "action", "entity", "which", "since", "until")
LIST: Final = next(route for route in trail.ROUTES if route.work is trail.list_audit)


def read_filters(page: Page) -> dict[str, str]:
    """What the page's form sent, each at most as long as a name can be."""
    return {name: page.get_query_argument(name, "")[:512].replace("\0", "") for name in (*FILTERS, "cursor")}


def asked(session: Session, given: dict[str, str], *, limit: int = 50) -> trail.AuditAsked | None:
    """What a list of these filters asks of the API; None when there is no such thing. Raises: Invalid."""
    wanted: dict[str, Any] = {name: given[name] for name in ("actor", "action", "entity", "cursor") if given[name]}
    for name, days in (("since", 0), ("until", 1)):
        if given[name]:
            wanted[name] = _midnight(given[name], days)
    if given["which"]:
        if not given["entity"]:
            raise Invalid("Choose also what kind of thing {name} is.", name=given["which"])
        wanted["entity_id"] = entries.find(session, entity=given["entity"], name=given["which"])
        if not wanted["entity_id"]:
            return None
    found: trail.AuditAsked = api.check(trail.AuditAsked, {**wanted, "limit": limit})
    return found


def _midnight(text: str, days: int) -> datetime:
    try:
        return datetime.combine(date.fromisoformat(text) + timedelta(days=days), time(), UTC)
    except (ValueError, OverflowError):
        raise Invalid("{value} is not a date: write one such as 2026-11-26.", value=text) from None


class Audit(Page):
    """Who changed what, newest first."""

    async def get(self) -> None:
        view = View(self.language, currency=self.runtime.settings.currency)
        given = read_filters(self)
        error: RemoteGPUError | None = None

        def work(session: Session) -> tuple[list[entries.Told], str | None]:
            call = call_of(self, session, LIST, {}, None, None)
            query = asked(session, given)
            if query is None:
                return [], None
            rows, following = trail.list_audit(replace(call, query=query))
            return entries.tell(session, view, rows), following

        try:
            found, following = await self.ask(work)
        except Invalid as wrong:
            error, found, following = wrong, [], None
            self.set_status(error.status)

        def link(path: str = "admin/audit", **changed: Any) -> str:
            kept = {name: value for name, value in {**given, "cursor": "", **changed}.items() if value}
            return self.address(path) + (f"?{urlencode(kept)}" if kept else "")

        self.show(
            "audit.html", view, title=view.say("Audit"), here="admin/audit", found=found, given=given, link=link,
            following=following, error=error, actions=entries.ACTIONS, kinds=entries.KINDS, most=MOST_IN_A_FILE,
        )  # fmt: skip


class AuditFile(Page):
    """The entries of the same filters as CSV, read and sent in batches."""

    async def get(self) -> None:
        given, view = read_filters(self), View(self.language)
        left: int = MOST_IN_A_FILE

        def work(session: Session) -> tuple[str, int, str | None]:
            return read_part(call_of(self, session, LIST, {}, None, None), view, given, left)

        text, count, following = await self.ask(work)
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="audit-{utcnow():%Y-%m-%d}.csv"')
        self.write(sheets.head())
        while following is not None:
            self.write(text)
            await self.flush()
            given["cursor"], left = following, left - count
            text, count, following = await self.ask(work)
        self.finish(text)


def read_part(call: Call, view: View, given: dict[str, str], left: int) -> tuple[str, int, str | None]:
    """The next lines of the file, how many, and the cursor behind them; the last of `left` lines says where it ends."""
    query = asked(call.session, given, limit=min(MOST_A_PAGE, left))
    rows, following = trail.list_audit(replace(call, query=query)) if query is not None else ([], None)
    text = sheets.lines(as_cells(one) for one in rows)
    if len(rows) == left and following is not None:
        text += sheets.lines(
            [[view.say("Cut off after {count} entries: narrow the filters down.", count=MOST_IN_A_FILE)]]
        )
        following = None
    return text, len(rows), following


def as_cells(entry: AuditEntry) -> list[str]:
    """An entry as the cells of one line."""
    return sheets.of_entry({name: getattr(entry, name) for name in sheets.AUDIT})


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"admin/audit", Audit, {}),
    (r"admin/audit\.csv", AuditFile, {}),
]
