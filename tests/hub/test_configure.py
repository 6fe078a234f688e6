"""`configure(c)` keeps what the operator set before it, refuses what cannot work, and touches nothing when another
program reads the file."""

import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from traitlets.config import Config

from remotegpu_hub.configure import CUSTOM_SCOPES, configure, database_of
from remotegpu_hub.hub.local import DemoSpawner, LocalSpawner
from remotegpu_hub.hub.wiring import SERVICES
from tests.gpu_hubs import GpuHub
from tests.hubs import RealHub

IMAGES = {"local:lab": {"display_name": "Lab", "cmd": ["jupyterhub-singleuser"]}}


@pytest.fixture
def c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.RemoteGPU.images = dict(IMAGES)
    config.RemoteGPU.insecure_demo = True
    return config


def names(services: list[dict[str, Any]]) -> list[str]:
    return [one["name"] for one in services]


def test_a_bare_configuration_gets_spawner_services_roles_and_scopes(c: Config) -> None:
    configure(c)
    assert c.JupyterHub.spawner_class is DemoSpawner
    assert set(SERVICES) <= set(names(c.JupyterHub.services))
    assert set(CUSTOM_SCOPES) <= set(c.JupyterHub.custom_scopes)
    assert c.JupyterHub.allow_named_servers is True
    assert os.listdir() == [], "nothing is written where no hub runs"


def test_without_the_demo_flag_everybody_is_a_system_user(c: Config) -> None:
    c.RemoteGPU.insecure_demo = False
    configure(c)
    assert c.JupyterHub.spawner_class is LocalSpawner


def test_what_stands_above_is_kept(c: Config) -> None:
    def hook(_spawner: Any) -> None: ...

    c.Spawner.pre_spawn_hook = hook
    c.Spawner.server_token_scopes = ["users:activity!user", "read:users!user"]
    c.JupyterHub.base_url = "/deep/"
    c.JupyterHub.allow_named_servers = False
    c.JupyterHub.services = [{"name": "culler", "admin": True}]
    c.JupyterHub.load_roles = [{"name": "user", "scopes": ["self"]}, {"name": "culler", "services": ["culler"]}]
    c.JupyterHub.custom_scopes = {"custom:mine:read": {"description": "mine"}}
    c.JupyterHub.template_vars = {"announcement": "hello"}
    c.JupyterHub.template_paths = ["/operators/own"]
    configure(c)
    assert c.Spawner.pre_spawn_hook is hook
    assert "read:users!user" in c.Spawner.server_token_scopes
    assert c.JupyterHub.base_url == "/deep/"
    assert c.JupyterHub.allow_named_servers is False
    assert names(c.JupyterHub.services) == ["culler", *SERVICES]
    roles = {role["name"]: role for role in c.JupyterHub.load_roles}
    assert set(roles) == {"user", "culler", "remotegpu-services"}
    assert {"self", "access:services!service=workspaces"} <= set(roles["user"]["scopes"])
    assert {"custom:mine:read", *CUSTOM_SCOPES} == set(c.JupyterHub.custom_scopes)
    assert c.JupyterHub.template_vars["announcement"] == "hello"
    assert c.JupyterHub.template_paths[0] == "/operators/own"


@pytest.mark.parametrize(
    ("given", "line", "expected"),
    [
        (None, None, "sqlite:///{cwd}/jupyterhub.sqlite"),
        ("sqlite:///other.sqlite", None, "sqlite:///{cwd}/other.sqlite"),
        ("postgresql://u:p@h/d", None, "postgresql+psycopg://u:p@h/d"),
        ("sqlite:///other.sqlite", "postgresql://u@h/line", "postgresql+psycopg://u@h/line"),
    ],
    ids=["the hub's default", "the file's", "psycopg 3", "the command line wins"],
)
def test_our_tables_go_where_the_hubs_go(c: Config, given: str | None, line: str | None, expected: str) -> None:
    if given:
        c.JupyterHub.db_url = given
    c.JupyterHub.db_kwargs = {"pool_size": 3}
    hub = SimpleNamespace(cli_config=Config({"JupyterHub": {"db_url": line}} if line else {}))
    assert database_of(c, hub) == (expected.format(cwd=Path.cwd()), {"pool_size": 3})


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
        from sqlalchemy import text

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
