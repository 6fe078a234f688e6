"""Webhooks against the very receiver that the documentation shows, and against odd ones."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from remotegpu_hub.clients import networks, webhooks
from tests.hubs import free_ports

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "admin-guide.md"
EVENT = {"id": 7, "kind": "environment.failed", "workspace": "lab", "user": "bob", "detail": {"name": "训练"}}


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[str]:
    """The receiver of the admin guide, with its secret `right`."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (port,) = free_ports(1)
    assert "9000" in code
    (tmp_path / "receiver.py").write_text(code.replace("9000", str(port)))
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-u", str(tmp_path / "receiver.py")], env={**os.environ, "WEBHOOK_SECRET": "right"},
            stdout=said, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/hook"
    process.kill()
    process.wait()


HERE = networks.read(["127.0.0.0/8"])


async def send(url: str, secret: str = "right", *, seconds_ago: int = 0, more: list[Any] = HERE) -> Any:
    async with webhooks.client() as http:
        return await webhooks.send(
            http, url=url, secret=secret, event=EVENT, now_seconds=int(time.time()) - seconds_ago, more=more
        )  # fmt: skip


async def test_the_documented_receiver_takes_ours_once_and_refuses_forged_and_old_ones(shown: str, tmp_path: Path):
    for given, status in (({}, 204), ({}, 204), ({"secret": "wrong"}, 403), ({"seconds_ago": 400}, 403)):
        reply = await send(shown, **given)  # type: ignore[arg-type]
        assert (reply.status, reply.taken) == (status, status == 204)
    assert (tmp_path / "said").read_text() == "environment.failed lab bob {'name': '训练'}\n"


@pytest.fixture
def odd() -> Iterator[str]:
    """Answers as the path says."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/redirect":
                self.send_response(307)
                self.send_header("Location", "/elsewhere")
            elif self.path == "/elsewhere":
                pytest.fail("a redirect was followed")
            else:
                self.send_response(200)
            self.end_headers()
            try:
                while self.path == "/endless":
                    self.wfile.write(b"x" * 1000)
                while self.path == "/drip":
                    self.wfile.write(b"x")
                    time.sleep(0.1)
            except OSError:
                pass

        def log_message(self, *said: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


async def test_no_receiver_can_lead_us_elsewhere_keep_us_or_fill_our_memory(
    odd: str, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    assert (await send(f"{odd}/redirect")).error == "HTTP 307: a redirect is not followed"
    endless = await send(f"{odd}/endless")
    assert (endless.taken, len(endless.said)) == (True, 200)
    assert (await send(f"{odd}/drip")).error == "no answer within 1 s"
    (closed,) = free_ports(1)
    assert not (await send(f"http://127.0.0.1:{closed}/")).taken
    assert not (await send("http://no.such.host.invalid/")).taken


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"],
)
async def test_the_hubs_own_machine_is_not_reached_however_it_is_spelt(odd: str, host: str):
    port = odd.rpartition(":")[2]
    assert (await send(f"http://{host}:{port}/", more=[])).error == webhooks.FORBIDDEN


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe",
     "2002:a9fe:a9fe::1", "::a9fe:a9fe", "fe80::1", "fe80::a9fe:a9fe", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
     "fd00:c1::a9fe:a9fe", "192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::168.63.129.16",
     "100.100.100.200", "fd00:42::42", "224.0.0.1", "0.0.0.0"],
)  # fmt: skip
def test_what_is_beside_the_machine_is_never_reached(address: str):
    assert not networks.allowed(ip_address(address), networks.read(["0.0.0.0/0", "::/0"]))


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.20.0.1", "192.168.1.1", "fd12::1", "8.8.8.8", "2606:4700::1", "64:ff9b::8.8.8.8",
     "::ffff:10.1.2.3", "2002:808:808::1"],
)  # fmt: skip
def test_public_and_private_receivers_are_reached(address: str):
    assert networks.allowed(ip_address(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::1"])
def test_the_machine_itself_is_reached_only_where_that_is_allowed(address: str):
    assert not networks.allowed(ip_address(address))
    assert networks.allowed(ip_address(address), networks.read(["127.0.0.0/8", "::1/128"]))


async def test_a_name_is_looked_at_when_it_is_sent_to(odd: str, monkeypatch: pytest.MonkeyPatch):
    async def now_here(host: str, _port: int) -> list[Any]:
        return [ip_address("127.0.0.1")]

    monkeypatch.setattr(networks, "addresses", now_here)
    url = odd.replace("127.0.0.1", "rebound.example.org")
    assert (await send(url, more=[])).error == webhooks.FORBIDDEN
    assert (await send(url)).taken, "where it is allowed, the name stays in the request"
