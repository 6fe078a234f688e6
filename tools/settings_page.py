"""Write docs/configuration.md from the help of the settings: `python tools/settings_page.py`."""

import inspect
from pathlib import Path

from remotegpu_hub.options import RemoteGPU

# ruff: noqa: E501 - prose for a page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """# Configuration

`configure(c)` is the last line of `jupyterhub_config.py`. It sets the spawner, adds the services `workspaces` and `billing`
with their roles and scopes, turns on named servers unless you said otherwise, and prepares our tables in the hub's database.
It keeps what stands above it: a `pre_spawn_hook`, services, roles (your own `user` role gets our scopes added), custom scopes,
`db_url` and `db_kwargs` (also from the command line), a base URL, templates. What was assigned below it is told at
start, and nothing starts while the services are missing.

## Databases

| | SQLite | PostgreSQL 15 or newer |
|---|---|---|
| for | one box, up to some 50 users | everything else |
| set | `c.JupyterHub.db_url = "sqlite:///jupyterhub.sqlite"` on a local disk | `c.JupyterHub.db_url = "postgresql+psycopg://user@host/db"` |

Our tables have the prefix `remotegpu_` and their own version table. A new database is made at start; an older one is
refused until `remotegpu upgrade-db` has run: back it up first. The database's URL reaches the services by a file of mode
600, never by env vars or a command line.

## Settings

Set as `c.RemoteGPU.NAME = value` above `configure(c)`.

"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, trait in sorted(RemoteGPU.class_own_traits(config=True).items()):
        default = trait.default_value_repr()
        parts.append(f"### `{name}`\n\n{inspect.cleandoc(trait.help)}\n\nDefault: `{default}`\n\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
