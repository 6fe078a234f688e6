"""Many browsers in a process of their own: each opens its page and lets it renew itself, as the page's script does.

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
    opening = True
    while due < end:
        await asyncio.sleep(due - time.monotonic())
        more = {"Sec-Fetch-Mode": "navigate"} if opening else {"X-XSRFToken": plan.xsrf[number]}
        size, error = await _fetch(session, plan.url, {**headers, **more}, plan.must_hold[number])
        found.append(Reading(opening, 1000 * (time.monotonic() - due), size, error))
        if opening:
            for url in plan.beside:
                _size, error = await _fetch(session, url, headers, "")
                if error:
                    found.append(Reading(True, 0.0, 0, error))
        opening = False
        due += plan.every


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
