"""Asking for more, deciding, quotas and budgets, in a real browser."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from .conftest import Demo, Visit
from .test_pages import NASTY, check_axe, open_page

Keep = Callable[[Page, str], None]
API = "services/workspaces/api/"


@pytest.fixture(autouse=True)
def as_before(demo: Demo) -> Any:
    """No request waits, and limits are those of the seed."""
    yield
    waiting = ask_api(demo, "GET", "all-quota-requests?state=open&limit=200")["items"]
    for one in waiting:
        ask_api(demo, "POST", f"quota-requests/{one['id']}/refuse", {"answer": "The test is over."})
    ask_api(demo, "PATCH", "workspaces/~dora/quota", {"gpu_millis": 0, "gpu_hours": 0})
    ask_api(demo, "PATCH", "users/chen/quota", dict.fromkeys(("gpu_millis", "memory_bytes")))
    ask_api(demo, "PUT", "workspaces/vision-lab/budget", {"amount_micros": 2_000_000_000})


def ask_api(demo: Demo, method: str, path: str, body: Any = None) -> Any:
    """As the hub's admin."""
    headers = {"Authorization": f"token {demo.token}"}
    answer = httpx.request(
        method, f"{demo.address}{API}{path}", headers=headers, json=body, timeout=60, trust_env=False
    )
    assert answer.is_success, answer.text
    return answer.json()


def ask(page: Page, limit: str, amount: str, why: str) -> None:
    page.get_by_label(limit, exact=True).fill(amount)
    page.get_by_label("Why?").fill(why)
    page.get_by_role("button", name="Ask", exact=True).click()


def card(page: Page, user: str) -> Any:
    return page.get_by_role("article").filter(has=page.get_by_role("heading", name=user))


def test_who_has_no_gpu_asks_an_admin_approves_in_one_click_and_the_limit_is_there(demo: Demo, visit: Visit) -> None:
    dora = visit("dora", at="limits")
    expect(dora.get_by_text("You can hold no GPU yet.")).to_be_visible()
    check_axe(dora)
    dora.get_by_role("link", name="Ask for GPUs").click()
    ask(dora, "GPUs", "", NASTY)
    expect(dora.get_by_role("alert")).to_contain_text("Name at least one limit.")
    expect(dora.get_by_label("Why?")).to_have_value(NASTY)
    ask(dora, "GPUs", "1.5 or two", NASTY)
    expect(dora.get_by_role("alert")).to_contain_text("is not an amount")
    check_axe(dora)
    dora.get_by_label("Needed until").fill("2030-12-31")
    ask(dora, "GPUs", "2", NASTY)
    expect(dora.get_by_role("status")).to_contain_text("waits for an answer")
    mine = dora.locator("tr", has=dora.get_by_text(NASTY)).first
    expect(mine).to_contain_text("2 GPUs")
    expect(mine).to_contain_text("needed until 2030-12-31")

    admin = visit("admin", at="admin/quotas")
    expect(admin.get_by_role("link", name="Quotas and requests 1 open")).to_be_visible()
    wish = card(admin, "dora")
    expect(wish).to_contain_text(NASTY)
    expect(wish.get_by_role("row", name="GPUs")).to_contain_text("0 GPUs")
    check_axe(admin)
    expect(wish).to_contain_text("without them no GPU starts")
    open_page(dora, demo, "limits/ask?scope=workspace&workspace=~dora")
    expect(dora.get_by_text("without GPU hours no GPU starts")).to_be_visible()
    dora.get_by_label("GPU hours a month").fill("10")
    ask(dora, "GPUs", "2", NASTY)
    wish.get_by_role("button", name="Approve what dora asks for").click()
    expect(admin.get_by_role("alert")).to_contain_text("This request was withdrawn meanwhile.")
    wish.get_by_role("button", name="Approve what dora asks for").click()
    expect(admin.get_by_role("status")).to_contain_text("the new limits count at once")
    expect(wish).to_have_count(0)

    open_page(dora, demo, "limits")
    expect(mine).to_contain_text("approved")
    expect(mine).to_contain_text("admin")
    expect(dora.get_by_text("You can hold no GPU yet.")).to_have_count(0)
    expect(dora.get_by_text("0 of 2 GPUs").nth(1)).to_be_visible()


def test_an_owner_refuses_what_a_member_without_javascript_asks_and_the_answer_is_read(
    demo: Demo, visit: Visit
) -> None:
    chen = visit("chen", script=False, at="limits")
    chen.get_by_role("link", name="Ask for more: You, in Vision Lab").click()
    ask(chen, "GPUs", "3", NASTY)
    expect(chen.get_by_role("status")).to_contain_text("waits for an answer")
    for path in ("admin/quotas", "admin/quotas/edit?scope=workspace&name=vision-lab",
                 "admin/quotas/budget?name=vision-lab"):  # fmt: skip
        open_page(chen, demo, path)
        expect(chen.get_by_text("Only an admin of the hub may do that.")).to_be_visible()
    open_page(chen, demo, "spaces/vision-lab/requests")
    expect(chen.get_by_text("Your role in vision-lab is member.")).to_be_visible()

    ada = visit("ada", at="limits")
    expect(ada.get_by_text("Members of Vision Lab ask for more: 1 open.")).to_be_visible()
    ada.get_by_role("link", name="Decide").click()
    wish = card(ada, "chen")
    expect(wish.get_by_role("row", name="GPUs")).to_contain_text("1 GPU")
    late = open_page(ada.context.new_page(), demo, "spaces/vision-lab/requests")
    wish.get_by_text("Refuse…").click()
    check_axe(ada)
    wish.get_by_label("Why, and what to do instead?").fill(f"No: {NASTY}")
    wish.get_by_role("button", name="Refuse it").click()
    expect(ada.get_by_role("status")).to_contain_text("reads your answer")
    card(late, "chen").get_by_role("button", name="Approve what chen asks for").click()
    expect(late.get_by_role("alert")).to_contain_text("ada has refused this request already.")

    open_page(chen, demo, "limits")
    mine = chen.locator("tr", has=chen.get_by_text(f"No: {NASTY}"))
    expect(mine).to_contain_text("refused")


def test_an_asker_withdraws_and_an_admin_approves_other_numbers(demo: Demo, visit: Visit) -> None:
    chen = visit("chen", at="limits/ask?scope=user")
    ask(chen, "Main memory", "6.5", "a larger data set")
    chen.get_by_text("Withdraw…").click()
    chen.get_by_role("button", name="Withdraw it").click()
    expect(chen.get_by_role("status")).to_contain_text("is withdrawn")
    open_page(chen, demo, "limits/ask?scope=user")
    ask(chen, "Main memory", "8", "a larger data set")
    admin = visit("admin", at="admin/quotas")
    wish = card(admin, "chen")
    wish.get_by_text("Other numbers…").click()
    wish.get_by_label("Main memory").fill("6.25")
    wish.get_by_label("Answer (may be empty)").fill("that should do")
    wish.get_by_role("button", name="Approve these").click()
    expect(admin.get_by_role("status")).to_contain_text("the new limits count at once")
    open_page(chen, demo, "limits")
    expect(chen.get_by_text("0 MiB of 6.2 GiB")).to_be_visible()
    expect(chen.get_by_text("that should do")).to_be_visible()


def test_of_two_admins_who_edit_one_quota_the_second_is_told_and_sees_both(demo: Demo, visit: Visit) -> None:
    first = visit("admin", at="admin/quotas")
    first.get_by_label("User or workspace").fill("CHE")
    first.get_by_role("button", name="Search").click()
    first.get_by_role("link", name="Edit the quota of chen", exact=True).click()
    second = open_page(first.context.new_page(), demo, "admin/quotas/edit?scope=user&name=chen")
    first.get_by_label("GPUs", exact=True).fill("5")
    first.get_by_label("Cores: unlimited").check()
    first.get_by_role("button", name="Save").click()
    expect(first.get_by_role("status")).to_contain_text("Saved.")
    expect(first.get_by_label("GPUs", exact=True)).to_have_value("5")
    second.get_by_label("GPUs", exact=True).fill("7")
    second.get_by_role("button", name="Save").click()
    expect(second.get_by_role("alert")).to_contain_text("Somebody else changed this quota meanwhile.")
    expect(second.get_by_label("GPUs", exact=True)).to_have_value("7")
    expect(second.get_by_text("now 5 GPUs")).to_be_visible()
    expect(second.get_by_text("now unlimited")).to_be_visible()
    check_axe(second)
    second.get_by_role("button", name="Save").click()
    expect(second.get_by_role("status")).to_contain_text("Saved.")
    assert ask_api(demo, "GET", "users/chen/quota") == {
        "scope": "user", "workspace": None, "user": "chen", **dict.fromkeys(("cpu_millis", "memory_bytes", "storage_bytes")),
        "gpu_millis": 7000, "environments": None, "gpu_hours": None, "models": {},
    }  # fmt: skip


def test_a_budget_is_set_to_the_last_digit_and_taken_away(demo: Demo, visit: Visit) -> None:
    admin = visit("admin", at="admin/quotas?search=vision")
    admin.get_by_role("link", name="Budget of Vision Lab").first.click()
    expect(admin.get_by_label("Amount a month")).to_have_value("2000")
    admin.get_by_label("Amount a month").fill("1234.567891")
    admin.get_by_label("Warn at").fill("75")
    admin.get_by_role("radio", name="It is shown as spent").check()
    check_axe(admin)
    admin.get_by_role("button", name="Save").click()
    expect(admin.get_by_role("status")).to_contain_text("The budget is set.")
    said = ask_api(demo, "GET", "workspaces/vision-lab/budget")
    assert (said["amount_micros"], said["warn_percent"], said["action"]) == (1_234_567_891, 75, "warn")
    admin.get_by_role("link", name="Budget of Vision Lab").click()
    admin.get_by_label("Amount a month").fill("all of it")
    admin.get_by_role("button", name="Save").click()
    expect(admin.get_by_role("alert")).to_contain_text("is not an amount")
    admin.get_by_text("Take it away…").click()
    admin.get_by_role("button", name="Take it away").click()
    expect(admin.get_by_role("status")).to_contain_text("nothing limits what is spent there")
    open_page(admin, demo, "admin/quotas/budget?name=vision-lab")
    late = open_page(admin.context.new_page(), demo, "admin/quotas/budget?name=vision-lab")
    for page in (admin, late):
        page.get_by_label("Amount a month").fill("5")
        page.get_by_role("button", name="Save").click()
    expect(late.get_by_role("alert")).to_contain_text("Somebody else changed this budget meanwhile. Now it is ¥5.00")
