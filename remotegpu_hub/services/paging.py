"""Long lists a page at a time: a cursor is the values of the last row that was told, so that a page costs the same
however long the list is, and none is skipped or told twice while it changes."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import Field
from sqlalchemy import Select, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from ..errors import Invalid
from ..orm import UTCDateTime
from .api import LARGEST, Shape, can_be_kept, in_utc

MOST_A_PAGE: Final = 200
MOST_CURSOR: Final = 4000
"""Characters; the longest name of a row that a list is sorted by, in any script, has room."""
Sorts = Mapping[str, tuple[InstrumentedAttribute[Any], ...]]


class Paging(Shape):
    """Of every list. A cursor is what the page before gave as `next`."""

    limit: int = Field(50, ge=1, le=MOST_A_PAGE, description="Items a page holds at most.")
    cursor: str | None = Field(None, max_length=MOST_CURSOR, description="`next` of the page before.")


def page(
    session: Session, query: Select[Any], paging: Paging, *, sorts: Sorts, sort: str, shown: Callable[[Any], Any]
) -> tuple[list[Any], str | None]:
    """One page of a list and the cursor of the next. `sort` may begin with `-`.

    Raises: Invalid for a cursor of another list or none at all.
    """
    columns = sorts[sort.removeprefix("-")]
    down = sort.startswith("-")
    if paging.cursor:
        after = _read_cursor(paging.cursor, sort, columns)
        known = [literal(value, column.type) for value, column in zip(after, columns, strict=True)]
        here: Any = tuple_(*columns) if len(columns) > 1 else columns[0]
        there: Any = tuple_(*known) if len(columns) > 1 else known[0]
        query = query.where(here < there if down else here > there)
    query = query.order_by(*(column.desc() if down else column for column in columns)).limit(paging.limit + 1)
    rows = list(session.scalars(query))
    following = None
    if len(rows) > paging.limit:
        rows.pop()
        following = _cursor(sort, [_value(rows[-1], column) for column in columns])
    return [shown(row) for row in rows], following


def named(session: Session, kind: Any, ids: Iterable[int | None]) -> dict[int | None, Any]:
    """The rows that a page's rows name by their ids, in one statement, or none where none is named."""
    wanted = {one for one in ids if one is not None}
    found = session.scalars(select(kind).where(kind.id.in_(wanted))) if wanted else ()
    return {row.id: row for row in found}


def _value(row: Any, column: InstrumentedAttribute[Any]) -> Any:
    value = getattr(row, column.key)
    return value.isoformat() if isinstance(value, datetime) else value


def _cursor(sort: str, values: Sequence[Any]) -> str:
    text = json.dumps([sort, *values], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str, sort: str, columns: Sequence[InstrumentedAttribute[Any]]) -> tuple[Any, ...]:
    try:
        given = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(given, list) or given[0] != sort or len(given) != len(columns) + 1:
            raise ValueError
        return tuple(_as(column, value) for column, value in zip(columns, given[1:], strict=True))
    except (ValueError, TypeError, IndexError, RecursionError, binascii.Error):
        raise Invalid("This cursor is none of this list. Begin without one.") from None


def _as(column: InstrumentedAttribute[Any], value: Any) -> Any:
    if isinstance(column.type, UTCDateTime):
        found = datetime.fromisoformat(value)
        if found.tzinfo is None:
            raise ValueError
        return in_utc(found)
    if not isinstance(value, column.type.python_type) or isinstance(value, bool) or not can_be_kept(value):
        raise ValueError
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError
    return value
