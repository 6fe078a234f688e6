"""`configure(c)`: the one line at the end of a `jupyterhub_config.py` that makes the hub a GPU platform.

It respects what stands above it, says at start what was overwritten below it, and prepares the database."""

import asyncio
import gc
import hashlib
import hmac
import json
import os
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from secrets import token_hex
from typing import Any, cast
from uuid import uuid4

from jupyterhub.app import JupyterHub
from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner
from jupyterhub.utils import maybe_future
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from traitlets import TraitError
from traitlets.utils.importstring import import_item

from . import migrations, words
from .clients import networks, nvml, pools, processes
from .db import begin, normal_url, prepare_sqlite
from .domain import catalog, prices
from .domain.audit import SYSTEM
from .errors import RemoteGPUError
from .hub.local import DemoSpawner, LocalSpawner
from .hub.wiring import SERVICES, missing_services, overwritten
from .options import (
    RemoteGPU,
    check_images,
    fail,
    given_in,
    is_port_range,
    options_of,
    read_ingress,
    read_quota,
    read_setting,
)
from .orm import Fact, PortService
from .runtime import RUNTIME_VARIABLE, Runtime, Settings, utcnow
from .units import parse_bytes, parse_cores, parse_money

CUSTOM_SCOPES = {
    "custom:remotegpu:read": {"description": "Read workspaces, usage and records (auditors)."},
    "custom:remotegpu:write": {"description": "Start, stop and change what the database's roles allow."},
    "custom:remotegpu:admin": {"description": "Set quotas, budgets, prices and hosts, for an admin of the hub."},
}
SERVICE_SCOPES = [
    "list:users", "read:users:name", "read:servers", "start:servers", "delete:servers", "read:groups:name",
    "list:groups",
]  # fmt: skip
SERVER_TOKEN_SCOPES = ["users:activity!user", "access:servers!server"]

WHERE_THE_CLUSTER_IS = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
"""Env vars by which the services find it as the hub does; no secrets."""


def configure(c: Any) -> None:
    """Set spawner, services, roles and scopes on the operator's configuration. The last line of the file.

    Raises: SystemExit with one sentence when the configuration cannot work.
    """
    try:
        options = options_of(c)
        _refuse_contradictions(c, options)
        hub = _running_hub()
        if hub is not None and not options.insecure_demo and issubclass(_spawner_class(c), LocalSpawner):
            _refuse_blindness()
        settings = _settings(c, options, hub)
        settings = replace(settings, webhook_key=_webhook_key(c, options.runtime_file))
    except TraitError as error:
        fail(" ".join(str(error).split()))
    except ArgumentError:
        fail("c.JupyterHub.db_url is not a database URL: write one such as sqlite:///jupyterhub.sqlite.")
    runtime_file = os.path.abspath(options.runtime_file)
    if hub is not None:
        try:
            Runtime(_install(settings)).write(runtime_file)
            if settings.output_folder:
                Path(settings.output_folder).mkdir(mode=0o700, exist_ok=True)
        except RemoteGPUError as error:
            fail(str(error))
    _set_spawner(c, runtime_file)
    _add_services(c, runtime_file)
    _grant(c)
    _add_templates(c, options)
    if hub is not None:
        _check_later(hub)


def database_of(c: Any, hub: Any = None) -> tuple[str, dict[str, Any]]:
    """The database that the hub will use with this configuration: command line first, then the file, then the
    hub's default."""
    section = c.JupyterHub
    line = hub.cli_config.get("JupyterHub", {}) if hub is not None else {}
    url = normal_url(str(line.get("db_url") or section.get("db_url") or "sqlite:///jupyterhub.sqlite"))
    kwargs = hub.db_kwargs if line.get("db_kwargs") else given_in(section, "db_kwargs", {})
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not _in_memory(parsed.database):
        url = parsed.set(database=str(Path(parsed.database or "").resolve())).render_as_string(hide_password=False)
    return url, dict(kwargs)


def _in_memory(database: str | None) -> bool:
    """Also `file:…?mode=memory`, and any other URI of SQLite: what it names is not the path that it looks like."""
    return not database or database.startswith((":memory:", "file:"))


def _running_hub() -> Any:
    """The hub that loads this file, or None when another program reads it."""
    if not JupyterHub.initialized():
        return None
    app = JupyterHub.instance()
    return None if app.show_config or app.generate_certs or app.subapp is not None else app


def _refuse_contradictions(c: Any, options: RemoteGPU) -> None:
    if c.KubeSpawner.get("profile_list"):
        fail("remove c.KubeSpawner.profile_list: flavors and images of the catalogue take its place.")
    check_images(options.images, local=not _is_kubernetes(_spawner_class(c)))
    for service, ports in options.port_ranges.items():
        if service not in list(PortService):
            fail(f"{service!r} is not a port service: choose of {', '.join(PortService)}.")
        if not is_port_range(ports):
            fail(f"the port range of {service!r} needs a first and a last port, such as (31000, 31099).")
    if c.RemoteGPUMixin.get("runtime_file"):
        fail("call configure(c) once, as the last line of the configuration.")
    for service in given_in(c.JupyterHub, "services", []):
        if service.get("name") in SERVICES:
            fail(f"the service name {service['name']!r} is taken by remotegpu-hub: give yours another one.")
    own = _spawner_class(c)
    if issubclass(own, LocalSpawner) and own.system_users == options.insecure_demo:
        fail(f"{own.__name__} and c.RemoteGPU.insecure_demo = {options.insecure_demo} contradict each other: only a "
              "DemoSpawner runs everybody as the hub's own user.")  # fmt: skip


def _refuse_database(url: str) -> None:
    parsed = make_url(url)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        fail(f"a database of {parsed.get_backend_name()} will not do: c.JupyterHub.db_url names SQLite or PostgreSQL.")
    if parsed.get_backend_name() == "sqlite" and _in_memory(parsed.database):
        fail("a database in memory cannot be shared with the services: give c.JupyterHub.db_url a file or a server.")


def _refuse_blindness() -> None:
    blind = processes.blindness()
    if blind:
        fail(f"{blind} For trying it out: c.RemoteGPU.insecure_demo = True.")


def _settings(c: Any, options: RemoteGPU, hub: Any) -> Settings:
    url, kwargs = database_of(c, hub)
    _refuse_database(url)
    read_setting("simulated_gpus", nvml.check_simulated, options.simulated_gpus)
    read_setting("gpu_shares", nvml.check_shares, options.gpu_shares)
    spawner = _spawner_class(c)
    kubernetes = _is_kubernetes(spawner)
    timeouts = sum(int(_trait(c, spawner, name)) for name in ("start_timeout", "http_timeout"))
    given_pools = read_setting("pools", pools.read, options.pools or [{"name": "nodes"}])
    own_volumes = kubernetes and bool(_trait(c, spawner, "storage_pvc_ensure"))
    if kubernetes and _trait(c, spawner, "enable_user_namespaces"):
        fail("c.KubeSpawner.enable_user_namespaces is not supported: all pods of a hub live in one namespace.")
    return Settings(
        db_url=url,
        db_kwargs=kwargs,
        hub_started_at=utcnow().isoformat(),
        hub_process=processes.mark_of(os.getpid()),
        insecure_demo=options.insecure_demo,
        currency=options.currency,
        policy=options.policy,
        port_ranges={name: list(ports) for name, ports in options.port_ranges.items()},
        ingress=read_ingress(options.ingress) if kubernetes else {},
        max_gpus=options.max_gpus,
        default_cpu_millis=read_setting("default_cpu", parse_cores, options.default_cpu),
        default_memory_bytes=read_setting("default_memory", parse_bytes, options.default_memory),
        personal_quota=read_quota(options.personal_quota),
        personal_budget=(
            read_setting("personal_budget", parse_money, options.personal_budget) if options.personal_budget else None
        ),
        host_name=options.host_name or socket.gethostname(),
        reserve_cpu_millis=read_setting("reserve_cpu", parse_cores, options.reserve_cpu),
        reserve_memory_bytes=read_setting("reserve_memory", parse_bytes, options.reserve_memory),
        gpu_shares=dict(options.gpu_shares),
        simulated_gpus=[dict(one) for one in options.simulated_gpus],
        images={name: dict(image) for name, image in options.images.items()},
        other_users=not options.insecure_demo,
        output_folder="" if kubernetes else f"{os.path.abspath(options.runtime_file)}.output",
        start_grace_seconds=timeouts + 60,
        stop_grace_seconds=max(int(_trait(c, spawner, "delete_grace_period")), 1) if kubernetes else 0,
        local=not kubernetes,
        namespace=str(_trait(c, spawner, "namespace") or _own_namespace()) if kubernetes else "",
        pools=[asdict(pool) for pool in given_pools] if kubernetes else [],
        home_bytes=_volume(options, "home_size") if kubernetes and not own_volumes else 0,
        shared_bytes=_volume(options, "shared_size") if kubernetes else 0,
        shared_storage_class=options.shared_storage_class,
        ssh_user=options.ssh_user if kubernetes else "",
        webhook_pauses=[float(one) for one in options.webhook_retries],
        webhook_networks=[
            str(one) for one in read_setting("webhook_networks", networks.read, options.webhook_networks)
        ],
        proxies=[str(one) for one in given_in(c.JupyterHub, "trusted_downstream_ips", [])],
    )


def _webhook_key(c: Any, runtime_file: str) -> str:
    """The key of the webhooks' secrets, which must be the same after each start: the one in the runtime file of the
    hub before, which nobody but the hub's user reads. On a disk that does not outlive the hub there is none; there the
    cookie secret is given from outside (as by Zero to JupyterHub), and the key is derived from it. Else: a new one."""
    with suppress(OSError, ValueError):
        kept = json.loads(Path(runtime_file).read_text()).get("webhook_key")
        if kept:
            return str(kept)
    given = c.JupyterHub.get("cookie_secret") or os.environ.get("JPY_COOKIE_SECRET", "")
    if isinstance(given, (str, bytes)) and given:
        secret = given.encode() if isinstance(given, str) else given
        return hmac.new(secret, b"remotegpu-hub webhooks", hashlib.sha256).hexdigest()
    return token_hex(32)


def _volume(options: RemoteGPU, setting: str) -> int:
    text = getattr(options, setting)
    return read_setting(setting, parse_bytes, text) if text else 0


def _trait(c: Any, spawner: type[Any], name: str) -> Any:
    """What a trait of the spawner will be: as the configuration says it of a class of its line, else the default."""
    for parent in spawner.__mro__:
        if name in c.get(parent.__name__, {}):
            return given_in(c[parent.__name__], name, None)
    return spawner.class_traits()[name].default_value if name in spawner.class_traits() else None


def _own_namespace() -> str:
    """KubeSpawner's default: the namespace of the hub's own pod, or `default` outside."""
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
    except OSError:
        return "default"


def _install(settings: Settings) -> Settings:
    """Bring the database to this version when it is new, and write what the configuration says of the catalogue."""
    if settings.db_url.startswith("sqlite"):
        prepare_sqlite(settings.db_url)
    engine = Runtime(settings).engine
    try:
        state = migrations.state(engine)
        if state == "empty":
            migrations.init(engine)
        elif state != "current":
            fail(f"the database is {state} of this version. Back it up, then run `remotegpu upgrade-db`.")
        now = utcnow()
        with begin(engine) as session:
            prices.set_currency(session, code=settings.currency)
            for reference, image in settings.images.items():
                known = {"framework", "cuda_version", "python_version", "category", "digest"}
                catalog.retire_digests(session, reference=reference, digest=image.get("digest"), actor=SYSTEM, now=now)
                catalog.put_image(
                    session, reference=reference, display_name=image.get("display_name", reference), actor=SYSTEM,
                    now=now, **{name: image[name] for name in known & image.keys()},
                )  # fmt: skip
            hub_id = session.get(Fact, "hub_id")
            if hub_id is None:
                hub_id = Fact(name="hub_id", value=uuid4().hex[:12])
                session.add(hub_id)
            return Settings(**{**vars(settings), "hub_id": hub_id.value})
    finally:
        engine.dispose()


def _set_spawner(c: Any, runtime_file: str) -> None:
    c.JupyterHub.spawner_class = _spawner_class(c)
    if _is_kubernetes(c.JupyterHub.spawner_class):
        _prepare_kubernetes(c)
    c.RemoteGPUMixin.runtime_file = runtime_file
    if "allow_named_servers" not in c.JupyterHub:
        c.JupyterHub.allow_named_servers = True
    scopes = given_in(c.Spawner, "server_token_scopes", [])
    if not callable(scopes):
        c.Spawner.server_token_scopes = _reaching(scopes or SERVER_TOKEN_SCOPES)
        return

    async def asked(spawner: Any) -> list[str]:
        return _reaching(await maybe_future(scopes(spawner)) or SERVER_TOKEN_SCOPES)

    c.Spawner.server_token_scopes = asked


def _prepare_kubernetes(c: Any) -> None:
    """Defaults that suit a cluster, where the operator gave none: environments outlive an upgrade of the hub, an end is
    seen soon, since a look costs nothing, and there is time to pull an image of some gigabytes."""
    if "cleanup_servers" not in c.JupyterHub:
        c.JupyterHub.cleanup_servers = False
    spawner = c.JupyterHub.spawner_class
    for name, value in (("poll_interval", 10), ("start_timeout", 600)):
        if not any(name in c.get(parent.__name__, {}) for parent in spawner.__mro__):
            c.Spawner[name] = value


def _reaching(scopes: Iterable[str]) -> list[str]:
    """These scopes and those that reach our services."""
    reach = [f"access:services!service={service}" for service in SERVICES]
    return list(dict.fromkeys([*scopes, *reach]))


def _spawner_class(c: Any) -> type[Any]:
    """Ours that takes the place of what the operator named; the operator's own subclass of ours stays."""
    given = c.JupyterHub.get("spawner_class")
    if isinstance(given, str):
        named = {point.name: point.value.replace(":", ".") for point in entry_points(group="jupyterhub.spawners")}
        given = import_item(named.get(given, given))
    parents = {f"{parent.__module__}.{parent.__name__}" for parent in getattr(given, "__mro__", ())}
    if "remotegpu_hub.hub.spawner.RemoteGPUMixin" in parents:
        return cast("type[Any]", given)
    if given is None or given in (LocalProcessSpawner, SimpleLocalProcessSpawner):
        return DemoSpawner if c.RemoteGPU.get("insecure_demo") else LocalSpawner
    if f"{given.__module__}.{given.__name__}" != "kubespawner.spawner.KubeSpawner":
        ours = "hub.kube.RemoteGPUKubeSpawner" if _is_kubernetes(given) else "hub.local.LocalSpawner"
        fail(f"{given.__name__} checks and bills nothing: derive it from remotegpu_hub.{ours}, or leave "
             "c.JupyterHub.spawner_class out.")  # fmt: skip
    from .hub.kube import RemoteGPUKubeSpawner

    return RemoteGPUKubeSpawner


def _is_kubernetes(spawner: type[Any]) -> bool:
    return any(parent.__module__ == "kubespawner.spawner" for parent in spawner.__mro__)


def _add_services(c: Any, runtime_file: str) -> None:
    cluster = {name: os.environ[name] for name in WHERE_THE_CLUSTER_IS if name in os.environ}
    ours = [
        {
            "name": name,
            "url": f"http://127.0.0.1:{_free_port()}",
            "command": [sys.executable, "-m", f"remotegpu_hub.services.{name}"],
            "environment": {RUNTIME_VARIABLE: runtime_file, **cluster},
            "oauth_client_allowed_scopes": list(CUSTOM_SCOPES),
            "oauth_no_confirm": True,  # it is the hub's own, not somebody else's
            "display": name == "workspaces",
        }
        for name in SERVICES
    ]
    c.JupyterHub.services = [*given_in(c.JupyterHub, "services", []), *ours]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _grant(c: Any) -> None:
    hub = c.JupyterHub
    hub.custom_scopes = {**given_in(hub, "custom_scopes", {}), **CUSTOM_SCOPES}
    everybody = _reaching(CUSTOM_SCOPES)  # what a token may carry; the database says what its owner may do
    roles = [dict(role) for role in given_in(hub, "load_roles", [])]
    of_users = next((role for role in roles if role.get("name") == "user" and "scopes" in role), None)
    if of_users is not None:  # the hub then ignores `extra_user_scopes`
        of_users["scopes"] = [*of_users["scopes"], *everybody]
    else:
        hub.extra_user_scopes = {*given_in(hub, "extra_user_scopes", set()), *everybody}
    hub.load_roles = [
        *roles,
        {"name": "remotegpu-services", "services": list(SERVICES), "scopes": SERVICE_SCOPES},
    ]


def _add_templates(c: Any, options: RemoteGPU) -> None:
    hub = c.JupyterHub
    folder = str(files("remotegpu_hub") / "hub" / "templates")
    hub.template_paths = [*given_in(hub, "template_paths", []), folder]  # the hub adds its own at the end
    hub.template_vars = {
        **given_in(hub, "template_vars", {}),
        "remotegpu_insecure_demo": options.insecure_demo,
        "remotegpu_simulated": bool(options.simulated_gpus),
        "remotegpu_translate": lambda _user: words.translate,
    }


def _check_later(hub: Any) -> None:
    """Look when the hub takes the whole file: what stands below `configure(c)` may have undone it. Its services are
    looked at as soon as they are known, since without them the hub fails over our role in words of its own."""

    def told(problems: list[str]) -> None:
        for sentence in problems:
            hub.log.error("remotegpu-hub: %s", sentence)

    hub.observe(lambda _change: told(missing_services(hub)), "services")

    def later() -> None:
        told(overwritten(hub))
        _spare_the_loop()

    with suppress(RuntimeError):
        asyncio.get_running_loop().call_soon(later)


def _spare_the_loop() -> None:
    """Let later garbage collections pass over what stays for good. Our threads make them more frequent, and one that
    looks at all that is loaded by now holds the hub's loop for a quarter of a second."""
    gc.collect()
    gc.freeze()
