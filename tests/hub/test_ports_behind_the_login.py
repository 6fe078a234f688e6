"""A port of an environment through the hub's own proxy: whoever opens it has to log in, and may see the environment."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.gpu_hubs import GpuHub

LAB = f"""
c.RemoteGPU.port_ranges = {{"tensorboard": (30160, 30169)}}
c.RemoteGPU.images["local:lab"] = {{
    "display_name": "JupyterLab", "cmd": [{sys.executable!r}, "-m", "jupyterhub.singleuser"], "args": ["--allow-root"],
}}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuHub]:
    with GpuHub(tmp_path_factory.mktemp("hub"), LAB, quick="c.Spawner.http_timeout = 120\n") as running:
        yield running


@pytest.fixture
def board(hub: GpuHub, tmp_path: Path) -> Iterator[str]:
    """The address of what listens on the port of alice's environment."""
    answer = hub.ask("alice", {"workspace": "lab", "image": "local:lab", "gpus": 0, "cpu": 1, "memory": "1G",
                               "ports": ["tensorboard"]})  # fmt: skip
    assert answer.status_code in (201, 202), answer.text
    hub.until(lambda: hub.model("alice").get("ready"), "it runs", seconds=120)
    me = hub.service("workspaces", "api/me", token=hub.token_of("alice")).json()
    ((way,),) = [one["run"]["access"] for one in me["environments"] if one["run"]]
    (tmp_path / "index.html").write_text("loss goes down")
    port = way["address"].rpartition(":")[2]
    program = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        hub.until(lambda: _listens(way["url"]), "it listens")
        yield way["hub_path"]
        process.kill()
    hub.stop_server("alice")


def _listens(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


def test_a_port_is_opened_by_who_may_see_the_environment_and_by_nobody_else(hub: GpuHub, board: str) -> None:
    with hub.login("alice") as alice:
        assert alice.get(board).text == "loss goes down"
    with httpx.Client(base_url=hub.url, follow_redirects=True) as nobody:
        answer = nobody.get(board)
        assert answer.url.path.endswith("/hub/login"), "asked to log in"
        assert "loss goes down" not in answer.text
    with hub.login("bob") as bob:
        answer = bob.get(board)
        assert answer.status_code == 403
        assert "loss goes down" not in answer.text
