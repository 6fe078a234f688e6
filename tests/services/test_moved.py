"""An environment that went from one workspace to another: who is in the new one reads nothing of the old one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from remotegpu_hub.clients import outputs
from remotegpu_hub.db import begin
from remotegpu_hub.domain import environments
from tests.gpu_hubs import GpuHub
from tests.worlds import ADMIN

from .conftest import put_members
from .test_audit_pages import see

READS_ALL = {"carol": True, "admin": True, "alice": False, "bob": False, "zoe": False, "dave": False}
"""Its user and an admin of the hub; and of the new workspace an owner, an admin, a member and a viewer."""
MAY_STOP = {"carol", "admin", "alice", "bob"}
"""Who reads what it prints."""


@dataclass(frozen=True)
class Moved:
    """Carol's environment, which ran in her own workspace first and in `lab` then."""

    hub: GpuHub
    id: int
    old: int
    new: int

    def ask(self, user: str, path: str) -> httpx.Response:
        return self.hub.service("workspaces", f"api/environments/{self.id}/{path}", token=self.hub.token_of(user))

    def items(self, user: str, path: str) -> list[dict[str, Any]]:
        answer = self.ask(user, path)
        assert answer.is_success, (user, answer.text)
        found: list[dict[str, Any]] = answer.json()["items"]
        return found


@pytest.fixture(scope="module")
def moved(hub: GpuHub) -> Iterator[Moved]:
    put_members(hub, zoe="member")
    runs = []
    for space in ("~carol", "lab"):
        hub.start_server("carol", {"workspace": space}, server="moved")
        hub.stop_server("carol", "moved")
        runs.append(hub.run_of("carol", "moved"))
        with outputs.path_of(hub.runtime.settings.output_folder, runs[-1].id).open("a") as file:
            file.write(f"printed in {space}\n")
    old, new = runs
    assert (old.workspace.name, new.workspace.name, old.environment_id) == ("~carol", "lab", new.environment_id)
    yield Moved(hub, new.environment_id, old.id, new.id)
    with begin(hub.engine) as session:
        environments.delete(session, user_id=new.user_id, server_name="moved", actor=ADMIN, now=hub.world.now)


@pytest.mark.parametrize("user", READS_ALL)
def test_runs_of_another_workspace_are_not_listed(moved: Moved, user: str):
    wanted = [moved.new, moved.old] if READS_ALL[user] else [moved.new]
    assert [one["allocation_id"] for one in moved.items(user, "runs")] == wanted


@pytest.mark.parametrize("user", READS_ALL)
def test_what_it_printed_in_another_workspace_is_not_read(moved: Moved, user: str):
    newest, new, old = (moved.ask(user, path) for path in ("logs", f"logs?run={moved.new}", f"logs?run={moved.old}"))
    if user not in MAY_STOP:
        assert {one.status_code for one in (newest, new, old)} == {403}
        return
    assert "printed in lab" in newest.text
    assert "printed in lab" in new.text
    assert ("printed in ~carol" in old.text, old.status_code) == ((True, 200) if READS_ALL[user] else (False, 404))


@pytest.mark.parametrize("user", READS_ALL)
def test_what_happened_in_another_workspace_is_not_told(moved: Moved, user: str):
    wanted = {"~carol", "lab"} if READS_ALL[user] else {"lab"}
    moved.hub.until(lambda: len(moved.items("carol", "events")) == 8, "both runs were told", 30)
    assert {one["workspace"] for one in moved.items(user, "events")} == wanted


@pytest.mark.parametrize("user", READS_ALL)
def test_its_page_shows_neither_runs_nor_costs_of_another_workspace(moved: Moved, user: str):
    page = see(moved.hub, user, f"environments/{moved.id}")
    assert page.status_code == 200
    assert page.text.count('data-label="Until"') == 1 + READS_ALL[user]
    assert f'data-run="{moved.new}"' in page.text
