"""The statements of one admission, taken down while it runs, and played again without our code: by pgbench, by bare
psycopg, by bare sqlite3.

A parameter whose value is that of the start (its user, workspace, environment, server name, attempt) or of a row that
the admission itself chose or made (host, run) becomes a variable; everything else stays what it was.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.types.json import Json
from sqlalchemy import Engine, event

from remotegpu_hub.db import begin
from remotegpu_hub.domain import allocations
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.domain.environments import Rules
from remotegpu_hub.orm import PREFIX, User

from .town import FIRST, NOW, PGBENCH_START, Start

HOST, RUN = "host", "run"
"""Variables that are learned from answers; the others are known before."""


@dataclass(frozen=True)
class Statement:
    text: str
    """In the driver's own form: `%(name)s` or `?`."""
    parameters: Any
    """A mapping or a tuple, as the driver got it."""
    variables: Mapping[Any, str]
    """Which parameters, by name or position, are which variable."""
    learns: str = ""
    """HOST: it takes room on a host. RUN: it inserts the run. Each answers with one row, the id first."""

    def filled(self, values: Mapping[str, Any]) -> Any:
        if isinstance(self.parameters, Mapping):
            return {**self.parameters, **{name: values[variable] for name, variable in self.variables.items()}}
        filled = list(self.parameters)
        for position, variable in self.variables.items():
            filled[position] = values[variable]
        return filled


def admit(engine: Engine, start: Start, rules: Rules) -> tuple[str, int, int]:
    """One admission as the hub makes it, in its transaction; returns the attempt and the ids of host and run."""
    attempt = uuid4().hex
    with begin(engine) as session:
        run = allocations.admit(
            session, user=User(id=start.user_id), server_name=start.server_name, wish=start.wish, attempt=attempt,
            rules=rules, actor=Actor("benchmark"), now=NOW,
        )  # fmt: skip
        return attempt, run.host_id, run.id


def take_down(engine: Engine, start: Start, rules: Rules) -> list[Statement]:
    """Admit once and return what was sent to the database between BEGIN and COMMIT."""
    with _listening(engine) as heard:
        attempt, host, run = admit(engine, start, rules)
    names = {value: name for name, value in {**_known(start, attempt), HOST: host, RUN: run}.items()}
    result = []
    for text, parameters in heard:
        pairs = parameters.items() if isinstance(parameters, Mapping) else enumerate(parameters)
        found = {key: names[value] for key, value in pairs if isinstance(value, int | str) and value in names}
        result.append(Statement(text, parameters, found, _learns(text)))
    if [one.learns for one in result if one.learns] != [HOST, RUN]:
        raise SystemExit("The statements of an admission have changed: teach benchmarks/parts/replay.py to play them.")
    return result


def _known(start: Start, attempt: str) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "user": start.user_id,
        "workspace": start.wish.workspace_id,
        "environment": start.environment_id,
        "number": start.server_name,
    }


def _learns(text: str) -> str:
    if text.startswith(f"UPDATE {PREFIX}hosts "):
        return HOST
    return RUN if text.startswith(f"INSERT INTO {PREFIX}allocations ") else ""


@contextmanager
def _listening(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    heard: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, text: str, parameters: Any, _context: Any, _many: bool) -> None:
        if not text.startswith("BEGIN"):
            heard.append((text, parameters))

    event.listen(engine, "before_cursor_execute", hear)
    try:
        yield heard
    finally:
        event.remove(engine, "before_cursor_execute", hear)


def play_psycopg(connection: psycopg.Connection, statements: Sequence[Statement], start: Start) -> None:
    """One admission through psycopg 3, which prepares on the server what it has seen five times."""
    values = _known(start, uuid4().hex)
    with connection.transaction(), connection.cursor() as cursor:
        for one in statements:
            cursor.execute(one.text, one.filled(values) or None)
            rows = cursor.fetchall() if cursor.description else []
            if one.learns:
                values[one.learns] = rows[0][0]


def play_sqlite3(connection: sqlite3.Connection, statements: Sequence[Statement], start: Start) -> None:
    """One admission through sqlite3; the transaction is the caller's."""
    values = _known(start, uuid4().hex)
    cursor = connection.cursor()
    for one in statements:
        rows = cursor.execute(one.text, one.filled(values)).fetchall()
        if one.learns:
            values[one.learns] = rows[0][0]


_PARAMETER = re.compile(r"%\((\w+)\)s(::)?")


def pgbench_script(statements: Sequence[Statement], *, clients: int, warm: int) -> tuple[str, dict[str, str]]:
    """Write the statements in pgbench's language, with the variables that it must be given.

    Client n makes the start number `turn × clients + n` at each turn, as our workers do. The first `warm` turns are
    rolled back: they let the server prepare and plan, as it has long done for a hub that is running.
    """
    given = {"turn": "-1"}
    lines = [f"\\set turn :turn + 1\n\\set k :turn * {clients} + :client_id", PGBENCH_START.strip()]
    lines.append(f"\\set attempt {FIRST[User]}000 + :k\nBEGIN;")
    for one in statements:
        text = _PARAMETER.sub(lambda match, one=one: _spell(match, one, given), one.text)  # type: ignore[misc]
        if one.learns:
            lines.append(f"{text} \\gset\n\\set {one.learns} :id")
        else:
            lines.append(f"{text};")
    lines.append(f"\\if :turn < {warm}\nROLLBACK;\n\\else\nCOMMIT;\n\\endif\n")
    return "\n".join(lines), given


def _spell(match: re.Match[str], statement: Statement, given: dict[str, str]) -> str:
    name, cast = match[1], match[2] or ""
    if name in statement.variables:
        return f":{statement.variables[name]}{cast}"
    value = statement.parameters[name]
    if value is None or value == "":
        return ("NULL" if value is None else "''") + cast
    for kind, sql_type in ((bool, "boolean"), (int, "bigint"), (float, "float8")):
        if isinstance(value, kind):
            return f"{value}{cast or f'::{sql_type}'}"
    text = str(value.isoformat() if isinstance(value, datetime) else _json(value) if isinstance(value, Json) else value)
    constant = next((key for key, known in given.items() if known == text), f"constant{len(given)}")
    given[constant] = text
    return f":{constant}{cast}"


def _json(value: Json) -> str:
    import json

    return json.dumps(value.obj)
