"""Many browsers in a process of their own: each opens its page, listens to its stream of events, and renews the page by
the clock all the same, as the page's script does where no stream comes through.

    python -m benchmarks.parts.readers < PLAN > READINGS

Both are JSON: `Plan`, and a list of `Reading`.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from tests.hubs import ROOT

PATIENCE_SECONDS = 30


@dataclass(frozen=True)
class Plan:
    """Who reads what. Whoever does not find `must_hold` of theirs on the page has an error."""

    url: str
    cookies: Sequence[str]
    xsrf: Sequence[str]
    must_hold: Sequence[str]
    beside: Sequence[str]
    """What a browser fetches when it opens the page: style sheet and scripts."""
    stream: str
    """What it listens to from then on; empty: nothing."""
    seconds: float
    every: float


@dataclass(frozen=True)
class Reading:
    """One page: how long from when it was due until all of it was there, and what was wrong with it."""

    opened: bool
    """Else it renewed itself."""
    ms: float
    bytes: int
    error: str


def begin(plan: Plan) -> "subprocess.Popen[str]":
    """Start them; `readings` waits for what they say."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.parts.readers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(json.dumps(asdict(plan)))
    process.stdin.close()
    return process


def readings(process: "subprocess.Popen[str]") -> list[Reading]:
    assert process.stdout
    said = process.stdout.read()
    if process.wait():
        raise SystemExit("the readers broke off")
    return [Reading(**one) for one in json.loads(said)]


async def _read_all(plan: Plan) -> list[Reading]:
    chance = random.Random(1)
    found: list[Reading] = []
    limits = aiohttp.TCPConnector(limit=0)
    patience = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    async with aiohttp.ClientSession(
        connector=limits, timeout=patience, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True
    ) as session:
        start = time.monotonic()
        await asyncio.gather(*(
            _read(session, plan, number, start + chance.uniform(0, plan.every), start + plan.seconds, found)
            for number in range(len(plan.cookies))
        ))  # fmt: skip
    return found


async def _read(
    session: aiohttp.ClientSession, plan: Plan, number: int, due: float, end: float, found: list[Reading]
) -> None:
    """Open at a moment of one's own within the first interval, then renew. Whoever is answered late asks again at once,
    like a browser's timer."""
    headers = {"Cookie": plan.cookies[number], "Accept-Language": "en"}
    by_script = {**headers, "X-XSRFToken": plan.xsrf[number]}
    await asyncio.sleep(due - time.monotonic())
    size, error = await _fetch(session, plan.url, {**headers, "Sec-Fetch-Mode": "navigate"}, plan.must_hold[number])
    found.append(Reading(True, 1000 * (time.monotonic() - due), size, error))
    for url in plan.beside:
        _size, error = await _fetch(session, url, headers, "")
        if error:
            found.append(Reading(True, 0.0, 0, error))
    stream = asyncio.create_task(_listen(session, plan.stream, by_script, found)) if plan.stream else None
    while (due := due + plan.every) < end:
        await asyncio.sleep(due - time.monotonic())
        size, error = await _fetch(session, plan.url, by_script, plan.must_hold[number])
        found.append(Reading(False, 1000 * (time.monotonic() - due), size, error))
    if stream is not None:
        await asyncio.sleep(end - time.monotonic())
        stream.cancel()


async def _listen(session: aiohttp.ClientSession, url: str, headers: dict[str, str], found: list[Reading]) -> None:
    """Listen until cancelled; a stream that ends by itself is an error."""
    error = "ended"
    try:
        async with session.get(
            url, headers={**headers, "Accept": "text/event-stream"}, timeout=aiohttp.ClientTimeout(total=None),
            allow_redirects=False,
        ) as answer:  # fmt: skip
            if answer.status == 200:
                async for _line in answer.content:
                    pass
            else:
                error = f"{answer.status}: {(await answer.text())[:200]}"
    except aiohttp.ClientError as broken:
        error = f"{type(broken).__name__}: {broken}"
    found.append(Reading(False, 0.0, 0, f"stream {error}"))


async def _fetch(session: aiohttp.ClientSession, url: str, headers: dict[str, str], must_hold: str) -> tuple[int, str]:
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        return 0, f"{type(error).__name__}: {error}"
    if answer.status != 200:
        return len(text), f"{answer.status}: {text[:200]}"
    return len(text), "" if must_hold in text else f"not their page: {text[:200]}"


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    found = asyncio.run(_read_all(Plan(**given)))
    json.dump([asdict(one) for one in found], sys.stdout)


if __name__ == "__main__":
    main()
