"""Migrations against real databases: empty ones, and ones that a real JupyterHub made and filled."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from jupyterhub import orm as hub_orm
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from remotegpu_hub import db, migrations, orm
from remotegpu_hub.errors import Conflict

from .postgres import Postgres

HUB_CONFIG = """
c = get_config()
c.JupyterHub.db_url = {url!r}
c.JupyterHub.cookie_secret_file = {secret!r}
c.Authenticator.allowed_users = {{"alice", "boris"}}
"""


def mostly(dialect: str) -> pytest.MarkDecorator:
    """Start a hub each day on this database only, and under `-m prove` on the other."""
    other = "postgresql" if dialect == "sqlite" else "sqlite"
    return pytest.mark.parametrize("dialect", [dialect, pytest.param(other, marks=pytest.mark.prove)])


@pytest.fixture
def empty_engine(empty_database_url: str):
    opened = db.open_engine(empty_database_url)
    yield opened
    opened.dispose()


def run_hub(url: str, folder: Path) -> str:
    """Let a real JupyterHub make or open the database, add its users, and give one of them a token."""
    config = folder / "jupyterhub_config.py"
    config.write_text(HUB_CONFIG.format(url=url, secret=str(folder / "secret")))
    made = subprocess.run(
        [sys.executable, "-m", "jupyterhub", "token", "alice", "-f", str(config)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "JUPYTERHUB_CRYPT_KEY": ""},
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.strip().splitlines()[-1]


def hub_names(url: str) -> list[str]:
    with closing(hub_orm.new_session_factory(url)()) as session:
        names = sorted(user.name for user in session.query(hub_orm.User))
        session.get_bind().dispose()
    return names


def schema(engine: Engine, postgres: Postgres | None) -> str:
    """Everything but rows, of our own tables."""
    if postgres is not None:
        return postgres.dump_schema(str(engine.url.database))
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name LIKE 'remotegpu_%' ORDER BY 1, 2")
        )
        return "\n".join(f"{kind} {table} {name} {in_one_order(sql or '')}" for kind, name, table, sql in rows)


def in_one_order(sql: str) -> str:
    """A statement in which constraints, whose order means nothing, follow the columns sorted by name."""
    sql = re.sub(r"\s+", " ", sql)
    if not sql.startswith("CREATE TABLE"):
        return sql
    head, body = sql.split(" ( ", 1)
    parts = re.split(r", (?=CONSTRAINT )", body.removesuffix(")").strip())
    return " | ".join([head, parts[0], *sorted(parts[1:])])


def add_record(engine: Engine, now: datetime) -> None:
    """One billing record and all that it refers to."""
    with db.begin(engine) as session:
        user = orm.User(hub_user_id=1, hub_created="2026", name="alice", created_at=now)
        session.add(user)
        session.flush()
        workspace = orm.Workspace(
            name="lab", display_name="实验室", kind=orm.WorkspaceKind.TEAM, owner_id=user.id, created_at=now
        )
        price = orm.Price(resource="cpu", unit_price=1, effective_from=now)
        session.add_all([workspace, price])
        session.flush()
        session.add(
            orm.BillingRecord(
                workspace_id=workspace.id,
                user_id=user.id,
                subject_kind=orm.SubjectKind.ALLOCATION,
                subject_id=1,
                resource="cpu",
                quantity=1,
                price_id=price.id,
                unit_price=1,
                amount=1,
                start=now,
                end=now.replace(minute=1),
                written_at=now,
            )
        )


def test_an_empty_database_becomes_current_and_stays_so(empty_engine: Engine):
    assert migrations.state(empty_engine) == "empty"
    migrations.init(empty_engine)
    assert migrations.state(empty_engine) == "current"
    migrations.init(empty_engine)
    migrations.upgrade(empty_engine)
    assert migrations.state(empty_engine) == "current"


def test_upgrade_makes_the_tables_of_an_empty_database_too(empty_engine: Engine):
    migrations.upgrade(empty_engine)
    assert set(orm.Base.metadata.tables) <= set(inspect(empty_engine).get_table_names())


def test_migrations_make_exactly_what_the_models_say(
    empty_engine: Engine, dialect: str, tmp_path: Path, request: pytest.FixtureRequest
):
    server = request.getfixturevalue("postgres") if dialect == "postgresql" else None
    migrations.init(empty_engine)
    with empty_engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {migrations.VERSION_TABLE}"))
    name = server.create_database() if server else None
    from_models = db.open_engine(server.url(name) if server else f"sqlite:///{tmp_path}/models.sqlite")
    try:
        orm.Base.metadata.create_all(from_models)
        assert schema(empty_engine, server).splitlines() == schema(from_models, server).splitlines()
        orm.Base.metadata.drop_all(from_models)
        assert "remotegpu_" not in schema(from_models, server)
    finally:
        from_models.dispose()
        if server:
            server.drop_database(name)


@mostly("sqlite")
def test_a_hub_opens_a_database_where_our_tables_came_first(empty_engine: Engine, empty_database_url: str, tmp_path):
    migrations.init(empty_engine)
    run_hub(empty_database_url, tmp_path)
    assert hub_names(empty_database_url) == ["alice", "boris"]
    assert migrations.state(empty_engine) == "current"


@mostly("postgresql")
def test_a_hub_still_opens_its_filled_database_after_our_upgrade(
    empty_engine: Engine, empty_database_url: str, tmp_path: Path, now: datetime
):
    run_hub(empty_database_url, tmp_path)
    before = whole_hub(empty_engine)
    migrations.upgrade(empty_engine)
    add_record(empty_engine, now)
    assert whole_hub(empty_engine) == before
    migrations.upgrade(empty_engine)
    assert hub_names(empty_database_url) == ["alice", "boris"]
    assert run_hub(empty_database_url, tmp_path)
    with db.begin(empty_engine, read_only=True) as session:
        assert session.query(orm.BillingRecord).count() == 1


def whole_hub(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table of the hub, its `alembic_version` included."""
    names = [name for name in inspect(engine).get_table_names() if not name.startswith(orm.PREFIX)]
    assert "alembic_version" in names
    with engine.connect() as connection:
        return {name: [tuple(row) for row in connection.execute(text(f'SELECT * FROM "{name}"'))] for name in names}


def test_processes_that_init_at_once_make_the_tables_once(empty_database_url: str):
    def init_alone(_: int) -> str:
        alone = db.open_engine(empty_database_url)
        try:
            migrations.init(alone)
            return migrations.state(alone)
        finally:
            alone.dispose()

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(init_alone, range(6))) == ["current"] * 6


def test_a_migration_that_fails_leaves_nothing(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def break_off(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("alembic.runtime.migration.HeadMaintainer.update_to_step", break_off)
    with pytest.raises(RuntimeError, match="power cut"):
        migrations.init(empty_engine)
    monkeypatch.undo()
    assert migrations.state(empty_engine) == "empty"
    assert not [name for name in inspect(empty_engine).get_table_names() if name.startswith(orm.PREFIX)]


def test_a_database_of_a_newer_version_is_refused_in_a_sentence(engine: Engine):
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    assert migrations.state(engine) == "ahead"
    for verb in (migrations.init, migrations.upgrade):
        with pytest.raises(Conflict, match="newer version"):
            verb(engine)


def upgrade_to(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        command.upgrade(migrations.configuration(connection), revision)


def test_an_older_database_is_upgraded_only_when_asked(empty_engine: Engine):
    upgrade_to(empty_engine, "0001")
    assert migrations.state(empty_engine) == "behind"
    with pytest.raises(Conflict, match="backup"):
        migrations.init(empty_engine)
    migrations.upgrade(empty_engine)
    assert migrations.state(empty_engine) == "current"


OLD_ROWS = """
INSERT INTO remotegpu_users VALUES (1, 1, '2026', 'alice', :at, NULL), (2, 2, '2026', 'bob', :at, NULL);
INSERT INTO remotegpu_workspaces (id, name, display_name, kind, status, owner_id, time_zone, created_at)
VALUES (1, 'lab', '实验室', 'team', 'active', 1, 'Asia/Shanghai', :at);
INSERT INTO remotegpu_workspace_members VALUES (1, 2, 'member', 'invited', false, :at);
INSERT INTO remotegpu_spend VALUES (1, '2026-11', 6), (1, '2026-12', 16);
INSERT INTO remotegpu_images (id, reference, display_name, category, visibility, status, scan)
VALUES (1, 'local:x', 'x', 'official', 'public', 'active', '{}');
INSERT INTO remotegpu_hosts (id, name, pool, address, status, simulated, cpu_millis, memory_bytes, gpu_millis,
  used_cpu_millis, used_memory_bytes, used_gpu_millis, used_environments, foreign_cpu_millis, foreign_memory_bytes,
  score, labels, last_seen_at)
VALUES (1, 'host-1', 'local', '127.0.0.1', 'online', false, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, '{}', :at);
INSERT INTO remotegpu_environments (id, user_id, server_name, display_name, workspace_id, image_id, gpu_model,
  gpu_slots, cpu_millis, memory_bytes, ports, state, message, created_at)
VALUES (1, 2, '', 'x', 1, 1, 'A100/4', 2, 1, 1, '[]', 'stopped', '', :at);
INSERT INTO remotegpu_allocations (id, environment_id, attempt, workspace_id, user_id, host_id, gpu_model, gpu_slots,
  gpu_millis, cpu_millis, memory_bytes, image_reference, price_per_hour, prices, state, requested_at, admitted_at,
  started_at, ended_at, metered)
VALUES (7, 1, 'a', 1, 2, 1, 'A100/4', 2, 500, 1, 1, 'local:x', 1, '{}', 'ended', :at, :at, :at, :later, true);
INSERT INTO remotegpu_prices VALUES (1, 'cpu', 1, :at), (2, 'gpu:A100/4', 1, :at);
"""


def test_the_ledger_is_summed_by_member_and_month_on_the_way_from_the_first_version(
    empty_engine: Engine, now: datetime
):
    upgrade_to(empty_engine, "0001")
    month_end = datetime(2026, 11, 30, 16, tzinfo=UTC)
    records = [
        (2, "gpu:A100/4", 2 * 900, 5, -900),
        (2, "cpu", 900, 1, -900),
        (2, "gpu:A100/4", 2 * 60, 10, 0),
        (1, "cpu", 9, 6, 0),
    ]
    with empty_engine.begin() as connection:
        for statement in OLD_ROWS.strip().split(";")[:-1]:
            connection.execute(text(statement), {"at": now, "later": now + timedelta(hours=1)})
    with db.begin(empty_engine) as session:
        for user, resource, quantity, amount, offset in records:
            start = month_end + timedelta(seconds=offset)
            session.add(
                orm.BillingRecord(
                    workspace_id=1, user_id=user, subject_kind=orm.SubjectKind.ALLOCATION, subject_id=7 if user == 2 else 8,
                    resource=resource, quantity=quantity, price_id=1, unit_price=1, amount=amount, start=start,
                    end=start + timedelta(seconds=60), written_at=now,
                )
            )  # fmt: skip
    migrations.upgrade(empty_engine)
    with db.begin(empty_engine, read_only=True) as session:
        rows = session.query(orm.MemberMonth).order_by(orm.MemberMonth.month, orm.MemberMonth.user_id).all()
        assert [(one.month, one.user_id, one.amount, one.gpu_time) for one in rows] == [
            ("2026-11", 2, 6, 900 * 500), ("2026-12", 1, 6, 0), ("2026-12", 2, 10, 60 * 500)
        ]  # fmt: skip
        assert session.query(orm.BillingRecord).count() == 4
        assert session.get_one(orm.Workspace, 1).display_name == "实验室"
        member = session.get_one(orm.Member, (1, 2))
        assert (member.status, member.invited_until, member.created_at) == (orm.MemberStatus.INVITED, None, now)


def test_tables_without_their_version_are_refused(engine: Engine):
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {migrations.VERSION_TABLE}"))
    with pytest.raises(Conflict, match="not their version"):
        migrations.init(engine)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE remotegpu_billing_records SET amount = 0", "DELETE FROM remotegpu_billing_records"],
    ids=["update", "delete"],
)
def test_the_database_refuses_to_change_the_ledger(engine: Engine, now: datetime, statement: str):
    add_record(engine, now)
    with pytest.raises(IntegrityError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    with db.begin(engine, read_only=True) as session:
        assert session.query(orm.BillingRecord).one().amount == 1


def test_postgresql_refuses_to_truncate_the_ledger(pg_url: str, now: datetime):
    engine = create_engine(pg_url)
    add_record(engine, now)
    with pytest.raises(IntegrityError, match="append-only"), engine.begin() as connection:
        connection.execute(text("TRUNCATE remotegpu_billing_records"))
    engine.dispose()
