"""My environments in a real browser where there are many, and one of them will be stopped."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from remotegpu_hub import db
from remotegpu_hub.domain import inventory, users
from remotegpu_hub.orm import Allocation, Deadline, EndReason, Environment, EnvironmentState

from .conftest import RENEW, Demo, Started, Visit
from .test_pages import check_axe, open_page, row

COLUMNS = ("user_id", "workspace_id", "image_id", "gpu_slots", "gpu_model", "cpu_millis", "memory_bytes")


def change(demo: Demo, work: Callable[[Session], None]) -> None:
    engine = db.open_engine(f"sqlite:///{demo.state}/jupyterhub.sqlite")
    with db.begin(engine) as session:
        work(session)
    engine.dispose()


@pytest.fixture(autouse=True)
def nothing_stays(demo: Demo) -> Iterator[None]:
    yield
    old = update(Environment).where(Environment.server_name.like("old-%"))
    change(demo, lambda session: session.execute(old.values(state=EnvironmentState.DELETED)) and None)


def fill(session: Session) -> None:
    """Give boris what was kept once, and what runs an end."""
    boris = users.by_name(session, name="boris")
    (run,) = session.scalars(select(Allocation).where(Allocation.user_id == boris.id, Allocation.ended_at.is_(None)))
    kept, now = run.environment, datetime.now(UTC)
    for number in range(43):
        same = {name: getattr(kept, name) for name in COLUMNS}
        session.add(
            Environment(
                **same, server_name=f"old-{number}", display_name=f"实验 trial {number}", ports=[], created_at=now,
                state=EnvironmentState.STOPPED,
            )
        )  # fmt: skip
    ends_at = now + timedelta(hours=1)
    session.add(
        Deadline(allocation_id=run.id, reason=EndReason.DRAINED, at=ends_at, message=inventory.DRAINED)
    )  # fmt: skip


def test_what_runs_stays_above_a_long_list_and_says_why_it_will_end(demo: Demo, visit: Visit, started: Started) -> None:
    started("boris", "runs on top")
    change(demo, fill)
    page = visit("boris", at="")
    expect(row(page, "runs on top")).to_contain_text("Its host was taken out of work by an admin.")
    expect(row(page, "实验 trial 42")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(1 + 20)
    check_axe(page)
    page.get_by_role("link", name="More").click()
    expect(row(page, "实验 trial 22")).to_be_visible()
    expect(row(page, "runs on top")).to_be_visible()
    search = page.get_by_label("Search what does not run")
    search.fill("TRIAL 1")
    page.evaluate(RENEW)  # what is typed stays, although the page renews itself
    expect(search).to_have_value("TRIAL 1")
    search.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1 + 11)
    row(page, "实验 trial 17").get_by_text("Delete…").click()
    row(page, "实验 trial 17").get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("It was deleted.")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(1 + 10)
    page.emulate_media(color_scheme="dark")
    page.get_by_role("link", name="中文").click()
    expect(row(page, "runs on top")).to_contain_text("其主机已被管理员停用。")
    check_axe(page)
    page.get_by_role("link", name="runs on top").click()
    expect(page.get_by_text("其主机已被管理员停用。")).to_be_visible()
    page.set_viewport_size({"width": 360, "height": 740})
    open_page(page, demo)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
