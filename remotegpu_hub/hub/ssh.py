"""SSH into an environment: the image's own sshd, started beside the server as the image's own user, with the keys that
the user keeps here. Pure. The keys are a file of a ConfigMap, so that a later one is let in without a restart."""

from importlib.resources import files
from typing import Any, Final

from ..clients import cluster
from ..clients.cluster import KEYS_FILE, KEYS_SUFFIX
from .spawner import Held

Object = dict[str, Any]

VOLUME: Final = "ssh"
FOLDER: Final = "/etc/remotegpu/ssh"
_FILES: Final = {
    name: files("remotegpu_hub.hub").joinpath("files", name).read_text() for name in ("sshd_config", "start_sshd")
}


def asked_for(held: Held) -> bool:
    return any(port.service == "ssh" for port in held.ports)


def map_name(pod_name: str) -> str:
    return pod_name + KEYS_SUFFIX


def config_map(held: Held, *, pod_name: str, hub_id: str) -> Object:
    """What is mounted at `FOLDER`. It is made before the pod and removed with the run."""
    labels = cluster.worn_by(hub_id, held.allocation_id, held.attempt)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": map_name(pod_name), "labels": labels},
        "data": {KEYS_FILE: held.ssh_keys, **_FILES},
    }


def mount(spec: Object, container: Object, *, pod_name: str) -> None:
    """Let a pod see it and begin with it, after whatever the operator lets run there first."""
    volume = {"name": VOLUME, "configMap": {"name": map_name(pod_name)}}
    spec["volumes"] = [*(one for one in spec.get("volumes") or [] if one["name"] != VOLUME), volume]
    mounts = [one for one in container.get("volumeMounts") or [] if one["name"] != VOLUME]
    container["volumeMounts"] = [*mounts, {"name": VOLUME, "mountPath": FOLDER, "readOnly": True}]
    hooks = container.setdefault("lifecycle", {})
    first = ((hooks.get("postStart") or {}).get("exec") or {}).get("command")
    ours = ["sh", f"{FOLDER}/start_sshd"]
    command = ["sh", "-c", f'"$@" && exec {" ".join(ours)}', "-", *first] if first else ours
    hooks["postStart"] = {"exec": {"command": command}}
