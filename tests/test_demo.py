"""The demo as a newcomer meets it: a real hub behind a real proxy, started and ended as a terminal does."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from demo.__main__ import main
from remotegpu_hub import db, orm

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "an-admin-token-of-the-tests"

pytestmark = pytest.mark.skipif(
    not (Path(sys.executable).parent / "configurable-http-proxy").exists(),
    reason="NO PROXY, so nothing is shown about the demo: run `python3 tools/setup.py test`",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ignore_sigint() -> None:
    """As a shell's `&` does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Demo:
    """One `python -m demo`."""

    def __init__(self, state: Path, port: int | str, **variables: str) -> None:
        self.state = state
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo"],
            cwd=ROOT,
            env={**os.environ, "STATE": str(state), "PORT": str(port), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=ignore_sigint,  # noqa: PLW1509 - no threads here
        )
        self.said = ""

    def wait_ready(self) -> str:
        for line in self.process.stdout:
            self.said += line
            if line.startswith("ready "):
                return line.split()[1]
        raise AssertionError(f"no ready line:\n{self.said}")

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.said += self.process.communicate(timeout=60)[0]
        return self.process.returncode

    def marked(self) -> list[psutil.Process]:
        """What runs of this demo beside its first process."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("REMOTEGPU_DEMO_STATE") == str(self.state):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    @property
    def password(self) -> str:
        return (self.state / "password").read_text().strip()


@contextmanager
def running(state: Path, port: int, **variables: str) -> Iterator[Demo]:
    demo = Demo(state, port, **variables)
    try:
        yield demo
    finally:
        demo.end(signal.SIGTERM)
        for process in demo.marked():
            process.kill()


def log_in(address: str, name: str, password: str) -> httpx.Client:
    """Fill in the login form as a browser does."""
    client = httpx.Client(base_url=address, follow_redirects=True, trust_env=False, timeout=30)
    page = client.get("/hub/login")
    client.post("/hub/login", data={"username": name, "password": password, "_xsrf": client.cookies["_xsrf"]})
    assert page.status_code == 200
    return client


def may_enter(client: httpx.Client) -> bool:
    return "login" not in str(client.get("/hub/home").url)


def test_a_newcomer_logs_in_a_second_demo_is_refused_and_it_starts_again_and_ends_with_the_one_that_is_killed(
    tmp_path: Path,
):
    state, port = tmp_path / "state", free_port()
    with running(state, port, TOKEN=TOKEN) as demo:
        address = demo.wait_ready()
        assert address == f"http://127.0.0.1:{port}/"
        assert re.search(r"hub: \d+\.\d s", demo.said)
        for name in ("ada", "boris", "chen", "dora", "admin"):
            assert re.search(rf"^  {name} +{re.escape(demo.password)} ", demo.said, re.MULTILINE)
        assert may_enter(log_in(address, "ada", demo.password))
        assert may_enter(log_in(address, "admin", demo.password))
        for name, password in (("ada", "wrong"), ("ada", "密码"), ("ada", ""), ("eve", demo.password)):
            assert not may_enter(log_in(address, name, password))
        answer = httpx.get(f"{address}hub/api/user", headers={"Authorization": f"token {TOKEN}"}, trust_env=False)
        assert answer.json()["name"] == "admin"
        assert answer.json()["admin"]
        assert {"custom:remotegpu:admin", "admin:users", "access:services"} <= set(answer.json()["scopes"])
        assert all(port.laddr.ip == "127.0.0.1" for port in listening(demo))
        assert TOKEN not in " ".join(" ".join(process.cmdline()) for process in demo.marked())
        second = Demo(state, free_port())
        assert second.end(signal.SIGCONT) == 1
        assert "A demo runs already in" in second.said
        assert may_enter(log_in(address, "ada", demo.password)), "the first one is not disturbed"
        assert demo.end() == 0
        assert demo.marked() == []
        assert "ready" not in demo.said.split("ready ", 1)[1]
    with running(state, port) as again:
        address = again.wait_ready()
        assert again.password == demo.password
        assert may_enter(log_in(address, "ada", again.password))
        assert {name for name in rows(state) if not name.startswith("~")} == {"vision-lab", "nlp-lab"}
        assert not (state / "admin-token").exists()
        assert_ends_with(again)
    assert oct(state.stat().st_mode & 0o777) == "0o700"


def kill_all_but_the_proxy(demo: Demo) -> None:
    hub = [process for process in demo.marked() if "jupyterhub" in " ".join(process.cmdline())]
    demo.process.send_signal(signal.SIGSTOP)
    for process in hub:
        if "configurable-http-proxy" not in " ".join(process.cmdline()):
            process.kill()
    demo.process.kill()
    demo.process.wait()
    assert len(demo.marked()) == 1


def listening(demo: Demo) -> list:
    family = [process for root in demo.marked() for process in (root, *root.children(recursive=True))]
    found = [one for process in family for one in process.net_connections("tcp") if one.status == "LISTEN"]
    assert found
    return found


def rows(state: Path) -> set[str]:
    engine = db.open_engine(f"sqlite:///{state}/jupyterhub.sqlite")
    with db.begin(engine, read_only=True) as session:
        names = {workspace.name for workspace in session.query(orm.Workspace)}
        roles = {member.role for member in session.query(orm.Member)}
    engine.dispose()
    assert roles == set(orm.Role)
    return names


def assert_ends_with(demo: Demo) -> None:
    """Kill the demo's first process; nothing of it lives on."""
    demo.process.kill()
    deadline = time.monotonic() + 20
    while demo.marked() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert demo.marked() == []


@pytest.mark.prove
def test_it_starts_again_where_an_earlier_one_left_its_proxy(tmp_path: Path):
    state, port = tmp_path / "state", free_port()
    with running(state, port) as first:
        first.wait_ready()
        kill_all_but_the_proxy(first)
        with running(state, port) as second:
            assert second.wait_ready() == f"http://127.0.0.1:{port}/"
            assert "1 processes of an earlier run" in second.said


def test_a_hub_that_dies_is_told_and_leaves_no_proxy(tmp_path: Path):
    with running(tmp_path / "state", free_port()) as demo:
        demo.wait_ready()
        for process in demo.marked():
            if "demo/jupyterhub_config.py" in " ".join(process.cmdline()):
                process.kill()
        assert demo.process.wait(30) == 1
        demo.end()
        assert "The hub ended by itself" in demo.said
        assert demo.marked() == []


def one_sentence(said: str) -> str:
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"PORT": "http"}, "PORT is 'http'"),
        ({"PORT": "65536"}, "PORT is '65536'"),
        ({"PORT": "0"}, "PORT is '0'"),
        ({"PORT": "٨٠"}, "PORT is"),
        ({"TOKEN": "short"}, "TOKEN must have"),
        ({"TOKEN": "a token with spaces"}, "TOKEN must have"),
        ({"STATE": "/proc/nowhere"}, "cannot be used"),
        ({"STATE": "/tmp/a?b"}, "without ?"),
        ({"STATE": str(ROOT)}, "holds other things"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wish_that_cannot_be_is_answered_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    wanted: str,
):
    for name, value in {"STATE": str(tmp_path / "state"), "PORT": str(free_port()), "TOKEN": "", **variables}.items():
        monkeypatch.setenv(name, value)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main() == 1
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert wanted in one_sentence(capsys.readouterr().err)


def test_a_port_that_is_taken_is_named_in_one_sentence(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = Demo(tmp_path / "state", port)
        assert demo.end(signal.SIGCONT) == 1
    assert f"Port {port} is in use" in one_sentence(demo.said)
