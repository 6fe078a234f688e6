"""Environments as pods of a real cluster."""

import pytest
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.cluster import LocalCluster
from tests.kube_hubs import A100, KubeHub


@pytest.fixture(scope="module")
def hub(test_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeHub]:
    with KubeHub(tmp_path_factory.mktemp("kube"), test_cluster) as running:
        yield running


def test_a_pod_runs_where_admission_chose_with_what_it_holds(hub: KubeHub):
    life = hub.start_server("alice", {"workspace": "lab", "gpus": 2, "gpu_model": A100})
    pod = hub.pod_of("alice")
    print(pod)
    print(life)
    hub.check()
    hub.stop_server("alice")
    hub.check()
