"""One hub for all tests of the services: its workspace `lab` has a member of each role, `secret` is somebody else's."""

import secrets
from collections.abc import Iterator

import pytest

from remotegpu_hub.db import begin
from remotegpu_hub.domain import users, workspaces
from remotegpu_hub.orm import MemberStatus, Role
from tests import postgres as pg
from tests.gpu_hubs import GpuHub
from tests.worlds import ADMIN

ROLES = {"alice": "owner", "bob": "admin", "carol": "member", "dave": "viewer"}

SERVICE_TOKENS = {"reader": "reader-" + secrets.token_hex(16), "writer": "writer-" + secrets.token_hex(16)}
"""Services of others, which carry `custom:remotegpu:read` and `:write`."""
OTHER_SERVICES = f"""
for name, token in {SERVICE_TOKENS!r}.items():
    c.JupyterHub.services.append({{"name": name, "api_token": token}})
    scopes = ["access:services!service=workspaces", "custom:remotegpu:" + {{"reader": "read", "writer": "write"}}[name]]
    c.JupyterHub.load_roles.append({{"name": name, "services": [name], "scopes": scopes}})
"""


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, postgres: pg.Postgres) -> Iterator[GpuHub]:
    """On PostgreSQL: what two do at once meets there, while SQLite lets one wait for the other."""
    url = postgres.url(postgres.create_database())
    quick = "c.RemoteGPU.webhook_retries, c.RemoteGPU.webhook_networks = [0.5, 1.0], ['127.0.0.0/8']" + OTHER_SERVICES
    with GpuHub(tmp_path_factory.mktemp("services"), quick, members=(*ROLES, "eve", "zoe"), db_url=url) as running:
        running.add_users("admin")
        put_members(running)
        running.world.workspace("secret", owner="eve")
        yield running


def put_members(hub: GpuHub, **others: str) -> None:
    """As the tests' table says, and `others`; nobody else is a member."""
    wanted = {**ROLES, **others}
    with begin(hub.engine) as session:
        lab = workspaces.by_name(session, name="lab")
        there = {one.user.name: one for one in workspaces.members(session, workspace=lab)}
        given = {"workspace": lab, "actor": ADMIN, "now": hub.world.now}
        for name, role in wanted.items():
            member = there.get(name)
            if member is None or (member.role, member.status) != (role, MemberStatus.ACTIVE):
                workspaces.put_member(session, user=users.by_name(session, name=name), role=Role(role), **given)
        for name in there.keys() - wanted.keys():
            workspaces.remove_member(session, user=there[name].user, **given)
