"""The pod of a run: what KubeSpawner made of the operator's configuration, completed by what admission gave. Pure.

Ours comes last and wins: host, image, resources, GPUs and the rules of safety are not the operator's hooks' to change,
and a user's choice has reached nothing but `Held`."""

import copy
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

from ..clients import cluster, nodes
from ..clients.nodes import PREFIX, VOLUME_LABEL
from ..clients.pods import CONTAINER
from ..clients.pools import Binding, Pool
from . import ssh
from .spawner import Held, HeldVolume

Object = dict[str, Any]

MADE: Final = PREFIX + "made"
"""On a claim: when its volume was made."""
SHM: Final = "shm"
GPU_CLAIM: Final = "gpu"
OURS: Final = frozenset(
    {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
     "CUDA_DISABLE_CONTROL", "GPU_CORE_UTILIZATION_POLICY", "CUDA_DEVICE_MEMORY_SHARED_CACHE", "LD_PRELOAD",
     "AMD_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "HABANA_VISIBLE_DEVICES"}
)  # fmt: skip
"""Env vars by which a pod would get GPUs that nobody gave it, or limits off that HAMi enforces. Never from outside."""
_HIDDEN: Final = {
    "NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": "", "AMD_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "",
    "ASCEND_VISIBLE_DEVICES": "", "HABANA_VISIBLE_DEVICES": "",
}  # fmt: skip
"""Said to each vendor's runtime, since an image may ask it for all devices by itself."""
_LOOSE: Final = ("runAsNonRoot", "seccompProfile", "procMount")
"""By these a container would free itself of what its pod is bound to. The user's server may not; an operator's init or
helper container may, to make a folder ready as root."""
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def name_of(held: Held, hub_id: str) -> str:
    """A pod's name, never used twice: a run that is still going never stands in the way of the next one."""
    who = re.sub(r"[^a-z0-9]+", "-", held.user_name.lower()).strip("-")[:24].strip("-") or "user"
    return f"rgpu-{who}{cluster.name_end(hub_id, held.allocation_id)}"


def worn_by(held: Held, hub_id: str) -> dict[str, str]:
    """The labels of every object of the run, by which a Service finds its pod."""
    return cluster.worn_by(hub_id, held.allocation_id, held.attempt)


def claim_template_name(held: Held, hub_id: str) -> str:
    return f"{name_of(held, hub_id)}-gpu"


def complete(manifest: Object, *, held: Held, pool: Pool, hub_id: str, home: str = "/home/jovyan") -> Object:
    """The whole pod. `manifest` is KubeSpawner's, as JSON; it is not changed. `home` is where the home volume is seen;
    the shared one is below it."""
    pod = copy.deepcopy(manifest)
    metadata, spec = pod["metadata"], pod["spec"]
    metadata["name"] = name_of(held, hub_id)
    metadata["labels"] = {**metadata.get("labels", {}), **pool.labels, **_labels(held, hub_id)}
    metadata["annotations"] = {
        **metadata.get("annotations", {}), **pool.annotations, **_gpu_annotations(held, pool), **_annotations(held),
    }  # fmt: skip
    container = next(one for one in spec["containers"] if one["name"] == CONTAINER)
    container["image"] = pinned(held.image, held.image_digest)
    container["resources"] = _resources(held, pool)
    container["env"] = _env(container.get("env") or [], held, pool)
    for other in [*spec["containers"], *(spec.get("initContainers") or [])]:
        _bound(other)
        if other is not container:
            _hide_gpus(other)
    for loose in _LOOSE:  # so that the pod's own counts
        container["securityContext"].pop(loose, None)
    _place(spec, held, pool)
    _mount(spec, container, held, hub_id, home)
    if ssh.asked_for(held):
        ssh.mount(spec, container, pod_name=metadata["name"])
    spec["restartPolicy"] = "Never"  # each end has its reason, and is billed to its second
    spec["automountServiceAccountToken"] = False
    spec["enableServiceLinks"] = False
    for door in ("hostNetwork", "hostPID", "hostIPC"):
        spec.pop(door, None)
    context = spec.setdefault("securityContext", {})
    context["runAsNonRoot"] = True
    context["seccompProfile"] = {"type": "RuntimeDefault"}
    context.setdefault("fsGroup", 100)
    context.setdefault("fsGroupChangePolicy", "OnRootMismatch")
    if pool.binding == Binding.DRA and held.gpus:
        spec["resourceClaims"] = [
            {"name": GPU_CLAIM, "resourceClaimTemplateName": claim_template_name(held, hub_id)}
        ]  # fmt: skip
    return pod


def pinned(reference: str, digest: str | None) -> str:
    """An image by its digest: `registry/team/image@sha256:…`. A tag may move; what was admitted may not."""
    if digest is None:
        return reference
    name, slash, last = reference.rpartition("/")
    return f"{name}{slash}{last.split('@')[0].split(':')[0]}@{digest}"


def label_value(text: str) -> str:
    """Any text as a label's value: itself where it is one, else what is left of it and a mark of the whole."""
    if _LABEL_VALUE.fullmatch(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40].strip("-")
    return f"{plain or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _labels(held: Held, hub_id: str) -> dict[str, str]:
    return {
        **worn_by(held, hub_id),
        f"{PREFIX}environment": str(held.environment_id),
        f"{PREFIX}workspace": label_value(held.workspace),
        f"{PREFIX}user": label_value(held.user_name),
    }


def _annotations(held: Held) -> dict[str, str]:
    return {
        f"{PREFIX}workspace": held.workspace,
        f"{PREFIX}environment": held.display_name,
        f"{PREFIX}image": held.image,
    }


def _gpu_annotations(held: Held, pool: Pool) -> dict[str, str]:
    if pool.binding == Binding.HAMI and held.gpus:
        return {"nvidia.com/use-gpuuuid": ",".join(held.gpu_uuids)}
    return {}


def _resources(held: Held, pool: Pool) -> Object:
    amounts: dict[str, str] = {"cpu": f"{held.cpu_millis}m", "memory": str(held.memory_bytes)}
    if pool.binding == Binding.DEVICE_PLUGIN:
        for gpu in held.gpus:
            resource = gpu.uuid.rpartition("#")[0]
            amounts[resource] = str(int(amounts.get(resource, 0)) + 1)
    elif pool.binding == Binding.HAMI and held.gpus:
        first = held.gpus[0]
        amounts["nvidia.com/gpu"] = str(len(held.gpus))
        amounts["nvidia.com/gpumem"] = str(first.memory_mib * first.gpu_millis // 1000)
        amounts["nvidia.com/gpucores"] = str(first.gpu_millis // 10)
    resources: Object = {"requests": dict(amounts), "limits": dict(amounts)}
    if pool.binding == Binding.DRA and held.gpus:
        resources["claims"] = [{"name": GPU_CLAIM}]
    return resources


def _env(given: Sequence[Object], held: Held, pool: Pool) -> list[Object]:
    ours = {
        "REMOTEGPU_ALLOCATION_ID": str(held.allocation_id),
        "REMOTEGPU_ENVIRONMENT_ID": str(held.environment_id),
        "REMOTEGPU_WORKSPACE": held.workspace,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **{f"REMOTEGPU_PORT_{port.service.upper()}": str(port.internal) for port in held.ports},
    }
    if held.simulated:
        ours["REMOTEGPU_SIMULATED_GPUS"] = "1"
    if not held.gpus:
        ours.update(_HIDDEN)
    elif pool.binding == Binding.VISIBLE_DEVICES:
        ours["NVIDIA_VISIBLE_DEVICES"] = ",".join(held.gpu_uuids)
        ours["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    elif pool.binding == Binding.HAMI:
        ours["CUDA_DISABLE_CONTROL"] = "false"
    kept = [one for one in given if one["name"] not in OURS and one["name"] not in ours]
    return [*kept, *({"name": name, "value": value} for name, value in sorted(ours.items()))]


def _hide_gpus(container: Object) -> None:
    """A helper's container gets none, whatever its image says."""
    kept = [one for one in container.get("env") or [] if one["name"] not in OURS]
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in sorted(_HIDDEN.items()))]


def _bound(container: Object) -> None:
    context = container.setdefault("securityContext", {})
    context["allowPrivilegeEscalation"] = False
    context["privileged"] = False
    context["capabilities"] = {"drop": ["ALL"]}


def _place(spec: Object, held: Held, pool: Pool) -> None:
    """Only on the host that admission chose, whatever else the operator asks of it."""
    here = {"key": "metadata.name", "operator": "In", "values": [held.host]}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [{**term, "matchFields": [*term.get("matchFields", []), here]} for term in terms]
    wanted = nodes.tolerations(pool)
    there = spec.get("tolerations") or []
    spec["tolerations"] = [*there, *(one for one in wanted if one not in there)]
    if pool.scheduler_name or pool.binding == Binding.HAMI:
        spec["schedulerName"] = pool.scheduler_name or "hami-scheduler"
    if pool.runtime_class or (pool.binding == Binding.VISIBLE_DEVICES and held.gpus):
        spec["runtimeClassName"] = pool.runtime_class or "nvidia"


def _mount(spec: Object, container: Object, held: Held, hub_id: str, home: str) -> None:
    """Shared memory for PyTorch's data loaders, of half the memory and out of it; and the volumes."""
    ours = {SHM, *(volume.kind for volume in held.volumes)}
    volumes = [one for one in spec.get("volumes") or [] if one["name"] not in ours]
    mounts = [one for one in container.get("volumeMounts") or [] if one["name"] not in ours]
    volumes.append({"name": SHM, "emptyDir": {"medium": "Memory", "sizeLimit": str(held.memory_bytes // 2)}})
    mounts.append({"name": SHM, "mountPath": "/dev/shm"})
    for volume in held.volumes:
        path = home if volume.kind == "home" else f"{home}/{volume.kind}"
        volumes.append({"name": volume.kind, "persistentVolumeClaim": {"claimName": claim_name(volume, hub_id)}})
        mounts.append({"name": volume.kind, "mountPath": path})
        if volume.kind == "home":  # where the server begins is where files stay, whatever the image says
            container.setdefault("workingDir", home)
    spec["volumes"], container["volumeMounts"] = volumes, mounts


def service(pod: Object, *, held: Held, hub_id: str) -> Object | None:
    """The node ports of a run, owned by its pod; None where it has none."""
    ports = [port for port in held.ports if not port.at]
    if not ports:
        return None
    labels = worn_by(held, hub_id)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": pod["metadata"]["name"], "labels": labels, "ownerReferences": [owner(pod)]},
        "spec": {
            "type": "NodePort",
            "selector": labels,
            "ports": [
                {"name": port.service, "protocol": "TCP", "port": port.external, "targetPort": port.internal,
                 "nodePort": port.external}
                for port in ports
            ],
        },
    }  # fmt: skip


def ingress(pod: Object, *, held: Held, hub_id: str, settings: Object) -> tuple[Object, Object] | None:
    """A service inside the cluster and the Ingress that leads to it, owned by the pod; None where the run has nothing
    there. `settings` are `c.RemoteGPU.ingress`."""
    ports = [port for port in held.ports if port.at]
    if not ports:
        return None
    labels = worn_by(held, hub_id)
    name = f"{pod['metadata']['name']}-web"
    by_host: dict[str, list[Object]] = {}
    for port in ports:
        host, slash, path = port.at.partition("/")
        backend = {"service": {"name": name, "port": {"number": port.internal}}}
        by_host.setdefault(host, []).append({"path": slash + path, "pathType": "Prefix", "backend": backend})
    spec: Object = {"rules": [{"host": host, "http": {"paths": paths}} for host, paths in by_host.items()]}
    if settings["class_name"]:
        spec["ingressClassName"] = settings["class_name"]
    if settings["tls_secret"]:
        spec["tls"] = [{"hosts": list(by_host), "secretName": settings["tls_secret"]}]
    common = {"name": name, "labels": labels, "ownerReferences": [owner(pod)]}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": common,
        "spec": {
            "selector": labels,
            "ports": [
                {"name": port.service, "protocol": "TCP", "port": port.internal, "targetPort": port.internal}
                for port in ports
            ],
        },
    }
    way = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {**common, "annotations": dict(settings["annotations"])},
        "spec": spec,
    }
    return service, way


def owner(pod: Object) -> Object:
    """Makes the cluster remove an object with its pod."""
    return {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}


def claim_template(pod: Object, *, held: Held, hub_id: str) -> Object:
    """What asks for exactly the held GPUs by DRA (`resource.k8s.io/v1`), owned by the pod."""
    uuids = ", ".join(f"'{uuid}'" for uuid in held.gpu_uuids)
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {
            "name": claim_template_name(held, hub_id),
            "labels": worn_by(held, hub_id),
            "ownerReferences": [owner(pod)],
        },
        "spec": {
            "spec": {
                "devices": {
                    "requests": [
                        {
                            "name": GPU_CLAIM,
                            "exactly": {
                                "deviceClassName": "gpu.nvidia.com",
                                "count": len(held.gpu_uuids),
                                "selectors": [
                                    {"cel": {"expression": f"device.attributes['gpu.nvidia.com'].uuid in [{uuids}]"}}
                                ],
                            },
                        }
                    ]
                }
            }
        },
    }


def claim_name(volume: HeldVolume, hub_id: str) -> str:
    """Never used twice: a volume that is being removed never becomes a new one."""
    return f"rgpu-{volume.kind}-{volume.id}-{hub_id[:8]}"


def claim(
    volume: HeldVolume, *, held: Held, hub_id: str, storage_class: str | None,
    home_modes: Sequence[str] = ("ReadWriteOnce",),
) -> Object:  # fmt: skip
    """The claim for a volume. It is kept when environments stop."""
    spec: Object = {
        "accessModes": list(home_modes) if volume.kind == "home" else ["ReadWriteMany"],
        "resources": {"requests": {"storage": str(volume.size_bytes)}},
    }
    if storage_class:
        spec["storageClassName"] = storage_class
    labels = {
        nodes.HUB_LABEL: hub_id,
        VOLUME_LABEL: str(volume.id),
        f"{PREFIX}workspace": label_value(held.workspace),
    }
    annotations = {f"{PREFIX}workspace": held.workspace, **({MADE: volume.made_at} if volume.made_at else {})}
    if volume.kind == "home":
        labels[f"{PREFIX}user"] = label_value(held.user_name)
        annotations[f"{PREFIX}user"] = held.user_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim_name(volume, hub_id), "labels": labels, "annotations": annotations},
        "spec": spec,
    }


def is_of(claim: Object, volume: HeldVolume) -> bool:
    """Whether a claim of the volume's name is the volume's. One that says that it was made at another time got its
    number before the database was restored from a backup, and holds somebody's files; an old one says nothing."""
    made = (claim["metadata"].get("annotations") or {}).get(MADE, "")
    return made in ("", volume.made_at)
