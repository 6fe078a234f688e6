"""What an operator can set above `configure(c)`: the settings with their manual, and how each is read. A value that
cannot work ends the hub's start with one sentence."""

import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from traitlets import Bool, Dict, Enum, Float, Integer, List, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import LazyConfigValue

from .domain.placement import POLICIES
from .errors import Invalid, RemoteGPUError
from .orm import QUOTA_RESOURCES
from .runtime import RETRIES
from .units import UNLIMITED, parse_bytes, parse_cores

T = TypeVar("T")


class RemoteGPU(Configurable):
    """What an operator can set, as `c.RemoteGPU.name = value` above `configure(c)`."""

    insecure_demo = Bool(
        False,
        help="""Run everybody as the hub's own user, without system users and without any isolation. Every page says so.
        Only for trying the product on a machine of one's own.""",
    ).tag(config=True)
    currency = Unicode("USD", help="ISO 4217 code of the one currency of this hub. Fixed once prices exist.").tag(
        config=True
    )
    policy = Enum(
        sorted(POLICIES),
        default_value="least-loaded",
        help="""How hosts are chosen: `least-loaded` (default, evens out), `pack` (keeps whole hosts free), `spread`
        (fewest environments).""",
    ).tag(config=True)
    port_ranges = Dict(
        help="""Outside ports by service, first and last, such as `{"tensorboard": (31000, 31099)}`. Only services named
        here can be asked for. Services: ssh, jupyter, vscode, tensorboard, custom. Default: none.""",
    ).tag(config=True)
    ingress = Dict(
        help="""Kubernetes: give what a browser can open (jupyter, vscode, tensorboard) an address of its own at the
        cluster's Ingress instead of a node port: `{"host": "{service}-{run}.gpu.example.org", "class_name": "nginx",
        "tls_secret": "wildcard"}`, or by path `{"host": "gpu.example.org", "path": "/{run}/{service}/"}`; further:
        annotations. `{run}` is never used twice. Whoever reaches it reaches the program, without a login, unless your
        controller asks for one. Default: none.""",
    ).tag(config=True)
    max_gpus = Integer(8, min=1, help="Most GPUs that one environment can ask for. Default 8, a common host.").tag(
        config=True
    )
    default_cpu = Unicode("1", help="Cores when a start names neither a flavor nor cores.").tag(config=True)
    default_memory = Unicode("2G", help="Memory when a start names neither a flavor nor memory.").tag(config=True)
    personal_quota = Dict(
        help="""What each user's own workspace `~user` may hold, such as `{"cpu": "2", "memory": "4G", "gpus": 0,
        "environments": 1}`; `"unlimited"` is a value. What is not named is 0. Default: CPU only.""",
        default_value={"cpu": "2", "memory": "4G", "storage": "10G", "environments": 1},
    ).tag(config=True)
    personal_budget = Unicode(
        "", help="Money a month for each user's own workspace, such as `20.00`. Default: no budget."
    ).tag(config=True)
    host_name = Unicode(help="Name of this machine on pages. Default: its host name.").tag(config=True)
    reserve_cpu = Unicode("0.1", help="Cores of this machine that environments never get. Default 0.1.").tag(
        config=True
    )
    reserve_memory = Unicode("512M", help="Memory of this machine that environments never get, for the hub.").tag(
        config=True
    )
    gpu_shares = Dict(
        help="""Split GPUs into equal shares: `{"A100-80GB": 4}`, by model. A share has its own model name,
        `A100-80GB/4`, its own price, and no isolation from the other shares.""",
    ).tag(config=True)
    simulated_gpus: Any = List(
        Dict(),
        help="""GPUs that do not exist, for a machine without any, such as `[{"model": "A100-80GB", "memory_mib": 81920,
        "count": 4, "shares": 1}]`. Every page says "simulated".""",
    ).tag(config=True)
    images = Dict(
        help="""What can be run, by reference. On this machine `local:NAME`: `{"local:jupyterlab": {"display_name":
        "JupyterLab", "cmd": ["jupyterhub-singleuser"], "args": [], "env": {}}}`. On a cluster the image's name with its
        digest: `{"registry.example.org/team/torch:2.9": {"display_name": "PyTorch 2.9", "digest": "sha256:…"}}`.
        Commands stand here and never in the database.""",
    ).tag(config=True)
    pools: Any = List(
        help="""Kubernetes: pools of nodes, the first that fits takes a node, such as `[{"name": "a100", "binding":
        "device-plugin", "node_selector": {"nvidia.com/gpu.present": "true"}}]`. Bindings: device-plugin (default),
        visible-devices, hami, dra. Further: tolerations, labels and annotations of the pods (queues of Kueue or KAI),
        scheduler_name, runtime_class, shares, simulated. Default: one pool of all nodes.""",
    ).tag(config=True)
    home_size = Unicode(
        "10G",
        help="""Kubernetes: size of the home volume that each user gets in each workspace, kept when environments stop
        and counted against the storage quota; a larger size lets it grow at the next start. Empty: none. Default 10G.
        With `c.KubeSpawner.storage_pvc_ensure` the volume is KubeSpawner's instead.""",
    ).tag(config=True)
    shared_size = Unicode(
        "",
        help="""Kubernetes: size of the volume that a workspace shares, seen as `shared` in each home. It needs a
        storage class that many nodes can write at once. Default: none.""",
    ).tag(config=True)
    shared_storage_class = Unicode(
        "", help="Kubernetes: storage class of shared volumes (ReadWriteMany). Default: the cluster's own default."
    ).tag(config=True)
    ssh_user = Unicode(
        "jovyan",
        help="""Kubernetes: the user of the images, as whom people log in by SSH where an environment has a port for it.
        The image needs sshd (package openssh-server); it runs without root. Default: jupyter's own images' user.""",
    ).tag(config=True)
    webhook_retries: Any = List(
        Float(min=0.1),
        list(RETRIES),
        minlen=1,
        help="""Seconds between the tries of a webhook that does not take an event, each a fifth more or less by chance;
        the last one is repeated until a day is over. Default: a minute, 5, 30, 2 hours, 6 hours.""",
    ).tag(config=True)
    webhook_networks: Any = List(
        Unicode(),
        help="""Networks that webhooks may reach besides public and private ones (10.0.0.0/8, 172.16.0.0/12,
        192.168.0.0/16, fc00::/7), such as `["127.0.0.0/8"]` for a receiver on the hub's own machine. Link-local
        addresses, and the others where clouds keep their machines' secrets, are never reached. Default: none.""",
    ).tag(config=True)
    runtime_file = Unicode(
        "remotegpu-runtime.json",
        help="""File of mode 600 through which the hub's process tells its services the database and these settings.
        Default: in the hub's folder.""",
    ).tag(config=True)


def options_of(c: Any) -> RemoteGPU:
    known = RemoteGPU.class_trait_names(config=True)
    for name in c.RemoteGPU:
        if name not in known:
            fail(f"there is no c.RemoteGPU.{name}: write one of {', '.join(sorted(known))}.")
    return RemoteGPU(config=Config({"RemoteGPU": c.RemoteGPU}))


def given_in(section: Any, name: str, empty: Any) -> Any:
    """What the operator gave, whether set or lazily put together by `append`, `update` and the like."""
    value = section.get(name)
    if isinstance(value, LazyConfigValue):
        return value.get_value(empty)
    return empty if value is None else value


def fail(sentence: str) -> NoReturn:
    raise SystemExit(f"remotegpu-hub: {sentence}")


def check_images(images: dict[str, Any], *, local: bool) -> None:
    """On this machine an image is a command; on a cluster it is pinned by its digest, and may have a command."""
    if not images and local:
        fail('name what can be run, such as c.RemoteGPU.images = {"local:jupyterlab": {"display_name": "JupyterLab", '
             '"cmd": ["jupyterhub-singleuser"]}}.')  # fmt: skip
    for reference, image in images.items():
        commands = _commands(image)
        if local and (not str(reference).startswith("local:") or not commands or not image.get("cmd")):
            fail(f'the image {reference!r} needs a name that begins with local: and a cmd, a list of words such as '
                 '["jupyterhub-singleuser"]; args is such a list too.')  # fmt: skip
        if not local and (not _REFERENCE.fullmatch(str(reference)) or not commands):
            fail(f"the image {reference!r} needs a name such as registry.example.org/team/image:1.0; cmd and args, "
                 "where given, are lists of words.")  # fmt: skip
        if not local and not _DIGEST.fullmatch(str(image.get("digest", ""))):
            fail(f'the image {reference!r} needs its digest, such as "sha256:" and 64 hexadecimal digits: a tag may '
                 "be moved to something else.")  # fmt: skip


def _commands(image: Any) -> bool:
    """Whether what an image says of its commands can be read."""
    return isinstance(image, dict) and all(
        isinstance(command, (tuple, list)) and all(isinstance(part, str) for part in command)
        for command in (image.get("cmd", []), image.get("args", []))
    )


_REFERENCE = re.compile(r"(?!local:)[a-z0-9][a-zA-Z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._/-]*)?(:[\w][\w.-]{0,127})?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


INGRESS = {"host": "", "path": "/", "class_name": "", "tls_secret": "", "annotations": {}}
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_PATH = re.compile(r"/([A-Za-z0-9._~-]+/)*")


def read_ingress(given: dict[str, Any]) -> dict[str, Any]:
    """Fill in what was left out of `c.RemoteGPU.ingress`; empty stays empty."""
    if not given:
        return {}
    unknown = given.keys() - INGRESS.keys()
    if unknown:
        fail(f"c.RemoteGPU.ingress has no {', '.join(sorted(map(str, unknown)))}: write of {', '.join(INGRESS)}.")
    found: dict[str, Any] = {**INGRESS, **given}
    if any(not isinstance(found[name], type(default)) for name, default in INGRESS.items()):
        fail("c.RemoteGPU.ingress takes texts, and a dictionary of annotations.")
    host, path = (found[name].replace("{run}", "1").replace("{service}", "vscode") for name in ("host", "path"))
    if not _HOST.fullmatch(host) or len(host) > 200 or not _PATH.fullmatch(path) or len(host + path) > 230:
        fail('c.RemoteGPU.ingress needs a host such as "{service}-{run}.gpu.example.org", and a path, where given, '
             'that begins and ends with /, such as "/{run}/{service}/".')  # fmt: skip
    both = found["host"] + found["path"]
    if "{run}" not in both or "{service}" not in both:
        fail("c.RemoteGPU.ingress needs {run} and {service} in its host or its path: else two would share an address.")
    return found


def is_port_range(ports: Any) -> bool:
    if not isinstance(ports, (tuple, list)) or len(ports) != 2 or not all(type(port) is int for port in ports):
        return False
    first, last = ports
    return bool(1 <= first <= last <= 65535)


def read_quota(given: dict[str, Any]) -> dict[str, int | None]:
    """Read `{"cpu": "2", "memory": "4G", "gpus": 1, "environments": 2, "gpu_hours": 10}`; what is not named is 0."""
    readers: dict[str, tuple[str, Callable[[str], int]]] = {
        "gpus": ("gpu_millis", parse_cores),
        "cpu": ("cpu_millis", parse_cores),
        "memory": ("memory_bytes", parse_bytes),
        "storage": ("storage_bytes", parse_bytes),
        "environments": ("environments", read_count),
        "gpu_hours": ("gpu_hours", read_count),
    }
    quota: dict[str, int | None] = dict.fromkeys(QUOTA_RESOURCES, 0)
    for name, value in given.items():
        if name not in readers:
            fail(f"c.RemoteGPU.personal_quota has no {name!r}: write one of {', '.join(readers)}.")
        column, reader = readers[name]
        quota[column] = (
            UNLIMITED if value == "unlimited" else read_setting(f"personal_quota[{name!r}]", reader, str(value))
        )
    return quota


def read_count(text: str) -> int:
    if not text.isdecimal():
        raise Invalid("{value} is not a whole number: write one such as 3.", value=text)
    return int(text)


def read_setting(setting: str, read: Callable[[Any], T], value: Any) -> T:
    """Read one setting; a refusal says which one it is about."""
    try:
        return read(value)
    except RemoteGPUError as error:
        fail(f"c.RemoteGPU.{setting}: {error}")
