"""Engines and the one way to open a transaction. The hub's own engine and session are never used.

SQLite: a transaction that writes begins IMMEDIATE, so that it never deadlocks on an upgrade of its lock, and is
short; the file is in WAL mode before the hub opens it. PostgreSQL 15+ otherwise.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from .errors import Unavailable

BUSY_TIMEOUT_SECONDS = 15


def normal_url(url: str) -> str:
    """Spell a database URL as SQLAlchemy wants it, with psycopg 3 for PostgreSQL; the hub accepts `sqlite` alone."""
    if "://" not in url:
        return f"sqlite:///{url}"
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed.render_as_string(hide_password=False)


def prepare_sqlite(url: str) -> None:
    """Set WAL on an SQLite file before anybody else opens it: the mode is a property of the file and stays."""
    path = make_url(url).database
    if not path or path == ":memory:":
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def open_engine(url: str, **db_kwargs: Any) -> Engine:
    """Open an engine of our own on the hub's database, honouring the hub's `db_kwargs`."""
    url = normal_url(url)
    options: dict[str, Any] = {"pool_pre_ping": True, **db_kwargs}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": BUSY_TIMEOUT_SECONDS, **options.get("connect_args", {})}
        options["connect_args"]["check_same_thread"] = False
    engine = create_engine(url, **options)
    if engine.dialect.name == "sqlite":
        _tame_sqlite(engine)
    return engine


def _tame_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Any) -> None:
        read_only = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def begin(engine: Engine, *, read_only: bool = False) -> Iterator[Session]:
    """Open one transaction: commit at the end, roll back on any error. Doors only.

    Raises: Unavailable when the database cannot be reached or stays locked.
    """
    bound = engine.execution_options(read_only=True) if read_only else engine
    try:
        with Session(bound, expire_on_commit=False) as session, session.begin():
            yield session
    except (OperationalError, InterfaceError) as error:
        raise Unavailable("The database does not answer. Nothing was changed; try again in a minute.") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable("The database does not answer. Nothing was changed; try again in a minute.") from error
        raise
