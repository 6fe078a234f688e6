"""`configure(c)`: the one line at the end of a `jupyterhub_config.py` that makes the hub a GPU platform.

It respects what stands above it, says at start what was overwritten below it, and prepares the database."""

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

from jupyterhub.app import JupyterHub
from jupyterhub.utils import maybe_future
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from traitlets import Bool, Dict, Enum, Integer, List, TraitError, Unicode
from traitlets.config import Config, Configurable
from traitlets.config.loader import LazyConfigValue
from traitlets.utils.importstring import import_item

from . import migrations, words
from .clients import nvml, processes
from .db import begin, normal_url, prepare_sqlite
from .domain import catalog, prices
from .domain.audit import SYSTEM
from .domain.placement import POLICIES
from .errors import Invalid, RemoteGPUError
from .hub.local import DemoSpawner, LocalSpawner
from .hub.wiring import SERVICES, missing_services, overwritten
from .orm import QUOTA_RESOURCES, Fact, PortService
from .runtime import RUNTIME_VARIABLE, Runtime, Settings, utcnow
from .units import UNLIMITED, parse_bytes, parse_cores, parse_money

T = TypeVar("T")

CUSTOM_SCOPES = {
    "custom:remotegpu:read": {"description": "Read workspaces, usage and records (auditors)."},
    "custom:remotegpu:write": {"description": "Start, stop and change what the database's roles allow."},
    "custom:remotegpu:admin": {"description": "Set quotas, budgets, prices and hosts."},
}
SERVICE_SCOPES = [
    "list:users", "read:users:name", "read:servers", "start:servers", "delete:servers", "read:groups:name",
    "list:groups",
]  # fmt: skip
SERVER_TOKEN_SCOPES = ["users:activity!user", "access:servers!server"]


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
    max_gpus = Integer(8, min=1, help="Most GPUs that one environment can ask for. Default 8, a common host.").tag(
        config=True
    )
    default_cpu = Unicode("1", help="Cores when a start names neither a flavor nor cores.").tag(config=True)
    default_memory = Unicode("2G", help="Memory when a start names neither a flavor nor memory.").tag(config=True)
    personal_quota = Dict(
        help="""What each user's own workspace `~user` may hold, such as `{"cpu": "2", "memory": "4G", "gpus": 0,
        "environments": 1}`; `"unlimited"` is a value. What is not named is 0. Default: CPU only.""",
        default_value={"cpu": "2", "memory": "4G", "environments": 1},
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
        help="""Split GPUs into equal shares: `{"A100-80GB": 4}` by model, or by UUID. A share has its own model name,
        `A100-80GB/4`, its own price, and no isolation from the other shares.""",
    ).tag(config=True)
    simulated_gpus: Any = List(
        Dict(),
        help="""GPUs that do not exist, for a machine without any, such as `[{"model": "A100-80GB", "memory_mib": 81920,
        "count": 4, "shares": 1}]`. Every page says "simulated".""",
    ).tag(config=True)
    images = Dict(
        help="""What can be run on this machine, by reference `local:NAME`: `{"local:jupyterlab": {"display_name":
        "JupyterLab", "cmd": ["jupyterhub-singleuser"], "args": [], "env": {}}}`. Commands stand here and never in the
        database.""",
    ).tag(config=True)
    runtime_file = Unicode(
        "remotegpu-runtime.json",
        help="""File of mode 600 through which the hub's process tells its services the database and these settings.
        Default: in the hub's folder.""",
    ).tag(config=True)


def configure(c: Any) -> None:
    """Set spawner, services, roles and scopes on the operator's configuration. The last line of the file.

    Raises: SystemExit with one sentence when the configuration cannot work.
    """
    try:
        options = _options(c)
        _refuse_contradictions(c, options)
        hub = _running_hub()
        if hub is not None and not options.insecure_demo:
            _refuse_blindness()
        settings = _settings(c, options, hub)
    except TraitError as error:
        _fail(" ".join(str(error).split()))
    except ArgumentError:
        _fail("c.JupyterHub.db_url is not a database URL: write one such as sqlite:///jupyterhub.sqlite.")
    runtime_file = os.path.abspath(options.runtime_file)
    if hub is not None:
        try:
            Runtime(_install(settings)).write(runtime_file)
        except RemoteGPUError as error:
            _fail(str(error))
    _set_spawner(c, options, runtime_file)
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
    kwargs = hub.db_kwargs if line.get("db_kwargs") else _given(section, "db_kwargs", {})
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not _in_memory(parsed.database):
        url = parsed.set(database=str(Path(parsed.database or "").resolve())).render_as_string(hide_password=False)
    return url, dict(kwargs)


def _in_memory(database: str | None) -> bool:
    """Also `file:…?mode=memory`, and any other URI of SQLite: what it names is not the path that it looks like."""
    return not database or database.startswith((":memory:", "file:"))


def _given(section: Any, name: str, empty: Any) -> Any:
    """What the operator gave, whether set or lazily put together by `append`, `update` and the like."""
    value = section.get(name)
    if isinstance(value, LazyConfigValue):
        return value.get_value(empty)
    return empty if value is None else value


def _running_hub() -> Any:
    """The hub that loads this file, or None when another program reads it."""
    if not JupyterHub.initialized():
        return None
    app = JupyterHub.instance()
    return None if app.show_config or app.generate_certs or app.subapp is not None else app


def _fail(sentence: str) -> NoReturn:
    raise SystemExit(f"remotegpu-hub: {sentence}")


def _options(c: Any) -> RemoteGPU:
    known = RemoteGPU.class_trait_names(config=True)
    for name in c.RemoteGPU:
        if name not in known:
            _fail(f"there is no c.RemoteGPU.{name}: write one of {', '.join(sorted(known))}.")
    return RemoteGPU(config=Config({"RemoteGPU": c.RemoteGPU}))


def _refuse_contradictions(c: Any, options: RemoteGPU) -> None:
    if c.KubeSpawner.get("profile_list"):
        _fail("remove c.KubeSpawner.profile_list: flavors and images of the catalogue take its place.")
    if not options.images:
        _fail('name what can be run, such as c.RemoteGPU.images = {"local:jupyterlab": {"display_name": "JupyterLab", '
              '"cmd": ["jupyterhub-singleuser"]}}.')  # fmt: skip
    for reference, image in options.images.items():
        if not str(reference).startswith("local:") or not _is_image(image):
            _fail(f'the image {reference!r} needs a name that begins with local: and a cmd, a list of words such as '
                  '["jupyterhub-singleuser"]; args is such a list too.')  # fmt: skip
    for service, ports in options.port_ranges.items():
        if service not in list(PortService):
            _fail(f"{service!r} is not a port service: choose of {', '.join(PortService)}.")
        if not _is_port_range(ports):
            _fail(f"the port range of {service!r} needs a first and a last port, such as (31000, 31099).")
    if c.RemoteGPUMixin.get("runtime_file"):
        _fail("call configure(c) once, as the last line of the configuration.")
    for service in _given(c.JupyterHub, "services", []):
        if service.get("name") in SERVICES:
            _fail(f"the service name {service['name']!r} is taken by remotegpu-hub: give yours another one.")
    own = _own_spawner(c)
    if own is not None and own.system_users == options.insecure_demo:
        _fail(f"{own.__name__} and c.RemoteGPU.insecure_demo = {options.insecure_demo} contradict each other: only a "
              "DemoSpawner runs everybody as the hub's own user.")  # fmt: skip


def _is_image(image: Any) -> bool:
    return isinstance(image, dict) and bool(image.get("cmd")) and all(
        isinstance(command, (tuple, list)) and all(isinstance(part, str) for part in command)
        for command in (image["cmd"], image.get("args", []))
    )  # fmt: skip


def _is_port_range(ports: Any) -> bool:
    if not isinstance(ports, (tuple, list)) or len(ports) != 2 or not all(type(port) is int for port in ports):
        return False
    first, last = ports
    return bool(1 <= first <= last <= 65535)


def _refuse_database(url: str) -> None:
    parsed = make_url(url)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        _fail(f"a database of {parsed.get_backend_name()} will not do: c.JupyterHub.db_url names SQLite or PostgreSQL.")
    if parsed.get_backend_name() == "sqlite" and _in_memory(parsed.database):
        _fail("a database in memory cannot be shared with the services: give c.JupyterHub.db_url a file or a server.")


def _refuse_blindness() -> None:
    blind = processes.blindness()
    if blind:
        _fail(f"{blind} For trying it out: c.RemoteGPU.insecure_demo = True.")


def _settings(c: Any, options: RemoteGPU, hub: Any) -> Settings:
    url, kwargs = database_of(c, hub)
    _refuse_database(url)
    _read("simulated_gpus", nvml.check_simulated, options.simulated_gpus)
    _read("gpu_shares", nvml.check_shares, options.gpu_shares)
    spawner = c.Spawner
    timeouts = int(spawner.get("start_timeout", 60) or 60) + int(spawner.get("http_timeout", 30) or 30)
    return Settings(
        db_url=url,
        db_kwargs=kwargs,
        hub_started_at=utcnow().isoformat(),
        hub_process=processes.mark_of(os.getpid()),
        insecure_demo=options.insecure_demo,
        currency=options.currency,
        policy=options.policy,
        port_ranges={name: list(ports) for name, ports in options.port_ranges.items()},
        max_gpus=options.max_gpus,
        default_cpu_millis=_read("default_cpu", parse_cores, options.default_cpu),
        default_memory_bytes=_read("default_memory", parse_bytes, options.default_memory),
        personal_quota=_quota(options.personal_quota),
        personal_budget=(
            _read("personal_budget", parse_money, options.personal_budget) if options.personal_budget else None
        ),
        host_name=options.host_name or socket.gethostname(),
        reserve_cpu_millis=_read("reserve_cpu", parse_cores, options.reserve_cpu),
        reserve_memory_bytes=_read("reserve_memory", parse_bytes, options.reserve_memory),
        gpu_shares=dict(options.gpu_shares),
        simulated_gpus=[dict(one) for one in options.simulated_gpus],
        images={name: dict(image) for name, image in options.images.items()},
        other_users=not options.insecure_demo,
        start_grace_seconds=timeouts + 60,
    )


def _quota(given: dict[str, Any]) -> dict[str, int | None]:
    """Read `{"cpu": "2", "memory": "4G", "gpus": 1, "environments": 2, "gpu_hours": 10}`; what is not named is 0."""
    readers: dict[str, tuple[str, Callable[[str], int]]] = {
        "gpus": ("gpu_millis", parse_cores),
        "cpu": ("cpu_millis", parse_cores),
        "memory": ("memory_bytes", parse_bytes),
        "storage": ("storage_bytes", parse_bytes),
        "environments": ("environments", _count),
        "gpu_hours": ("gpu_hours", _count),
    }
    quota: dict[str, int | None] = dict.fromkeys(QUOTA_RESOURCES, 0)
    for name, value in given.items():
        if name not in readers:
            _fail(f"c.RemoteGPU.personal_quota has no {name!r}: write one of {', '.join(readers)}.")
        column, read = readers[name]
        quota[column] = UNLIMITED if value == "unlimited" else _read(f"personal_quota[{name!r}]", read, str(value))
    return quota


def _count(text: str) -> int:
    if not text.isdecimal():
        raise Invalid("{value} is not a whole number: write one such as 3.", value=text)
    return int(text)


def _read(setting: str, read: Callable[[Any], T], value: Any) -> T:
    """Read one setting; a refusal says which one it is about."""
    try:
        return read(value)
    except RemoteGPUError as error:
        _fail(f"c.RemoteGPU.{setting}: {error}")


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
            _fail(f"the database is {state} of this version. Back it up, then run `remotegpu upgrade-db`.")
        now = utcnow()
        with begin(engine) as session:
            prices.set_currency(session, code=settings.currency)
            for reference, image in settings.images.items():
                known = {"framework", "cuda_version", "python_version", "category"}
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


def _set_spawner(c: Any, options: RemoteGPU, runtime_file: str) -> None:
    if _own_spawner(c) is None:
        c.JupyterHub.spawner_class = DemoSpawner if options.insecure_demo else LocalSpawner
    c.RemoteGPUMixin.runtime_file = runtime_file
    if "allow_named_servers" not in c.JupyterHub:
        c.JupyterHub.allow_named_servers = True
    scopes = _given(c.Spawner, "server_token_scopes", [])
    if not callable(scopes):
        c.Spawner.server_token_scopes = _reaching(scopes or SERVER_TOKEN_SCOPES)
        return

    async def asked(spawner: Any) -> list[str]:
        return _reaching(await maybe_future(scopes(spawner)) or SERVER_TOKEN_SCOPES)

    c.Spawner.server_token_scopes = asked


def _reaching(scopes: Iterable[str]) -> list[str]:
    """These scopes and those that reach our services."""
    reach = [f"access:services!service={service}" for service in SERVICES]
    return list(dict.fromkeys([*scopes, *reach]))


def _own_spawner(c: Any) -> type[LocalSpawner] | None:
    """The operator's own subclass of ours, if that is what the configuration names."""
    given = c.JupyterHub.get("spawner_class")
    if isinstance(given, str) and "." in given:
        given = import_item(given)
    return given if isinstance(given, type) and issubclass(given, LocalSpawner) else None


def _add_services(c: Any, runtime_file: str) -> None:
    ours = [
        {
            "name": name,
            "url": f"http://127.0.0.1:{_free_port()}",
            "command": [sys.executable, "-m", f"remotegpu_hub.services.{name}"],
            "environment": {RUNTIME_VARIABLE: runtime_file},
            "oauth_client_allowed_scopes": list(CUSTOM_SCOPES),
            "display": False,
        }
        for name in SERVICES
    ]
    c.JupyterHub.services = [*_given(c.JupyterHub, "services", []), *ours]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _grant(c: Any) -> None:
    hub = c.JupyterHub
    hub.custom_scopes = {**_given(hub, "custom_scopes", {}), **CUSTOM_SCOPES}
    everybody = _reaching(["custom:remotegpu:write"])
    roles = [dict(role) for role in _given(hub, "load_roles", [])]
    of_users = next((role for role in roles if role.get("name") == "user" and "scopes" in role), None)
    if of_users is not None:  # the hub then ignores `extra_user_scopes`
        of_users["scopes"] = [*of_users["scopes"], *everybody]
    else:
        hub.extra_user_scopes = {*_given(hub, "extra_user_scopes", set()), *everybody}
    hub.load_roles = [
        *roles,
        {"name": "remotegpu-services", "services": list(SERVICES), "scopes": SERVICE_SCOPES},
    ]


def _add_templates(c: Any, options: RemoteGPU) -> None:
    hub = c.JupyterHub
    folder = str(files("remotegpu_hub") / "hub" / "templates")
    hub.template_paths = [*_given(hub, "template_paths", []), folder]  # the hub adds its own at the end
    hub.template_vars = {
        **_given(hub, "template_vars", {}),
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
