"""The client of our own API where the network fails: answers that are lost, late, refused, or somebody else's."""

import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from remotegpu_hub.clients.api import Address, ApiClient, Said
from remotegpu_hub.errors import NotFound, RemoteGPUError, Unavailable

TOKEN = "a-token-that-nobody-may-see"


class Server(ThreadingHTTPServer):
    """Answers one after the other as the test wants: (status, headers, body), or None to hang up."""

    wanted: list[Any]
    seen: list[tuple[str, str, dict[str, str]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        wanted = self.server.wanted.pop(0)
        if wanted is None:
            self.connection.close()
            return
        status, headers, body = wanted
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_DELETE = answer

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Answer)
    made.wanted, made.seen = [], []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(server: Server, slept: list[float]) -> Iterator[ApiClient]:
    with ApiClient(Address(server.url, TOKEN), sleep=slept.append) as made:
        yield made


def test_names_of_paths_are_kept_whole_and_the_token_stands_in_a_header(server: Server, client: ApiClient):
    server.wanted = [(200, {"ETag": '"x"'}, {"name": "ä"})]
    found = client.ask("GET", "workspaces/{workspace}", {"workspace": "~a/b?c ü"}, query={"mine": False, "limit": 2})
    assert (found.value, found.tag) == ({"name": "ä"}, '"x"')
    ((_verb, path, headers),) = server.seen
    assert path == "/services/workspaces/api/workspaces/~a%2Fb%3Fc%20%C3%BC?mine=false&limit=2"
    assert headers["Authorization"] == f"token {TOKEN}"


def test_events_are_read_from_their_lines_of_data(server: Server, client: ApiClient):
    body = 'retry: 3000\n\nid: 7\ndata: {"id": 7, "detail": {"name": "a\u2028b 训练"}}\n\n: still here\n\nid: 8\ndata: {"id": 8}\n\n'
    server.wanted = [(200, {"Content-Type": "text/event-stream"}, body.encode())]
    found = list(client.events("events", {}, query={"after": 6, "kind": None}))
    assert found == [{"id": 7, "detail": {"name": "a\u2028b 训练"}}, {"id": 8}]
    ((_verb, path, headers),) = server.seen
    assert path.endswith("/api/events?after=6")
    assert headers["Accept"] == "text/event-stream"
    server.wanted = [None]
    with pytest.raises(Unavailable):
        list(client.events("events", {}, query={}))


def test_who_asks_too_often_waits_as_long_as_the_api_says(server: Server, client: ApiClient, slept: list[float]):
    server.wanted = [(429, {"Retry-After": "7"}, {}), (429, {"Retry-After": "3"}, {}), (200, {}, {"done": True})]
    assert client.ask("POST", "environments/{id}/stop", {"id": "1"}).value == {"done": True}
    assert slept == [7, 3]
    refusal = {"error": {"code": "too_many_requests", "message": "Wait {600} s.", "facts": {}}}
    server.wanted = [(429, {"Retry-After": "600"}, refusal)]
    with pytest.raises(Said, match=r"Wait \{600\} s"):
        client.ask("GET", "hosts", {})


@pytest.mark.parametrize("lost", [None, (502, {}, b"<html>"), (504, {}, b"")], ids=["hung up", "502", "504"])
def test_a_creation_whose_answer_is_lost_is_repeated_under_the_same_key(server: Server, client: ApiClient, lost: Any):
    server.wanted = [lost, lost, (201, {}, {"name": "vision"})]
    assert client.ask("POST", "workspaces", {}, body={"name": "vision"}, key="k-1").value == {"name": "vision"}
    assert [headers["Idempotency-Key"] for _verb, _path, headers in server.seen] == ["k-1"] * 3


def test_a_change_whose_answer_is_lost_is_not_repeated(server: Server, client: ApiClient):
    for count, lost in enumerate((None, (504, {}, b"<html>")), start=1):
        server.wanted = [lost]
        with pytest.raises(Unavailable, match="Look whether it was done"):
            client.ask("PATCH", "hosts/{host}", {"host": "h"}, body={"status": "online"}, match='"x"')
        assert len(server.seen) == count
    assert server.seen[0][2]["If-Match"] == '"x"'


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((302, {"Location": "https://elsewhere.example.org/"}, b""), Unavailable, "sends elsewhere"),
        ((404, {"Content-Type": "text/html"}, b"<html>"), NotFound, "was not found"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), Unavailable, "is no API of ours"),
        ((500, {}, b"<html>"), Unavailable, "does not answer: it answers 500"),
        ((403, {}, b"<html>"), RemoteGPUError, "does not know this token"),
        ((409, {}, {"error": {"code": "conflict", "message": "Stop {it} first.", "facts": {"n": 1}}}), Said, "Stop {it}"),
    ],
    ids=["redirect", "no service", "a page", "broken", "refused", "error"],
)  # fmt: skip
def test_what_is_no_good_answer_is_one_sentence(
    server: Server, client: ApiClient, answer: Any, kind: type[RemoteGPUError], said: str
):
    server.wanted = [answer, (403, {}, b"")]
    with pytest.raises(kind) as told:
        client.ask("GET", "hosts", {})
    assert said in str(told.value)
    assert TOKEN not in repr(told.value) + str(told.value.__cause__)


def test_nobody_at_the_address_is_told(server: Server):
    with ApiClient(Address("http://127.0.0.1:9/", TOKEN)) as client, pytest.raises(Unavailable) as told:
        client.ask("GET", "hosts", {})
    assert "http://127.0.0.1:9/ cannot be reached: " in str(told.value)


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    key, certificate = certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = f"https://localhost:{server.server_port}/"
    with ApiClient(Address(url, TOKEN)) as client, pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        client.ask("GET", "hosts", {})
    assert server.seen == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.wanted = [(200, {}, {"items": []})]
    with ApiClient(Address(url, TOKEN)) as client:
        assert client.ask("GET", "hosts", {}).value == {"items": []}


def test_a_proxy_of_the_env_vars_never_sees_what_goes_by_http(
    server: Server, client: ApiClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9/")
    server.wanted = [(200, {}, {})]
    with ApiClient(Address(server.url, TOKEN)) as near:
        near.ask("GET", "hosts", {})
    assert len(server.seen) == 1


def certify(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    return folder / "key.pem", folder / "cert.pem"
