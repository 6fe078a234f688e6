"""A hub that really starts with `configure(c)`: it says what was undone below it, keeps its password to itself, and lets
nobody pass its login."""

import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from remotegpu_hub.hub.wiring import SERVICES
from tests import postgres as pg
from tests.gpu_hubs import A100, GpuHub
from tests.hubs import RealHub

IMAGES = {"local:lab": {"display_name": "Lab", "cmd": ["jupyterhub-singleuser"]}}
LAB = f"""
import atexit, gc
atexit.register(lambda: print("frozen:", gc.get_freeze_count()))
c.RemoteGPU.port_ranges = {{"tensorboard": (30160, 30169)}}
c.RemoteGPU.images["local:lab"] = {{
    "display_name": "JupyterLab", "cmd": [{sys.executable!r}, "-m", "jupyterhub.singleuser"], "args": ["--allow-root"],
}}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, postgres: pg.Postgres) -> Iterator[GpuHub]:
    url = postgres.url(postgres.create_database())
    slow = "c.Spawner.http_timeout = 120\n"
    with GpuHub(tmp_path_factory.mktemp("hub"), LAB, quick=slow, db_url=url) as running:
        yield running


def test_services_that_were_overwritten_are_told_at_start_and_nothing_starts(tmp_path: Path) -> None:
    """A hub without our services: `GpuHub` would wait for their ticks."""
    ours = f"""
from remotegpu_hub.configure import configure
c.RemoteGPU.insecure_demo = True
c.RemoteGPU.images = {IMAGES!r}
configure(c)
c.JupyterHub.services = [one for one in c.JupyterHub.services if one["name"] not in {SERVICES!r}]
c.JupyterHub.load_roles = []
"""
    with RealHub(tmp_path, ours) as hub:
        assert "the service workspaces is gone" in hub.log_text()
        assert "the role remotegpu-services is gone" in hub.log_text()
        hub.api("POST", "users/alice")
        answer = hub.api("POST", "users/alice/server")
        assert answer.status_code == 503, answer.text
        assert "configure(c)" in answer.json()["message"]


def test_the_runtime_file_is_for_its_user_alone_and_the_password_is_nowhere_else(hub: GpuHub) -> None:
    password = hub.db_url.split("://", 1)[1].rsplit("@", 1)[0].split(":", 1)[1]
    assert stat.S_IMODE(hub.runtime_file.stat().st_mode) == 0o600
    for service in SERVICES:
        pid = hub.service_pid(service)
        for name in ("environ", "cmdline"):
            assert password.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    with hub.engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM services")).all()
    assert password not in repr(rows)
    life = hub.start_server("bob", {"workspace": "lab", "gpu_model": A100, "gpus": 1})
    assert life.env["CUDA_VISIBLE_DEVICES"].split(",") == hub.gpus_of("bob")
    assert hub.ask("alice", {"workspace": "lab", "gpu_model": A100, "gpus": 4}).status_code == 409
    assert password not in repr(life.env)
    hub.stop_server("bob")
    hub.check()
    assert password not in hub.log_text()


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


def test_what_is_loaded_at_start_is_left_out_of_later_collections(hub: GpuHub) -> None:
    """The last one here: the hub says it when it ends."""
    hub.stop()
    frozen = re.search(r"frozen: (\d+)", hub.log_text())
    assert frozen
    assert int(frozen[1]) > 100_000
