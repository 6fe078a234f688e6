"""Environments as their users keep them: a choice is parsed at a door, resolved here into a wish, and kept."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, exists, literal_column, select, update
from sqlalchemy.orm import Session, joinedload
from sqlalchemy.orm.util import identity_key

from ..errors import Conflict, Denied, IllegalMove, Invalid, NotFound, RemoteGPUError
from ..orm import (
    DELETED,
    ENDED,
    Allocation,
    AllocationState,
    AuditEntry,
    Environment,
    EnvironmentState,
    EventKind,
    Image,
    ImageStatus,
    Member,
    Role,
    User,
    Workspace,
)
from ..units import GIB, show_bytes
from . import catalog, events, inventory, quotas, volumes, workspaces
from .audit import Actor, record
from .placement import LeastLoaded, Policy
from .ports import WEB, Ingress, Ranges, check_services
from .volumes import Sizes
from .workspaces import check_display_name


@dataclass(frozen=True)
class Choice:
    """What somebody wants to run, parsed and well-formed, not yet checked against anything. None is "not said"."""

    workspace: str | None = None
    image: str | None = None
    flavor: str | None = None
    """Name of a flavor; None when own numbers are given or nothing is said."""
    gpu_model: str | None = None
    gpus: int | None = None
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    ports: tuple[str, ...] | None = None
    name: str | None = None


@dataclass(frozen=True)
class WorkspaceOffer:
    name: str
    display_name: str
    role: str
    gpu_millis_left: int
    """What the user may still hold here: the least of the three levels; `units.UNLIMITED` where none limits."""
    budget_left: int | None
    """Millionths left this month; None without a budget."""
    reason: RemoteGPUError | None = None
    """Why nothing can be started here; None when it can."""


@dataclass(frozen=True)
class ImageOffer:
    reference: str
    display_name: str
    category: str
    framework: str | None
    python_version: str | None
    cuda_version: str | None
    size_bytes: int | None
    deprecated: bool = False
    reason: RemoteGPUError | None = None


@dataclass(frozen=True)
class GpuOffer:
    model: str
    memory_mib: int
    gpu_millis: int
    """Fraction of a GPU that one of it is; 1000 is a whole one."""
    free: int
    usable: int
    hosts_free: int
    unit_price: int | None
    """Millionths per slot and hour; None: no price is set, so it cannot start."""
    simulated: bool
    reason: RemoteGPUError | None = None
    """Why not even one can be started now."""


@dataclass(frozen=True)
class FlavorOffer:
    name: str
    display_name: str
    gpu_model: str | None
    gpus: int
    cpu_millis: int
    memory_bytes: int
    price_per_hour: int | None
    reason: RemoteGPUError | None = None


@dataclass(frozen=True)
class PriceLine:
    """A part of the price: `quantity` slots, milli-cores or bytes of `resource` for `amount` millionths an hour."""

    resource: str
    quantity: int
    amount: int


@dataclass(frozen=True)
class LimitBar:
    """One limit before and after this start; amounts in the resource's unit (money: millionths)."""

    scope: str
    """`user`, `workspace`, `member` or `budget`."""
    name: str
    resource: str
    held: int
    wanted: int
    limit: int


@dataclass(frozen=True)
class Quote:
    """What the current choice costs and does."""

    price_per_hour: int | None
    lines: tuple[PriceLine, ...]
    limits: tuple[LimitBar, ...]
    """Without unlimited ones."""
    budget_lasts_until: datetime | None
    """None: no budget, nothing costs, or longer than the month."""
    budget_lasts_month: bool
    host: str | None
    """Where it would run now."""
    hosts_that_fit: int
    refusal: RemoteGPUError | None
    """What admission would answer now; None: it can start."""


@dataclass(frozen=True)
class Offers:
    """Everything the spawn page shows, at one instant."""

    now: datetime
    time_zone: str
    """IANA name of the chosen workspace's zone."""
    currency: str
    user: str
    server_name: str
    choice: Choice
    """The current choice with every gap filled in from the kept environment or the defaults."""
    workspaces: tuple[WorkspaceOffer, ...]
    images: tuple[ImageOffer, ...]
    flavors: tuple[FlavorOffer, ...]
    gpus: tuple[GpuOffer, ...]
    port_services: tuple[str, ...]
    quote: Quote | None
    """None when there is nothing to quote (no workspace, no image)."""
    simulated: bool = False
    """Some of the GPUs are simulated: say so."""
    insecure_demo: bool = False
    """Everybody runs as the hub's own user: say "demo, no isolation"."""
    enforced: bool = False
    """CPU and memory are enforced by cgroups; else say "counted, not enforced"."""
    max_gpus: int = 8
    problems: tuple[RemoteGPUError, ...] = field(default=())
    """Parts of a pre-filled choice that were dropped because they do not exist (any more)."""


@dataclass(frozen=True)
class Wish:
    """A choice resolved against what exists: everything an admission needs, still unchecked against limits."""

    workspace_id: int
    workspace: str
    time_zone: str
    image_id: int
    image_reference: str
    image_digest: str | None
    flavor: str | None
    gpu_model: str | None
    gpu_slots: int
    cpu_millis: int
    memory_bytes: int
    ports: tuple[str, ...]
    display_name: str


@dataclass(frozen=True)
class Rules:
    """What the operator configured and every admission obeys."""

    policy: Policy = field(default_factory=LeastLoaded)
    port_ranges: Ranges = field(default_factory=dict)
    ingress: Ingress | None = None
    max_gpus: int = 8
    single_models: frozenset[str] = frozenset()
    """GPU models of which a run can hold one."""
    default_cpu_millis: int = 1000
    default_memory_bytes: int = 2 * GIB
    min_memory_bytes: int = 64 * 2**20
    volumes: Sizes = field(default_factory=dict)
    port_address: str = ""
    """Where outside ports are, if not on each host by itself: a cluster opens a node port on all of its nodes."""

    @property
    def port_services(self) -> tuple[str, ...]:
        """What a port can be asked for."""
        return tuple(dict.fromkeys([*self.port_ranges, *(sorted(WEB) if self.ingress else ())]))


TRANSITIONS: dict[EnvironmentState, frozenset[EnvironmentState]] = {
    EnvironmentState.CREATING: frozenset(
        {EnvironmentState.RUNNING, EnvironmentState.STOPPING, EnvironmentState.STOPPED, EnvironmentState.ERROR}
    ),
    EnvironmentState.RUNNING: frozenset({EnvironmentState.STOPPING, EnvironmentState.STOPPED, EnvironmentState.ERROR}),
    EnvironmentState.STOPPING: frozenset({EnvironmentState.STOPPED, EnvironmentState.ERROR}),
    EnvironmentState.STOPPED: frozenset({EnvironmentState.CREATING, EnvironmentState.DELETED}),
    EnvironmentState.ERROR: frozenset({EnvironmentState.CREATING, EnvironmentState.DELETED}),
    EnvironmentState.DELETED: frozenset(),
}
"""Legal moves of an environment; staying where it is is always one."""


HAPPENED: dict[EnvironmentState, EventKind] = {
    EnvironmentState.CREATING: EventKind.CREATING,
    EnvironmentState.RUNNING: EventKind.STARTED,
    EnvironmentState.STOPPING: EventKind.STOPPING,
    EnvironmentState.STOPPED: EventKind.STOPPED,
    EnvironmentState.ERROR: EventKind.FAILED,
    EnvironmentState.DELETED: EventKind.DELETED,
}
"""What whoever listens is told of each state."""


def move(environment: Environment, state: EnvironmentState, *, message: str = "") -> None:
    """Change an environment's state by the table. A deleted one stays deleted. Raises: IllegalMove."""
    if environment.state == EnvironmentState.DELETED:
        return
    _check_move(environment.state, state)
    environment.state = state
    environment.message = message[:2000]


def change(
    session: Session, environment: Environment, state: EnvironmentState, *, now: datetime, message: str = "",
    reason: str | None = None,
) -> None:  # fmt: skip
    """Move an environment, and tell of it where that is another state. Raises: IllegalMove."""
    before = environment.state
    move(environment, state, message=message)
    if environment.state != before:
        events.of_environment(
            session, environment, HAPPENED[state], now=now, reason=reason, message=environment.message
        )  # fmt: skip


def _check_move(before: EnvironmentState, after: EnvironmentState) -> None:
    if after != before and after not in TRANSITIONS[before]:
        raise IllegalMove("The environment", before.value, after.value)


_this = (
    (Environment.user_id == bindparam("whose"))
    & (Environment.server_name == bindparam("which"))
    & (Environment.state != DELETED)
)
_find = select(Environment).where(_this).execution_options(populate_existing=True)


def find(session: Session, *, user_id: int, server_name: str) -> Environment | None:
    """The live environment that is this server of this user, as it is now."""
    return session.scalar(_find, {"whose": user_id, "which": server_name})


def resolve(
    session: Session, *, user: User, server_name: str, choice: Choice, rules: Rules, kept: Environment | None
) -> Wish:
    """Turn a choice into a wish, filling gaps from the kept environment, then from defaults; what is named, now or
    in the kept environment, must exist and be visible to this user. Raises: NotFound, Invalid, Denied.
    """
    member = _workspace(session, user, choice, kept)
    workspace = member.workspace
    quotas.check_may_start(workspace.name, workspace.status, member.role)
    image = _image(session, user, workspace, choice, kept)
    flavor, gpu_model, gpus, cpu, memory = _resources(session, workspace, choice, kept, rules)
    if gpus > rules.max_gpus:
        raise Invalid("At most {limit} GPUs can be asked for at once.", limit=rules.max_gpus)
    if gpus > 1 and gpu_model in rules.single_models:
        raise Invalid(
            "{value} is a share of a GPU, and an environment can hold only one of these. Ask for one, or for whole "
            "GPUs.",
            value=gpu_model,
        )
    if cpu < 1 or memory < rules.min_memory_bytes:
        raise Invalid("Ask for some CPU and at least {memory} of memory.", memory=show_bytes(rules.min_memory_bytes))
    if gpus and gpu_model not in inventory.known_models(session):
        raise Invalid("{value} is not a GPU model of this hub.", value=gpu_model)
    services = choice.ports if choice.ports is not None else tuple(kept.ports) if kept else ()
    check_services(services, rules.port_services)
    name = choice.name or (kept.display_name if kept else "") or server_name or image.display_name
    return Wish(
        workspace_id=workspace.id,
        workspace=workspace.name,
        time_zone=workspace.time_zone,
        image_id=image.id,
        image_reference=image.reference,
        image_digest=image.digest,
        flavor=flavor,
        gpu_model=gpu_model if gpus else None,
        gpu_slots=gpus,
        cpu_millis=cpu,
        memory_bytes=memory,
        ports=tuple(dict.fromkeys(services)),
        display_name=check_display_name(name) if name.strip() else "-",
    )


def _workspace(session: Session, user: User, choice: Choice, kept: Environment | None) -> Member:
    members = workspaces.of_user(session, user=user)
    if choice.workspace is None and kept is None:
        usable = [one for one in members if one.role != Role.VIEWER] or members
        if not usable:
            raise Denied("You belong to no workspace yet. Ask an owner or a hub admin to add you.")
        return usable[0]
    for member in members:
        if choice.workspace is None and kept is not None and member.workspace_id == kept.workspace_id:
            return member
        if member.workspace.name == choice.workspace:
            return member
    raise NotFound("The workspace")


def _image(session: Session, user: User, workspace: Workspace, choice: Choice, kept: Environment | None) -> Image:
    images = catalog.images_for(session, user=user, workspace=workspace)
    if choice.image is not None:
        for image in images:
            if image.reference == choice.image:
                return image
        raise NotFound("The image")
    if kept is not None and choice.workspace in (None, kept.workspace.name):
        for image in images:
            if image.reference == kept.image.reference:
                return image
        raise NotFound("The image")
    active = [image for image in images if image.status == ImageStatus.ACTIVE] or images
    if not active:
        raise Invalid("No image can be run here yet. Ask a hub admin to add one.")
    return active[0]


def _resources(
    session: Session, workspace: Workspace, choice: Choice, kept: Environment | None, rules: Rules
) -> tuple[str | None, str | None, int, int, int]:
    own = (choice.gpu_model, choice.gpus, choice.cpu_millis, choice.memory_bytes)
    if choice.flavor:
        for flavor in catalog.flavors_for(session, workspace=workspace):
            if flavor.name == choice.flavor:
                return flavor.name, flavor.gpu_model, flavor.gpu_slots, flavor.cpu_millis, flavor.memory_bytes
        raise NotFound("The flavor")
    said = any(value is not None for value in own)
    if kept is not None and not said and choice.flavor is None:
        return kept.flavor, kept.gpu_model, kept.gpu_slots, kept.cpu_millis, kept.memory_bytes
    if not said and choice.flavor is None:
        flavors = catalog.flavors_for(session, workspace=workspace)
        if flavors:
            first = flavors[0]
            return first.name, first.gpu_model, first.gpu_slots, first.cpu_millis, first.memory_bytes
    gpus = choice.gpus if choice.gpus is not None else 1 if choice.gpu_model else 0
    if gpus and not choice.gpu_model:
        raise Invalid("Say which GPU model: {gpus} GPUs were asked for without one.", gpus=gpus)
    return (
        None,
        choice.gpu_model or None,
        gpus,
        choice.cpu_millis if choice.cpu_millis is not None else rules.default_cpu_millis,
        choice.memory_bytes if choice.memory_bytes is not None else rules.default_memory_bytes,
    )


def _definition(wish: Wish) -> dict[str, Any]:
    return {
        "display_name": wish.display_name,
        "workspace_id": wish.workspace_id,
        "image_id": wish.image_id,
        "flavor": wish.flavor,
        "gpu_model": wish.gpu_model,
        "gpu_slots": wish.gpu_slots,
        "cpu_millis": wish.cpu_millis,
        "memory_bytes": wish.memory_bytes,
        "ports": list(wish.ports),
    }


_WRITTEN = ("display_name", "workspace_id", "image_id", "flavor", "gpu_model", "gpu_slots", "cpu_millis",
            "memory_bytes", "ports", "state", "message")  # fmt: skip
_STARTABLE = [state.value for state, after in TRANSITIONS.items() if EnvironmentState.CREATING in after]
_open_run = (Allocation.environment_id == Environment.id) & (Allocation.state != ENDED)
_begin = (
    update(Environment)
    .where(
        _this,
        Environment.state.in_([literal_column(f"'{state}'") for state in _STARTABLE]),
        ~exists().where(_open_run).correlate(Environment),
    )
    .values({name: bindparam(f"new_{name}") for name in _WRITTEN})
    .returning(Environment.id)
    .execution_options(synchronize_session=False)
)
_standing: Any = select(Environment.state, Allocation.state).outerjoin(Allocation, _open_run).where(_this)


def begin_creating(session: Session, *, user_id: int, server_name: str, wish: Wish, now: datetime) -> int:
    """Write the wish as the kept definition of the environment that is this server of this user, and that its creation
    has begun; a new environment is made of the wish. Returns its id.

    Raises: Conflict while an older run still holds, IllegalMove.

    One plain UPDATE: every start makes it, and the session's unit of work costs several times the statement.
    """
    columns = {**_definition(wish), "state": EnvironmentState.CREATING, "message": ""}
    values = {f"new_{name}": value for name, value in columns.items()}
    begun: int | None = (
        session.connection().execute(_begin, {"whose": user_id, "which": server_name, **values}).scalar()
    )
    if begun is None:
        begun = _make(session, Environment(user_id=user_id, server_name=server_name, **columns, created_at=now))
    else:
        loaded = session.identity_map.get(identity_key(Environment, begun))
        if loaded is not None:
            session.expire(loaded)
    events.record(session, kind=EventKind.CREATING, now=now, workspace_id=wish.workspace_id, user_id=user_id,
                  environment_id=begun, name=wish.display_name, server_name=server_name)  # fmt: skip
    return begun


def _make(session: Session, environment: Environment) -> int:
    """Add a new environment, or refuse when there is one, which then is not ready for a start."""
    row = session.execute(_standing, {"whose": environment.user_id, "which": environment.server_name}).first()
    if row is not None:
        state, run = row
        if run == AllocationState.ENDING:
            raise Conflict("The last run is still stopping and keeps its GPUs until it is gone. Try again in a minute.")
        if run is not None:
            raise Conflict("The environment runs already.")
        _check_move(state, EnvironmentState.CREATING)
    session.add(environment)
    session.flush()
    return environment.id


def rename(session: Session, *, user_id: int, before: str, after: str, actor: Actor, now: datetime) -> None:
    """Follow a rename of the hub's named server; an environment that never started is not known here."""
    environment = find(session, user_id=user_id, server_name=before)
    if environment is None:
        return
    environment.server_name = after
    session.flush()
    record(session, actor=actor, action="environment.rename", entity="environment", entity_id=environment.id,
           now=now, before={"server_name": before}, after={"server_name": after})  # fmt: skip


def delete(
    session: Session, *, user_id: int, server_name: str, actor: Actor, now: datetime, with_home: bool = False
) -> None:
    """Forget a stopped environment; its runs and their records stay, and its home volume too unless that is to go.

    Raises: Conflict while it holds something; and where the home is to go, if there is none, or others use it.
    """
    session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))  # as a start does
    environment = find(session, user_id=user_id, server_name=server_name)
    if environment is None:
        return
    holds = session.scalar(
        select(exists().where(Allocation.environment_id == environment.id, Allocation.state != ENDED))
    )
    if holds:
        raise Conflict("The environment is still running. Stop it first.")
    if with_home:
        _delete_home(session, environment, actor=actor, now=now)
    events.of_environment(session, environment, EventKind.DELETED, now=now)
    environment.state = EnvironmentState.DELETED
    environment.deleted_at = now
    session.flush()
    record(session, actor=actor, action="environment.delete", entity="environment", entity_id=environment.id,
           now=now, server_name=server_name)  # fmt: skip


def _delete_home(session: Session, environment: Environment, *, actor: Actor, now: datetime) -> None:
    """Give up the home that this environment sees, if it is the only one. The user is locked: no start is on its way.

    Raises: Conflict.
    """
    home = volumes.homes(session, user_id=environment.user_id).get(environment.workspace_id)
    if home is None:
        raise Conflict("It has no home volume that could be given up. Delete it without.")
    if home.environments > 1:
        raise Conflict(
            "Its home volume is also that of {count} other environments of its user in this workspace. Delete them "
            "first, or this one without the volume.",
            count=home.environments - 1,
        )
    volumes.delete(session, volume_id=home.volume_id, actor=actor, now=now)


def refused_new(session: Session, *, since: datetime) -> set[tuple[str, str]]:
    """User and server name of named servers that were refused at their first start, so that no environment came of
    them: the hub keeps an empty entry of each."""
    refusals = session.execute(
        select(User.name, User.id, AuditEntry.detail)
        .join(User, User.id == AuditEntry.entity_id)
        .where(AuditEntry.action == "allocation.refused", AuditEntry.at > since, User.deleted_at.is_(None))
    )
    return {
        (name, detail["server_name"])
        for name, user_id, detail in refusals
        if detail.get("new") and detail["server_name"]
        and find(session, user_id=user_id, server_name=detail["server_name"]) is None
    }  # fmt: skip


def of_user(session: Session, *, user: User) -> list[Environment]:
    """The user's environments, newest first, with their workspaces and images."""
    return list(
        session.scalars(
            select(Environment)
            .where(Environment.user_id == user.id, Environment.state != DELETED)
            .order_by(Environment.id.desc())
            .options(joinedload(Environment.workspace, innerjoin=True), joinedload(Environment.image, innerjoin=True))
        )
    )
