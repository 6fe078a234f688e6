"""Webhooks in a real browser, and the first page that hears of what happens."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .conftest import Demo, Started, Visit
from .test_pages import check_axe, open_page, row

Keep = Callable[[Page, str], None]


@pytest.fixture
def receiver() -> Iterator[str]:
    """Takes what is sent to /hook, refuses the rest; its path holds a script."""

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204 if self.path.startswith("/hook") else 410)
            self.end_headers()

        def log_message(self, *said: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook/<script>alert(1)</script>"
    server.shutdown()


def test_an_admin_adds_tests_pauses_and_removes_a_webhook(
    demo: Demo, visit: Visit, receiver: str
) -> None:  # fmt: skip
    expect(visit("ada", at="admin/webhooks").get_by_text("Only an admin of the hub")).to_be_visible()
    page = visit("admin", at="admin/webhooks")
    expect(page.get_by_text("No webhook yet.")).to_be_visible()
    check_axe(page)
    form = page.locator("form.rg-narrow")
    form.get_by_label("Address").fill("https://user:secret@example.org/")
    form.get_by_role("button", name="Add it").click()
    expect(page.get_by_role("alert")).to_contain_text("no user and no password")
    form.get_by_label("Address").fill(receiver)
    form.get_by_label("An environment is starting").check()
    form.get_by_role("button", name="Add it").click()
    expect(page.locator("#secret")).to_contain_text("whsec_")
    check_axe(page)
    open_page(page, demo, "admin/webhooks")
    expect(page.locator("#secret")).to_have_count(0)
    mine = row(page, receiver)
    expect(mine.locator("td").first).to_contain_text("environment.creating")
    expect(mine).to_contain_text("not encrypted")
    mine.get_by_role("button", name="Test", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("The receiver took the test: HTTP 204.")
    expect(page.locator("#log")).to_contain_text("taken")

    page.locator("form.rg-narrow").get_by_label("Address").fill(receiver.replace("/hook", "/nothing"))
    page.locator("form.rg-narrow").get_by_role("button", name="Add it").click()
    other = row(page, receiver.replace("/hook", "/nothing"))
    other.get_by_role("button", name="Test", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("did not take the test: HTTP 410.")
    mine.get_by_role("link", name="Log").click()
    check_axe(page)
    dark = visit("admin", locale="zh-CN", dark=True, at="admin/webhooks")
    dark.get_by_role("link", name="记录").first.click()
    check_axe(dark)
    phone = visit("admin", locale="zh-CN", width=360, at="admin/webhooks")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360

    mine.get_by_role("button", name="Pause").click()
    expect(row(page, receiver)).to_contain_text("paused")
    row(page, receiver).get_by_text("Change…").click()
    row(page, receiver).get_by_label("An environment is starting").uncheck()
    row(page, receiver).get_by_role("button", name="Save").click()
    expect(row(page, receiver).locator("td").first).not_to_contain_text("environment.creating")
    for address in (receiver, receiver.replace("/hook", "/nothing")):
        row(page, address).get_by_text("Remove…").click()
        expect(row(page, address)).to_contain_text("its secret is void")
        row(page, address).get_by_role("button", name="Remove it").click()
        expect(page.get_by_role("status")).to_contain_text("The webhook was removed.")
    expect(page.get_by_text("No webhook yet.")).to_be_visible()


def test_the_first_page_hears_at_once_what_happens(demo: Demo, visit: Visit, started: Started) -> None:
    server = started("boris", "heard")["server_name"]
    page = visit("boris", at="keys")
    with page.expect_response("**/api/events?mine=true") as listening:
        open_page(page, demo)
    assert listening.value.status == 200
    expect(row(page, "heard")).to_contain_text("running")
    page.evaluate("document.querySelector('[data-live]').dataset.seen = 'the same page'")
    assert demo.hub("DELETE", f"/users/boris/servers/{server}").status_code in (202, 204)
    expect(row(page, "heard")).to_contain_text("stop", timeout=5_000)
    assert page.evaluate("document.querySelector('[data-live]').dataset.seen") == "the same page", "without a reload"
