"""A front before an API server that answers wrong, late, half or not at all, as told; else it passes everything on."""

import asyncio
import base64
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

from .cluster import current


@dataclass
class Fault:
    """What happens to one request whose method and path fit."""

    status: int = 0
    """Answer this instead of passing it on."""
    headers: dict[str, str] = field(default_factory=dict)
    half: bool = False
    """Of such an answer, send half and cut the connection."""
    lost: bool = False
    """Pass it on, and cut the connection before the answer."""
    mute: bool = False
    """Pass on what is there, then say nothing more and keep the connection."""
    broken: bool = False
    """Begin to answer, then cut the connection."""
    as_status: int = 0
    """Of the answer that is begun."""
    said: str = ""
    """The message of the answer."""
    gone: bool = False
    """Of a watch: one event that says 410."""
    method: str = ""
    part: str = ""
    """In the path or the query."""


def pem(given: dict[str, str], name: str) -> str:
    """What a kubeconfig names by a file, or holds itself."""
    if f"{name}-data" in given:
        return base64.b64decode(given[f"{name}-data"]).decode()
    return Path(given[name]).read_text()


def _cut(request: web.Request) -> web.Response:
    assert request.transport
    request.transport.close()
    return web.Response()


class Front:
    """On a free port of loopback, without any password; it asks with the certificate or token of the kubeconfig."""

    def __init__(self, kubeconfig: str, folder: Path) -> None:
        given = current(kubeconfig)
        cluster, user = given["clusters"][0]["cluster"], given["users"][0]["user"]
        self._server = cluster["server"]
        self._ssl = ssl.create_default_context(cadata=pem(cluster, "certificate-authority"))
        self._headers: dict[str, str] = {}
        if "token" in user:
            self._headers["Authorization"] = f"Bearer {user['token']}"
        else:
            both = folder / "front.pem"
            both.write_text(pem(user, "client-certificate") + pem(user, "client-key"))
            self._ssl.load_cert_chain(both)
        self._folder = folder
        self.faults: deque[Fault] = deque()
        self.asked: list[str] = []
        """Method and path of each request."""
        self.away = False
        """Close every connection, as where no API server is."""
        self.kubeconfig = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Front"]:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        path = self._folder / "kubeconfig"
        self.write_kubeconfig(path, port=port)
        self.kubeconfig = str(path)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._ssl)) as self._session:
            yield self
            await runner.cleanup()

    def write_kubeconfig(self, path: Path, *, port: int) -> None:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))

    def _fault(self, request: web.Request) -> Fault:
        for fault in self.faults:
            if fault.method in ("", request.method) and fault.part in str(request.rel_url):
                self.faults.remove(fault)
                return fault
        return Fault()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.rel_url}")
        if self.away:
            return _cut(request)
        fault = self._fault(request)
        if fault.status and fault.half:
            response = web.StreamResponse(status=fault.status, headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"message": "a test')
            return _cut(request)
        if fault.status:
            return web.json_response(
                {"message": fault.said or f"a test says {fault.status}"}, status=fault.status, headers=fault.headers
            )
        body = await request.read()
        headers = {key: value for key, value in request.headers.items() if key in ("Content-Type", "Accept")}
        headers.update(self._headers)
        async with self._session.request(
            request.method, self._server + str(request.rel_url), data=body or None, headers=headers
        ) as answer:
            if fault.lost:
                await answer.read()
                return _cut(request)
            status = fault.as_status or answer.status
            response = web.StreamResponse(status=status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            if fault.broken:
                await response.write(b"the first line\n")
                assert request.transport
                request.transport.close()
                return response
            if fault.gone:
                await response.write(b'{"type": "ERROR", "object": {"code": 410, "message": "too old"}}\n')
                return response
            async for chunk in answer.content.iter_any():
                if self.away:
                    return _cut(request)
                await response.write(chunk)
                if fault.mute:
                    await asyncio.sleep(3600)
            return response
