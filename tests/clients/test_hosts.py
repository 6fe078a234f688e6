"""The hosts of a cluster, as its API server (the tester's own, or that of `test_cluster`) tells them through a front
that can be told to answer wrong."""

import asyncio
from pathlib import Path
from typing import Any

import kubernetes.aio
import pytest
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from remotegpu_hub.clients import kubernetes as ours
from remotegpu_hub.clients import nodes
from remotegpu_hub.clients.cluster import Cluster
from remotegpu_hub.clients.pools import Pool
from remotegpu_hub.errors import Unavailable
from tests.cluster.faults import Front

POOL = Pool("gpus")


def cluster_of(**given: Any) -> Cluster:
    return Cluster(kubernetes.aio, hub_id="hub-1", namespace="default", pools=[POOL], **given)


def test_a_node_that_nobody_understands_is_out_of_work_and_says_why() -> None:
    node = {"metadata": {"name": "odd"}, "status": {"allocatable": {"cpu": "a lot"}}}
    found = cluster_of()._host(node, [], POOL, [])
    assert (found.name, found.pool, found.online, found.gpus) == ("odd", "gpus", False, ())
    assert "a lot is not a quantity" in found.labels[nodes.WHY]


async def test_hosts_of_which_nothing_is_heard_any_more_do_not_count_as_seen(
    api_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCH_SECONDS", 1), ("SILENCE_SECONDS", 0.5), ("FIRST_PAUSE_SECONDS", 0.01)):
        monkeypatch.setattr(ours, name, value)
    async with Front(api_server, tmp_path).running() as front:
        cluster = cluster_of(kubeconfig=front.kubeconfig)
        try:
            before = await cluster.hosts()
            await asyncio.sleep(4)
            assert [one.name for one in await cluster.hosts()] == [one.name for one in before], "quiet, but there"
            front.away = True
            await asyncio.sleep(5)
            with pytest.raises(Unavailable, match="no news"):
                await cluster.hosts()
            front.away = False
            async with asyncio.timeout(30):
                while not await told(cluster):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        finally:
            await cluster.close()


async def told(cluster: Cluster) -> bool:
    try:
        await cluster.hosts()
    except Unavailable:
        return False
    return True
