"""Whoever shuts a workspace to themselves is told so where they still may be."""

import pytest

from tests.gpu_hubs import GpuHub

from .conftest import put_members
from .test_all_spaces import send
from .test_audit_pages import see


@pytest.mark.parametrize(
    ("verb", "told", "sentence"),
    [("remove", "leave", "You left the workspace."), ("suspend", "suspended", "You are suspended in the workspace")],
)
def test_an_owner_who_takes_themselves_out_is_led_to_their_workspaces(hub: GpuHub, verb: str, told: str, sentence: str):
    put_members(hub, zoe="owner")
    try:
        token = hub.token_of("zoe")
        seen = hub.service("workspaces", "api/workspaces/lab/members/zoe", token=token).headers["ETag"]
        answer = send(hub, "zoe", f"spaces/lab/members/zoe/{verb}", seen=seen, role="owner")
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/services/workspaces/spaces?told={told}")
        assert sentence in see(hub, "zoe", f"spaces?told={told}").text
        assert see(hub, "zoe", "spaces/lab/members").status_code == 404
        seen = hub.service("workspaces", "api/workspaces/lab/members/carol", token=hub.token_of("alice"))
        answer = send(hub, "alice", f"spaces/lab/members/carol/{verb}", seen=seen.headers["ETag"], role="member")
        assert answer.headers["Location"] == f"/services/workspaces/spaces/lab/members?told={verb}"
    finally:
        put_members(hub)
