"""The pages for admins of the hub in a real browser: overview, workspaces, hosts, catalogue, audit."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, expect

from .conftest import Demo, Started, Visit
from .test_first_day import stop_all
from .test_pages import NASTY, check_axe, open_page, row

LONG = f"{NASTY} 一个名字很长的视觉与语言大模型联合研究实验室"


@pytest.fixture(autouse=True)
def nothing_runs_afterwards(demo: Demo) -> Iterator[None]:
    yield
    for user in demo.hub("GET", "/users?state=active").json():
        for name in user["servers"]:
            demo.hub("DELETE", f"/users/{user['name']}/servers/{name}" if name else f"/users/{user['name']}/server")
    stop_all(demo)


def is_at_fault(field: Locator, says: str) -> None:
    """It has the focus, and what is wrong stands beside it and belongs to it."""
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_accessible_description(re.compile(re.escape(says)))


def test_an_admin_makes_and_archives_a_workspace_and_a_flavor_and_finds_both_in_the_audit(
    demo: Demo, visit: Visit
) -> None:
    page = visit("admin", at="admin/spaces")
    page.get_by_role("link", name="New workspace").click()
    page.get_by_label("Display name").fill(LONG)
    page.get_by_label("Name", exact=True).fill("e2e-lab")
    page.get_by_label("Owner").fill("nobody")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("alert")).to_contain_text("The user nobody was not found.")
    expect(page.get_by_label("Display name")).to_have_value(LONG)
    is_at_fault(page.get_by_label("Owner"), "The user nobody was not found.")
    page.get_by_label("Owner").fill("chen")
    page.get_by_role("button", name="Make it").click()
    page.wait_for_url(re.compile(r"/spaces/e2e-lab$"))
    open_page(page, demo, "admin/spaces?search=e2e")
    made = row(page, LONG)
    made.get_by_text("Archive…").click()
    expect(made).to_contain_text("can start nothing in it any more")
    made.get_by_role("button", name="Archive it").click()
    expect(row(page, LONG)).to_contain_text("archived")

    open_page(page, demo, "admin/catalog/flavors")
    page.get_by_label("Name", exact=True).fill("e2e")
    page.get_by_label("Display name").fill(LONG)
    page.get_by_label("Cores").fill("0.5")
    page.get_by_label("Main memory").fill("much")
    page.get_by_role("button", name="Keep it").click()
    is_at_fault(page.get_by_label("Main memory"), "much is not a size")
    check_axe(page)
    page.get_by_label("Main memory").fill("512M")
    page.get_by_role("button", name="Keep it").click()
    flavor = row(page, LONG)
    expect(flavor).to_contain_text("¥")
    flavor.get_by_text("Retire…").click()
    flavor.get_by_role("button", name="Retire it").click()
    expect(row(page, LONG)).to_contain_text("retired")

    open_page(page, demo, "admin/audit")
    page.get_by_label("What was done").select_option("workspace.archive")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("tr", has_text=LONG).first).to_contain_text("Workspace archived")
    with page.expect_download() as loading:
        page.get_by_role("link", name="Download as CSV").click()
    file = loading.value.path().read_bytes()
    assert file.startswith(b"\xef\xbb\xbf")
    assert b"workspace.archive" in file
    assert b"flavor.retire" not in file, "the file has the filters of the page"


def test_the_user_of_a_drained_host_sees_until_when_and_back_to_work_takes_it_away(
    demo: Demo, visit: Visit, started: Started
) -> None:
    started("ada", "drained", gpu=True)
    page = visit("ada", at="")
    admin = visit("admin", at="gpus")
    admin.get_by_text("Maintenance…").first.click()
    asked = admin.locator(".rg-asked").first
    expect(asked).to_contain_text("ada /")
    check_axe(admin)
    asked.get_by_label("What becomes of it?").select_option("4h")
    asked.get_by_role("button", name="Take it out").click()
    expect(admin.get_by_text("all there ends at")).to_be_visible()
    open_page(page, demo)
    expect(page.get_by_text("stops at")).to_be_visible()
    admin.get_by_role("button", name="Back to work").click()
    expect(admin.get_by_text("all there ends at")).to_be_hidden()
    open_page(page, demo)
    expect(page.get_by_text("running").first).to_be_visible()
    expect(page.get_by_text("stops at")).to_be_hidden()
    open_page(admin, demo, "admin")
    expect(admin.get_by_role("heading", name="Users who hold most")).to_be_visible()
    expect(admin.get_by_role("link", name="ada", exact=True)).to_be_visible()
