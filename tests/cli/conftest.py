"""The command itself is called, with its words, on a real database that a small world was built in."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jupyterhub import orm as hub_orm
from sqlalchemy import Engine, insert

from remotegpu_hub.app import main
from remotegpu_hub.runtime import Runtime, Settings

from ..worlds import World

HUB_ID = f"clihub{os.getpid()}"
"""Tests that run beside this one look at the processes of their own hub."""


@dataclass(frozen=True)
class Said:
    """What one call answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Said]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with nothing in the env vars that names a hub."""
    for name in (
        "REMOTEGPU_DB_URL", "REMOTEGPU_HUB_URL", "REMOTEGPU_TOKEN", "REMOTEGPU_HUB_TOKEN_FILE", "REMOTEGPU_ALLOW_HTTP",
        "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_API_URL", "SUDO_USER",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def call(folder: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run `remotegpu` with these words."""

    def run(*words: str) -> Said:
        capfd.readouterr()
        code = main(list(words))
        captured = capfd.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def remotegpu(call: Call, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The same, on this test's database; what was refused fails the test unless `code` is given."""
    monkeypatch.setenv("REMOTEGPU_DB_URL", database_url)

    def run(*words: str, code: int = 0) -> Said:
        said = call(*words)
        assert said.code == code, said
        return said

    return run


@pytest.fixture
def world(engine: Engine) -> World:
    """The usual small world, an hour ago on the real clock, with the hub's own tables beside it."""
    hub_orm.Base.metadata.create_all(engine)
    moment = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    return World(engine, moment).furnish()


@pytest.fixture
def hub_user(engine: Engine) -> Callable[[str], None]:
    """Make a user whom only the hub knows."""

    def make(name: str) -> None:
        users = hub_orm.Base.metadata.tables["users"]
        with engine.begin() as connection:
            connection.execute(insert(users).values(id=900, name=name, created=datetime(2026, 1, 1), cookie_id=name))  # noqa: DTZ001

    return make


@pytest.fixture
def hub_was_here(folder: Path, database_url: str) -> Settings:
    """The file that a hub on this database wrote when it started; that hub is gone."""
    started = datetime.now(UTC) - timedelta(hours=2)
    settings = Settings(db_url=database_url, hub_id=HUB_ID, hub_started_at=started.isoformat(), host_name="host-1")
    Runtime(settings).write(str(folder / "remotegpu-runtime.json"))
    return settings
