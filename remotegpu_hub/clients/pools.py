"""Pools of hosts of a cluster: which nodes belong to it, and how a run there gets its GPUs. Plain values that the
operator's configuration gives; the manual is docs/kubernetes.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..errors import Invalid


class Binding(StrEnum):
    """How an allocation's GPUs reach its pod."""

    DEVICE_PLUGIN = "device-plugin"
    """A count of an extended resource; which device it is, is learned afterwards."""
    VISIBLE_DEVICES = "visible-devices"
    """NVIDIA_VISIBLE_DEVICES by UUID, with the nvidia runtime and no device plugin."""
    HAMI = "hami"
    """HAMi's resources, by UUID, with its scheduler."""
    DRA = "dra"
    """A claim of `resource.k8s.io/v1` that names the UUIDs: Kubernetes 1.34 or newer."""


@dataclass(frozen=True)
class Pool:
    """Nodes that are handled alike. The first pool whose selector fits takes a node."""

    name: str
    binding: Binding = Binding.DEVICE_PLUGIN
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that a node of the pool wears; none: every node."""
    tolerations: Sequence[Mapping[str, Any]] = ()
    """For its pods, as Kubernetes writes them. Those of the GPU vendors' own taints come by themselves."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """On its pods, such as Kueue's `kueue.x-k8s.io/queue-name` or KAI's `kai.scheduler/queue`."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    scheduler_name: str = ""
    runtime_class: str = ""
    shares: Mapping[str, int] = field(default_factory=dict)
    """Equal shares of a GPU by model: for HAMi, which enforces them, or for `visible-devices`, where nothing does."""
    simulated: bool = False
    """Its GPUs do not exist, and every page says so."""

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels belongs to it."""
        return all(labels.get(key) == value for key, value in self.node_selector.items())


def read(given: Sequence[Any]) -> list[Pool]:
    """Read the operator's list. Raises: Invalid, in a sentence."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, dict) for one in given):
        raise Invalid("pools are a list of dictionaries, each with a name.")
    pools = []
    for one in given:
        unknown = sorted(set(one) - set(Pool.__dataclass_fields__))
        if unknown:
            raise Invalid("a pool has no {value}: write of {known}.", value=", ".join(unknown),
                          known=", ".join(Pool.__dataclass_fields__))  # fmt: skip
        name = one.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise Invalid("a pool needs a name of at most 64 characters.")
        try:
            binding = Binding(one.get("binding", Binding.DEVICE_PLUGIN))
        except ValueError:
            raise Invalid("{value} is not a binding: choose of {known}.", value=one["binding"],
                          known=", ".join(Binding)) from None  # fmt: skip
        for key in ("node_selector", "labels", "annotations"):
            if not _is_texts(one.get(key, {})):
                raise Invalid("{key} of the pool {name} is a dictionary of texts.", key=key, name=name)
        if not all(isinstance(toleration, dict) for toleration in one.get("tolerations", ())):
            raise Invalid("tolerations of the pool {name} are dictionaries, as Kubernetes writes them.", name=name)
        if not all(type(count) is int and count > 1 for count in dict(one.get("shares", {})).values()):
            raise Invalid("shares of the pool {name} are numbers from 2 on, by GPU model.", name=name)
        if one.get("shares") and binding not in (Binding.HAMI, Binding.VISIBLE_DEVICES):
            raise Invalid("the pool {name} cannot have shares: {binding} gives whole devices, or what the device "
                          "plugin itself makes of them.", name=name, binding=binding)  # fmt: skip
        pools.append(Pool(**{**one, "binding": binding}))
    names = [pool.name for pool in pools]
    if len(set(names)) < len(names):
        raise Invalid("two pools have the same name.")
    return pools


def single_models(pools: Sequence[Pool]) -> frozenset[str]:
    """Models of shares of which a run can hold one: HAMi takes each device that a pod asks for from another GPU, so two
    shares of the same GPU never find a place."""
    return frozenset(
        f"{model}/{count}" for pool in pools if pool.binding == Binding.HAMI for model, count in pool.shares.items()
    )


def _is_texts(given: Any) -> bool:
    return isinstance(given, dict) and all(isinstance(part, str) for pair in given.items() for part in pair)


def of(pools: Sequence[Pool], labels: Mapping[str, str]) -> Pool | None:
    """The pool of a node with these labels."""
    return next((pool for pool in pools if pool.has(labels)), None)
