"""The cluster as a place where runs live, on a real API server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import kubernetes.aio
import pytest
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from remotegpu_hub.clients import nodes
from remotegpu_hub.clients.cluster import Cluster, _kept_pod, newest
from remotegpu_hub.clients.kubernetes import RESOURCE_SLICES, Kubernetes
from remotegpu_hub.clients.nodes import ALLOCATION_LABEL
from remotegpu_hub.clients.pools import Binding, Pool
from remotegpu_hub.errors import NotFound, Unavailable

POOLS = (Pool("all"),)


@pytest.fixture
async def cluster(api_server: str) -> AsyncIterator[Cluster]:
    made = Cluster(kubernetes.aio, hub_id="0123456789ab", namespace="default", pools=POOLS, kubeconfig=api_server)
    yield made
    await made.close()


def test_what_is_remembered_of_a_pod_counts_as_the_whole_pod() -> None:
    asked = {"requests": {"cpu": "2", "nvidia.com/gpu": "1"}}
    container = {"image": "busybox", "resources": asked}
    pod = {
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": "n", "containers": [{"name": "c", **container}], "overhead": {"cpu": "250m"},
            "initContainers": [{"name": "side", "restartPolicy": "Always", **container}, {"name": "i", **container}],
        },
    }  # fmt: skip
    kept = _kept_pod(pod)
    assert kept is not None
    assert nodes.requests(kept.facts) == nodes.requests(pod) == {"cpu": 4250, "nvidia.com/gpu": 2}


def test_of_two_pods_with_one_number_the_newer_one_is_the_run() -> None:
    """The other one had it before the database was restored from a backup."""

    def pod(name: str, number: int, made: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "labels": {ALLOCATION_LABEL: str(number)}, "creationTimestamp": made}}

    old, new, other = (
        pod("rgpu-zoe-7", 7, "2026-11-26T08:00:00Z"), pod("rgpu-bob-7", 7, "2026-11-27T09:00:00Z"),
        pod("rgpu-amy-6", 6, "2026-11-27T09:30:00Z"),
    )  # fmt: skip
    assert newest([old, new, other]) == newest([other, new, old]) == [other, new]


async def test_a_pool_by_dra_on_an_older_cluster_is_told_what_it_needs(api_server: str, cluster: Cluster) -> None:
    kube = await Kubernetes.connect(kubernetes.aio, kubeconfig=api_server)
    try:
        await kube.list(RESOURCE_SLICES)
        pytest.skip("THE CLUSTER IS NEW ENOUGH, so nothing is shown about an older one")
    except NotFound:
        pass
    finally:
        await kube.close()
    cluster._pools = [Pool("claims", Binding.DRA)]
    with pytest.raises(Unavailable, match=r"1\.34"):
        await cluster.hosts()


async def test_who_asks_at_the_same_time_shares_one_connection_and_one_watch(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Kubernetes] = []
    connect = Kubernetes.connect

    async def counted(*given: Any, **named: Any) -> Kubernetes:
        await asyncio.sleep(0)
        made.append(await connect(*given, **named))
        return made[-1]

    monkeypatch.setattr(Kubernetes, "connect", counted)
    await asyncio.gather(cluster.hosts(), cluster.runs(), cluster.hosts())
    assert (len(made), len(cluster._tasks)) == (1, 2)
