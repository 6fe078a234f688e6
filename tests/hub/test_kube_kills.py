"""The hub and its services are killed while pods start and stop: the cluster is left as on one machine."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import LocalCluster
from tests.hub.test_kills import USERS, Tally, kill_often, report
from tests.kube_hubs import KubeHub


@pytest.mark.parametrize(
    "kills", [pytest.param(1, id="one"), pytest.param(30, id="full on Kubernetes", marks=pytest.mark.prove)]
)
def test_killed_at_any_moment_no_pod_leaks_and_nobody_pays_for_what_did_not_run(
    tmp_path: Path, test_cluster: LocalCluster, record_property: Any, kills: int
) -> None:
    tally = Tally("kubernetes")
    with KubeHub(tmp_path, test_cluster, members=USERS) as hub:
        kill_often(hub, tally, kills)
    report(tally, record_property)
