"""The hosts of a cluster, as its API server tells them through a front that can be told to answer wrong."""

from typing import Any

import kubernetes.aio
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from remotegpu_hub.clients import nodes
from remotegpu_hub.clients.cluster import Cluster
from remotegpu_hub.clients.pools import Pool

POOL = Pool("gpus")


def cluster_of(**given: Any) -> Cluster:
    return Cluster(kubernetes.aio, hub_id="hub-1", namespace="default", pools=[POOL], **given)


def test_a_node_that_nobody_understands_is_out_of_work_and_says_why() -> None:
    node = {"metadata": {"name": "odd"}, "status": {"allocatable": {"cpu": "a lot"}}}
    found = cluster_of()._host(node, [], POOL, [])
    assert (found.name, found.pool, found.online, found.gpus) == ("odd", "gpus", False, ())
    assert "a lot is not a quantity" in found.labels[nodes.WHY]
