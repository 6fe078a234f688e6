"""What runs of this machine print: one file for each, which its whole process tree appends to."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Final

from ..errors import NotFound

LARGEST_BYTES: Final = 20 * 2**20
"""What one file may grow to before it is emptied: a loop that prints must not fill the disk."""
KEPT_SECONDS: Final = 7 * 24 * 3600
LOOK_SECONDS: Final = 0.5
LONGEST_LINE: Final = 8192


def path_of(folder: str, allocation_id: int) -> Path:
    return Path(folder) / f"{allocation_id}.log"


def redirect(folder: str, allocation_id: int) -> None:
    """Let this process, and all that it starts, print into the run's file. For use between fork and exec."""
    file = os.open(path_of(folder, allocation_id), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


async def lines(folder: str, allocation_id: int, *, tail: int, follow: bool) -> AsyncIterator[str]:
    """The last lines that a run printed, then each one as it comes. Raises: NotFound where there is no file (now)."""
    try:
        file = await asyncio.to_thread(path_of(folder, allocation_id).open, encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise NotFound("What it printed") from None
    with file:
        for line in await asyncio.to_thread(deque, file, tail):
            yield line.rstrip("\n")[:LONGEST_LINE]
        while follow:
            line = file.readline()
            if line:
                yield line.rstrip("\n")[:LONGEST_LINE]
                continue
            if file.tell() > os.fstat(file.fileno()).st_size:  # it was emptied
                file.seek(0)
            await asyncio.sleep(LOOK_SECONDS)


def tidy(folder: str, *, running: Collection[int]) -> None:
    """Empty what grew too large and remove what is a week old, unless it still runs. No folder: nothing is ours."""
    for path in Path(folder).glob("[0-9]*.log") if folder else ():
        with suppress(FileNotFoundError, ValueError):
            facts = path.stat()
            if facts.st_size > LARGEST_BYTES:
                os.truncate(path, 0)
            elif facts.st_mtime < time() - KEPT_SECONDS and int(path.stem) not in running:
                path.unlink()
