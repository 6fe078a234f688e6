"""What a start on Kubernetes costs with us in the hub, beside plain KubeSpawner on the same cluster with the same pod.

Request to the pod's own first 200, probed from outside both hubs, in interleaved pairs: the paired median difference.
Needs root on Debian: it starts the tests' own cluster, or takes the one whose folder REMOTEGPU_TEST_CLUSTER names.

    python benchmarks/kube_spawn.py [--quick]
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp

from benchmarks.parts.figures import median_interval, verdict
from benchmarks.parts.machine import Stopwatch, describe
from remotegpu_hub.clients.kubernetes import PODS, Kubernetes
from tests.cluster.cluster import LocalCluster, found_or_started
from tests.kube_hubs import A100, KubeHub

AIM_SLOWER_PERCENT = 5
PROBE_SECONDS = 0.01
PATIENCE_SECONDS = 120
PLAIN = """
c.KubeSpawner.environment["REMOTEGPU_ALLOCATION_ID"] = "0"  # the small server's file is called after it
c.KubeSpawner.image = {image!r}
c.Spawner.cmd = {cmd!r}
c.Spawner.args = {args!r}
c.KubeSpawner.cpu_limit = c.KubeSpawner.cpu_guarantee = 0.1
c.KubeSpawner.mem_limit = c.KubeSpawner.mem_guarantee = "128M"
c.KubeSpawner.extra_resource_limits = {{"nvidia.com/gpu": "1"}}
c.KubeSpawner.storage_pvc_ensure = True
c.KubeSpawner.storage_capacity = "1G"
c.KubeSpawner.storage_access_modes = ["ReadWriteOnce"]
c.KubeSpawner.volumes += [
    {{"name": "home", "persistentVolumeClaim": {{"claimName": "{{pvc_name}}"}}}},
    {{"name": "shm", "emptyDir": {{"medium": "Memory", "sizeLimit": "64Mi"}}}},
]
c.KubeSpawner.volume_mounts += [
    {{"name": "home", "mountPath": "/home/jovyan"}}, {{"name": "shm", "mountPath": "/dev/shm"}},
]
c.KubeSpawner.working_dir = "/home/jovyan"
c.KubeSpawner.pod_security_context = {{
    "runAsNonRoot": True, "fsGroup": 100, "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {{"type": "RuntimeDefault"}},
}}
c.KubeSpawner.container_security_context = {{
    "runAsUser": 1000, "allowPrivilegeEscalation": False, "privileged": False, "capabilities": {{"drop": ["ALL"]}},
}}
c.KubeSpawner.extra_pod_config = {{"restartPolicy": "Never", "enableServiceLinks": False}}
"""
"""A pod as safe as ours, with as much shared memory: what that takes the kubelet is no matter of the hub's."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="only show that it works; the numbers mean nothing")
    pairs = 2 if options.parse_args().quick else 20
    print(describe())
    with tempfile.TemporaryDirectory(prefix="remotegpu-kube-spawn-") as name, found_or_started() as cluster:
        Path(name).chmod(0o755)
        with two_hubs(Path(name), cluster) as hubs:
            watch = Stopwatch()
            measure(hubs, pairs)
            print(f"Other processes took {watch.read().others_percent:.0f} % of the machine meanwhile.")


@contextmanager
def two_hubs(folder: Path, cluster: LocalCluster) -> Iterator[dict[str, KubeHub]]:
    with KubeHub(folder / "ours", cluster) as ours:
        image = ours.plain_image
        name = f"{ours.image('plain').rsplit(':', 1)[0]}@{image['digest']}"
        plain = KubeHub(folder / "plain", cluster, configured=False)
        args = [str(plain.runs) if one == str(ours.runs) else one for one in image["args"]]
        cmd = [str(one).replace(str(ours.runs), str(plain.runs)) for one in image["cmd"]]
        plain.reconfigure(PLAIN.format(image=name, cmd=cmd, args=args))
        with plain:
            plain.api("POST", "users/alice").raise_for_status()
            yield {"ours": ours, "plain": plain}


def measure(hubs: dict[str, KubeHub], pairs: int) -> None:
    """Interleave starts of both, the first of each pair by turns; both stop together."""
    seconds: dict[str, list[float]] = {name: [] for name in hubs}
    for number in range(-1, pairs):  # the first pair makes the volumes and warms up
        for name in sorted(hubs, reverse=bool(number % 2)):
            took = first_answer(hubs[name])
            if number >= 0:
                seconds[name].append(took)
        with ThreadPoolExecutor() as threads:
            list(threads.map(stop, hubs.values()))
    slower = [100 * (a - b) / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    middle, low, high = median_interval(slower)
    print(f"Request to the pod's own first 200, {pairs} interleaved pairs")
    print(f"  ours {median(seconds['ours']):.3f} s, plain KubeSpawner {median(seconds['plain']):.3f} s (medians)")
    print(f"  paired median difference {middle:+.1f} %, 95 % interval {low:+.1f} to {high:+.1f} %; aim at most "
          f"+{AIM_SLOWER_PERCENT} %: {verdict(middle <= AIM_SLOWER_PERCENT)}")  # fmt: skip


def first_answer(hub: KubeHub) -> float:
    """Seconds from the request to the hub until the pod itself answers 200."""
    wish = {"workspace": "lab", "image": hub.image("plain"), "gpus": 1, "gpu_model": A100} if hub.configured else {}
    with ThreadPoolExecutor() as threads:
        begin = time.perf_counter()
        asked = threads.submit(hub.ask, "alice", wish)
        end: float = hub.kube(lambda kube: _until_it_answers(kube, hub.namespace))
        answer = asked.result()
    if answer.status_code not in (201, 202):
        raise SystemExit(f"{answer.status_code} {answer.text}\n{hub.log_tail()}")
    while not hub.model("alice").get("ready"):
        time.sleep(0.1)
    return end - begin


async def _until_it_answers(kube: Kubernetes, namespace: str) -> float:
    async with aiohttp.ClientSession() as http, asyncio.timeout(PATIENCE_SECONDS):
        while True:
            for pod in (await kube.list(PODS, namespace)).items:
                address = pod["status"].get("podIP")
                try:
                    if address and (await http.get(f"http://{address}:8888/")).status == 200:
                        return time.perf_counter()
                except aiohttp.ClientError:
                    pass
            await asyncio.sleep(PROBE_SECONDS)


def stop(hub: KubeHub) -> None:
    hub.api("DELETE", hub.path("alice"))
    while hub.model("alice"):
        time.sleep(0.2)


if __name__ == "__main__":
    main()
