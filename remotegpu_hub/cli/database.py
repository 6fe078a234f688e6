"""Which database the command works on: the one that the hub uses, found without a password on a command line."""

import os
import sys
import traceback
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from ..db import normal_url
from ..runtime import Runtime, Settings
from .stop import Refused, Usage

URL_VARIABLE = "REMOTEGPU_DB_URL"
DEFAULT_CONFIG = "jupyterhub_config.py"
DEFAULT_RUNTIME = "remotegpu-runtime.json"


@dataclass(frozen=True)
class Place:
    """The hub that the command works for."""

    url: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    """Where the URL stands, for messages."""
    config: Config | None = None
    """The hub's configuration, where one was found."""
    config_path: str = ""
    running: Settings | None = None
    """What the hub's process wrote at its last start: perhaps a hub on another database than the one that was named."""

    @property
    def settings(self) -> Settings | None:
        """The same, of the hub on this database; None where none wrote any here."""
        return self.running if self.running is not None and self.running.db_url == self.url else None

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return shown(self.url)

    @property
    def sqlite_file(self) -> Path | None:
        url = make_url(self.url)
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            return None
        return Path(url.database)


def shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)


def find(*, config_file: str | None, db_file: str | None) -> Place:
    """Find the hub's database: a file with the URL, the configuration that was named, the env var, or the
    configuration in this folder. Raises: Usage when there is none, Refused when the configuration does not load."""
    url, source = _named(config_file, db_file)
    path = config_file or (DEFAULT_CONFIG if Path(DEFAULT_CONFIG).exists() else "")
    if not url and not path:
        raise Usage(
            f"This works on the hub's database, on the hub's machine, and there is no {DEFAULT_CONFIG} in this folder: "
            f"name it with --config, or put the database's URL into a "
            f"file and name that with --db-file, or into the env var {URL_VARIABLE}."
        )
    try:
        config = load(path) if path else None
    except Refused:
        if not url or config_file:
            raise
        config = None
    running = _running(config)
    kwargs: dict[str, Any] = {}
    if not url:
        url, kwargs, source = _configured(config or Config(), path, running)
    return Place(_checked(url, source), kwargs, source, config, path, running)


def load(path: str) -> Config:
    """Read a hub's configuration as the hub does. What it prints goes to stderr. Raises: Refused."""
    if not Path(path).is_file():
        raise Refused(f"There is no configuration {path}.")
    try:
        with redirect_stdout(sys.stderr):
            loaded = PyFileConfigLoader(Path(path).name, path=str(Path(path).resolve().parent)).load_config()
    except SystemExit as stop:
        said = stop.code if isinstance(stop.code, str) else f"it ends with {stop.code}"
        raise Refused(f"{path} does not load: {said.removeprefix('remotegpu-hub: ')}") from stop
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise Refused(f"{path} does not load: {type(error).__name__}{where}: {error}") from error
    return Config(loaded)


def runtime_file(config: Config | None) -> str:
    """The file through which the hub's process tells its services what it works with."""
    named = config.RemoteGPUMixin.get("runtime_file") if config is not None else None
    return os.path.abspath(named if isinstance(named, str) and named else DEFAULT_RUNTIME)


def _named(config_file: str | None, db_file: str | None) -> tuple[str, str]:
    if db_file:
        try:
            url = Path(db_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"{db_file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
        if not url:
            raise Refused(f"{db_file} is empty: write the database's URL into it, nothing else.")
        return url, db_file
    if not config_file and os.environ.get(URL_VARIABLE):
        return os.environ[URL_VARIABLE].strip(), f"${URL_VARIABLE}"
    return "", ""


def _configured(config: Config, path: str, running: Settings | None) -> tuple[str, dict[str, Any], str]:
    """The configured database; where the configuration names none, the hub may have got one on its command line."""
    if "db_url" not in config.JupyterHub and running is not None:
        return running.db_url, dict(running.db_kwargs), runtime_file(config)
    from ..configure import database_of

    try:
        return *database_of(config), path
    except (ArgumentError, TypeError, ValueError) as error:
        raise Refused(f"What {path} says of its database cannot be read: {str(error).splitlines()[0]}.") from error


def _running(config: Config | None) -> Settings | None:
    try:
        return Runtime.read(runtime_file(config)).settings
    except (OSError, ValueError, TypeError):
        return None


def _checked(url: str, source: str) -> str:
    try:
        return normal_url(url)
    except ArgumentError as error:
        raise Refused(
            f"What stands in {source} is not a database URL: write one such as "
            "sqlite:////srv/hub/jupyterhub.sqlite or postgresql://hub@localhost/hub."
        ) from error
