"""Nodes as their vendors label them, and what is left when others' pods are subtracted."""

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from remotegpu_hub.clients import nodes
from remotegpu_hub.clients.nodes import GPUS_ANNOTATION, HUB_LABEL, observe, quantity
from remotegpu_hub.clients.pools import Binding, Pool
from remotegpu_hub.errors import Invalid
from remotegpu_hub.observed import Gpu, Slot

HUB = "hub-1"
POOL = Pool("gpus")
NVIDIA = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.memory": "81920"}
A100 = "A100-SXM4-80GB"


def node(
    resources: dict[str, str] | None = None, labels: dict[str, str] | None = None, *,
    capacity: dict[str, str] | None = None, annotations: dict[str, str] | None = None, spec: dict[str, Any] | None = None,
    ready: str = "True",
) -> dict[str, Any]:  # fmt: skip
    room = {"cpu": "63500m", "memory": "515Gi", **(resources or {})}
    return {
        "metadata": {"name": "n1", "labels": labels or {}, "annotations": annotations or {}},
        "spec": spec or {},
        "status": {
            "allocatable": room, "capacity": {**room, **(capacity or {})},
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
            "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.7"}],
        },
    }  # fmt: skip


def pod(limits: dict[str, str], *, hub: str | None = None, phase: str = "Running", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {HUB_LABEL: hub} if hub else {}},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}], **spec},
        "status": {"phase": phase},
    }


def counted(resource: str, model: str, count: int, *, memory: int = 81920, millis: int = 1000, slots: int = 1,
            of: str | None = None, bad: int = 0, foreign: int = 0) -> tuple[Gpu, ...]:  # fmt: skip
    usable = count - bad
    return tuple(
        Gpu(number, f"{resource}#{number}", of or model, memory, healthy=number < usable,
            foreign=usable - foreign <= number < usable, slots=(Slot(model, millis),) * slots)
        for number in range(count)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", Decimal("0.5")), ("24683656Ki", Decimal(24683656 * 1024)), ("1e3", Decimal(1000)),
     ("1.5Gi", Decimal(3 * 2**29)), (8, Decimal(8)), ("2E", Decimal(2 * 10**18)), ("100u", Decimal("0.0001"))],
)  # fmt: skip
def test_quantities_are_read_as_kubernetes_writes_them(text: str, value: Decimal) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "many", "1KiB", "--1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        quantity(text)


@pytest.mark.parametrize(
    ("resources", "labels", "gpus"),
    [
        pytest.param({}, {}, (), id="no GPU"),
        pytest.param({"nvidia.com/gpu": "2"}, NVIDIA, counted("nvidia.com/gpu", A100, 2), id="whole"),
        pytest.param({"nvidia.com/gpu": "1"}, {}, counted("nvidia.com/gpu", "nvidia", 1, memory=0), id="unlabelled"),
        pytest.param(
            {"nvidia.com/gpu": "8"},
            {**NVIDIA, "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED", "nvidia.com/gpu.replicas": "4",
             "nvidia.com/gpu.sharing-strategy": "time-slicing"},
            counted("nvidia.com/gpu", f"{A100}/4", 2, millis=250, slots=4, of=A100), id="time-sliced",
        ),
        pytest.param(
            {"nvidia.com/gpu.shared": "4"}, {**NVIDIA, "nvidia.com/gpu.replicas": "2", "nvidia.com/gpu.sharing-strategy": "mps"},
            counted("nvidia.com/gpu.shared", f"{A100}/2", 2, millis=500, slots=2, of=A100), id="MPS, renamed",
        ),
        pytest.param(
            {"nvidia.com/gpu": "8"},
            {**NVIDIA, "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED", "nvidia.com/gpu.replicas": "4"},
            counted("nvidia.com/gpu", f"{A100}/4", 2, millis=250, slots=4, of=A100), id="shared, without its strategy",
        ),
        pytest.param(
            {"nvidia.com/gpu": "4"}, {**NVIDIA, "nvidia.com/gpu.replicas": "2"},
            counted("nvidia.com/gpu", f"{A100}/2", 2, millis=500, slots=2, of=A100), id="shared, by its replicas alone",
        ),
        pytest.param(
            {"nvidia.com/gpu": "2"},
            {**NVIDIA, "nvidia.com/gpu.replicas": "1", "nvidia.com/gpu.sharing-strategy": "none"},
            counted("nvidia.com/gpu", A100, 2), id="whole, and labelled so",
        ),
        pytest.param(
            {"nvidia.com/gpu": "2", "nvidia.com/gpu.shared": "0"},
            {**NVIDIA, "nvidia.com/gpu.replicas": "2", "nvidia.com/gpu.sharing-strategy": "none"},
            counted("nvidia.com/gpu", A100, 2), id="a strategy of none counts more than replicas",
        ),
        pytest.param(
            {"nvidia.com/gpu": "8"},
            {**NVIDIA, "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED", "nvidia.com/gpu.replicas": "4",
             "nvidia.com/gpu.sharing-strategy": "mps"},
            counted("nvidia.com/gpu", f"{A100}/4", 2, millis=250, slots=4, of=A100), id="MPS",
        ),
        pytest.param(
            {"nvidia.com/mig-1g.10gb": "14"},
            {**NVIDIA, "nvidia.com/mig-1g.10gb.memory": "9856", "nvidia.com/mig-1g.10gb.replicas": "2",
             "nvidia.com/mig-1g.10gb.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb-SHARED"},
            counted("nvidia.com/mig-1g.10gb", f"{A100}/1g.10gb/2", 7, memory=9856, millis=71, slots=2,
                    of=f"{A100}/1g.10gb"), id="MIG, time-sliced",
        ),
        pytest.param(
            {"nvidia.com/mig-1g.10gb.shared": "6", "nvidia.com/mig-3g.40gb": "1"},
            {**NVIDIA, "nvidia.com/mig-1g.10gb.replicas": "3"},
            (*counted("nvidia.com/mig-1g.10gb.shared", f"{A100}/1g.10gb/3", 2, memory=10240, millis=47, slots=3,
                      of=f"{A100}/1g.10gb"),
             replace(counted("nvidia.com/mig-3g.40gb", f"{A100}/3g.40gb", 1, memory=40960, millis=428)[0], index=2)),
            id="MIG, one profile time-sliced and renamed",
        ),
        pytest.param(
            {"nvidia.com/gpu": "7"}, {**NVIDIA, "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
                                      "nvidia.com/gpu.memory": "9856"},
            counted("nvidia.com/gpu", f"{A100}/1g.10gb", 7, memory=9856, millis=142), id="MIG, single",
        ),
        pytest.param({"nvidia.com/gpu": "0"}, {**NVIDIA, "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-INVALID",
                     "nvidia.com/gpu.replicas": "0"}, (), id="MIG, not split alike"),
        pytest.param({"nvidia.com/gpu": "1"}, {**NVIDIA, "nvidia.com/gpu.replicas": "many"},
                     counted("nvidia.com/gpu", A100, 1), id="a label that is no number"),
        pytest.param(
            {"nvidia.com/mig-3g.40gb": "2", "nvidia.com/gpu": "0"}, {**NVIDIA, "nvidia.com/mig-3g.40gb.memory": "40192"},
            counted("nvidia.com/mig-3g.40gb", f"{A100}/3g.40gb", 2, memory=40192, millis=428), id="MIG, mixed",
        ),
        pytest.param(
            {"amd.com/gpu": "2"}, {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"},
            counted("amd.com/gpu", "MI300X-OAM", 2, memory=196608), id="AMD",
        ),
        pytest.param(
            {"amd.com/cpx_nps4": "8"}, {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"},
            counted("amd.com/cpx_nps4", "MI300X-OAM/cpx_nps4", 8, memory=24576, millis=125), id="AMD, partitioned",
        ),
        pytest.param(
            {"amd.com/gpu": "16"}, {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G",
                                    "amd.com/compute-memory-partition": "cpx_nps4"},
            counted("amd.com/gpu", "MI300X-OAM/cpx_nps4", 16, memory=24576, millis=125), id="AMD, split by its label",
        ),
        pytest.param(
            {"amd.com/gpu": "2"}, {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G",
                                   "amd.com/compute-memory-partition": "spx_nps1"},
            counted("amd.com/gpu", "MI300X-OAM", 2, memory=196608), id="AMD, whole by its label",
        ),
        pytest.param(
            {"amd.com/spx_nps1": "2"}, {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"},
            counted("amd.com/spx_nps1", "MI300X-OAM", 2, memory=196608), id="AMD, whole by its resource",
        ),
        pytest.param(
            {"gpu.intel.com/i915": "6", "gpu.intel.com/monitoring": "1"},
            {"gpu.intel.com/product": "Flex_170", "gpu.intel.com/device.count": "2"},
            counted("gpu.intel.com/i915", "Flex-170/3", 2, memory=0, millis=333, slots=3, of="Flex-170"),
            id="Intel, shared",
        ),
        pytest.param(
            {"gpu.intel.com/xe": "1"}, {"gpu.intel.com/product": "Max_1550", "gpu.intel.com/device.count": "2"},
            counted("gpu.intel.com/xe", "Max-1550", 1, memory=0), id="Intel, of two kinds of driver",
        ),
        pytest.param({"gpu.intel.com/xe": "1"}, {"gpu.intel.com/product": "Max_1550"},
                     counted("gpu.intel.com/xe", "Max-1550", 1, memory=0), id="Intel"),
        pytest.param({"habana.ai/gaudi": "1"}, {}, counted("habana.ai/gaudi", "Gaudi", 1, memory=0), id="Gaudi"),
        pytest.param({"huawei.com/Ascend910": "1"}, {}, counted("huawei.com/Ascend910", "Ascend910", 1, memory=0),
                     id="Ascend"),
        pytest.param({"huawei.com/Ascend310P": "1"}, {}, counted("huawei.com/Ascend310P", "Ascend310P", 1, memory=0),
                     id="Ascend, for inference"),
        pytest.param({"huawei.com/Ascend910B3": "1", "huawei.com/Ascend910B3-memory": "65536",
                      "huawei.com/Ascend910B3-core": "100"}, {},
                     counted("huawei.com/Ascend910B3", "Ascend910B3", 1, memory=0), id="Ascend, and what HAMi counts of it"),
    ],
)  # fmt: skip
def test_gpus_are_counted_as_their_vendors_label_them(
    resources: dict[str, str], labels: dict[str, str], gpus: tuple[Gpu, ...]
) -> None:
    assert observe(node(resources, labels), [], pool=POOL, hub_id=HUB).gpus == gpus


def test_a_lost_gpu_is_unhealthy_and_what_others_hold_is_foreign() -> None:
    machine = node({"nvidia.com/gpu": "7"}, NVIDIA, capacity={"nvidia.com/gpu": "8"})
    others = [
        pod({"nvidia.com/gpu": "2", "cpu": "1500m", "memory": "1Gi"}),
        pod({"nvidia.com/gpu": "1", "cpu": "1"}, hub="another hub"),
        pod({"nvidia.com/gpu": "1", "cpu": "1"}, hub=HUB),
        pod({"nvidia.com/gpu": "1", "cpu": "1"}, phase="Succeeded"),
    ]
    found = observe(machine, others, pool=POOL, hub_id=HUB)
    assert found.gpus == counted("nvidia.com/gpu", A100, 8, bad=1, foreign=3)
    assert (found.cpu_millis, found.foreign_cpu_millis) == (63500, 2500)
    assert (found.memory_bytes, found.foreign_memory_bytes) == (515 * 2**30, 2**30)


def test_a_pod_counts_as_the_scheduler_counts_it() -> None:
    asked = pod({"cpu": "1", "memory": "1Gi"}, overhead={"cpu": "250m"},
                initContainers=[{"name": "i", "resources": {"requests": {"cpu": "3", "memory": "512Mi"}}}])  # fmt: skip
    asked["spec"]["containers"].append({"name": "d", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}})
    assert nodes.requests(asked) == {"cpu": 3250, "memory": 2**30}


def init(cpu: str, *, runs_on: bool = False) -> dict[str, Any]:
    more = {"restartPolicy": "Always"} if runs_on else {}
    return {"name": "i", "image": "busybox", "resources": {"requests": {"cpu": cpu, "nvidia.com/gpu": "1"}}, **more}


SIDECARS = [
    pytest.param([init("2", runs_on=True)], 3000, 2, id="is added"),
    pytest.param([init("2"), init("1", runs_on=True)], 2000, 2, id="begun after the init container, not beside it"),
    pytest.param([init("1", runs_on=True), init("2")], 3000, 2, id="begun before it, beside it"),
    pytest.param([init("1", runs_on=True), init("2"), init("500m", runs_on=True)], 3000, 3, id="before and after"),
    pytest.param([init("1", runs_on=True), init("1500m", runs_on=True)], 3500, 3, id="two"),
]


@pytest.mark.parametrize(("inits", "cpu_millis", "gpus"), SIDECARS)
def test_a_sidecar_counts_beside_the_containers_and_beside_what_is_begun_after_it(
    inits: list[dict[str, Any]], cpu_millis: int, gpus: int
) -> None:
    """As KEP-753 has it."""
    asked = pod({"cpu": "1", "nvidia.com/gpu": "1"}, initContainers=inits)
    assert nodes.requests(asked) == {"cpu": cpu_millis, "nvidia.com/gpu": gpus}


@pytest.mark.parametrize(
    ("ready", "spec", "why"),
    [
        pytest.param("True", {}, "", id="ready"),
        pytest.param("Unknown", {}, "not ready", id="silent"),
        pytest.param("True", {"unschedulable": True}, "cordoned", id="cordoned"),
        pytest.param("True", {"taints": [{"key": "a", "effect": "NoSchedule"}]}, "taint a", id="tainted"),
        pytest.param("True", {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}, "", id="rather not"),
        pytest.param("True", {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]}, "",
                     id="a vendor's taint"),
        pytest.param("True", {"taints": [{"key": "team", "value": "x", "effect": "NoExecute"}]}, "", id="tolerated"),
    ],
)  # fmt: skip
def test_a_host_takes_nothing_new_when_its_node_would_not(ready: str, spec: dict[str, Any], why: str) -> None:
    pool = Pool("p", tolerations=[{"key": "team", "operator": "Equal", "value": "x"}])
    found = observe(node(spec=spec, ready=ready), [], pool=pool, hub_id=HUB)
    assert (found.online, found.labels.get(nodes.WHY, "")) == (not why, why)


def test_toleration_of_everything_and_of_another_value() -> None:
    taints = {"taints": [{"key": "team", "value": "y", "effect": "NoSchedule"}]}
    for toleration, online in (({"operator": "Exists"}, True), ({"key": "team", "value": "x"}, False),
                               ({"key": "team", "operator": "Exists", "effect": "NoExecute"}, False)):  # fmt: skip
        pool = Pool("p", tolerations=[toleration])
        assert observe(node(spec=taints), [], pool=pool, hub_id=HUB).online is online


NAMED = [("GPU-1", A100, 81920, True), ("GPU-2", A100, 81920, False)]


def named(*, foreign: str = "", shares: int = 1) -> tuple[Gpu, ...]:
    slot = Slot(A100) if shares == 1 else Slot(f"{A100}/{shares}", 1000 // shares)
    return tuple(
        Gpu(number, uuid, model, memory, healthy=healthy, foreign=uuid == foreign, slots=(slot,) * shares)
        for number, (uuid, model, memory, healthy) in enumerate(NAMED)
    )


def device(uuid: str, **more: Any) -> dict[str, Any]:
    attributes = {
        "uuid": {"string": uuid},
        "type": {"string": "gpu"},
        "productName": {"string": "NVIDIA A100-SXM4-80GB"},
    }
    return {"name": uuid.lower(), "attributes": attributes, "capacity": {"memory": {"value": "80Gi"}}, **more}


@pytest.mark.parametrize(
    ("pool", "annotations", "slices"),
    [
        pytest.param(
            Pool("h", Binding.HAMI),
            {"hami.io/node-nvidia-register": json.dumps([
                {"id": "GPU-1", "count": 10, "devmem": 81920, "type": "NVIDIA-A100-SXM4-80GB", "health": True},
                {"id": "GPU-2", "count": 10, "devmem": 81920, "type": "NVIDIA-A100-SXM4-80GB", "health": False}])},
            [], id="HAMi",
        ),
        pytest.param(
            Pool("h", Binding.HAMI),
            {"hami.io/node-nvidia-register": "GPU-1,10,81920,100,NVIDIA-A100-SXM4-80GB,0,true:"
                                             "GPU-2,10,81920,100,NVIDIA-A100-SXM4-80GB,1,false:"},
            [], id="HAMi before 2.6",
        ),
        pytest.param(
            Pool("d", Binding.DRA), {},
            [{"spec": {"driver": "gpu.nvidia.com", "devices": [device("GPU-1"), device("GPU-2", taints=[{"key": "x", "effect": "NoSchedule"}]),
                                   {"name": "mig", "attributes": {"type": {"string": "mig"}}}]}},
             {"spec": {"driver": "gpu.example.org", "devices": [device("GPU-3")]}}],
            id="DRA, and another driver's devices",
        ),
        pytest.param(
            Pool("h", Binding.HAMI),
            {"hami.io/node-nvidia-register": ("GPU-1,10,81920,100,NVIDIA-A100-SXM4-80GB,0,true:"
                                              "GPU-2,10,81920,100,NVIDIA-A100-SXM4-80GB,1,false:") * 2},
            [], id="each told twice",
        ),
    ],
)  # fmt: skip
def test_devices_that_are_named_keep_their_names(
    pool: Pool, annotations: dict[str, str], slices: list[dict[str, Any]]
) -> None:
    found = observe(node(annotations=annotations), [], pool=pool, hub_id=HUB, slices=slices)
    assert found.gpus == named()


def test_shares_of_hami_and_a_device_that_somebody_else_was_given() -> None:
    told = json.dumps(
        [{"id": uuid, "devmem": memory, "type": model, "health": well} for uuid, model, memory, well in NAMED]
    )
    other = pod({})
    other["metadata"]["annotations"] = {"hami.io/vgpu-devices-allocated": "GPU-1,NVIDIA,1000,10:;"}
    pool = Pool("h", Binding.HAMI, shares={A100: 4})
    machine = node(annotations={"hami.io/node-nvidia-register": told})
    assert observe(machine, [other], pool=pool, hub_id=HUB).gpus == named(foreign="GPU-1", shares=4)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"uuid": "GPU-1"}]', '{"uuid": 1}'])
def test_a_broken_annotation_gives_no_gpus(text: str) -> None:
    for binding, key in ((Binding.VISIBLE_DEVICES, GPUS_ANNOTATION), (Binding.HAMI, "hami.io/node-nvidia-register")):
        machine = node(annotations={key: text})
        assert observe(machine, [], pool=Pool("p", binding), hub_id=HUB).gpus == ()


def test_the_annotation_of_visible_devices_names_them() -> None:
    told = json.dumps([{"uuid": "GPU-1", "model": A100, "memory_mib": 81920}])
    found = observe(node(annotations={GPUS_ANNOTATION: told}), [], pool=Pool("v", Binding.VISIBLE_DEVICES), hub_id=HUB)
    assert found.gpus == named()[:1]


def test_the_outside_address_comes_first() -> None:
    machine = node()
    assert observe(machine, [], pool=POOL, hub_id=HUB).address == "192.0.2.7"
    machine["status"]["addresses"].append({"type": "ExternalIP", "address": "198.51.100.9"})
    assert observe(machine, [], pool=POOL, hub_id=HUB).address == "198.51.100.9"
