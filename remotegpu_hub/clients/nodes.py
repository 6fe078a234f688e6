"""What a Kubernetes node offers, read from its object and from the pods on it. Pure: what is asked of the cluster, and
when, is elsewhere.

Labels are those of GPU Feature Discovery for NVIDIA, of AMD's and Intel's labellers; Ascend and Gaudi name the model in
the resource. A device plugin tells only how many devices there are: such a device is called `RESOURCE#NUMBER` until a
run that holds it tells its UUID.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from ..errors import Invalid
from ..observed import Gpu, Host, Slot
from .pools import Binding, Pool

Object = Mapping[str, Any]

PREFIX: Final = "remotegpu-hub/"
HUB_LABEL: Final = PREFIX + "hub"
ALLOCATION_LABEL: Final = PREFIX + "allocation"
ATTEMPT_LABEL: Final = PREFIX + "attempt"
"""Tells a run from one that had its number before the database was restored from a backup."""
VOLUME_LABEL: Final = PREFIX + "volume"
GPUS_ANNOTATION: Final = PREFIX + "gpus"
"""On a node whose pool binds by `visible-devices`: a JSON list of `{"uuid", "model", "memory_mib"}`."""
WHY: Final = PREFIX + "why"
"""Among a host's labels: why it takes nothing new."""
VENDOR_TAINTS: Final = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi")
_SUFFIXES: Final = {
    "": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY: Final = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)")
_MIG: Final = re.compile(r"nvidia\.com/mig-((\d+)g\.(\d+)gb(?:\..+)?)")
_MIG_SLICES: Final = re.compile(r"(\d+)g\.")
_ASCEND: Final = re.compile(r"huawei\.com/(Ascend\w+)")
_AMD_PARTITION: Final = re.compile(r"((spx|dpx|tpx|qpx|cpx)_nps\d)")
_AMD_PARTS: Final = {"spx": 1, "dpx": 2, "tpx": 3, "qpx": 4, "cpx": 8}
MIG_SLICES: Final = 7
DRA_DRIVER: Final = "gpu.nvidia.com"
_KEPT_LABELS: Final = (
    "topology.kubernetes.io/zone", "topology.kubernetes.io/region", "nvidia.com/cuda.driver-version.full",
    "nvidia.com/mig.strategy", "nvidia.com/gpu.product",
)  # fmt: skip


def quantity(text: str | int | float) -> Decimal:
    """Read a quantity as Kubernetes writes it, such as `500m`, `24683656Ki` or `1e3`. Raises: Invalid."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in _SUFFIXES:
        raise Invalid("{value} is not a quantity of Kubernetes.", value=text)
    return Decimal(match[1]) * _SUFFIXES[match[2]]


def observe(node: Object, pods: Iterable[Object], *, pool: Pool, hub_id: str, slices: Iterable[Object] = ()) -> Host:
    """Describe a node. `pods` are those on it, ours and others'; `slices` its ResourceSlices, where DRA is used.

    Others' pods are those without this hub's label: what they hold is told as foreign.
    """
    status, metadata = node["status"], node["metadata"]
    labels = metadata.get("labels") or {}
    allocatable = status.get("allocatable") or {}
    others = [pod for pod in pods if is_others(pod, hub_id) and not is_over(pod)]
    held: Counter[str] = Counter()
    for pod in others:
        held.update(requests(pod))
    why = unavailable(node, pool)
    kept = {name: labels[name] for name in _KEPT_LABELS if name in labels}
    return Host(
        name=metadata["name"],
        pool=pool.name,
        cpu_millis=int(quantity(allocatable.get("cpu", 0)) * 1000),
        memory_bytes=int(quantity(allocatable.get("memory", 0))),
        foreign_cpu_millis=held["cpu"],
        foreign_memory_bytes=held["memory"],
        gpus=tuple(_gpus(node, pool, held, others, slices)),
        simulated=pool.simulated,
        online=not why,
        address=_address(status),
        labels={**kept, **({WHY: why} if why else {})},
    )


def unavailable(node: Object, pool: Pool) -> str:
    """Why a node can take no new pods of the pool; empty when it can."""
    if not is_ready(node):
        return "not ready"
    spec = node.get("spec") or {}
    if spec.get("unschedulable"):
        return "cordoned"
    accepted = tolerations(pool)
    for taint in spec.get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(one, taint) for one in accepted):
            return f"taint {taint['key']}"
    return ""


def is_ready(node: Object) -> bool:
    """Whether its kubelet reports: without, nobody knows what runs there."""
    conditions = node["status"].get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def tolerations(pool: Pool) -> list[dict[str, Any]]:
    """What the pods of a pool tolerate: what the operator said, and the taints of the GPU vendors."""
    own = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in VENDOR_TAINTS]
    return [*(dict(one) for one in pool.tolerations), *own]


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint["key"]:
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", "")


def is_over(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_others(pod: Object, hub_id: str) -> bool:
    return (pod["metadata"].get("labels") or {}).get(HUB_LABEL) != hub_id


def requests(pod: Object) -> dict[str, int]:
    """What the scheduler counts for a pod: `cpu` in thousandths, `memory` in bytes, extended resources in pieces.

    As kube-scheduler does: the containers and the sidecars together, or the largest init container with the sidecars
    that were begun before it, plus the overhead. A sidecar is an init container that runs on (KEP-753).
    """
    spec = pod["spec"]
    together: Counter[str] = Counter()
    for container in spec["containers"]:
        together.update(_of_container(container))
    sidecars: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for container in spec.get("initContainers") or ():
        asked = Counter(_of_container(container))
        if container.get("restartPolicy") == "Always":
            together.update(asked)
            sidecars.update(asked)
            most |= sidecars
        else:
            most |= sidecars + asked
    together |= most
    together.update({name: _amount(name, value) for name, value in (spec.get("overhead") or {}).items()})
    return dict(together)


def _of_container(container: Object) -> dict[str, int]:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: _amount(name, value) for name, value in asked.items()}


def _amount(name: str, value: Any) -> int:
    return int(quantity(value) * (1000 if name == "cpu" else 1))


def _address(status: Object) -> str:
    """Where people reach its node ports: the outside address where it has one."""
    found = {one["type"]: one["address"] for one in status.get("addresses") or ()}
    return found.get("ExternalIP") or found.get("InternalIP") or found.get("Hostname") or ""


@dataclass(frozen=True)
class _Stock:
    """The devices of one extended resource."""

    model: str
    memory_mib: int
    gpu_millis: int = 1000
    """Of a whole GPU, that one device is."""
    replicas: int = 1
    """Shares that the plugin makes of each device."""


def _gpus(
    node: Object, pool: Pool, held: Mapping[str, int], others: Sequence[Object], slices: Iterable[Object]
) -> Iterable[Gpu]:
    if pool.binding == Binding.DEVICE_PLUGIN:
        return _counted(node, held)
    if pool.binding == Binding.VISIBLE_DEVICES:
        named = _annotated(node)
    elif pool.binding == Binding.HAMI:
        named = _registered(node)
    else:
        named = _sliced(slices)
    named = list({one[0]: one for one in named}.values())  # told twice, it is one device
    taken = " ".join(json.dumps(pod["metadata"].get("annotations") or {}) for pod in others)
    return [
        Gpu(index, uuid, model, memory, healthy=healthy, foreign=uuid in taken, slots=_slots(model, pool.shares))
        for index, (uuid, model, memory, healthy) in enumerate(named)
    ]


def _slots(model: str, shares: Mapping[str, int]) -> tuple[Slot, ...]:
    count = shares.get(model, 1)
    return (Slot(model),) if count == 1 else (Slot(f"{model}/{count}", 1000 // count),) * count


def _counted(node: Object, held: Mapping[str, int]) -> list[Gpu]:
    """Devices that a plugin only counts. Which ones others hold nobody tells, so the last ones are taken to be theirs:
    only how many counts."""
    capacity = node["status"].get("capacity") or {}
    allocatable = node["status"].get("allocatable") or {}
    labels = node["metadata"].get("labels") or {}
    gpus: list[Gpu] = []
    for resource in sorted(capacity.keys() | allocatable.keys()):
        healthy = int(quantity(allocatable.get(resource, 0)))
        pieces = max(healthy, int(quantity(capacity.get(resource, 0))))
        stock = _stock(resource, labels, pieces)
        if stock is None:
            continue
        count = pieces // stock.replicas
        usable = healthy // stock.replicas
        foreign = -(-held.get(resource, 0) // stock.replicas)
        model = stock.model if stock.replicas == 1 else f"{stock.model}/{stock.replicas}"
        slot = Slot(model, stock.gpu_millis // stock.replicas)
        gpus += [
            Gpu(
                index=len(gpus) + number,
                uuid=f"{resource}#{number}",
                model=stock.model,
                memory_mib=stock.memory_mib,
                healthy=number < usable,
                foreign=usable - foreign <= number < usable,
                slots=(slot,) * stock.replicas,
            )
            for number in range(count)
        ]
    return gpus


def _stock(resource: str, labels: Mapping[str, str], pieces: int) -> _Stock | None:
    """What the devices of a resource are, of which the node has so many pieces; None for one that is no GPU."""
    if resource in ("nvidia.com/gpu", "nvidia.com/gpu.shared"):
        product = labels.get("nvidia.com/gpu.product", "")
        whole, _, mig = product.removesuffix("-SHARED").partition("-MIG-")
        model, millis = short_model(whole) or "nvidia", 1000
        if mig:  # the strategy `single`: each device is a slice
            slices = _MIG_SLICES.match(mig)
            if slices is None:  # `INVALID`: its GPUs are not split alike, and nothing of them can be had
                return None
            model, millis = f"{model}/{mig}", 1000 * int(slices[1]) // MIG_SLICES
        replicas = _replicas(resource, labels, "nvidia.com/gpu")
        return _Stock(model, _number(labels.get("nvidia.com/gpu.memory")), millis, replicas)
    if mig_match := _MIG.fullmatch(resource.removesuffix(".shared")):
        profile, parts, gigabytes = mig_match[1], int(mig_match[2]), int(mig_match[3])
        whole = short_model(labels.get("nvidia.com/gpu.product", "")) or "nvidia"
        memory = _number(labels.get(f"nvidia.com/mig-{profile}.memory")) or gigabytes * 1024
        replicas = _replicas(resource, labels, f"nvidia.com/mig-{profile}")
        return _Stock(f"{whole}/{profile}", memory, 1000 * parts // MIG_SLICES, replicas)
    if resource == "amd.com/gpu":  # its plugin's strategy `single`: a label tells how each GPU is split
        return _amd(labels, _AMD_PARTITION.fullmatch(labels.get("amd.com/compute-memory-partition", "").lower()))
    if resource.startswith("amd.com/") and (part := _AMD_PARTITION.fullmatch(resource.removeprefix("amd.com/"))):
        return _amd(labels, part)
    if resource in ("gpu.intel.com/i915", "gpu.intel.com/xe"):
        devices = _number(labels.get("gpu.intel.com/device.count"))
        shares = pieces // devices if devices and pieces % devices == 0 else 1  # the plugin's `-shared-dev-num`
        return _Stock(short_model(labels.get("gpu.intel.com/product", "")) or "intel", 0, replicas=max(shares, 1))
    if resource == "habana.ai/gaudi":
        return _Stock("Gaudi", 0)
    if ascend := _ASCEND.fullmatch(resource):
        return _Stock(ascend[1], 0)
    return None


def _amd(labels: Mapping[str, str], split: re.Match[str] | None) -> _Stock:
    model = short_model(labels.get("amd.com/gpu.product-name", "")) or "amd"
    parts = _AMD_PARTS[split[2]] if split else 1
    if split is None or parts == 1:
        return _Stock(model, _vram(labels))
    return _Stock(f"{model}/{split[1]}", _vram(labels) // parts, 1000 // parts)


def _replicas(resource: str, labels: Mapping[str, str], prefix: str) -> int:
    """Shares that NVIDIA's plugin makes of each device. Older ones label no strategy, but a product's name with SHARED;
    with a name of its own for shares, the product's name stays."""
    count = _number(labels.get(f"{prefix}.replicas"))
    strategy = labels.get(f"{prefix}.sharing-strategy")
    named = resource.endswith(".shared") or labels.get(f"{prefix}.product", "").endswith("-SHARED")
    shared = named or (count > 1 if strategy is None else strategy != "none")
    return max(count, 1) if shared else 1


def short_model(product: str) -> str:
    """A model's name as people say it: without the maker, as `A100-SXM4-80GB`."""
    name = re.sub(r"[\s_]+", "-", product.strip())
    return re.sub(r"^(NVIDIA|Tesla|AMD|Instinct|Intel|Data-Center-GPU)-", "", re.sub(r"^(NVIDIA|AMD)-", "", name))[:80]


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _vram(labels: Mapping[str, str]) -> int:
    """Mebibytes of `192G`, as AMD's labeller writes it: binary, whatever it looks like."""
    match = re.fullmatch(r"(\d+)([MG])i?B?", labels.get("amd.com/gpu.vram", ""))
    return int(match[1]) * (1024 if match[2] == "G" else 1) if match else 0


_Named = tuple[str, str, int, bool]
"""UUID, model, memory in MiB, healthy."""


def _annotated(node: Object) -> list[_Named]:
    try:
        told = json.loads((node["metadata"].get("annotations") or {}).get(GPUS_ANNOTATION, "[]"))
        return [(str(one["uuid"]), str(one["model"]), int(one.get("memory_mib", 0)), True) for one in told]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _registered(node: Object) -> list[_Named]:
    """HAMi's own list on the node: JSON since 2.6, before that `UUID,count,memory,cores,type,numa,healthy,…:`."""
    text = (node["metadata"].get("annotations") or {}).get("hami.io/node-nvidia-register", "")
    rows: list[_Named] = []
    try:
        if text.startswith("["):
            for one in json.loads(text):
                rows.append((str(one["id"]), short_model(str(one["type"])), int(one["devmem"]), bool(one["health"])))
        else:
            for part in filter(None, text.split(":")):
                uuid, _count, memory, _cores, kind, _numa, health = part.split(",")[:7]
                rows.append((uuid, short_model(kind), int(memory), health == "true"))
    except (ValueError, TypeError, KeyError):
        return []
    return rows


def _sliced(slices: Iterable[Object]) -> list[_Named]:
    """Whole GPUs of NVIDIA's DRA driver."""
    rows: list[_Named] = []
    for one in slices:
        if one["spec"].get("driver") != DRA_DRIVER:
            continue
        for device in one["spec"].get("devices") or ():
            facts = {name: next(iter(value.values())) for name, value in (device.get("attributes") or {}).items()}
            if facts.get("type") != "gpu" or "uuid" not in facts:
                continue
            memory = (device.get("capacity") or {}).get("memory", {}).get("value", 0)
            tainted = any(taint.get("effect") != "None" for taint in device.get("taints") or ())
            model = short_model(str(facts.get("productName", "")))
            rows.append((str(facts["uuid"]), model or "nvidia", int(quantity(memory)) >> 20, not tainted))
    return rows
