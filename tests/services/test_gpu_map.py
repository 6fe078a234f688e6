"""The map of GPUs on a cluster whose device plugin names none: each host has a GPU 0 of the same name."""

import re
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from sqlalchemy import delete, select

from remotegpu_hub.db import begin
from remotegpu_hub.orm import Gpu, GpuSlot, GpuStatus, Host, HostModel
from tests.gpu_hubs import GpuHub
from tests.worlds import gpus, host

from .test_all_spaces import send
from .test_audit_pages import see

NAMES = ("node-1", "node-2")


@pytest.fixture
def nodes(hub: GpuHub) -> Iterator[dict[str, Gpu]]:
    """GPU 0 of two nodes, both named `x/y#0`."""
    first = tuple(replace(one, uuid=f"x/y#{one.index}") for one in gpus(1))
    hub.world.see(*(host(name, gpus=first) for name in NAMES))
    ids = select(Host.id).where(Host.name.in_(NAMES))
    found = hub.world.read(select(Gpu).where(Gpu.host_id.in_(ids)).order_by(Gpu.host_id))
    yield dict(zip(NAMES, found, strict=True))
    with begin(hub.engine) as session:
        numbers = list(session.scalars(ids))
        for column in (GpuSlot.host_id, HostModel.host_id, Gpu.host_id):
            session.execute(delete(column.class_).where(column.in_(numbers)))
        session.execute(delete(Host).where(Host.id.in_(numbers)))


def test_each_gpu_of_the_map_is_explained_and_taken_out_on_its_own_host(hub: GpuHub, nodes: dict[str, Gpu]):
    for name in NAMES:
        page = see(hub, "admin", "gpus?search=node-").text
        (link,) = re.findall(rf'href="([^"]+)"[^>]*aria-label="{name}, GPU 0', page)
        query = urlsplit(link.replace("&amp;", "&")).query
        assert f"focus={nodes[name].id}" in query
        shown = see(hub, "admin", f"gpus?{query}").text
        beside = shown[shown.index('id="focus"') :]
        assert f"{name} · GPU 0" in beside
        (action,) = re.findall(r'action="[^"]*/(machines/hosts/[^"]*/gpus/[^"]*)"', beside)
        done = send(hub, "admin", action.replace("&amp;", "&"))
        assert (done.status_code, urlsplit(done.headers["Location"]).query) == (303, query)
        rows = hub.world.read(select(Host.name, Gpu.status).join(Gpu, Gpu.host_id == Host.id))
        states = {one: status for one, status in rows if one in NAMES}
        out = NAMES[: NAMES.index(name) + 1]
        assert states == {one: GpuStatus.MAINTENANCE if one in out else GpuStatus.AVAILABLE for one in NAMES}
