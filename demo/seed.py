"""Workspaces, members, quotas, budgets, prices and flavors of the demo, written once, all or nothing.

What somebody changes afterwards stays: the next start finds the mark and writes nothing.
"""

from datetime import datetime

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from remotegpu_hub import db
from remotegpu_hub.domain import budgets, catalog, prices, quotas, users, workspaces
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.orm import BudgetAction, Fact, QuotaScope, Role, User
from remotegpu_hub.units import GIB, parse_money

from . import offering
from .logins import LOGINS

ACTOR = Actor("cli:demo")
MARK = "demo_seeded"

WORKSPACES = (
    {
        "name": "vision-lab",
        "display_name": "Vision Lab",
        "time_zone": "UTC",
        "members": {"ada": Role.OWNER, "boris": Role.ADMIN, "chen": Role.MEMBER, "dora": Role.VIEWER},
        "quota": {"gpu_millis": 4000, "gpu_hours": 400},
        "models": {"A100-80GB": 3},
        "budget": ("2000.00", BudgetAction.REFUSE),
    },
    {
        "name": "nlp-lab",
        "display_name": "自然语言处理实验室",
        "time_zone": "Asia/Shanghai",
        "members": {"boris": Role.OWNER, "ada": Role.ADMIN, "chen": Role.MEMBER, "dora": Role.VIEWER},
        "quota": {"gpu_millis": 2000, "gpu_hours": 200},
        "models": {"A100-80GB": 1, "RTX-4090": 2},
        "budget": ("500.00", BudgetAction.WARN),
    },
)
DEFAULTS = {
    QuotaScope.USER_DEFAULT: {
        "gpu_millis": 2000,
        "cpu_millis": 2000,
        "memory_bytes": 4 * GIB,
        "storage_bytes": 20 * GIB,
        "environments": 3,
        "gpu_hours": 100,
    },
    QuotaScope.WORKSPACE_DEFAULT: {
        "gpu_millis": 2000,
        "cpu_millis": 4000,
        "memory_bytes": 8 * GIB,
        "storage_bytes": 100 * GIB,
        "environments": 10,
        "gpu_hours": 200,
    },
}


def seed(engine: Engine, *, now: datetime) -> bool:
    """Write the demo's rows unless they were written before; say whether they were written now.

    The hub must have made its users.
    """
    real = offering.real_gpus()
    with db.begin(engine) as session:
        if session.get(Fact, MARK):
            return False
        people = _people(session, now)
        for resource, price in offering.prices(real).items():
            prices.put(
                session,
                resource=resource,
                unit_price=parse_money(price),
                effective_from=now,
                actor=ACTOR,
                now=now,
            )
        for flavor in offering.flavors(real):
            catalog.put_flavor(session, **flavor._asdict(), actor=ACTOR, now=now)
        for scope, values in DEFAULTS.items():
            quotas.put(session, scope=scope, values=values, actor=ACTOR, now=now)
        for wanted in WORKSPACES:
            _workspace(session, wanted, people, now)
        session.add(Fact(name=MARK, value=now.isoformat()))
    return True


def _people(session: Session, now: datetime) -> dict[str, User]:
    known = {one.name: one for one in users.hub_users(session)}
    return {login.name: users.ensure(session, hub_user=known[login.name], now=now) for login in LOGINS}


def _workspace(session: Session, wanted: dict, people: dict[str, User], now: datetime) -> None:
    owner = next(name for name, role in wanted["members"].items() if role == Role.OWNER)
    workspace = workspaces.create(
        session,
        name=wanted["name"],
        display_name=wanted["display_name"],
        time_zone=wanted["time_zone"],
        owner=people[owner],
        actor=ACTOR,
        now=now,
    )
    for name, role in wanted["members"].items():
        if role != Role.OWNER:
            workspaces.put_member(session, workspace=workspace, user=people[name], role=role, actor=ACTOR, now=now)
    quotas.put(
        session,
        scope=QuotaScope.WORKSPACE,
        workspace=workspace,
        values=wanted["quota"],
        models=wanted["models"],
        actor=ACTOR,
        now=now,
    )
    amount, action = wanted["budget"]
    budgets.put(session, workspace=workspace, amount=parse_money(amount), action=action, actor=ACTOR, now=now)
    if wanted["name"] == "vision-lab":
        quotas.put(
            session,
            scope=QuotaScope.MEMBER,
            workspace=workspace,
            user=people["chen"],
            values={"gpu_millis": 1000, "environments": 2},
            actor=ACTOR,
            now=now,
        )
