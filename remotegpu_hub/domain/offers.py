"""The numbers of the spawn page and of REST: what may be chosen, its price, and what it would do to each limit.
Everything is computed by the code that admits, so that page and admission cannot disagree."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from ..errors import Invalid, NoCapacity, NotFound, Refused, RemoteGPUError
from ..orm import Budget, Environment, ImageStatus, Member, Role, User
from ..units import UNLIMITED
from . import budgets, catalog, environments, inventory, placement, prices, quotas, workspaces
from .environments import (
    Choice,
    FlavorOffer,
    GpuOffer,
    ImageOffer,
    LimitBar,
    Offers,
    PriceLine,
    Quote,
    Rules,
    Wish,
    WorkspaceOffer,
)
from .quotas import Level, Measured, Resources, Scopes

__all__ = ["offers", "quote"]

_GAPS = ("flavor", "gpu_model", "image", "ports", "name", "workspace")


@dataclass(frozen=True)
class _Desk:
    """What the parts of one page share."""

    session: Session
    user: User
    rules: Rules
    now: datetime
    member: Member | None
    levels: dict[str, Level]
    """Of the member's workspace; empty without one."""
    stock: dict[str, inventory.ModelStock]
    unit_prices: dict[str, int]

    def scopes(self, gpu_model: str | None) -> Scopes:
        assert self.member is not None
        space = self.member.workspace
        millis = self.stock[gpu_model].gpu_millis if gpu_model in self.stock else 0
        return Scopes(self.user.id, self.user.name, space.id, space.name, space.time_zone, millis, None)

    def resources(self, gpu_model: str | None, gpus: int, cpu_millis: int, memory_bytes: int) -> Resources:
        millis = self.stock[gpu_model].gpu_millis if gpu_model in self.stock else 0
        return Resources(gpu_model if gpus else None, gpus, gpus * millis, cpu_millis, memory_bytes)


def offers(
    session: Session,
    *,
    user: User,
    server_name: str,
    choice: Choice,
    rules: Rules,
    now: datetime,
    insecure_demo: bool = False,
    enforced: bool = False,
) -> Offers:
    """Lay out everything the user may choose now, with a quote for the current choice."""
    kept = environments.find(session, user_id=user.id, server_name=server_name)
    wish, choice, problems = _settle(session, user, server_name, choice, rules, kept)
    members = workspaces.of_user(session, user=user)
    member = next((one for one in members if wish is not None and one.workspace_id == wish.workspace_id), None)
    stock = {one.model: one for one in inventory.stock(session)}
    in_force = {name: row.unit_price for name, row in prices.at(session, now=now).items()}
    everywhere = {one.workspace_id: _levels(session, user, one, now) for one in members}
    levels = everywhere[member.workspace_id] if member else {}
    desk = _Desk(session, user, rules, now, member, levels, stock, in_force)
    zone = member.workspace.time_zone if member else "UTC"
    images = catalog.images_for(session, user=user, workspace=member.workspace if member else None)
    return Offers(
        now=now,
        time_zone=zone,
        currency=prices.currency(session),
        user=user.name,
        server_name=server_name,
        choice=_spell(wish) if wish else choice,
        workspaces=tuple(_workspace(desk, one, everywhere[one.workspace_id]) for one in members),
        images=tuple(
            ImageOffer(i.reference, i.display_name, i.category, i.framework, i.python_version, i.cuda_version,
                       i.size_bytes, i.status == ImageStatus.DEPRECATED)
            for i in images
        ),
        flavors=tuple(_flavors(desk)),
        gpus=tuple(_gpus(desk)),
        port_services=rules.port_services,
        quote=quote(desk, wish) if wish and member else None,
        simulated=any(one.simulated for one in stock.values()),
        insecure_demo=insecure_demo,
        enforced=enforced,
        max_gpus=rules.max_gpus,
        problems=tuple(problems),
    )  # fmt: skip


def _settle(
    session: Session, user: User, server_name: str, choice: Choice, rules: Rules, kept: Environment | None
) -> tuple[Wish | None, Choice, list[RemoteGPUError]]:
    """Resolve a choice that may be partly wrong: what does not exist is dropped and told, part by part."""
    problems: list[RemoteGPUError] = []
    current = choice
    for _part in range(len(_GAPS) + 2):
        try:
            wish = environments.resolve(
                session, user=user, server_name=server_name, choice=current, rules=rules, kept=kept
            )
        except RemoteGPUError as error:
            problems.append(error)
            dropped = _drop(error, current)
            if dropped == current:
                if kept is None:
                    return None, current, problems
                kept = None  # it names what is gone: go on as with a new environment
            current = dropped
        else:
            return wish, current, problems
    return None, current, problems


def _drop(error: RemoteGPUError, choice: Choice) -> Choice:
    """The choice without the part that the error is about; without any part at last."""
    what = str(error.facts.get("what", "")) if isinstance(error, NotFound) else ""
    said = {name: getattr(choice, name) for name in Choice.__dataclass_fields__}
    if what == "The workspace":
        said["workspace"] = None
    elif what == "The image":
        said["image"] = None
    elif what == "The flavor":
        said["flavor"] = None
    elif isinstance(error, Invalid) and choice != Choice(workspace=choice.workspace, image=choice.image):
        return Choice(workspace=choice.workspace, image=choice.image)
    else:
        return Choice()
    return Choice(**said)


def _spell(wish: Wish) -> Choice:
    return Choice(
        workspace=wish.workspace,
        image=wish.image_reference,
        flavor=wish.flavor,
        gpu_model=wish.gpu_model,
        gpus=wish.gpu_slots,
        cpu_millis=wish.cpu_millis,
        memory_bytes=wish.memory_bytes,
        ports=wish.ports,
        name=wish.display_name,
    )


def _levels(session: Session, user: User, member: Member, now: datetime) -> dict[str, Level]:
    space = member.workspace
    return quotas.levels(session, user_id=user.id, workspace_id=space.id, time_zone=space.time_zone, now=now)


def _workspace(desk: _Desk, member: Member, levels: dict[str, Level]) -> WorkspaceOffer:
    space = member.workspace
    reason: RemoteGPUError | None = None
    try:
        quotas.check_may_start(space.name, space.status, member.role)
    except RemoteGPUError as error:
        reason = error
    left = min(
        UNLIMITED if one.limits["gpu_millis"] >= UNLIMITED
        else max(one.limits["gpu_millis"] - one.held["gpu_millis"], 0)
        for one in levels.values()
    )  # fmt: skip
    budget = desk.session.get(Budget, space.id)
    status = budgets.status(budget, levels["workspace"], workspace=space.name, time_zone=space.time_zone, now=desk.now)
    return WorkspaceOffer(
        space.name,
        space.display_name,
        member.role.value,
        left,
        max(status.left, 0) if status and member.role != Role.VIEWER else None,
        reason,
    )


def _refusal(desk: _Desk, wanted: Resources) -> RemoteGPUError | None:
    """What admission would say to this wish now; the budget is the same for all and is told with the quote."""
    if desk.member is None:
        return None
    try:
        quotas.check(desk.levels, scopes=desk.scopes(wanted.gpu_model), wanted=wanted)
        prices.hourly(prices.quantities(wanted), desk.unit_prices)
        if not placement.candidates(desk.session, wanted=wanted, policy=desk.rules.policy):
            return placement.explain(desk.session, wanted=wanted)
    except (Refused, Invalid) as error:
        return error
    return None


def _flavors(desk: _Desk) -> list[FlavorOffer]:
    result = []
    for flavor in catalog.flavors_for(desk.session, workspace=desk.member.workspace if desk.member else None):
        wanted = desk.resources(flavor.gpu_model, flavor.gpu_slots, flavor.cpu_millis, flavor.memory_bytes)
        try:
            per_hour = sum(prices.hourly(prices.quantities(wanted), desk.unit_prices).values())
        except Invalid:
            per_hour = None
        reason = _refusal(desk, wanted)
        if flavor.gpu_model and flavor.gpu_model not in desk.stock:
            reason = NoCapacity((), wanted=f"{flavor.gpu_slots} × {flavor.gpu_model}")
        result.append(
            FlavorOffer(flavor.name, flavor.display_name, flavor.gpu_model, flavor.gpu_slots, flavor.cpu_millis,
                        flavor.memory_bytes, per_hour, reason)
        )  # fmt: skip
    return result


def _gpus(desk: _Desk) -> list[GpuOffer]:
    result = []
    for one in desk.stock.values():
        wanted = Resources(one.model, 1, one.gpu_millis, 1, desk.rules.min_memory_bytes)
        result.append(
            GpuOffer(one.model, one.memory_mib, one.gpu_millis, one.free, one.usable, one.hosts_free,
                     desk.unit_prices.get(f"gpu:{one.model}"), one.simulated, _refusal(desk, wanted))
        )  # fmt: skip
    return sorted(result, key=lambda gpu: (gpu.unit_price is None, gpu.unit_price or 0, gpu.model))


def quote(desk: _Desk, wish: Wish) -> Quote:
    """Price a wish and show what it would do to each limit, where it would run, and what refuses it."""
    wanted = desk.resources(wish.gpu_model, wish.gpu_slots, wish.cpu_millis, wish.memory_bytes)
    parts = prices.quantities(wanted)
    refusal = _refusal(desk, wanted)
    try:
        costs = prices.hourly(parts, desk.unit_prices)
        per_hour: int | None = sum(costs.values())
        lines = tuple(PriceLine(name, parts[name], amount) for name, amount in costs.items())
    except Invalid as error:
        per_hour, lines, refusal = None, (), error
    scopes = desk.scopes(wish.gpu_model)
    budget = desk.session.get(Budget, wish.workspace_id)
    status = budgets.status(
        budget, desk.levels["workspace"], workspace=wish.workspace, time_zone=wish.time_zone, now=desk.now
    )
    try:
        budgets.check(status, price_per_hour=per_hour or 0)
    except Refused as error:
        refusal = error
    hosts = placement.candidates(desk.session, wanted=wanted, policy=desk.rules.policy)
    bars = [_bar(one) for one in quotas.measure(desk.levels, scopes=scopes, wanted=wanted)]
    lasts = None
    if status is not None:
        bars.append(LimitBar("budget", wish.workspace, status.month, status.spent, 0, status.amount))
        lasts = budgets.lasts_until(status, more_per_hour=per_hour or 0, now=desk.now)
    return Quote(
        price_per_hour=per_hour,
        lines=lines,
        limits=tuple(bars),
        budget_lasts_until=lasts,
        budget_lasts_month=status is not None and lasts is None,
        host=hosts[0][1] if hosts else None,
        hosts_that_fit=len(hosts),
        refusal=refusal,
    )


def _bar(one: Measured) -> LimitBar:
    return LimitBar(one.scope, one.name, one.resource, one.held, one.wanted, one.limit)
