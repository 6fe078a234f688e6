"""A budget that stops what runs, behind a real hub: announced on the page and to who listens, then done."""

import httpx
from sqlalchemy import update

from remotegpu_hub import words, workers
from remotegpu_hub.db import begin
from remotegpu_hub.domain import budgets, workspaces
from remotegpu_hub.orm import BudgetAction, Deadline, EndReason
from remotegpu_hub.runtime import utcnow
from tests.gpu_hubs import GpuHub, apart
from tests.worlds import ADMIN

from .conftest import put_members
from .test_api import stop_due
from .test_audit_pages import see


def environment(hub: GpuHub) -> dict:
    answer = httpx.get(
        f"{hub.url}services/workspaces/api/environments?search=spends", timeout=60, trust_env=False,
        headers={"Authorization": f"token {hub.token_of('carol')}"},
    )  # fmt: skip
    (found,) = answer.json()["items"]
    return found


def test_what_runs_where_the_budget_is_spent_is_told_until_when_and_ends(hub: GpuHub):
    put_members(hub)
    hub.start_server("carol", {"workspace": "lab"}, server="spends")
    hub.world.budget("lab", 0, BudgetAction.STOP)
    try:
        workers.follow_budgets(hub.runtime)
        told = environment(hub)
        assert (told["run"]["stops_reason"], told["run"]["stops_message"]) == ("budget", budgets.SPENT)
        for page in ("", f"environments/{told['id']}", "spaces/lab/environments"):
            assert words.sentence("zh", budgets.SPENT) in see(hub, "carol", page, language="zh").text, page
        path, token = f"api/environments/{told['id']}/events", hub.token_of("carol")
        newest = lambda: hub.service("workspaces", path, token=token).json()["items"][0]["kind"]  # noqa: E731
        hub.until(lambda: newest() == "environment.deadline", "who listens is told", 30)
        hub.world.budget("lab", 10**6, BudgetAction.STOP)
        hub.until(lambda: newest() == "environment.spared", "who listens is told", 30)
        assert environment(hub)["run"]["stops_at"] is None
        hub.world.budget("lab", 0, BudgetAction.STOP)
        workers.follow_budgets(hub.runtime)
        with begin(hub.engine) as session:
            session.execute(update(Deadline).where(Deadline.reason == EndReason.BUDGET).values(at=utcnow()))
        apart(stop_due(hub))
        hub.until_free("carol", "spends")
        assert hub.run_of("carol", "spends").end_reason == EndReason.BUDGET
        assert environment(hub)["message"] == budgets.SPENT
    finally:
        with begin(hub.engine) as session:
            lab = workspaces.by_name(session, name="lab")
            budgets.remove(session, workspace=lab, actor=ADMIN, now=utcnow())
