"""POSTs to receivers that others run: signed, short, and never led elsewhere by a redirect, a proxy or a name."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final

import httpx

from ..observed import Reply
from . import networks
from .networks import Network

TIMEOUT_SECONDS: Final = 10.0
MOST_READ: Final = 2000
"""Bytes of an answer that are read."""
MOST_SAID: Final = 200
FORBIDDEN: Final = "this address is in a network that webhooks may not reach"


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What the receiver computes too: HMAC-SHA256 over `timestamp.body`, in hexadecimal digits."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def client() -> httpx.AsyncClient:
    """For all receivers; one that is slow takes no connection from another."""
    return httpx.AsyncClient(
        timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        headers={"User-Agent": "remotegpu-hub"},
    )  # fmt: skip


async def send(
    http: httpx.AsyncClient,
    *,
    url: str,
    secret: str,
    event: dict[str, Any],
    now_seconds: int,
    more: Sequence[Network] = (),
) -> Reply:
    """POST one event. Whatever goes wrong is in the reply; nothing is raised for it. The name is resolved here, and the
    request goes to an address that was looked at: also a name that stands for another one a moment later leads nowhere
    else."""
    body = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    timestamp = str(now_seconds)
    headers = {
        "Content-Type": "application/json",
        "X-RemoteGPU-Event": str(event["id"]),
        "X-RemoteGPU-Kind": str(event["kind"]),
        "X-RemoteGPU-Timestamp": timestamp,
        "X-RemoteGPU-Signature": signature(secret, timestamp, body),
    }
    began = monotonic()
    status: int | None = None
    said = b""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), _posted(http, httpx.URL(url), body, headers, more) as answer:
            status = answer.status_code
            async for part in answer.aiter_raw():
                said += part
                if len(said) >= MOST_READ:
                    break
        error = "" if answer.is_success else f"HTTP {status}"
        if answer.is_redirect:
            error = f"HTTP {status}: a redirect is not followed"
    except (TimeoutError, httpx.TimeoutException):
        error = f"no answer within {TIMEOUT_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as problem:
        error = str(problem) or type(problem).__name__
    text = said[:MOST_READ].decode("utf-8", "replace").replace("\0", "")
    return Reply(status, error[:200], text[:MOST_SAID], round(1000 * (monotonic() - began)))


@asynccontextmanager
async def _posted(
    http: httpx.AsyncClient, url: httpx.URL, body: bytes, headers: dict[str, str], more: Sequence[Network]
) -> AsyncIterator[httpx.Response]:
    """The answer of the first address that takes a connection. Raises: OSError, also where none may be reached."""
    found = await networks.addresses(url.host, url.port or (443 if url.scheme == "https" else 80))
    reachable = [one for one in found if networks.allowed(one, more)]
    if not reachable:
        raise OSError(FORBIDDEN)
    for left, address in zip(range(len(reachable) - 1, -1, -1), reachable, strict=True):
        request = http.build_request(
            "POST", url.copy_with(host=str(address)), content=body,
            headers={**headers, "Host": url.netloc.decode("ascii")}, extensions={"sni_hostname": url.host},
        )  # fmt: skip
        try:
            answer = await http.send(request, stream=True)
        except httpx.ConnectError:
            if not left:
                raise
            continue
        try:
            yield answer
        finally:
            await answer.aclose()
        return
