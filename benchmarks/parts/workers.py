"""Workers that admit side by side: threads of a process a core for PostgreSQL, of one process for SQLite, and pgbench's
own clients."""

import contextlib
import multiprocessing as mp
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
from sqlalchemy import event

from remotegpu_hub.db import BUSY_TIMEOUT_SECONDS, open_engine
from remotegpu_hub.domain.environments import Rules
from tests.postgres import Postgres

from .figures import Spans
from .machine import CORES
from .replay import Statement, admit, pgbench_script, play_psycopg, play_sqlite3
from .town import start_number

OURS, PSYCOPG, PGBENCH, SQLITE3 = "remotegpu", "psycopg", "pgbench", "sqlite3"


def timed(work: Callable[[int], Any], numbers: Sequence[int]) -> list[tuple[float, float]]:
    spans = []
    for number in numbers:
        begin = perf_counter()
        work(number)
        spans.append((begin, perf_counter()))
    return spans


class Workers:
    """Workers with a connection each: threads, as a hub's are, of one process a core. One process alone would leave the
    second core to the server; one a worker would mostly measure how cores change between thirty-two processes."""

    def __init__(self, url: str, statements: Sequence[Statement], clients: int) -> None:
        context = mp.get_context("fork")
        gate = context.Barrier(clients)
        self._pipes, self._processes = [], []
        for first in range(min(CORES, clients)):
            here, there = context.Pipe()
            mine = range(first, clients, CORES)
            process = context.Process(target=_serve, args=(url, statements, clients, mine, there, gate), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, who: str, turns: range) -> list[Spans]:
        """Let every worker admit once each turn, through our code or through psycopg."""
        for pipe in self._pipes:
            pipe.send((who, turns))
        answers = [pipe.recv() for pipe in self._pipes]
        for answer in answers:
            if isinstance(answer, str):
                raise SystemExit(answer)
        return [spans for answer in answers for spans in answer]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def _serve(url: str, statements: Sequence[Statement], clients: int, mine: range, pipe: Any, gate: Any) -> None:
    engine, rules = open_engine(url, pool_size=len(mine)), Rules()
    plain = {client: psycopg.connect(url.replace("+psycopg", "")) for client in mine}

    def work(who: str, client: int, turns: range) -> Spans:
        play: dict[str, Callable[[int], Any]] = {
            OURS: lambda number: admit(engine, start_number(number), rules),
            PSYCOPG: lambda number: play_psycopg(plain[client], statements, start_number(number)),
        }
        gate.wait(60)
        return timed(play[who], [turn * clients + client for turn in turns])

    with ThreadPoolExecutor(len(mine)) as pool:
        while (task := pipe.recv()) is not None:
            who, turns = task
            try:
                pipe.send(list(pool.map(work, repeat(who), mine, repeat(turns))))
            except Exception as error:
                gate.abort()
                pipe.send(f"{who}: {error!r}")
    for connection in plain.values():
        connection.close()
    engine.dispose()


def run_pgbench(
    server: Postgres, database: str, statements: Sequence[Statement], clients: int, warm: int, turns: int
) -> list[Spans]:
    """Let pgbench play the statements, each prepared on the server (`-M prepared`), from two threads."""
    script, given = pgbench_script(statements, clients=clients, warm=warm)
    with tempfile.TemporaryDirectory(prefix="remotegpu-pgbench-") as folder:
        file = Path(folder) / "admission.sql"
        file.write_text(script)
        command = [
            str(server.bin_folder / "pgbench"), "-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)),
            "-t", str(warm + turns), "-f", str(file), "-l", f"--log-prefix={folder}/log",
            *(f"-D{name}={value}" for name, value in given.items()), database,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, env=server.environment(), capture_output=True, text=True)
        if done.returncode or "aborted" in done.stderr:
            raise SystemExit(f"pgbench: {done.stderr[-2000:]}")
        workers: list[list[tuple[float, float]]] = [[] for _ in range(clients)]
        for log in sorted(Path(folder).glob("log.*")):
            for line in log.read_text().splitlines():
                client, number, micros, _script, second, micro = map(int, line.split()[:6])
                if number >= warm:
                    end = second + micro / 1e6
                    workers[client].append((end - micros / 1e6, end))
    return [sorted(spans) for spans in workers]


class Threads:
    """Threads of one process, as in the hub, on one SQLite file; notes how long each transaction locks it."""

    def __init__(self, path: Path, statements: Sequence[Statement], clients: int) -> None:
        self.path, self.statements, self.clients = path, statements, clients
        self.locked_ms: list[float] = []
        self._begun = threading.local()
        self._rules = Rules()
        self.engine = open_engine(f"sqlite:///{path}", connect_args={"factory": self._connection()})
        event.listen(self.engine, "after_cursor_execute", self._note_begin)

    def _note_begin(self, _connection: Any, _cursor: Any, text: str, *_rest: Any) -> None:
        if text == "BEGIN IMMEDIATE":
            self._begun.at = perf_counter()

    def _connection(self) -> type[sqlite3.Connection]:
        note = self._note_end

        class Timed(sqlite3.Connection):
            def commit(self) -> None:
                super().commit()
                note()

        return Timed

    def _note_end(self) -> None:
        self.locked_ms.append(1000 * (perf_counter() - self._begun.at))

    def run(self, who: str, turns: range) -> list[Spans]:
        gate = threading.Barrier(self.clients)

        def work(client: int) -> Spans:
            numbers = [turn * self.clients + client for turn in turns]
            with self._player(who) as play:
                gate.wait(60)
                return timed(play, numbers)

        with ThreadPoolExecutor(self.clients) as pool:
            return list(pool.map(work, range(self.clients)))

    @contextmanager
    def _player(self, who: str) -> Iterator[Callable[[int], Any]]:
        if who == OURS:
            yield lambda number: admit(self.engine, start_number(number), self._rules)
            return
        plain = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
        with contextlib.closing(plain):
            plain.execute("PRAGMA foreign_keys=ON")
            plain.execute("PRAGMA synchronous=NORMAL")

            def play(number: int) -> None:
                plain.execute("BEGIN IMMEDIATE")
                self._begun.at = perf_counter()
                play_sqlite3(plain, self.statements, start_number(number))
                plain.execute("COMMIT")
                self._note_end()

            yield play

    def close(self) -> None:
        self.engine.dispose()
