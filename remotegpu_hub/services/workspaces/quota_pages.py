"""Pages on which admins of the hub set quotas and budgets. Of two who edit one, the second is told and sees both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from ... import plain
from ...domain import inventory, prices, quotas, requests, workspaces
from ...domain import users as street_users
from ...domain.quotas import Level
from ...errors import Changed, NotFound, RemoteGPUError
from ...orm import (
    QUOTA_RESOURCES,
    Budget,
    BudgetAction,
    Quota,
    QuotaScope,
    User,
    Workspace,
    WorkspaceKind,
    WorkspaceStatus,
)
from ...runtime import utcnow
from ...units import MICROS, UNLIMITED, exact, parse_money
from ..api import Call, Needs, Route, call_of, check, tag
from ..pages import Page, View
from . import amounts, budgets, limits
from .amounts import Amount

MOST = 20
"""Users and workspaces that a search shows at once."""
DEFAULTS = {QuotaScope.USER: QuotaScope.USER_DEFAULT, QuotaScope.WORKSPACE: QuotaScope.WORKSPACE_DEFAULT}
EDITS = {
    QuotaScope.USER: (limits.read_user_quota, limits.edit_user_quota, "user"),
    QuotaScope.WORKSPACE: (limits.read_workspace_quota, limits.edit_workspace_quota, "workspace"),
    QuotaScope.USER_DEFAULT: (limits.read_default_quota, limits.edit_default_quota, "level"),
    QuotaScope.WORKSPACE_DEFAULT: (limits.read_default_quota, limits.edit_default_quota, "level"),
}
"""How a quota is read and edited, and which part of the path names it."""
ROUTE: dict[Callable[..., Any], Route] = {route.work: route for route in (*limits.ROUTES, *budgets.ROUTES)}


@dataclass(frozen=True)
class Line:
    """One quota in a table: what it allows, and which of it inherits."""

    scope: QuotaScope
    name: str
    shown: str
    cells: list[tuple[str, str, bool]]
    """Label, value, whether it inherits; then each limited GPU model."""


@dataclass(frozen=True)
class BudgetLine:
    workspace: str
    shown: str
    amount: int
    spent: int
    warn_percent: int
    action: BudgetAction
    month: str

    @property
    def percent(self) -> float:
        return min(100.0, 100 * self.spent / self.amount if self.amount else 100.0 * bool(self.spent))

    @property
    def level(self) -> str:
        return "over" if self.percent >= 100 else "warm" if self.percent >= self.warn_percent else ""


@dataclass(frozen=True)
class Found:
    """What the page of quotas and budgets shows besides the requests."""

    defaults: list[Line]
    lines: list[Line]
    more: bool
    budgets: list[BudgetLine]
    more_budgets: str | None
    currency: str


def find(session: Session, view: View, search: str, after: str = "") -> Found:
    """The default quotas; users and workspaces whose name fits, and their budgets, or those of
    all teams."""
    defaults = {scope: _own(session, default) for scope, default in DEFAULTS.items()}
    lines = [
        _line(view, DEFAULTS[scope], scope.value, shown, defaults[scope], {})
        for scope, shown in (
            (QuotaScope.USER, view.say("Every user")), (QuotaScope.WORKSPACE, view.say("Every workspace"))
        )
    ]  # fmt: skip
    people: list[User] = []
    spaces: list[Workspace] = []
    fits = Workspace.name.icontains(search, autoescape=True) | Workspace.display_name.icontains(search, autoescape=True)
    if search:
        live = User.name.icontains(search, autoescape=True) & User.deleted_at.is_(None)
        people = list(session.scalars(select(User).where(live).order_by(User.name).limit(MOST + 1)))
        active = fits & (Workspace.status == WorkspaceStatus.ACTIVE)
        spaces = list(session.scalars(select(Workspace).where(active).order_by(Workspace.name).limit(MOST + 1)))
    own = _rows(session, people[:MOST], spaces[:MOST])
    named = [(QuotaScope.USER, one.id, one.name, one.name) for one in people[:MOST]]
    named += [(QuotaScope.WORKSPACE, one.id, one.name, _shown(one)) for one in spaces[:MOST]]
    found = [
        _line(view, scope, name, shown, own.get((scope, number), {}), defaults[scope])
        for scope, number, name, shown in named
    ]
    money = select(Workspace).join(Budget, Budget.workspace_id == Workspace.id).order_by(Workspace.name)
    money = money.where(fits if search else Workspace.kind != WorkspaceKind.PERSONAL)
    money = money.where(Workspace.name > after) if after else money
    with_budget = list(session.scalars(money.limit(MOST + 1)))
    currency = prices.currency(session)
    return Found(
        defaults=lines,
        lines=found,
        more=max(len(people), len(spaces)) > MOST,
        budgets=[_budget_line(session, one, currency) for one in with_budget[:MOST]],
        more_budgets=with_budget[MOST - 1].name if len(with_budget) > MOST else None,
        currency=currency,
    )


def _shown(space: Workspace) -> str:
    """What a workspace is called where users stand beside it: a personal one is displayed like its user."""
    return space.name if space.kind == WorkspaceKind.PERSONAL else space.display_name


def _own(session: Session, scope: QuotaScope) -> dict[str, Any]:
    row = quotas.find(session, scope=scope, workspace_id=None, user_id=None)
    return quotas.describe(row) if row is not None else {}


def _rows(
    session: Session, people: list[User], spaces: list[Workspace]
) -> dict[tuple[QuotaScope, int], dict[str, Any]]:
    """The quotas of these users and workspaces, described."""
    of_people = (Quota.scope == QuotaScope.USER) & Quota.user_id.in_([one.id for one in people])
    of_spaces = (Quota.scope == QuotaScope.WORKSPACE) & Quota.workspace_id.in_([one.id for one in spaces])
    return {
        (row.scope, row.user_id or row.workspace_id or 0): quotas.describe(row)
        for row in session.scalars(select(Quota).where(of_people | of_spaces).options(selectinload(Quota.models)))
    }


def _line(
    view: View, scope: QuotaScope, name: str, shown: str, own: dict[str, Any], default: dict[str, Any]
) -> Line:  # fmt: skip
    cells = []
    models = sorted(key for key in {**default, **own} if key.startswith("gpu:"))
    for key in (*QUOTA_RESOURCES, *models):
        value = own.get(key)
        inherits = value is None
        kept = (default.get(key) if inherits else value) or 0
        number = UNLIMITED if kept == "unlimited" else int(kept)
        cells.append((amounts.label(view, key), amounts.words(view, key, number), inherits))
    return Line(scope, name, shown, cells)


def _budget_line(session: Session, space: Workspace, currency: str) -> BudgetLine:
    row = plain.budget(session, space, currency=currency, now=utcnow())
    return BudgetLine(
        space.name, _shown(space), row["amount_micros"], row["spent_micros"], row["warn_percent"],
        BudgetAction(row["action"]), row["month"],
    )  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One quota to be edited, and the ETag of what its reader saw."""

    amounts: list[Amount]
    seen: str
    shown: str


class EditQuota(Page):
    """Set the limits of a user, a workspace, or a default: an empty field inherits."""

    async def get(self) -> None:
        await self.render_form()

    def _named(self) -> tuple[QuotaScope, str]:
        scope, name = self.get_argument("scope", ""), self.get_argument("name", "")
        if scope not in {one.value for one in EDITS}:
            raise NotFound("This page")
        return QuotaScope(scope), name

    async def render_form(self, error: RemoteGPUError | None = None) -> None:
        view = View(self.language)
        scope, name = self._named()
        form = await self.ask(lambda session: self._read(session, view, scope, name, error))
        self.show(
            "quota.html", view, title=view.say("Quota of {name}", name=form.shown), here="admin/quotas", form=form,
            scope=scope.value, name=name, error=error, default=scope in DEFAULTS.values(),
            changed=isinstance(error, Changed),
        )  # fmt: skip

    def _read(self, session: Session, view: View, scope: QuotaScope, name: str, error: RemoteGPUError | None) -> Form:
        read, _, part = EDITS[scope]
        call = call_of(self, session, replace(ROUTE[read], needs=Needs.HUB_ADMIN), {part: name}, None, None)
        value = read(call)
        own = requests.read({key: one for key, one in _flat(value).items() if one is not None})
        user = street_users.by_name(session, name=name) if scope == QuotaScope.USER else None
        level, default = _level(session, scope, call.workspace, user)
        known = inventory.known_models(session)
        found = [
            amounts.amount(view, level, key, own.get(key), inherited=default.get(key))
            for key in amounts.names(level, known)
        ]
        if error is not None:
            found = [self._again(view, one, own.get(one.name)) for one in found]
        shown = {
            QuotaScope.USER_DEFAULT: view.say("Every user"), QuotaScope.WORKSPACE_DEFAULT: view.say("Every workspace"),
        }.get(scope) or (_shown(call.space) if scope == QuotaScope.WORKSPACE else name)  # fmt: skip
        return Form(found, tag(ROUTE[read], value), shown)

    def _again(self, view: View, one: Amount, own: int | None) -> Amount:
        """What was typed, and beside it what somebody else set meanwhile."""
        typed = self.get_body_argument(one.name, "")
        unlimited = self.get_body_argument(f"unlimited:{one.name}", "") == "yes"
        same = (unlimited, "" if unlimited else typed.strip()) == (one.unlimited, one.typed)
        other = "" if same else view.say("inherits") if own is None else amounts.words(view, one.name, own)
        return replace(one, typed=typed, unlimited=unlimited, other=other)

    async def post(self) -> None:
        scope, name = self._named()
        _, edit, part = EDITS[scope]
        try:
            wanted = {key: self._typed(key) for key in self.request.body_arguments if amounts.is_limit(key)}
            body = check(limits.QuotaEdit, amounts.shape(wanted))
            await self.do(ROUTE[edit], {part: name}, body, seen=self.get_body_argument("seen", ""))
        except RemoteGPUError as error:
            self.set_status(error.status)
            await self.render_form(error)
            return
        self.redirect(
            self.address("admin/quotas/edit?" + urlencode({"scope": scope.value, "name": name, "told": "saved"})),
            status=303,
        )

    def _typed(self, key: str) -> int | None:
        unlimited = self.get_body_argument(f"unlimited:{key}", "") == "yes"
        return amounts.read(key, self.get_body_argument(key, ""), unlimited=unlimited)


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    """A quota as the API shows it, by the names of `requests.Limits`."""
    return {
        **{name: value[name] for name in QUOTA_RESOURCES},
        **{f"gpu:{model}": slots for model, slots in value["models"].items()},
    }


def _level(
    session: Session, scope: QuotaScope, workspace: Workspace | None, user: User | None
) -> tuple[Level, dict[str, int]]:
    """What the quota allows and holds now, and what an empty field stands for."""
    if scope in DEFAULTS.values():
        own = requests.read({key: one or 0 for key, one in _own(session, scope).items()})
        level = Level()
        level.limits = {name: own.get(name, 0) for name in QUOTA_RESOURCES}
        level.slot_limits = {key.removeprefix("gpu:"): value for key, value in own.items() if key.startswith("gpu:")}
        return level, dict.fromkeys(QUOTA_RESOURCES, 0)
    level = requests.level_of(session, scope=scope, workspace=workspace, user=user, now=utcnow())
    default = {key: one or 0 for key, one in _own(session, DEFAULTS[scope]).items()}
    return level, {**dict.fromkeys(QUOTA_RESOURCES, 0), **requests.read(default)}


class EditBudget(Page):
    """Set what a workspace may spend in a month, or take its budget away."""

    async def get(self, verb: str = "") -> None:
        await self.render_form()

    async def render_form(self, error: RemoteGPUError | None = None) -> None:
        view = View(self.language)
        name = self.get_argument("name", "")

        def work(session: Session) -> tuple[str, str, str, BudgetLine | None]:
            route = BUDGET_TO_EDIT
            call = call_of(self, session, route, {"workspace": name}, None, None)
            currency = prices.currency(session)
            if session.get(Budget, call.space.id) is None:
                return _shown(call.space), currency, "none", None
            seen = tag(route, budgets.read_budget(call))
            return _shown(call.space), currency, seen, _budget_line(session, call.space, currency)

        shown, currency, seen, line = await self.ask(work)
        view = View(self.language, currency=currency)
        typed = {
            "amount": exact(line.amount, MICROS) if line else "",
            "warn_percent": str(line.warn_percent if line else 80),
            "action": (line.action if line else BudgetAction.REFUSE).value,
        }
        if error is not None:
            typed = {key: self.get_body_argument(key, one) for key, one in typed.items()}
        self.show(
            "budget.html", view, title=view.say("Budget of {name}", name=shown), here="admin/quotas", name=name,
            line=line, seen=seen, typed=typed, error=error, Action=BudgetAction, changed=isinstance(error, Changed),
        )  # fmt: skip

    async def post(self, verb: str = "") -> None:
        path, seen = {"workspace": self.get_argument("name", "")}, self.get_body_argument("seen", "")
        try:
            if verb == "remove":
                await self.do(ROUTE[budgets.remove_budget], path, seen=seen)
            else:
                body = check(
                    budgets.BudgetEdit,
                    {
                        "amount_micros": int(parse_money(self.get_body_argument("amount", ""))),
                        "warn_percent": amounts.read("warn_percent", self.get_body_argument("warn_percent", "80")),
                        "action": self.get_body_argument("action", ""),
                    },
                )
                first = seen == "none"
                route = FIRST_BUDGET if first else ROUTE[budgets.put_budget]
                await self.do(route, path, body, seen=None if first else seen)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await self.render_form(error)
            return
        self.back("admin/quotas", told="no-budget" if verb else "budget")


def _put_first(call: Call) -> Any:
    workspaces.lock(call.session, call.space)
    call.afresh()
    if call.session.get(Budget, call.space.id) is not None:
        raise Changed
    return budgets.put_budget(call)


FIRST_BUDGET = replace(ROUTE[budgets.put_budget], work=_put_first, shows=None)
"""For who saw that there is none."""
BUDGET_TO_EDIT = replace(ROUTE[budgets.read_budget], needs=Needs.HUB_ADMIN)
"""Reading it to edit it: members may read it, admins of the hub may edit it."""

ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"admin/quotas/edit", EditQuota, {}),
    (r"admin/quotas/budget", EditBudget, {}),
    (r"admin/quotas/budget/(?P<verb>remove)", EditBudget, {}),
]
