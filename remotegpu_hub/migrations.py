"""Make and upgrade our tables in the hub's database, and tell how old they are.

The hub's own tables and its `alembic_version` are never touched: ours is another version table, and the hub refuses
to start when it finds a row in its own that it does not know. Nothing here knows what the tables mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from .errors import Conflict
from .orm import PREFIX

State = Literal["empty", "current", "behind", "ahead"]

VERSION_TABLE: Final = "remotegpu_alembic_version"
LOCK: Final = 0x72656D6F7465
"""Key of the PostgreSQL advisory lock that lets one process migrate at a time: `remote` in ASCII."""


def state(engine: Engine) -> State:
    """Say how the database's tables stand to this version of the program.

    Raises: Conflict when tables of ours exist that no migration made.
    """
    with engine.connect().execution_options(read_only=True) as connection:
        return _state(connection)


def init(engine: Engine) -> None:
    """Make the tables where there are none; change nothing where they are current. Safe to run twice at once.

    Raises: Conflict when the tables are of another version.
    """
    with _locked(engine) as connection:
        found = _state(connection)
        if found == "empty":
            command.upgrade(configuration(connection), "head")
        elif found == "behind":
            raise Conflict(
                "The database is from an older version. Make a backup of it, then run `remotegpu upgrade-db`."
            )
        elif found == "ahead":
            raise _ahead()


def upgrade(engine: Engine) -> None:
    """Bring the tables to this version, from nothing or from any older one, in one transaction.

    Raises: Conflict when the database is from a newer version.
    """
    with _locked(engine) as connection:
        if _state(connection) == "ahead":
            raise _ahead()
        command.upgrade(configuration(connection), "head")


def configuration(connection: Connection) -> Config:
    """What alembic needs to work on this connection, inside its transaction; no ini file takes part."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "alembic").replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    return config


@contextmanager
def _locked(engine: Engine) -> Iterator[Connection]:
    """Open the one transaction that may migrate; others wait for its end. On SQLite our BEGIN IMMEDIATE is the lock."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        yield connection


def _state(connection: Connection) -> State:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = context.get_current_revision()
    if found is None:
        if any(name.startswith(PREFIX) and name != VERSION_TABLE for name in inspect(connection).get_table_names()):
            raise Conflict(
                "The database holds remotegpu tables but not their version. Restore `{table}` from a backup.",
                table=VERSION_TABLE,
            )
        return "empty"
    scripts = ScriptDirectory.from_config(configuration(connection))
    if found == scripts.get_current_head():
        return "current"
    return "behind" if found in {script.revision for script in scripts.walk_revisions()} else "ahead"


def _ahead() -> Conflict:
    return Conflict("The database is from a newer version of remotegpu-hub. Install that version again.")
