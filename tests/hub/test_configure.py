"""A hub that really starts with `configure(c)`: it says what was undone below it, and keeps its password to itself."""

import re
import stat
from pathlib import Path

from sqlalchemy import text

from remotegpu_hub.hub.wiring import SERVICES
from tests.gpu_hubs import GpuHub
from tests.hubs import RealHub

IMAGES = {"local:lab": {"display_name": "Lab", "cmd": ["jupyterhub-singleuser"]}}


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


def test_the_runtime_file_is_for_its_user_alone_and_the_password_is_nowhere_else(tmp_path: Path, pg_url: str) -> None:
    password = pg_url.split("://", 1)[1].rsplit("@", 1)[0].split(":", 1)[1]
    with GpuHub(tmp_path, db_url=pg_url) as hub:
        assert stat.S_IMODE(hub.runtime_file.stat().st_mode) == 0o600
        assert password not in hub.log_text()
        for service in SERVICES:
            pid = hub.service_pid(service)
            for name in ("environ", "cmdline"):
                assert password.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        with hub.engine.connect() as connection:
            rows = connection.execute(text("SELECT * FROM services")).all()
        assert password not in repr(rows)


def test_what_is_loaded_at_start_is_left_out_of_later_collections(tmp_path: Path) -> None:
    told = "import atexit, gc; atexit.register(lambda: print('frozen:', gc.get_freeze_count()))"
    with GpuHub(tmp_path, told) as hub:
        assert hub.process
    frozen = re.search(r"frozen: (\d+)", (tmp_path / "hub.log").read_text())
    assert frozen
    assert int(frozen[1]) > 100_000
