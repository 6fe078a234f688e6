"""A real PostgreSQL of one's own: in a temporary folder, on a free loopback port, gone with the process that made it.

Used by the tests and the benchmarks. `initdb` refuses root, so under root it runs as `postgres` or `nobody`.
"""

import ctypes
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

OLDEST = 15
FAST: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""For tests: nothing survives a power cut, and nothing has to."""


class PostgresMissing(Exception):
    """No PostgreSQL of a supported version can be started here; the text says why and what to do."""


class Postgres:
    """A running server. Databases are made from templates, which costs some 20 ms each."""

    def __init__(self, process: "subprocess.Popen[bytes]", bin_folder: Path, port: int, password: str) -> None:
        self.process = process
        self.bin_folder = bin_folder
        self.port = port
        self.password = password
        self._made = 0

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=self.password, dbname=database, autocommit=True
        )

    def create_database(self, *, template: str = "template1", name: str | None = None) -> str:
        """Make a database and return its name."""
        self._made += 1
        name = name or f"db_{self._made}"
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def environment(self) -> dict[str, str]:
        """Env vars with which `psql`, `pg_dump` and `pgbench` find the server; no secret on a command line."""
        return {
            **os.environ,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGPASSWORD": self.password,
        }

    def dump_schema(self, database: str) -> str:
        """`pg_dump` of everything but rows, without the comments and settings that change between runs."""
        dumped = subprocess.run(
            [self.bin_folder / "pg_dump", "--schema-only", "--no-owner", database],
            env=self.environment(),
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        kept = (line for line in dumped.splitlines() if line and not line.startswith(("--", "SET ", "\\", "SELECT ")))
        return "\n".join(kept)


@contextmanager
def running(settings: Mapping[str, str] = FAST) -> Iterator[Postgres]:
    """Start a server, and stop and remove it at the end, also when this process is killed.

    Raises: PostgresMissing when it cannot be had.
    """
    bin_folder = find_binaries()
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-pg-"))
    process = None
    try:
        password = secrets.token_hex(16)
        password_file = folder / "password"
        password_file.write_text(password)
        if account is not None:
            for path in (folder, password_file):
                os.chown(path, account.pw_uid, account.pw_gid)
        _initdb(bin_folder, folder, account)
        port = _free_port()
        command = [str(bin_folder / "postgres"), "-D", str(folder / "data"), "-p", str(port)]
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "log_min_messages": "fatal",
            **settings,
        }
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, and no Python lock taken
                **_as(account),  # type: ignore[call-overload]
            )
        server = Postgres(process, bin_folder, port, password)
        _wait_until_up(server, folder / "log")
        yield server
    finally:
        if process is not None:
            _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def find_binaries() -> Path:
    """The folder with the newest supported `postgres`, from PATH and from where Debian keeps them.

    Raises: PostgresMissing.
    """
    folders = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    folders += Path("/usr/lib/postgresql").glob("*/bin")
    found: list[tuple[int, Path]] = []
    for folder in folders:
        if not (folder / "initdb").exists() or not (folder / "postgres").exists():
            continue
        answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True).stdout
        version = re.search(r"(\d+)", answer)
        if version:
            found.append((int(version[1]), folder))
    if not found:
        raise PostgresMissing("PostgreSQL is not installed: run `apt-get install postgresql`, or `make test` as root")
    newest, folder = max(found)
    if newest < OLDEST:
        raise PostgresMissing(f"PostgreSQL {newest} in {folder} is too old: {OLDEST} or newer is needed")
    return folder


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresMissing("PostgreSQL refuses to run as root, and there is no account `postgres` or `nobody` to run as")


def _as(account: pwd.struct_passwd | None) -> dict[str, object]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _initdb(bin_folder: Path, folder: Path, account: pwd.struct_passwd | None) -> None:
    made = subprocess.run(
        [
            str(bin_folder / "initdb"),
            *("-D", str(folder / "data"), "-U", "postgres", "--pwfile", str(folder / "password")),
            *("--auth", "password", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        **_as(account),  # type: ignore[call-overload]
    )
    if made.returncode:
        raise PostgresMissing(f"initdb failed: {made.stderr.strip() or made.stdout.strip()}")


def _die_with_parent() -> None:
    """Ask the kernel for a fast shutdown of the server when the thread that started it is gone."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGINT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(server: Postgres, log: Path, timeout_seconds: float = 30) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            server.connect().close()
            return
        except psycopg.OperationalError as error:
            if server.process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                raise PostgresMissing(f"PostgreSQL did not start: {said or error}") from error
            time.sleep(0.05)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for wish in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(wish)
        try:
            process.wait(10)
            return
        except subprocess.TimeoutExpired:
            continue
