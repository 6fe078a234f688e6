"""The pages of the service `workspaces` in a real browser: my environments, a new one, my limits, my SSH keys."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from .conftest import RENEW, Demo, Started, Visit
from .test_first_day import stop_all

Keep = Callable[[Page, str], None]
READY_MS = 120_000
NASTY = "<script>alert(1)</script> 训练"


@pytest.fixture(autouse=True)
def nothing_runs_afterwards(demo: Demo) -> Iterator[None]:
    yield
    for user in demo.hub("GET", "/users?state=active").json():
        for name in user["servers"]:
            demo.hub("DELETE", f"/users/{user['name']}/servers/{name}" if name else f"/users/{user['name']}/server")
    stop_all(demo)


def open_page(page: Page, demo: Demo, path: str = "") -> Page:
    page.goto(f"{demo.address}services/workspaces/{path}")
    return page


def check_axe(page: Page) -> None:
    """No serious finding of axe-core."""
    found = Axe().run(page).response["violations"]
    bad = [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found
           if one["impact"] in ("serious", "critical")]  # fmt: skip
    assert not bad, bad


def row(page: Page, name: str) -> Any:
    return page.locator("tr", has=page.get_by_text(name, exact=True))


def test_an_environment_is_named_started_stopped_and_deleted(demo: Demo, visit: Visit) -> None:
    page = visit("chen", at="")
    expect(page.get_by_text("You have no environments yet.")).to_be_visible()
    check_axe(page)
    page.get_by_role("link", name="Make your first one").click()
    page.get_by_label("What do you call it?").fill(NASTY)
    check_axe(page)
    page.get_by_role("button", name="Go on").click()
    page.wait_for_url(re.compile(r"/hub/spawn/chen/script-alert-1-script"))
    expect(page.locator("#rg-name")).to_have_value(NASTY)
    page.get_by_text("1 × RTX 4090").click()
    expect(page.locator("#rg-quote")).to_contain_text("RTX-4090")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url(re.compile(r"/user/chen/"), timeout=READY_MS)

    open_page(page, demo)
    mine = row(page, NASTY)
    expect(mine).to_contain_text("running")
    expect(mine).to_contain_text("RTX-4090")
    expect(mine).to_contain_text("an hour")
    check_axe(page)
    mine.get_by_text("Stop…").click()
    expect(mine).to_contain_text("what is not saved is lost")
    page.keyboard.press("Escape")
    expect(mine.get_by_role("button", name="Stop it")).to_be_hidden()
    mine.get_by_text("Stop…").click()
    mine.get_by_role("button", name="Stop it").click()
    expect(page.get_by_role("status").first).to_contain_text("It is stopping.")
    expect(row(page, NASTY)).to_contain_text("stopped", timeout=READY_MS)
    expect(row(page, NASTY)).to_contain_text("¥")

    row(page, NASTY).get_by_role("button", name="Start", exact=True).click()
    expect(row(page, NASTY)).to_contain_text("running", timeout=READY_MS)
    stop_all_of_chen(demo, page)
    row(page, NASTY).get_by_text("Delete…").click()
    expect(row(page, NASTY)).to_contain_text("Its home volume and its costs stay.")
    row(page, NASTY).get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("It was deleted. Its home volume stays.")).to_be_visible()
    expect(page.get_by_text("You have no environments yet.")).to_be_visible()


def stop_all_of_chen(demo: Demo, page: Page) -> None:
    row(page, NASTY).get_by_text("Stop…").click()
    row(page, NASTY).get_by_role("button", name="Stop it").click()
    expect(row(page, NASTY)).to_contain_text("stopped", timeout=READY_MS)


def test_what_is_refused_is_told_on_the_list(demo: Demo, visit: Visit, started: Started) -> None:
    started("ada", "two-tabs")
    page = visit("ada", at="")
    other = open_page(page.context.new_page(), demo)
    old = row(other, "two-tabs")
    old.get_by_text("Stop…").click()  # who answers a question is not disturbed by news
    stop = row(page, "two-tabs")
    stop.get_by_text("Stop…").click()
    stop.get_by_role("button", name="Stop it").click()
    expect(row(page, "two-tabs")).to_contain_text("stopped", timeout=READY_MS)
    row(page, "two-tabs").get_by_text("Delete…").click()
    row(page, "two-tabs").get_by_role("button", name="Delete it").click()
    expect(page.get_by_text("It was deleted.")).to_be_visible()
    old.get_by_role("button", name="Stop it").click()
    expect(other.get_by_role("alert")).to_contain_text("was not found")


def test_a_lost_connection_is_told_and_nothing_on_the_page_jumps(demo: Demo, visit: Visit) -> None:
    page = visit("ada", at="")
    page.context.set_offline(True)
    expect(page.get_by_text("The connection is lost.")).to_be_visible(timeout=30_000)
    page.context.set_offline(False)
    expect(page.get_by_text("The connection is lost.")).to_be_hidden(timeout=30_000)


def test_who_is_logged_out_meanwhile_is_told_and_an_unknown_address_leads_back(demo: Demo, visit: Visit) -> None:
    page = visit("ada", at="nothing-of-the-kind")
    expect(page.get_by_text("This page was not found.")).to_be_visible()
    page.get_by_role("link", name="My environments").click()
    expect(page.get_by_role("heading", name="My environments")).to_be_visible()
    late = open_page(page.context.new_page(), demo, "new")
    page.context.clear_cookies()
    page.evaluate(RENEW)
    expect(page.get_by_text("You are logged out; what you see is old.")).to_be_visible()
    expect(page.get_by_text("The connection is lost.")).to_be_hidden()
    late.get_by_label("What do you call it?").fill("too late")
    late.get_by_role("button", name="Go on").click()
    expect(late.get_by_text("nothing was changed")).to_be_visible()
    page.get_by_role("link", name="Log in again").click()
    expect(page.locator("#login_submit")).to_be_visible()


def test_keys_are_added_with_the_keyboard_refused_in_words_and_removed(
    demo: Demo, visit: Visit, tmp_path: Path
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NASTY, "-f", tmp_path / "key"], check=True)
    page = visit("chen", at="keys")
    page.get_by_label("Public key").focus()
    page.keyboard.insert_text((tmp_path / "key").read_text())
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("private key")
    page.get_by_label("Public key").fill((tmp_path / "key.pub").read_text())
    page.get_by_role("button", name="Add it").click()
    expect(page.get_by_text("SHA256:")).to_be_visible()
    check_axe(page)
    page.get_by_text("Remove…").click()
    page.get_by_role("button", name="Remove it").click()
    expect(page.get_by_text("You have no keys yet.")).to_be_visible()


def test_limits_are_bars_with_words(demo: Demo, visit: Visit) -> None:
    page = visit("ada", at="limits")
    expect(page.get_by_role("heading", name="You, everywhere")).to_be_visible()
    expect(page.get_by_text("GPU hours this month").first).to_be_visible()
    check_axe(page)


def test_an_admin_sees_every_gpu_and_takes_one_out_and_nobody_else_does(
    demo: Demo, visit: Visit, started: Started
) -> None:
    started("ada", "held by ada", gpu=True)
    page = visit("ada", at="gpus")
    expect(page.get_by_text("Only an admin of the hub may do that.")).to_be_visible()
    admin = visit("admin", at="gpus")
    expect(admin.get_by_text("simulated").first).to_be_visible()
    held = admin.get_by_role("link", name=re.compile("held, ada"))
    held.first.click()
    focus = admin.get_by_label("The GPU in focus")
    expect(focus).to_contain_text("ada /")
    expect(focus).to_contain_text("an hour")
    check_axe(admin)
    focus.get_by_text("Maintenance…").click()
    focus.get_by_role("button", name="Take it out").click()
    focus.get_by_role("button", name="Give it out again").click()
    expect(focus.get_by_text("Maintenance…")).to_be_visible()
    admin.get_by_label("Host, user, workspace, UUID").fill("nobody-has-this-name")
    admin.get_by_role("button", name="Search").click()
    expect(admin.get_by_text("Nothing fits.")).to_be_visible()
    admin.get_by_label("Host, user, workspace, UUID").fill("ADA")
    admin.get_by_role("button", name="Search").click()
    held.first.click()
    focus.get_by_text("Stop…").click()
    focus.get_by_role("button", name="Stop it").click()
    open_page(page, demo)
    expect(page.get_by_text("stopped").first).to_be_visible(timeout=READY_MS)
    dark = visit("admin", locale="zh-CN", dark=True, at="gpus")
    check_axe(dark)


def test_one_environment_shows_its_log_live_and_how_its_runs_ended(demo: Demo, visit: Visit, started: Started) -> None:
    server = started("boris", "watched")["server_name"]
    page = visit("boris", at="")
    page.get_by_role("link", name="watched").click()
    log = page.get_by_role("log")
    expect(log).to_contain_text("Jupyter Server", timeout=30_000)
    expect(page.get_by_text("it still runs")).to_be_visible()
    check_axe(page)
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    page.get_by_role("link", name="中文").click()
    expect(page.get_by_role("heading", name="运行记录")).to_be_visible()
    expect(log).to_contain_text("Jupyter Server", timeout=30_000)
    check_axe(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert demo.hub("DELETE", f"/users/boris/servers/{server}").status_code in (202, 204)
    expect(log).to_contain_text("Interrupted", timeout=30_000)
    other = visit("chen", at=page.url.split("services/workspaces/")[1])
    expect(other.get_by_role("heading", name="watched")).to_be_visible()
    expect(other.get_by_role("log")).to_have_count(0)  # a member of the workspace sees all but what it printed


def test_the_api_can_be_tried_on_a_page(demo: Demo, visit: Visit) -> None:
    page = visit("ada", at="api")
    page.locator("#find").fill("get what you may hold")
    operation = page.locator("details:visible")
    expect(operation).to_have_count(1)
    operation.locator("summary").click()
    operation.get_by_role("button", name="Send").click()
    expect(operation.get_by_role("status")).to_contain_text("200")
    expect(operation.locator("pre")).to_contain_text('"name": "ada"')
    check_axe(page)
    page.locator("#find").fill("post add an ssh key counts")
    expect(operation).to_have_count(1)
    operation.locator("summary").click()
    operation.get_by_label("Body").fill('{"public_key": "nothing of the kind"}')
    operation.get_by_role("button", name="Send").click()
    expect(operation.get_by_role("status")).to_contain_text("400")
