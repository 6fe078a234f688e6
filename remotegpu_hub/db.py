"""Engines and the one way to open a transaction. The hub's own engine and session are never used.

SQLite: a transaction that writes begins IMMEDIATE, so that it never deadlocks on an upgrade of its lock, and is
short; the file is in WAL mode before the hub opens it. PostgreSQL 15+ otherwise.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from .errors import Unavailable

BUSY_TIMEOUT_SECONDS = 15
PING_AFTER_SECONDS = 1.0
KEPT_CONNECTIONS = 10
"""That a process keeps open: one for each of its threads, and for its ticks. SQLAlchemy's five would be too few: what
goes beyond is opened anew each time."""
CHECKPOINT_PAGES = 250
"""Whoever commits the page that fills it moves them all into the SQLite file: with the usual 1,000 that takes 20 ms."""


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
    options: dict[str, Any] = dict(db_kwargs)
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": BUSY_TIMEOUT_SECONDS, **options.get("connect_args", {})}
        options["connect_args"]["check_same_thread"] = False
    elif "poolclass" not in options:
        options.setdefault("pool_size", KEPT_CONNECTIONS)
    engine = create_engine(url, **options)
    if engine.dialect.name == "sqlite":
        _tame_sqlite(engine)
    else:
        _ping_after_idling(engine)
    return engine


def _ping_after_idling(engine: Engine) -> None:
    """Replace a pooled connection that died, looking only where nobody used it for a while: the look is one more way
    to the server and back, which a busy hub would pay at every transaction."""

    @event.listens_for(engine, "checkin")
    def note(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = monotonic()

    @event.listens_for(engine, "checkout")
    def look(connection: Any, record: Any, _proxy: Any) -> None:
        if monotonic() - record.info.get("idle_since", monotonic()) > PING_AFTER_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise DisconnectionError from error


def _tame_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Any) -> None:
        read_only = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


_turns: "WeakKeyDictionary[Engine, Lock]" = WeakKeyDictionary()


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """Let the threads of this process write to an SQLite file one after the other. SQLite itself makes them poll with
    growing pauses: of four that write all the time, one in a hundred then waits 230 ms instead of 35."""
    lock = _turns.setdefault(engine, Lock())
    if not lock.acquire(timeout=BUSY_TIMEOUT_SECONDS):
        raise Unavailable("The database does not answer. Nothing was changed; try again in a minute.")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def begin(engine: Engine, *, read_only: bool = False) -> Iterator[Session]:
    """Open one transaction: commit at the end, roll back on any error. Doors only.

    Raises: Unavailable when the database cannot be reached or stays locked.
    """
    bound = engine.execution_options(read_only=True) if read_only else engine
    turn = nullcontext() if read_only or engine.dialect.name != "sqlite" else _turn(engine)
    try:
        with turn, Session(bound, expire_on_commit=False) as session, session.begin():
            yield session
    except (OperationalError, InterfaceError) as error:
        raise Unavailable("The database does not answer. Nothing was changed; try again in a minute.") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable("The database does not answer. Nothing was changed; try again in a minute.") from error
        raise
