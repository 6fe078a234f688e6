"""What a large cluster costs the service that follows it: nodes that exist only as objects, 8 simulated GPUs each.

Time until all hosts are known and written, the process's memory for it, and what one more look costs when nothing, or
one node, has changed. Needs root on Debian, or REMOTEGPU_TEST_CLUSTER: see kube_spawn.py.

    python benchmarks/kube_scale.py [--quick]
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kubernetes.aio
import psutil
from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

from benchmarks.parts.machine import describe
from remotegpu_hub import migrations, workers
from remotegpu_hub.clients.cluster import Cluster
from remotegpu_hub.clients.kubernetes import NODES, Kubernetes
from remotegpu_hub.clients.pools import Pool
from remotegpu_hub.db import open_engine, prepare_sqlite
from remotegpu_hub.runtime import Runtime, Settings
from tests.cluster.cluster import found_or_started
from tests.cluster.played import MARK, add, name_of, remove, with_all


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="only show that it works; the numbers mean nothing")
    count = 20 if options.parse_args().quick else 1000
    print(describe())
    with tempfile.TemporaryDirectory(prefix="remotegpu-kube-scale-") as name, found_or_started() as cluster:
        asyncio.run(measure(Path(name), cluster.kubeconfig, count))


async def measure(folder: Path, kubeconfig: str, count: int) -> None:
    kube = await Kubernetes.connect(kubernetes.aio, kubeconfig=kubeconfig)
    try:
        await with_all(kube, count, add)
        url = f"sqlite:///{folder}/hub.sqlite"
        prepare_sqlite(url)
        engine = open_engine(url)
        migrations.init(engine)
        engine.dispose()
        runtime = Runtime(Settings(db_url=url, hub_id="benchmark", local=False))
        memory = psutil.Process().memory_info().rss
        site = Cluster(
            kubernetes.aio, hub_id="benchmark", namespace="default", kubeconfig=kubeconfig,
            pools=[Pool("played", node_selector={MARK: "true"}, simulated=True)],
        )  # fmt: skip
        begin = time.perf_counter()
        hosts = await site.hosts()
        known = time.perf_counter()
        await asyncio.to_thread(workers._sync_hosts, runtime, site.pool, hosts)
        written = time.perf_counter()
        assert len(hosts) == count, len(hosts)
        print(f"{count} nodes with {sum(len(host.gpus) for host in hosts)} GPUs")
        print(f"  known after {known - begin:.2f} s, all written to SQLite after {written - begin:.1f} s")
        more = (psutil.Process().memory_info().rss - memory) / 2**20
        print(f"  {more:.0f} MiB for what is remembered of them")
        print(f"  another look, nothing changed: {await look(runtime, site):.2f} s")
        await kube.patch(NODES, name_of(0), {"spec": {"unschedulable": True}})
        begin = time.perf_counter()
        while next(host for host in await site.hosts() if host.name == name_of(0)).online:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        print(f"  a cordon is known after {1000 * (time.perf_counter() - begin):.0f} ms, and written in "
              f"{await look(runtime, site):.2f} s")  # fmt: skip
        await site.close()
        runtime.engine.dispose()
    finally:
        await with_all(kube, count, remove)
        await kube.close()


async def look(runtime: Runtime, site: Cluster) -> float:
    begin = time.perf_counter()
    hosts = await site.hosts()
    await asyncio.to_thread(workers._sync_hosts, runtime, site.pool, hosts)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
