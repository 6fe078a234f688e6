"""What a hub of many environments on a large cluster takes, with us in it and with plain KubeSpawner, one after the
other on the same cluster: 1,000 nodes with 8 GPUs each, 2,000 environments that run, and 200 more starts at once.

Nodes and kubelets are played (every pod answers at one address); API server, scheduler, hubs and PostgreSQL are real.

1. Waves of 200 starts until 2,000 run, and one more, in which the hub's loop is measured: all placed, none twice.
2. Memory of the hub's process, and of the service that follows the cluster.
3. A hub that was killed while all of them run: until users can log in again, and until each of them is known again.

Needs root on Debian, or REMOTEGPU_TEST_CLUSTER: see kube_spawn.py.

    python benchmarks/kube_load.py [--quick]
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import psutil

from benchmarks.kube_spawn import PLAIN
from benchmarks.parts.figures import percentile
from benchmarks.parts.loop_time import told
from benchmarks.parts.machine import Stopwatch, describe
from remotegpu_hub.clients.kubernetes import PODS
from remotegpu_hub.orm import AllocationState
from tests import postgres as pg
from tests.cluster.cluster import LocalCluster, found_or_started
from tests.cluster.played import MARK, MODEL, played_nodes
from tests.hubs import ROOT
from tests.kube_hubs import KubeHub

SERVERS_EACH = 10
COMMON = f"""
import sys as _sys
_sys.path.insert(0, {str(ROOT)!r})
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 1200}}
c.JupyterHub.log_level = "INFO"
c.KubeSpawner.node_selector = {{"{MARK}": "true"}}
c.KubeSpawner.start_timeout = 1200
c.Spawner.poll_interval = 30
c.Spawner.http_timeout = 300
from kubespawner import KubeSpawner as _Kube
from jupyterhub.spawner import Spawner as _Base
from benchmarks.parts import loop_time as _loop_time
"""
OURS = (
    COMMON
    + f"""
from remotegpu_hub.hub.kube import RemoteGPUKubeSpawner as _Ours
from remotegpu_hub.hub.spawner import RemoteGPUMixin as _Mixin
_loop_time.install("loop.json", ours=[_Mixin, _Ours], theirs=[_Kube, _Base])
c.RemoteGPU.pools = [{{"name": "played", "node_selector": {{"{MARK}": "true"}}, "simulated": True}}]
c.RemoteGPU.home_size = ""
"""
)
PLAIN_LOAD = (
    COMMON
    + """
_loop_time.install("loop.json", ours=[], theirs=[_Kube, _Base])
c.KubeSpawner.storage_pvc_ensure = False
c.KubeSpawner.volumes = [one for one in c.KubeSpawner.volumes if one["name"] != "home"]
c.KubeSpawner.volume_mounts = [one for one in c.KubeSpawner.volume_mounts if one["name"] != "home"]
"""
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    nodes: int
    running: int
    at_once: int

    @property
    def users(self) -> list[str]:
        return [f"user-{number}" for number in range((self.running + self.at_once) // SERVERS_EACH)]


FULL = Size(nodes=1000, running=2000, at_once=200)
QUICK = Size(nodes=20, running=20, at_once=10)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="only show that it works; the numbers mean nothing")
    size = QUICK if options.parse_args().quick else FULL
    print(describe())
    watch = Stopwatch()
    with (
        tempfile.TemporaryDirectory(prefix="remotegpu-kube-load-") as name,
        pg.running() as postgres,
        found_or_started() as cluster,
        played_nodes(cluster.kubeconfig, size.nodes, cluster.address),
    ):
        Path(name).chmod(0o755)
        print(f"{size.nodes} played nodes with {8 * size.nodes} simulated GPUs")
        for kind in ("ours", "plain"):
            url = postgres.url(postgres.create_database(name=kind))
            with hub_of(kind, Path(name) / kind, cluster, url, size) as hub:
                measure(kind, hub, size)
            gone(hub)
    print(f"Other processes took {watch.read().others_percent:.0f} % of the machine meanwhile.")


@contextmanager
def hub_of(kind: str, folder: Path, cluster: LocalCluster, url: str, size: Size) -> Iterator[KubeHub]:
    """With all users in it."""
    if kind == "ours":
        with KubeHub(folder, cluster, OURS, members=size.users, db_url=url) as hub:
            hub.world.price(f"gpu:{MODEL}", 3600)
            hub.until(lambda: hub.free(MODEL) == 8 * size.nodes, "all nodes are known")
            try:
                yield hub
            finally:
                hub.kill()
        return
    hub = KubeHub(folder, cluster, configured=False, db_url=url)
    image = hub.plain_image
    hub.reconfigure(PLAIN.format(image="played", cmd=image["cmd"], args=image["args"]) + PLAIN_LOAD)
    with hub:
        hub.api("POST", "users", json={"usernames": size.users}).raise_for_status()
        try:
            yield hub
        finally:
            hub.kill()  # with so many environments an orderly end takes it minutes


def measure(kind: str, hub: KubeHub, size: Size) -> None:
    servers = [(user, f"s-{number}") for number in range(SERVERS_EACH) for user in size.users]
    print(f"\n{kind}", flush=True)
    before, failed = resident_mib(hub.pid), 0
    for start in range(0, size.running + size.at_once, size.at_once):
        told(hub.pid, hub.folder)
        begin = time.perf_counter()
        seconds = start_all(hub, servers[start : start + size.at_once])
        failed += size.at_once - len(seconds)
        took = time.perf_counter() - begin
        if start in (0, size.running):
            print(f"  {size.at_once} starts at once beside {start} that run: all after {took:.1f} s, "
                  f"median {percentile(seconds, 50):.1f} s, p95 {percentile(seconds, 95):.1f} s",
                  flush=True)  # fmt: skip
    print_loop(told(hub.pid, hub.folder))
    if failed:
        print(f"  {failed} starts failed")
    check_placed(hub, size.running + size.at_once - failed)
    print(f"  memory of the hub's process {before:.0f} MiB without any, {resident_mib(hub.pid):.0f} MiB with all")
    if hub.configured:
        print(f"  memory of the service that follows the cluster {resident_mib(hub.service_pid('workspaces')):.0f} MiB")
    hub.kill()
    mark = len(hub.log_text())
    begin = time.perf_counter()
    hub.begin()
    hub.wait_ready(600)
    answers = time.perf_counter() - begin
    hub.until(lambda: "Initialized" in hub.log_text()[mark:], "all servers were looked at", 600)
    known = re.findall(r"Initialized (\d+) spawners in ([\d.]+) seconds", hub.log_text()[mark:])
    print(f"  started again after a kill: users can log in after {answers:.1f} s; {known[0][0]} environments known "
          f"again, which took {float(known[0][1]):.1f} s", flush=True)  # fmt: skip
    if hub.configured:
        hub.until(lambda: hub.ticked("reconcile"), "the reconciler looked", 300)
        assert len(hub.open_runs()) == size.running + size.at_once - failed, "all of them run on"


def start_all(hub: KubeHub, servers: list[tuple[str, str]]) -> list[float]:
    """Ask for all at once; the hub answers when one runs. Seconds of each that does."""
    wish = {"workspace": "lab", "image": hub.image("plain"), "gpus": 1, "gpu_model": MODEL, "ports": []}
    body = {"user_options": wish} if hub.configured else {}
    limits = httpx.Limits(max_connections=len(servers))
    headers = {"Authorization": f"token {hub.token}"}
    with httpx.Client(headers=headers, timeout=1200, limits=limits, trust_env=False) as client:

        def start(server: tuple[str, str]) -> float | None:
            begin = time.perf_counter()
            answer = client.post(f"{hub.api_url}/{hub.path(*server)}", json=body)
            if answer.status_code != 201:
                print(f"  {server}: {answer.status_code} {answer.text}", flush=True)
                return None
            return time.perf_counter() - begin

        with ThreadPoolExecutor(len(servers)) as threads:
            return [one for one in threads.map(start, servers) if one is not None]


def print_loop(found: dict[str, Any]) -> None:
    ours, whole = found["ours"], found["whole"]
    if ours["callbacks"]:
        print(f"  the hub's loop in this wave, in frames of our code: longest {ours['cpu_longest_ms']:.1f} ms of CPU "
              f"(mostly {ours['worst']}), total {ours['cpu_total_ms']:.0f} ms in {ours['callbacks']} callbacks; by the "
              f"clock, waits for a core included, longest {ours['clock_longest_ms']:.0f} ms")  # fmt: skip
    print(f"  everything on it: longest {whole['cpu_longest_ms']:.0f} ms of CPU, "
          f"total {whole['cpu_total_ms'] / 1000:.1f} s; by the clock longest "
          f"{whole['clock_longest_ms']:.0f} ms", flush=True)  # fmt: skip


def check_placed(hub: KubeHub, count: int) -> None:
    """Assert that all run, and that no node has more pods than GPUs; of ours, that each is where admission said."""
    pods = hub.kube(lambda kube: kube.list(PODS, hub.namespace)).items
    running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
    assert len(pods) == len(running) == count, (len(pods), len(running))
    busiest = max(Counter(pod["spec"]["nodeName"] for pod in pods).values())
    assert busiest <= 8
    if hub.configured:
        runs = hub.open_runs()
        assert len(runs) == len(pods)
        assert all(run.state == AllocationState.ACTIVE for run in runs)
        hub.world.check()
    print(f"  all {len(pods)} placed, none twice; at most {busiest} on a node of 8 GPUs")


def gone(hub: KubeHub) -> None:
    """Wait until the cluster has removed what the hub left."""
    while hub.kube(lambda kube: kube.list(PODS, hub.namespace)).items:
        time.sleep(1)


def resident_mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / 2**20)


if __name__ == "__main__":
    main()
