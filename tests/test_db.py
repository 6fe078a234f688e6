"""Engines and transactions on real databases."""

import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, StatementError

from remotegpu_hub import db, orm
from remotegpu_hub.errors import Unavailable

from .postgres import Postgres


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("hub.sqlite", "sqlite:///hub.sqlite"),
        ("sqlite:////srv/hub.sqlite", "sqlite:////srv/hub.sqlite"),
        ("postgres://u:p%40ss@db/hub", "postgresql+psycopg://u:p%40ss@db/hub"),
        ("postgresql://u@db:5433/hub?sslmode=require", "postgresql+psycopg://u@db:5433/hub?sslmode=require"),
        ("postgresql+psycopg://u@db/hub", "postgresql+psycopg://u@db/hub"),
    ],
    ids=["path", "sqlite", "postgres", "postgresql", "psycopg"],
)
def test_urls_that_the_hub_takes_are_spelt_for_us(given: str, wanted: str):
    assert db.normal_url(given) == wanted


def put(engine: Engine, name: str, value: str = "x") -> None:
    with db.begin(engine) as session:
        session.add(orm.Fact(name=name, value=value))


def facts(engine: Engine) -> set[str]:
    with db.begin(engine, read_only=True) as session:
        return {fact.name for fact in session.query(orm.Fact)}


def test_a_transaction_is_kept_whole_or_not_at_all(engine: Engine):
    put(engine, "kept")
    with pytest.raises(RuntimeError), db.begin(engine) as session:
        session.add(orm.Fact(name="lost", value="x"))
        session.flush()
        raise RuntimeError
    with pytest.raises(IntegrityError), db.begin(engine) as session:
        session.add_all([orm.Fact(name="lost", value="x"), orm.Fact(name="kept", value="y")])
    assert facts(engine) == {"kept"}


def test_rows_stay_readable_after_their_transaction(engine: Engine):
    put(engine, "currency", "CNY")
    with db.begin(engine) as session:
        fact = session.get_one(orm.Fact, "currency")
    assert fact.value == "CNY"


def test_foreign_keys_are_kept_by_both_databases(engine: Engine):
    with pytest.raises(IntegrityError), db.begin(engine) as session:
        session.add(orm.MemberMonth(workspace_id=404, month="2026-11", user_id=404))


def test_times_come_back_as_the_same_instant_in_utc(engine: Engine, now: datetime):
    shanghai = now.astimezone(timezone(timedelta(hours=8)))
    with db.begin(engine) as session:
        session.add(orm.Attempt(attempt="a", at=shanghai))
    with db.begin(engine, read_only=True) as session:
        found = session.get_one(orm.Attempt, "a").at
    assert (found, found.tzinfo) == (now, UTC)


def test_a_naive_time_is_refused(engine: Engine):
    with pytest.raises(StatementError, match="aware UTC"), db.begin(engine) as session:
        session.add(orm.Attempt(attempt="a", at=datetime(2026, 11, 23)))  # noqa: DTZ001 - the mistake


def test_writers_wait_for_each_other_instead_of_failing(engine: Engine):
    def count(name: str) -> None:
        for _ in range(20):
            with db.begin(engine) as session:
                fact = session.get_one(orm.Fact, "counter", with_for_update=True)
                fact.value = str(int(fact.value) + 1)

    put(engine, "counter", "0")
    threads = [threading.Thread(target=count, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.begin(engine, read_only=True) as session:
        assert session.get_one(orm.Fact, "counter").value == "80"


def test_readers_do_not_wait_for_a_writer(engine: Engine):
    put(engine, "before")
    with db.begin(engine) as session:
        session.add(orm.Fact(name="during", value="x"))
        session.flush()
        assert facts(engine) == {"before"}  # who waited would wait for ever: the writer goes on only after this


def test_the_sqlite_file_is_in_wal_mode_for_everybody(empty_sqlite_url: str, tmp_path: Path):
    with sqlite3.connect(tmp_path / "hub.sqlite") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.prepare_sqlite("sqlite:///:memory:")


def test_a_locked_sqlite_file_is_unavailable_not_a_traceback(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(db, "BUSY_TIMEOUT_SECONDS", 0.1)
    engine = db.open_engine(sqlite_url)
    blocker = sqlite3.connect(tmp_path / "hub.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="Nothing was changed"):
        put(engine, "late")
    blocker.close()
    put(engine, "later")
    engine.dispose()


def test_a_lost_connection_is_unavailable_and_the_next_one_works(pg_url: str, postgres: Postgres):
    engine = db.open_engine(pg_url, pool_size=1)
    with pytest.raises(Unavailable), db.begin(engine) as session:
        session.add(orm.Fact(name="lost", value="x"))
        session.flush()
        with postgres.connect() as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (engine.url.database,)
            )
        session.execute(text("SELECT 1"))
    put(engine, "kept")
    assert facts(engine) == {"kept"}
    engine.dispose()


def test_a_server_that_is_not_there_is_unavailable():
    engine = db.open_engine("postgresql://nobody@127.0.0.1:1/hub", connect_args={"connect_timeout": 2})
    with pytest.raises(Unavailable):
        facts(engine)
    with pytest.raises(Unavailable):
        put(engine, "lost")
