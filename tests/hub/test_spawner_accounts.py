"""Without the demo flag every environment is a process of the system user of the same name."""

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.gpu_hubs import A100, GpuHub

ACCOUNT = "daemon"
PYTHON = "/usr/bin/python3"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path(PYTHON).exists() or ACCOUNT not in [one.pw_name for one in pwd.getpwall()],
    reason="NOT ROOT, or no system Python or account: nothing is shown about system users",
)


@pytest.fixture(scope="module")
def hub() -> Iterator[GpuHub]:
    folder = Path(tempfile.mkdtemp(prefix="remotegpu-accounts-"))  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    try:
        before = "c.RemoteGPU.insecure_demo = False"
        with GpuHub(folder, before, members=(ACCOUNT, "nobody-by-this-name"), python=PYTHON) as running:
            running.runs.chmod(0o777)
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_an_environment_runs_as_its_user_and_all_of_it_is_stopped(hub: GpuHub) -> None:
    wish = {"workspace": "lab", "image": "local:stubborn", "gpu_model": A100, "gpus": 1}
    life = hub.start_server(ACCOUNT, wish)
    account = pwd.getpwnam(ACCOUNT)
    assert life.uid == account.pw_uid
    assert psutil.Process(life.pid).uids().effective == account.pw_uid
    assert (life.env["USER"], life.env["HOME"]) == (ACCOUNT, account.pw_dir)
    assert life.env["CUDA_VISIBLE_DEVICES"].split(",") == hub.gpus_of(ACCOUNT)
    assert len(hub.trees()[hub.run_of(ACCOUNT).id]) == 2, "the child that dropped the session is seen too"
    hub.stop_server(ACCOUNT)
    assert hub.trees() == {}
    hub.check()


def test_who_has_no_account_is_told_and_cannot_bring_down_the_hub(hub: GpuHub) -> None:
    for _ in range(6):
        refused = hub.ask("nobody-by-this-name", {"workspace": "lab", "image": "local:plain"})
        assert (refused.status_code, "no system account" in refused.json()["message"]) == (403, True), refused.text
    hub.until_free("nobody-by-this-name")
    assert hub.process
    assert hub.process.poll() is None
    hub.check()


def test_the_settings_are_closed_to_the_environments_user(hub: GpuHub) -> None:
    assert hub.runtime_file.stat().st_mode & 0o777 == 0o600
    assert hub.runtime_file.stat().st_uid == 0
