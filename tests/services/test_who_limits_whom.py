"""Who sets the limits of whom inside a workspace."""

import httpx

from tests.gpu_hubs import GpuHub

from .conftest import put_members


def test_an_admin_of_a_workspace_limits_neither_owners_nor_admins(hub: GpuHub):
    def ask(user: str, method: str, path: str, **body: object) -> httpx.Response:
        return httpx.request(
            method, f"{hub.url}services/workspaces/api/{path}", json=body or None, timeout=30, trust_env=False,
            headers={"Authorization": f"token {hub.token_of(user)}"},
        )  # fmt: skip

    put_members(hub)
    path = "workspaces/lab/members/{}/quota"
    for limited, by, status in (
        ("bob", "bob", 403), ("alice", "bob", 403), ("carol", "bob", 200), ("bob", "alice", 200), ("bob", "admin", 200),
    ):  # fmt: skip
        assert ask(by, "PATCH", path.format(limited), environments=3).status_code == status, (limited, by)
    wish = {"scope": "member", "workspace": "lab", "limits": {"environments": 9}, "reason": "many runs"}
    made = ask("bob", "POST", "quota-requests", **wish).json()
    for by, status in (("bob", 403), ("alice", 200)):
        answer = httpx.post(
            f"{hub.url}services/workspaces/api/quota-requests/{made['id']}/approve", json={}, timeout=30,
            trust_env=False, headers={"Authorization": f"token {hub.token_of(by)}"},
        )  # fmt: skip
        assert answer.status_code == status, answer.text
    ask("alice", "PATCH", path.format("bob"), environments=None)
    ask("alice", "PATCH", path.format("carol"), environments=None)
