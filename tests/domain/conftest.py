"""The street is tested in a small furnished world, on both databases.

Most tests share one world a database and are rolled back: `world`. Those with threads, and those that need a database
of their own, take `engine`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from jupyterhub import orm as hub_orm
from sqlalchemy import Connection, Engine

from remotegpu_hub import db, migrations

from ..worlds import World


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def furnished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A database with the hub's tables, ours, and the usual small world; nobody commits to it afterwards."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        url = server.url(server.create_database())
    else:
        folder: Path = tmp_path_factory.mktemp("furnished")
        url = f"sqlite:///{folder}/hub.sqlite"
        db.prepare_sqlite(url)
    engine = db.open_engine(url)
    hub_orm.Base.metadata.create_all(engine)
    migrations.init(engine)
    World(engine, datetime(2026, 11, 23, 4, 0, tzinfo=UTC)).furnish()
    yield engine
    engine.dispose()


@pytest.fixture
def connection(furnished: Engine) -> Iterator[Connection]:
    """A connection whose every change, committed or not, is undone after the test."""
    with furnished.connect() as connection:
        outer = connection.begin()
        connection.begin_nested()  # transactions of the verbs are savepoints in it
        yield connection
        outer.rollback()


@pytest.fixture
def world(connection: Connection, now: datetime) -> World:
    """The usual small world of `World.furnish`: alice owns `lab`, bob is a member, carol a viewer; ample quotas;
    `host-1` and `host-2` with 8 A100, 64 cores and 512 GiB each; a GPU-hour costs 12, a core-hour 0.5, a GiB-hour
    0.25."""
    made = World(cast(Engine, connection), now)
    for _ in range(100):
        made.number()
    return made
