"""Real databases for all tests: a file for SQLite, a server of our own for PostgreSQL, a fresh schema for each test."""

import os
import re
import shutil
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import Engine
from xdist.scheduler import LoadScopeScheduling

from remotegpu_hub import db, migrations

from . import postgres as pg
from .cluster.cluster import ClusterMissing, LocalCluster, found_or_started
from .prove import Prove

TEMPLATE = "remotegpu_template"
ROOT = Path(__file__).resolve().parent.parent

MEASURE_SERVICES = """
import os, sys
if any("remotegpu_hub" in part for part in sys.orig_argv) and "COVERAGE_PROCESS_CONFIG" not in os.environ:
    import coverage
    os.environ["COVERAGE_PROCESS_CONFIG"] = {settings!r}
    coverage.process_startup()
"""


UNMEASURED = {
    "tests/domain/test_life.py", "tests/domain/test_races.py", "tests/hub/test_kills.py", "tests/hub/test_kube_faults.py",
    "tests/hub/test_kube_played.py", "tests/hub/test_kube_kills.py", "tests/hub/test_configure.py",
    "tests/hub/test_spawner_accounts.py", "tests/hub/test_spawner_faults.py", "tests/test_demo.py", "tests/test_benchmarks.py",
}  # fmt: skip
"""These run without coverage, and so do their hubs: what they run, others run too, and measuring costs a third."""


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("REMOTEGPU_PROVE"):
        config.pluginmanager.register(Prove())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not is_measured(item.nodeid):
            item.add_marker("no_cover")
    items.sort(key=lambda item: place_in_line(item.nodeid))


LONGEST = (
    "cluster", "e2e", "services", "tests/hub/test_spawner_faults.py", "tests/hub/test_kube_played.py", "tests/hub/test_spawner.py",
    "tests/domain/test_races.py", "tests/test_demo.py", "tests/test_migrations.py", "tests/hub/test_kills.py",
)  # fmt: skip
"""What begins first, so that no worker begins it when the others are at their end."""


def place_in_line(nodeid: str) -> int:
    scope = scope_of(nodeid)
    return LONGEST.index(scope) if scope in LONGEST else len(LONGEST)


def scope_of(nodeid: str) -> str:
    """What one worker runs as a whole."""
    file = nodeid.split("::", 1)[0]
    if needs_cluster(file):
        return "cluster"
    return next((folder for folder in ("services", "e2e") if file.startswith(f"tests/{folder}/")), file)


@cache
def needs_cluster(file: str) -> bool:
    return re.search(r"\b(test_cluster|control_plane|api_server)\b", (ROOT / file).read_text()) is not None


class ByFile(LoadScopeScheduling):
    """A file's tests share what they start, so one worker runs them; all that need the one cluster, the one demo of
    the browser, or the one hub of the services, are as one file."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let coverage see into the hub's services too: the hub hands down PYTHONPATH, but not coverage's own env var. Keep
    both from the processes of what is not measured. What only makes a process start late is left out of all."""
    before = {name: os.environ.get(name) for name in ("COVERAGE_PROCESS_CONFIG", "PYTHONPATH")}
    settings, path = before.values()
    folders = [str(ROOT / "tests" / "without"), *([path] if path else [])]
    if settings and is_measured(item.nodeid):
        folders.insert(0, measuring(settings).name)
    else:
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    try:
        return (yield)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@cache
def measuring(settings: str) -> "TemporaryDirectory[str]":
    """A folder in a process's path that makes it measure itself."""
    folder = TemporaryDirectory(prefix="remotegpu-measure-")
    (Path(folder.name) / "sitecustomize.py").write_text(MEASURE_SERVICES.format(settings=settings))
    return folder


def is_measured(nodeid: str) -> bool:
    return nodeid.split("::", 1)[0] not in UNMEASURED


@pytest.fixture
def now() -> datetime:
    """A fixed instant on a whole second: Monday, 12:00 in Shanghai."""
    return datetime(2026, 11, 23, 4, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres() -> Iterator[pg.Postgres]:
    """A PostgreSQL server of this test run, with a template database that holds our tables."""
    try:
        with pg.running() as server:
            server.create_database(name=TEMPLATE)
            _migrate(server.url(TEMPLATE))
            yield server
    except pg.PostgresMissing as missing:
        pytest.skip(f"NO POSTGRESQL, so nothing is shown about it: {missing}")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[LocalCluster]:
    """A real Kubernetes of this test run, with as much of it as there are binaries for."""
    if os.environ.get("KUBECONFIG") and not os.environ.get("REMOTEGPU_TEST_CLUSTER"):
        pytest.skip("A CLUSTER IS NAMED BY KUBECONFIG, so nothing is shown that needs a kubelet of this machine")
    try:
        with found_or_started() as cluster:
            yield cluster
    except ClusterMissing as missing:
        pytest.skip(f"NO KUBERNETES, so nothing is shown about it: {missing}")


@pytest.fixture(scope="session")
def test_cluster(control_plane: LocalCluster) -> LocalCluster:
    """One with a kubelet."""
    if not control_plane.has("kubelet"):
        pytest.skip("NO KUBELET THAT FITS IN KUBEBUILDER_ASSETS, so nothing is shown that needs a node")
    return control_plane


@pytest.fixture(scope="session")
def api_server(request: pytest.FixtureRequest) -> str:
    """Kubeconfig of an API server: of the cluster that the tester names (KUBECONFIG), else of our own."""
    given = os.environ.get("KUBECONFIG")
    return given or str(request.getfixturevalue("control_plane").kubeconfig)


@pytest.fixture(scope="session")
def scheduler(request: pytest.FixtureRequest, api_server: str) -> str:
    """The same where pods are placed on nodes."""
    if not os.environ.get("KUBECONFIG") and not request.getfixturevalue("control_plane").has("scheduler"):
        pytest.skip("NO SCHEDULER THAT FITS IN KUBEBUILDER_ASSETS, so nothing is shown about where pods are placed")
    return api_server


@pytest.fixture
def empty_pg_url(postgres: pg.Postgres) -> Iterator[str]:
    """URL of a new PostgreSQL database without any table."""
    yield from _database(postgres, "template1")


@pytest.fixture
def pg_url(postgres: pg.Postgres) -> Iterator[str]:
    """URL of a new PostgreSQL database with our tables."""
    yield from _database(postgres, TEMPLATE)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite"
    db.prepare_sqlite(f"sqlite:///{path}")
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """URL of an SQLite file in WAL mode without any table."""
    url = f"sqlite:///{tmp_path}/hub.sqlite"
    db.prepare_sqlite(url)
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """URL of an SQLite file in WAL mode with our tables."""
    shutil.copy(sqlite_template, tmp_path / "hub.sqlite")
    return f"sqlite:///{tmp_path}/hub.sqlite"


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_database_url(dialect: str, request: pytest.FixtureRequest) -> str:
    """URL of a database without any table, on each of the two databases."""
    return str(request.getfixturevalue("empty_sqlite_url" if dialect == "sqlite" else "empty_pg_url"))


@pytest.fixture
def database_url(dialect: str, request: pytest.FixtureRequest) -> str:
    """URL of a database with our tables, on each of the two databases."""
    return str(request.getfixturevalue("sqlite_url" if dialect == "sqlite" else "pg_url"))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Our engine on a fresh schema, on each of the two databases."""
    opened = db.open_engine(database_url)
    yield opened
    opened.dispose()


def _migrate(url: str) -> None:
    made = db.open_engine(url)
    migrations.init(made)
    made.dispose()


def _database(server: pg.Postgres, template: str) -> Iterator[str]:
    name = server.create_database(template=template)
    yield server.url(name)
    server.drop_database(name)
