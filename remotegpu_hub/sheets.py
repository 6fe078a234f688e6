"""Files for spreadsheets: CSV of the audit log that no spreadsheet runs, whoever wrote the names in it."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

AUDIT: Final = ("at", "actor", "acted_as", "action", "entity", "entity_id", "detail", "request_id", "address")
"""Columns of the audit log."""
MARK: Final = "\ufeff"
"""Begins a file, so that Excel reads UTF-8."""
MOST_IN_A_FILE: Final = 100_000
"""Entries; a spreadsheet opens that many, and the log has no end."""
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection")."""


def head() -> str:
    """How the file of the audit log begins."""
    return MARK + lines([AUDIT])


def of_entry(entry: Mapping[str, Any]) -> list[str]:
    """An entry of the audit log as the cells of one line."""
    return [_cell(entry[name]) for name in AUDIT]


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else "" if value is None else str(value)
    return guarded(text)


def guarded(text: str) -> str:
    """The text so that no spreadsheet runs it: an apostrophe before what looks like a formula."""
    return "'" + text if text.lstrip(" ").startswith(FORMULA) else text


def lines(rows: Iterable[Iterable[str]]) -> str:
    """Lines of CSV (RFC 4180)."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
