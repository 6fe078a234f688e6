"""The pod of a run, compared whole; and every manifest against the schemas of Kubernetes itself."""

import copy
import re
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_asyncio.client import ApiClient
from kubernetes_validate import utils
from kubespawner.objects import make_pod

from remotegpu_hub.clients.pools import Binding, Pool
from remotegpu_hub.hub import pod as builder
from remotegpu_hub.hub import ssh
from remotegpu_hub.hub.spawner import Held, HeldGpu, HeldPort, HeldVolume
from tests.hubs import ROOT

HUB = "0123456789ab"
DIGEST = "sha256:" + "a" * 64
HELD = Held(
    allocation_id=41, attempt="f00", user_id=5, user_name="alice", workspace_id=6, workspace="lab", environment_id=3,
    display_name="My notebook", host="node-1", pool="gpus", image="registry.example.org:5000/team/torch:2.9",
    image_digest=DIGEST, gpu_model=None, gpus=(), simulated=False, cpu_millis=1500, memory_bytes=2**32, ports=(),
)  # fmt: skip
NVIDIA = (HeldGpu("nvidia.com/gpu#0", 81920, 1000), HeldGpu("nvidia.com/gpu#3", 81920, 1000))
NAMED = (HeldGpu("GPU-1", 81920, 1000), HeldGpu("GPU-2", 81920, 1000))
SHARED = (HeldGpu("GPU-1", 81920, 250),)
TWICE = (*SHARED, *SHARED, HeldGpu("GPU-2", 81920, 250))
HIDDEN = {"AMD_VISIBLE_DEVICES": "", "ASCEND_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "",
          "HABANA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void", "ROCR_VISIBLE_DEVICES": ""}  # fmt: skip
OPERATORS = {
    "node_affinity_required": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
                               {"matchExpressions": [{"key": "fast", "operator": "Exists"}]}],
    "tolerations": [{"key": "team", "operator": "Exists"}],
    "volumes": [{"name": "data", "emptyDir": {}}],
    "volume_mounts": [{"name": "data", "mountPath": "/data"}],
    "init_containers": [{"name": "init", "image": "busybox", "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}],
    "extra_containers": [{"name": "side", "image": "busybox", "securityContext": {"privileged": True}}],
    "env": {"NVIDIA_VISIBLE_DEVICES": "all", "LD_PRELOAD": "/x.so", "CUDA_DISABLE_CONTROL": "true", "HOME": "/home/x"},
    "privileged": True, "labels": {"team": "blue"}, "extra_pod_config": {"hostNetwork": True, "hostPID": True},
    "automount_service_account_token": True, "service_account": "hub",
    "container_security_context": {"runAsNonRoot": False, "runAsUser": 0, "procMount": "Unmasked",
                                   "seccompProfile": {"type": "Unconfined"}},
}  # fmt: skip


def made(**operators: Any) -> dict[str, Any]:
    """KubeSpawner's own pod, as JSON."""
    given = {
        "name": "jupyter-x",
        "cmd": ["jupyterhub-singleuser"],
        "port": 8888,
        "image": "any:1",
        "image_pull_policy": None,
    }
    given |= {"env": {"HOME": "/home/x"}, **operators}
    sanitized: dict[str, Any] = ApiClient.sanitize_for_serialization(_Plain(), make_pod(**given))
    return sanitized


class _Plain(ApiClient):  # type: ignore[misc]
    """Without connections, which would want a running loop."""

    def __init__(self) -> None:
        pass


def complete(held: Held = HELD, pool: Pool | None = None, **operators: Any) -> dict[str, Any]:
    return builder.complete(made(**operators), held=held, pool=pool or Pool("gpus"), hub_id=HUB)


def env_of(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container["env"]}


def server_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in pod["spec"]["containers"] if one["name"] == "notebook")


VENDORS = [
    {"key": key, "operator": "Exists", "effect": "NoSchedule"}
    for key in ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi")
]
BOUND = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False}
LABELS = {"remotegpu-hub/hub": HUB, "remotegpu-hub/allocation": "41", "remotegpu-hub/attempt": "f00"}


def test_the_whole_pod_of_a_run_with_two_gpus_a_port_and_a_home() -> None:
    held = replace(HELD, gpus=NVIDIA, gpu_model="A100", simulated=True, ports=(HeldPort("ssh", 2222, 31022),),
                   volumes=(HeldVolume("home", 9, 2**33), HeldVolume("shared", 2, 2**33)))  # fmt: skip
    amounts = {"cpu": "1500m", "memory": str(2**32), "nvidia.com/gpu": "2"}
    env = {
        "HOME": "/home/x", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "REMOTEGPU_ALLOCATION_ID": "41",
        "REMOTEGPU_ENVIRONMENT_ID": "3", "REMOTEGPU_PORT_SSH": "2222", "REMOTEGPU_SIMULATED_GPUS": "1",
        "REMOTEGPU_WORKSPACE": "lab",
    }  # fmt: skip
    assert complete(held) == {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "rgpu-alice-41-01234567",
            "labels": {**LABELS, "remotegpu-hub/environment": "3", "remotegpu-hub/user": "alice",
                       "remotegpu-hub/workspace": "lab"},
            "annotations": {"remotegpu-hub/workspace": "lab",
                            "remotegpu-hub/environment": "My notebook", "remotegpu-hub/image": HELD.image},
        },
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]}}},
            "automountServiceAccountToken": False, "enableServiceLinks": False, "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "fsGroup": 100,
                                "fsGroupChangePolicy": "OnRootMismatch"},
            "tolerations": VENDORS,
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(2**31)}},
                {"name": "home", "persistentVolumeClaim": {"claimName": "rgpu-home-9-01234567"}},
                {"name": "shared", "persistentVolumeClaim": {"claimName": "rgpu-shared-2-01234567"}},
                {"name": "ssh", "configMap": {"name": "rgpu-alice-41-01234567-ssh"}},
            ],
            "containers": [{
                "name": "notebook", "workingDir": "/home/jovyan", "args": ["jupyterhub-singleuser"],
                "image": f"registry.example.org:5000/team/torch@{DIGEST}",
                "ports": [{"name": "notebook-port", "containerPort": 8888}],
                "env": [{"name": name, "value": value} for name, value in env.items()],
                "resources": {"limits": amounts, "requests": amounts},
                "securityContext": BOUND,
                "volumeMounts": [
                    {"name": "shm", "mountPath": "/dev/shm"}, {"name": "home", "mountPath": "/home/jovyan"},
                    {"name": "shared", "mountPath": "/home/jovyan/shared"},
                    {"name": "ssh", "mountPath": "/etc/remotegpu/ssh", "readOnly": True},
                ],
                "lifecycle": {"postStart": {"exec": {"command": ["sh", "/etc/remotegpu/ssh/start_sshd"]}}},
            }],
        },
    }  # fmt: skip


def test_what_the_operator_set_stays_but_for_what_would_break_the_rules() -> None:
    held = replace(HELD, gpus=NVIDIA)
    pod = complete(
        held, Pool("gpus", labels={"queue": "q"}, tolerations=[{"key": "pool", "operator": "Exists"}]), **OPERATORS
    )
    spec, server = pod["spec"], server_of(pod)
    assert pod["metadata"]["labels"].items() >= {"team": "blue", "queue": "q", **LABELS}.items()
    here = [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]
    assert spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] == [
        {**term, "matchFields": here} for term in OPERATORS["node_affinity_required"]
    ], "ours is added to each of the operator's terms, of which one has to fit"
    assert spec["tolerations"] == [
        {"key": "team", "operator": "Exists"},
        {"key": "pool", "operator": "Exists"},
        *VENDORS,
    ]
    assert {"name": "data", "emptyDir": {}} in spec["volumes"]
    assert {"name": "data", "mountPath": "/data"} in server["volumeMounts"]
    assert spec["serviceAccountName"] == "hub"
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in (*spec["containers"], *spec["initContainers"]):
        assert container["securityContext"].items() >= BOUND.items()
    assert server["securityContext"] == {**BOUND, "runAsUser": 0}, "which the kubelet refuses, as the pod wants"
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["seccompProfile"]["type"]) == (
        True, "RuntimeDefault",
    )  # fmt: skip
    assert not env_of(server).keys() & builder.OURS - {"CUDA_DEVICE_ORDER"}, "nothing was smuggled in"
    for name in ("initContainers", "containers"):
        for container in spec[name]:
            if container is not server:
                assert env_of(container) == HIDDEN, "a helper gets no GPU"


@pytest.mark.parametrize("binding", list(Binding))
def test_who_holds_no_gpu_sees_none_in_every_binding(binding: Binding) -> None:
    pod = complete(HELD, Pool("gpus", binding), env={"NVIDIA_VISIBLE_DEVICES": "all"})
    server = server_of(pod)
    assert env_of(server).items() >= HIDDEN.items()
    assert server["resources"]["limits"] == {"cpu": "1500m", "memory": str(2**32)}
    assert "resourceClaims" not in pod["spec"]
    assert "runtimeClassName" not in pod["spec"]


def whole(
    limits: dict[str, str], env: dict[str, str], spec: dict[str, Any], labels: dict[str, str],
    annotations: dict[str, str], claims: list[dict[str, str]] | None,
) -> dict[str, Any]:  # fmt: skip
    """A pod without ports and volumes, with these parts of a binding."""
    amounts = {"cpu": "1500m", "memory": str(2**32), **limits}
    ours = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "REMOTEGPU_ALLOCATION_ID": "41", "REMOTEGPU_ENVIRONMENT_ID": "3",
            "REMOTEGPU_WORKSPACE": "lab", **env}  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "rgpu-alice-41-01234567",
            "labels": {**labels, **LABELS, "remotegpu-hub/environment": "3", "remotegpu-hub/user": "alice",
                       "remotegpu-hub/workspace": "lab"},
            "annotations": {**annotations, "remotegpu-hub/workspace": "lab",
                            "remotegpu-hub/environment": "My notebook", "remotegpu-hub/image": HELD.image},
        },
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]}}},
            "automountServiceAccountToken": False, "enableServiceLinks": False, "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "fsGroup": 100,
                                "fsGroupChangePolicy": "OnRootMismatch"},
            "tolerations": VENDORS,
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(2**31)}}],
            "containers": [{
                "name": "notebook", "args": ["jupyterhub-singleuser"],
                "image": f"registry.example.org:5000/team/torch@{DIGEST}",
                "ports": [{"name": "notebook-port", "containerPort": 8888}],
                "env": [{"name": "HOME", "value": "/home/x"},
                        *({"name": name, "value": value} for name, value in sorted(ours.items()))],
                "resources": {"limits": amounts, "requests": amounts, **({"claims": claims} if claims else {})},
                "securityContext": BOUND,
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            }],
            **spec,
        },
    }  # fmt: skip


KUEUE = {"kueue.x-k8s.io/queue-name": "research", "kueue.x-k8s.io/priority-class": "high"}
KAI = {"kai.scheduler/queue": "research"}
CLAIM = [{"name": "gpu", "resourceClaimTemplateName": "rgpu-alice-41-01234567-gpu"}]


@pytest.mark.parametrize(
    ("gpus", "pool", "limits", "env", "spec", "annotations"),
    [
        pytest.param((HeldGpu("nvidia.com/mig-1g.10gb#0", 9856, 142), HeldGpu("nvidia.com/mig-1g.10gb#5", 9856, 142)),
                     Pool("p"), {"nvidia.com/mig-1g.10gb": "2"}, {}, {}, {}, id="MIG slices"),
        pytest.param(NAMED, Pool("p", Binding.VISIBLE_DEVICES), {},
                     {"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
                     {"runtimeClassName": "nvidia"}, {}, id="visible devices"),
        pytest.param(NAMED, Pool("p", Binding.VISIBLE_DEVICES, runtime_class="own"), {},
                     {"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
                     {"runtimeClassName": "own"}, {}, id="an own runtime class"),
        pytest.param(TWICE, Pool("p", Binding.VISIBLE_DEVICES), {},
                     {"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
                     {"runtimeClassName": "nvidia"}, {}, id="two shares of a GPU, which is named once"),
        pytest.param(SHARED, Pool("p", Binding.HAMI),
                     {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "20480", "nvidia.com/gpucores": "25"},
                     {"CUDA_DISABLE_CONTROL": "false"}, {"schedulerName": "hami-scheduler"},
                     {"nvidia.com/use-gpuuuid": "GPU-1"}, id="a quarter by HAMi"),
        pytest.param(NAMED, Pool("p", Binding.DRA), {}, {}, {"resourceClaims": CLAIM}, {}, id="DRA"),
        pytest.param(NVIDIA, Pool("p", scheduler_name="kai-scheduler", labels=KAI), {"nvidia.com/gpu": "2"}, {},
                     {"schedulerName": "kai-scheduler"}, {}, id="KAI's scheduler and queue"),
        pytest.param(NVIDIA, Pool("p", labels=KUEUE, annotations={"site": "x"}), {"nvidia.com/gpu": "2"}, {}, {},
                     {"site": "x"}, id="Kueue's queue"),
    ],
)  # fmt: skip
def test_gpus_reach_the_pod_as_the_pool_binds_them(
    gpus: tuple[HeldGpu, ...], pool: Pool, limits: dict[str, str], env: dict[str, str], spec: dict[str, Any],
    annotations: dict[str, str],
) -> None:  # fmt: skip
    claims = [{"name": "gpu"}] if pool.binding == Binding.DRA else None
    wanted = whole(limits, env, spec, dict(pool.labels), annotations, claims)
    assert complete(replace(HELD, gpus=gpus), pool) == wanted


@pytest.mark.parametrize(
    ("reference", "image"),
    [("team/image:1.0", "team/image"), ("host:5000/team/image:1.0", "host:5000/team/image"),
     ("host:5000/image", "host:5000/image"), ("image@sha256:old", "image"), ("image", "image")],
)  # fmt: skip
def test_an_image_is_pinned_by_its_digest(reference: str, image: str) -> None:
    assert builder.pinned(reference, DIGEST) == f"{image}@{DIGEST}"
    assert builder.pinned(reference, None) == reference


def test_the_given_manifest_is_not_changed() -> None:
    manifest = made(**OPERATORS)
    before = copy.deepcopy(manifest)
    builder.complete(manifest, held=HELD, pool=Pool("p"), hub_id=HUB)
    assert manifest == before


NAMES = st.text(min_size=1, max_size=120)


@given(NAMES, NAMES, NAMES)
def test_any_names_give_valid_labels_and_stay_whole_in_annotations(user: str, workspace: str, display: str) -> None:
    held = replace(HELD, user_name=user, workspace=workspace, display_name=display)
    metadata = builder.complete(BARE, held=held, pool=Pool("p"), hub_id=HUB)["metadata"]
    for value in metadata["labels"].values():
        assert re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", value)
        assert len(value) <= 63
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", metadata["name"])
    assert len(metadata["name"]) <= 63
    assert metadata["annotations"]["remotegpu-hub/workspace"] == workspace


BARE = made()


def test_two_names_that_look_alike_have_labels_that_differ() -> None:
    assert builder.label_value("实验室") != builder.label_value("工作室")
    assert builder.label_value("a b") != builder.label_value("a_b!")


POD = {"metadata": {"name": "rgpu-alice-41-01234567", "uid": "uid-1"}}
OWNER = [{"apiVersion": "v1", "kind": "Pod", "name": "rgpu-alice-41-01234567", "uid": "uid-1"}]


def test_keys_and_what_listens_for_them_are_files_of_the_run() -> None:
    held = replace(HELD, ports=(HeldPort("ssh", 2222, 31022),), ssh_keys="ssh-ed25519 AAAA\n")
    made = ssh.config_map(held, pod_name="rgpu-alice-41-01234567", hub_id=HUB)
    assert made["metadata"] == {"name": "rgpu-alice-41-01234567-ssh", "labels": LABELS}
    assert made["data"]["authorized_keys"] == "ssh-ed25519 AAAA\n"
    assert made["data"].keys() == {"authorized_keys", "sshd_config", "start_sshd"}
    assert "ssh" not in [one["name"] for one in complete()["spec"]["volumes"]]


def test_ssh_begins_after_what_the_operator_lets_run_first() -> None:
    held = replace(HELD, ports=(HeldPort("ssh", 2222, 31022),))
    hooks = {"postStart": {"exec": {"command": ["cp", "a b", "c"]}}, "preStop": {"exec": {"command": ["sync"]}}}
    made = server_of(complete(held, lifecycle_hooks=hooks))["lifecycle"]
    assert made["postStart"]["exec"]["command"] == [
        "sh", "-c", '"$@" && exec sh /etc/remotegpu/ssh/start_sshd', "-", "cp", "a b", "c",
    ]  # fmt: skip
    assert made["preStop"] == hooks["preStop"]


def test_node_ports_are_a_service_that_the_pod_owns() -> None:
    held = replace(HELD, ports=(HeldPort("ssh", 22, 31022), HeldPort("tensorboard", 6006, 31006)))
    assert builder.service(POD, held=HELD, hub_id=HUB) is None
    assert builder.service(POD, held=held, hub_id=HUB) == {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "rgpu-alice-41-01234567", "labels": LABELS, "ownerReferences": OWNER},
        "spec": {"type": "NodePort", "selector": LABELS, "ports": [
            {"name": "ssh", "protocol": "TCP", "port": 31022, "targetPort": 22, "nodePort": 31022},
            {"name": "tensorboard", "protocol": "TCP", "port": 31006, "targetPort": 6006, "nodePort": 31006},
        ]},
    }  # fmt: skip


INGRESS = {"host": "{service}-{run}.gpu.example.org", "path": "/", "class_name": "nginx", "tls_secret": "wildcard",
           "annotations": {"a": "b"}}  # fmt: skip
WEB = (HeldPort("tensorboard", 6006, 443, "tensorboard-41.gpu.example.org/"), HeldPort("ssh", 2222, 31022))


def test_what_a_browser_opens_is_at_the_ingress_and_has_no_node_port() -> None:
    held = replace(HELD, ports=WEB)
    nodes = builder.service(POD, held=held, hub_id=HUB)
    assert nodes is not None
    assert [one["name"] for one in nodes["spec"]["ports"]] == ["ssh"]
    named = {"name": "rgpu-alice-41-01234567-web", "labels": LABELS, "ownerReferences": OWNER}
    assert builder.ingress(POD, held=held, hub_id=HUB, settings=INGRESS) == (
        {
            "apiVersion": "v1", "kind": "Service", "metadata": named,
            "spec": {"selector": LABELS, "ports": [
                {"name": "tensorboard", "protocol": "TCP", "port": 6006, "targetPort": 6006}]},
        },
        {
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {**named, "annotations": {"a": "b"}},
            "spec": {
                "ingressClassName": "nginx",
                "tls": [{"hosts": ["tensorboard-41.gpu.example.org"], "secretName": "wildcard"}],
                "rules": [{"host": "tensorboard-41.gpu.example.org", "http": {"paths": [{
                    "path": "/", "pathType": "Prefix",
                    "backend": {"service": {"name": "rgpu-alice-41-01234567-web", "port": {"number": 6006}}}}]}}],
            },
        },
    )  # fmt: skip
    assert builder.ingress(POD, held=replace(HELD, ports=WEB[1:]), hub_id=HUB, settings={}) is None


def test_several_services_of_a_run_share_a_host_by_their_paths() -> None:
    held = replace(HELD, ports=(HeldPort("tensorboard", 6006, 80, "gpu.example.org/41/tensorboard/"),
                                HeldPort("vscode", 8080, 80, "gpu.example.org/41/vscode/")))  # fmt: skip
    settings = {**INGRESS, "class_name": "", "tls_secret": ""}
    made = builder.ingress(POD, held=held, hub_id=HUB, settings=settings)
    assert made is not None
    (rule,) = made[1]["spec"]["rules"]
    assert made[1]["spec"].keys() == {"rules"}
    assert [one["path"] for one in rule["http"]["paths"]] == ["/41/tensorboard/", "/41/vscode/"]


@pytest.mark.parametrize("kind", ["home", "shared"])
def test_a_volume_is_a_claim_that_nothing_owns(kind: str) -> None:
    claim = builder.claim(HeldVolume(kind, 9, 2**30), held=HELD, hub_id=HUB, storage_class="fast")
    metadata = claim["metadata"]
    assert "ownerReferences" not in metadata
    assert metadata["name"] == f"rgpu-{kind}-9-01234567"
    assert metadata["labels"].get("remotegpu-hub/user") == ("alice" if kind == "home" else None)
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce" if kind == "home" else "ReadWriteMany"], "storageClassName": "fast",
        "resources": {"requests": {"storage": str(2**30)}},
    }  # fmt: skip


def test_a_claim_that_was_made_for_another_volume_of_the_same_number_is_not_taken() -> None:
    """As after a backup of the database was restored: the files in it are somebody else's."""
    volume = HeldVolume("home", 9, 2**33, "2026-11-27T09:00:00+00:00")
    claim = builder.claim(volume, held=HELD, hub_id=HUB, storage_class=None)
    assert builder.is_of(claim, volume)
    assert builder.is_of(builder.claim(replace(volume, made_at=""), held=HELD, hub_id=HUB, storage_class=None), volume)
    assert not builder.is_of(claim, replace(volume, made_at="2026-11-27T10:00:00+00:00"))


def test_a_home_can_be_for_many_hosts() -> None:
    home = HeldVolume("home", 9, 2**33)
    claim = builder.claim(home, held=HELD, hub_id=HUB, storage_class="nfs", home_modes=["ReadWriteMany"])
    assert (claim["spec"]["accessModes"], claim["spec"]["storageClassName"]) == (["ReadWriteMany"], "nfs")


def test_a_claim_by_dra_names_the_devices_and_goes_with_its_pod() -> None:
    template = builder.claim_template(POD, held=replace(HELD, gpus=NAMED), hub_id=HUB)
    assert template["metadata"] == {"name": "rgpu-alice-41-01234567-gpu", "labels": LABELS, "ownerReferences": OWNER}
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    assert request == {"name": "gpu", "exactly": {
        "deviceClassName": "gpu.nvidia.com", "count": 2,
        "selectors": [{"cel": {"expression": "device.attributes['gpu.nvidia.com'].uuid in ['GPU-1', 'GPU-2']"}}],
    }}  # fmt: skip


OLDEST = min(utils.all_versions(), key=lambda version: [int(part) for part in version.split(".")])
"""Of which Kubernetes' own schemas are at hand."""
VOLUMES = (HeldVolume("home", 9, 2**33), HeldVolume("shared", 2, 2**33))
MIG = (HeldGpu("nvidia.com/mig-1g.10gb#0", 9856, 142),)


def manifests() -> list[Any]:
    pods = [
        pytest.param(complete(replace(HELD, gpus=gpus), Pool("p", binding, labels={"queue": "q"}), **operators), OLDEST,
                     id=f"pod, {binding}{', of a busy operator' if operators else ''}")
        for binding, gpus in ((Binding.DEVICE_PLUGIN, NVIDIA), (Binding.VISIBLE_DEVICES, NAMED), (Binding.HAMI, SHARED))
        for operators in ({}, OPERATORS)
    ]  # fmt: skip
    pods.append(pytest.param(complete(replace(HELD, gpus=NAMED), Pool("p", Binding.DRA)), "1.34", id="pod, dra"))
    held = replace(HELD, gpus=NAMED, ports=(HeldPort("ssh", 22, 31022),))
    rules = yaml.safe_load_all((ROOT / "docs" / "kubernetes-rbac.yaml").read_text())
    return [
        *pods,
        *(
            pytest.param(part, OLDEST, id=f"at the Ingress, {part['kind']}")
            for part in builder.ingress(POD, held=replace(HELD, ports=WEB), hub_id=HUB, settings=INGRESS) or ()
        ),
        *(
            pytest.param(
                builder.claim(volume, held=HELD, hub_id=HUB, storage_class="fast"),
                OLDEST,
                id=f"claim, {volume.kind}, with a class",
            )
            for volume in VOLUMES
        ),
        pytest.param(complete(replace(HELD, gpus=MIG)), OLDEST, id="pod, MIG"),
        pytest.param(complete(replace(HELD, volumes=VOLUMES)), OLDEST, id="pod, with volumes"),
        pytest.param(ssh.config_map(held, pod_name="p", hub_id=HUB), OLDEST, id="keys"),
        pytest.param(complete(held), OLDEST, id="pod, ssh"),
        pytest.param(builder.service(POD, held=held, hub_id=HUB), OLDEST, id="service"),
        pytest.param(
            builder.claim(
                HeldVolume("home", 9, 2**30, "2026-11-27T09:00:00+00:00"), held=HELD, hub_id=HUB, storage_class=None
            ),
            OLDEST,
            id="claim",
        ),
        pytest.param(builder.claim_template(POD, held=held, hub_id=HUB), "1.34", id="claim template"),
        *(pytest.param(rule, OLDEST, id=rule["kind"]) for rule in rules),
    ]


@pytest.mark.parametrize(("manifest", "since"), manifests())
def test_every_manifest_is_valid_in_the_oldest_and_the_newest_version(manifest: dict[str, Any], since: str) -> None:
    newest = kubernetes_validate.latest_version()
    for version in (since, newest):
        kubernetes_validate.validate(manifest, version, strict=True)
