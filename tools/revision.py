"""Write the next migration from the difference between the models and the migrations there are.

    .venv/bin/python tools/revision.py "add volumes"   writes 0002_add_volumes.py; read it, and add what it cannot see
    .venv/bin/python tools/revision.py --initial       writes 0001 anew: only until the first release

Alembic sees neither changed predicates of indexes nor CHECKs nor triggers: tests/test_migrations.py does.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from alembic import command
from alembic.operations import ops
from alembic.script import ScriptDirectory

from remotegpu_hub import db, migrations
from remotegpu_hub.orm import APPEND_ONLY, Base, UTCDateTime

VERSIONS = Path(migrations.__file__).parent / "alembic" / "versions"


def render_item(kind: str, item: Any, _context: Any) -> str | bool:
    """Spell our own column types by what the database gets, so that a migration stays as it was written."""
    if kind == "type" and isinstance(item, UTCDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def everything(_context: Any, _revision: Any, directives: list[Any]) -> None:
    """Replace the difference by all tables and indexes: on SQLite alembic cannot see indexes on expressions."""
    wanted = directives[0].upgrade_ops.ops
    wanted.clear()
    for table in Base.metadata.sorted_tables:
        wanted.append(ops.CreateTableOp.from_table(table))
        wanted.extend(
            ops.CreateIndexOp.from_index(index) for index in sorted(table.indexes, key=lambda index: str(index.name))
        )


def triggers() -> str:
    """The statements of the triggers as the last lines of the initial revision."""
    lines = ["    dialect = op.get_bind().dialect.name"]
    for dialect, statements in APPEND_ONLY.items():
        lines.append(f'    if dialect == "{dialect}":')
        lines.extend(f'        op.execute(\n            """{statement}"""\n        )' for statement in statements)
    return "\n".join(lines) + "\n"


def write(message: str, *, initial: bool) -> Path:
    """Compare against a scratch SQLite database that has the migrations so far, and write the file."""
    if initial:
        for path in VERSIONS.glob("0001_*.py"):
            path.unlink()
    with tempfile.TemporaryDirectory() as folder:
        engine = db.open_engine(f"sqlite:///{folder}/scratch.sqlite")
        if not initial:
            migrations.upgrade(engine)
        with engine.connect() as connection:
            config = migrations.configuration(connection)
            config.attributes["render_item"] = render_item
            number = len(list(ScriptDirectory.from_config(config).walk_revisions())) + 1
            script = command.revision(
                config,
                message,
                autogenerate=True,
                rev_id=f"{number:04d}",
                process_revision_directives=everything if initial else None,
            )
        engine.dispose()
    path = Path(script.path)  # type: ignore[union-attr]
    source = "\n".join(line for line in path.read_text().split("\n") if not line.startswith("    # ###"))
    if initial:
        head, tail = source.split("\n\ndef downgrade", 1)
        source = f"{head.rstrip()}\n{triggers()}\n\ndef downgrade{tail}"
    path.write_text(source)
    for arguments in (["format", "--quiet", str(path)], ["check", "--quiet", "--fix", str(path)]):
        subprocess.run([sys.executable, "-m", "ruff", *arguments], check=True)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("message", nargs="?")
    parser.add_argument("--initial", action="store_true")
    wish = parser.parse_args()
    if not wish.message and not wish.initial:
        parser.error("say in a few words what changes")
    print(write(wish.message or "initial", initial=wish.initial))
