"""Workspaces in a real browser: for an owner, for two of them at once, for a viewer, for who is invited, on a phone."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, expect
from sqlalchemy import func, select

from remotegpu_hub import db
from remotegpu_hub.domain import prices, workspaces
from remotegpu_hub.orm import BillingRecord, SubjectKind
from remotegpu_hub.units import MICROS

from .conftest import Demo, Started, Visit
from .test_first_day import stop_all
from .test_pages import NASTY, READY_MS, check_axe, open_page, row

LAB = "spaces/vision-lab"


def ask(demo: Demo, method: str, path: str, **given: Any) -> httpx.Response:
    """The service's API, as the hub's admin."""
    headers = {"Authorization": f"token {demo.token}"}
    return httpx.request(
        method, f"{demo.address}services/workspaces/api/{path}", headers=headers, timeout=60, trust_env=False, **given
    )  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(demo: Demo) -> Iterator[None]:
    yield
    stop_all(demo)
    ask(demo, "PATCH", "workspaces/vision-lab", json={"display_name": "Vision Lab", "time_zone": "UTC"})
    for user, role in {"ada": "owner", "boris": "admin", "chen": "member", "dora": "viewer"}.items():
        ask(demo, "PUT", f"workspaces/vision-lab/members/{user}", json={"role": role})
    ask(demo, "PATCH", "workspaces/vision-lab/members/chen/quota", json={"gpu_millis": 1000, "environments": 2})
    for path in ("members/admin", "invitations/admin"):
        ask(demo, "DELETE", f"workspaces/vision-lab/{path}")
    ask(demo, "POST", "workspaces/robot-lab/archive")


def choose(line: Locator, role: str) -> None:
    line.get_by_role("combobox").select_option(role)
    line.get_by_role("button", name=re.compile("Save the role")).click()


def test_an_owner_invites_somebody_changes_their_role_and_takes_them_out(demo: Demo, visit: Visit) -> None:
    page = visit("ada", at="spaces")
    expect(row(page, "Vision Lab")).to_contain_text("owner")
    check_axe(page)
    page.get_by_role("link", name="Vision Lab").click()
    expect(page.get_by_text("Owners: ada")).to_be_visible()
    check_axe(page)
    page.get_by_role("link", name="Members", exact=True).click()
    page.get_by_label("User name in the hub").fill(NASTY)
    page.get_by_role("button", name="Invite").click()
    expect(page.get_by_role("alert")).to_contain_text(f"The user {NASTY} was not found.")
    expect(page.get_by_label("User name in the hub")).to_have_value(NASTY)
    page.get_by_label("User name in the hub").fill("admin")
    page.get_by_label("Role", exact=True).last.select_option("viewer")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("The invitation is out.")
    check_axe(page)
    page.get_by_label("User name in the hub").fill("admin")
    page.get_by_role("button", name="Invite").click()
    expect(page.get_by_role("alert")).to_contain_text("admin is invited already.")

    guest = visit("admin", at="spaces")
    expect(guest.get_by_text("ada invites you as viewer.")).to_be_visible()
    check_axe(guest)
    guest.get_by_role("button", name="Accept").click()
    expect(guest.get_by_role("status").first).to_contain_text("You belong to this workspace now.")

    page.goto(f"{demo.address}services/workspaces/{LAB}/members?search=ADM")
    new = page.locator("tbody tr")
    expect(new).to_have_count(1)
    choose(new, "member")
    expect(page.get_by_role("status").first).to_contain_text("The role is changed.")
    expect(new.get_by_role("combobox")).to_have_value("member")
    new.get_by_text("Suspend…").click()
    new.get_by_role("button", name="Suspend").click()
    expect(new).to_contain_text("suspended")
    new.get_by_role("button", name="Let back in").click()
    new.get_by_text("Remove…").click()
    expect(new).to_contain_text("They run nothing here now.")
    new.get_by_role("button", name="Take them out").click()
    expect(page.get_by_text("Nothing fits.")).to_be_visible()


def test_an_owner_archives_a_workspace_and_reopens_it(demo: Demo, visit: Visit) -> None:
    ask(demo, "POST", "workspaces", json={"name": "closed-lab", "display_name": NASTY, "owner": "ada"})
    page = visit("ada", at="spaces/closed-lab/settings")
    page.get_by_text("Archive this workspace…").click()
    page.get_by_role("button", name="Archive it").click()
    expect(page.get_by_role("status").first).to_contain_text("nothing starts here any more")
    page.get_by_role("link", name="Settings", exact=True).click()
    expect(page.get_by_text("Archive this workspace…")).to_have_count(0)
    check_axe(page)
    page.get_by_role("button", name="Reopen this workspace").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("The workspace is open again")
    page.get_by_role("link", name="Settings", exact=True).click()
    expect(page.get_by_text("Archive this workspace…")).to_be_visible()
    ask(demo, "POST", "workspaces/closed-lab/archive")


def test_of_two_owners_who_edit_the_same_the_second_is_told_and_sees_the_fresh_values(demo: Demo, visit: Visit) -> None:
    ask(demo, "PUT", "workspaces/vision-lab/members/boris", json={"role": "owner"})
    first = visit("ada", at=f"{LAB}/members/chen")
    second = visit("boris", at=f"{LAB}/members/chen")
    first.get_by_label("GPUs", exact=True).fill("0.5")
    first.get_by_label("Main memory, GiB").fill("1.5")
    first.get_by_role("button", name="Save").click()
    expect(first.get_by_role("status").first).to_contain_text("The limits are saved.")
    second.get_by_label("GPUs", exact=True).fill("3")
    second.get_by_role("button", name="Save").click()
    expect(second.get_by_role("alert").get_by_text("Somebody else changed it meanwhile.")).to_be_visible()
    expect(second.get_by_label("GPUs", exact=True)).to_have_value("0.5")
    expect(second.get_by_label("Main memory, GiB")).to_have_value("1.5")
    second.get_by_label("GPUs", exact=True).fill("many <b>")
    second.get_by_role("button", name="Save").click()
    expect(second.get_by_role("alert")).to_contain_text("many <b> is not an amount")
    second.get_by_label("GPUs", exact=True).fill("2")
    second.get_by_label("Main memory, GiB").fill("")
    second.get_by_role("button", name="Save").click()
    expect(second.get_by_role("status").first).to_contain_text("The limits are saved.")
    kept = ask(demo, "GET", "workspaces/vision-lab/members/chen/quota").json()
    assert (kept["gpu_millis"], kept["memory_bytes"], kept["environments"]) == (2000, None, 2)

    for page in (first, second):
        page.goto(f"{demo.address}services/workspaces/{LAB}/members")
    choose(row(first, "dora"), "member")
    expect(first.get_by_role("status").first).to_contain_text("The role is changed.")
    choose(row(second, "dora"), "admin")
    expect(second.get_by_role("alert").get_by_text("Somebody else changed it meanwhile.")).to_be_visible()
    expect(row(second, "dora").get_by_role("combobox")).to_have_value("member")


def test_an_owner_sees_and_stops_what_others_run_and_who_used_how_much(
    demo: Demo, visit: Visit, started: Started
) -> None:
    started("chen", NASTY, workspace="vision-lab", gpu=True)
    page = visit("ada", at="keys")
    refused: list[str] = []
    page.on("console", lambda one: refused.append(one.text) if "Content Security Policy" in one.text else None)
    open_page(page, demo, f"{LAB}/members")
    row(page, "chen").get_by_text("Remove…").click()
    expect(row(page, "chen")).to_contain_text(f"An hour later ends what they run here: {NASTY}.")
    page.get_by_role("link", name="Usage").click()
    expect(page.locator(".rg-canvas canvas")).to_be_visible()
    expect(page.get_by_role("rowheader", name="chen")).to_be_visible()
    assert refused == []

    page.get_by_role("link", name="Environments", exact=True).click()
    run = row(page, NASTY)
    expect(run).to_contain_text("chen")
    expect(run).to_contain_text("RTX-4090")
    check_axe(page)
    run.get_by_text("Stop…").click()
    run.get_by_role("button", name="Stop it").click()
    expect(page.get_by_role("status").first).to_contain_text("It is stopping.")
    expect(row(page, NASTY)).to_contain_text("stopped", timeout=READY_MS)


MONTH = "spaces/robot-lab/usage?month=2026-10&show=money"


def fill_a_month(demo: Demo) -> int:
    """A workspace whose ledger has a charge of each member on some days of a month that is over; what they sum to."""
    made = {"name": "robot-lab", "display_name": "Robot Lab", "owner": "ada", "time_zone": "Asia/Shanghai"}
    if ask(demo, "POST", "workspaces", json=made).status_code == 201:
        for user in ("boris", "chen", "dora"):
            ask(demo, "PUT", f"workspaces/robot-lab/members/{user}", json={"role": "member"})
    chance, engine = Random(6), db.open_engine(f"sqlite:///{demo.state}/jupyterhub.sqlite")
    with db.begin(engine) as session:
        lab = workspaces.by_name(session, name="robot-lab")
        price = prices.at(session, now=datetime.now(UTC))["storage"]
        for number, member in enumerate(workspaces.members(session, workspace=lab) * 14):
            start = datetime(2026, 10, 1, chance.randrange(20), tzinfo=UTC) + timedelta(days=chance.randrange(30))
            amount = chance.randrange(5, 60) * MICROS
            session.add(
                BillingRecord(
                    workspace_id=lab.id, user_id=member.user_id, subject_kind=SubjectKind.VOLUME, subject_id=10**9 + number,
                    resource="storage", quantity=1, price_id=price.id, unit_price=price.unit_price, amount=amount,
                    start=start, end=start + timedelta(hours=1), written_at=start,
                )
            )  # fmt: skip
    with db.begin(engine, read_only=True) as session:
        total = session.scalar(select(func.sum(BillingRecord.amount)).where(BillingRecord.workspace_id == lab.id))
    engine.dispose()
    return int(total or 0) // MICROS


def test_a_month_is_a_chart_and_a_table_and_only_a_table_without_a_script(demo: Demo, visit: Visit) -> None:
    total = fill_a_month(demo)
    page = visit("ada", at=MONTH)
    expect(page.locator(".rg-canvas canvas")).to_be_visible()
    expect(page.locator("[data-when]")).to_have_text(f"¥{total:,}")
    place = page.locator(".rg-canvas").bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    expect(page.locator("[data-when]")).to_contain_text("2026-10-1")
    page.locator("summary", has_text="Day by day as a table").press("Enter")
    expect(page.get_by_role("columnheader", name="chen")).to_be_visible()
    check_axe(page)
    plain = visit("ada", script=False, at=MONTH)
    expect(plain.locator(".rg-canvas")).to_be_hidden()
    expect(plain.get_by_role("row", name="Total")).to_contain_text(f"¥{total:,}")
    plain.locator("summary", has_text="Day by day as a table").click()
    expect(plain.get_by_role("rowheader", name="2026-10-31")).to_be_visible()
    for given in ({"dark": True}, {"width": 360}):
        chinese = visit("boris", locale="zh-CN", **given, at=MONTH)
        expect(chinese.locator(".rg-canvas canvas")).to_be_visible()
        assert chinese.evaluate("document.documentElement.scrollWidth") <= given.get("width", 1280)


def test_a_viewer_sees_everything_and_changes_nothing(demo: Demo, visit: Visit) -> None:
    page = visit("dora", at=f"{LAB}/members")
    expect(row(page, "ada")).to_contain_text("owner")
    assert page.locator("main form[method=post]").count() == 0
    expect(page.get_by_role("link", name="Settings")).to_have_count(0)
    open_page(page, demo, f"{LAB}/members/chen")
    expect(page.get_by_text("1 GPU").first).to_be_visible()
    assert page.locator("main form[method=post]").count() == 0
    for path in ("usage", "environments"):
        open_page(page, demo, f"{LAB}/{path}")
        expect(page.get_by_role("heading", name="Vision Lab")).to_be_visible()
    open_page(page, demo, f"{LAB}/settings")
    expect(page.get_by_text("Your role in vision-lab is viewer.")).to_be_visible()
    token = page.context.cookies()
    xsrf = next(one["value"] for one in token if one["name"] == "_xsrf" and "services" in one["path"])
    answer = page.context.request.post(
        f"{demo.address}services/workspaces/{LAB}/members/dora/role",
        form={"_xsrf": xsrf, "role": "owner", "status": "active"},
    )
    assert answer.status == 403
    assert ask(demo, "GET", "workspaces/vision-lab/members/dora").json()["role"] == "viewer"
    open_page(page, demo, LAB)
    page.get_by_text("Leave this workspace…").click()
    page.get_by_role("button", name="Leave it").click()
    expect(page.get_by_role("status").first).to_contain_text("You left the workspace.")
    expect(page.get_by_role("link", name="Vision Lab")).to_have_count(0)
    open_page(page, demo, LAB)
    expect(page.get_by_text("The workspace was not found.")).to_be_visible()


def test_settings_take_any_name_and_the_last_owner_is_kept(demo: Demo, visit: Visit) -> None:
    page = visit("ada", at=f"{LAB}/settings")
    check_axe(page)
    page.get_by_label("Time zone").fill("Mars/Olympus")
    page.get_by_label("Display name").fill(NASTY)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("Mars/Olympus is not a time zone")
    expect(page.get_by_label("Display name")).to_have_value(NASTY)
    page.get_by_label("Time zone").fill("Asia/Shanghai")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status").first).to_contain_text("The settings are saved.")
    expect(page.get_by_role("heading", name=NASTY)).to_be_visible()
    page.get_by_role("link", name="Overview").click()
    page.get_by_text("Leave this workspace…").click()
    page.get_by_role("button", name="Leave it").click()
    expect(page.get_by_role("alert")).to_contain_text("needs an owner")
    admin = visit("boris", at=f"{LAB}/members")
    expect(row(admin, "ada").get_by_role("combobox")).to_have_count(0)
    expect(row(admin, "chen").get_by_role("combobox").locator("option")).to_have_text(["member", "viewer"])
