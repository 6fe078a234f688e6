"""What all pages have in common in a real browser: nothing jumps, axe finds nothing serious, no text of a person runs as a
script or widens a phone's page."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from remotegpu_hub.clients import outputs
from remotegpu_hub.runtime import Runtime

from .conftest import RENEW, Demo, Visit, api_of, start_by_api, take_away
from .test_pages import NASTY, READY_MS, check_axe, open_page
from .test_spaces import LAB, ask

NAMED = "视觉研究员" * 20
LONG = "视觉与语言大模型联合研究实验室第三组的长期训练任务" * 4
assert len(LONG) == 100
MOST_JUMPS = 0.1
"""The sum of layout shifts that still counts as calm, by https://web.dev/articles/cls."""
WATCH = """
window.jumps = [];
new PerformanceObserver((list) => {
  for (const one of list.getEntries())
    if (!one.hadRecentInput) jumps.push([one.value, one.sources.map((source) => source.node?.outerHTML?.slice(0, 100))]);
}).observe({ type: "layout-shift", buffered: true });
"""
FIELDS = "input:not([type]), input[type=text], input[type=search], input[type=number], input[type=date], input[type=url], textarea"
HELD = ("", "environments/{id}", "limits", "limits/ask?scope=workspace&workspace=vision-lab", "spaces", LAB,
        f"{LAB}/environments", f"{LAB}/members", f"{LAB}/members/chen", f"{LAB}/members/{NAMED}", f"{LAB}/requests",
        f"{LAB}/settings", f"{LAB}/usage", "spaces/nlp-lab/usage", "keys", "new",
        "spaces/nothing-of-the-kind")  # fmt: skip
OF_ADMINS = ("admin", "admin/spaces", "admin/spaces/new", "admin/quotas?search=lab",
             "admin/quotas/edit?scope=workspace&name=vision-lab", "admin/quotas/edit?scope=user-default&name=user",
             "admin/quotas/budget?name=vision-lab", "gpus", "admin/catalog", "admin/catalog/flavors",
             "admin/catalog/images/{image}", "admin/policy?month={month}&user-gpus=0", "admin/audit",
             "admin/webhooks")  # fmt: skip


@pytest.fixture(scope="module")
def known(demo: Demo) -> Iterator[dict[str, Any]]:
    """An environment with the longest name that runs, a member with a long name who asks for more, and what the paths
    of pages name."""
    one = start_by_api(demo, "chen", LONG, workspace="vision-lab", gpu=True)
    demo.hub("POST", f"/users/{NAMED}")
    put = ask(demo, "PUT", f"workspaces/vision-lab/members/{NAMED}", json={"role": "viewer"})
    assert put.is_success, put.text
    for user, wish in ((NAMED, {"scope": "user", "limits": {"cpu_millis": 64000}, "reason": LONG}),
                       ("chen", {"scope": "member", "workspace": "vision-lab", "limits": {"gpu_millis": 2000}, "reason": "x" * 300})):  # fmt: skip
        made = api_of(demo, user, "POST", "quota-requests", json=wish)
        assert made.is_success, made.text
    image = ask(demo, "GET", "images").json()["items"][0]["id"]
    yield {"id": one["id"], "image": image, "month": time.strftime("%Y-%m")}
    for asked in ask(demo, "GET", "all-quota-requests?state=open&limit=200").json()["items"]:
        ask(demo, "POST", f"quota-requests/{asked['id']}/refuse", json={"answer": "The test is over."})
    ask(demo, "DELETE", f"workspaces/vision-lab/members/{NAMED}")
    demo.hub("DELETE", f"/users/{NAMED}")
    take_away(demo, "chen", one)


def watch(page: Page) -> Page:
    """Count what jumps from now on, on pages that are painted before their scripts come."""

    def late(route: Any) -> None:
        time.sleep(0.2)
        route.continue_()

    page.add_init_script(WATCH)
    page.route("**/static/pages.js", late)
    return page


def check_calm(page: Page, path: str) -> None:
    page.wait_for_timeout(300)
    if page.locator("[data-live]").count():
        for _ in range(2):
            with page.expect_response(lambda answer: answer.request.resource_type == "fetch"):
                page.evaluate(RENEW)
            page.wait_for_timeout(150)
    jumps = page.evaluate("jumps")
    assert sum(value for value, _ in jumps) < MOST_JUMPS, (path, jumps)


def print_line(demo: Demo, run: int, line: str) -> None:
    folder = Runtime.read(str(demo.state / "remotegpu-runtime.json")).settings.output_folder
    with outputs.path_of(folder, run).open("a") as file:
        file.write(f"{line}\n")


def test_the_page_of_one_environment_lives_and_can_be_acted_on(demo: Demo, visit: Visit, known: dict[str, Any]) -> None:
    page = visit("chen", at=f"environments/{known['id']}")
    acts = page.locator(".rg-acts").first
    expect(page.get_by_text("Cost so far").first).to_be_visible()
    run = ask(demo, "GET", f"environments/{known['id']}").json()["run"]["allocation_id"]
    print_line(demo, run, NASTY)
    expect(page.get_by_role("log")).to_contain_text(NASTY, timeout=30_000)
    acts.get_by_text("Stop…").click()
    expect(acts).to_contain_text("what is not saved is lost")
    acts.get_by_role("button", name="Stop it").click()
    expect(page).to_have_url(f"{demo.address}services/workspaces/environments/{known['id']}?told=stop")
    expect(acts.get_by_role("button", name="Start", exact=True)).to_be_visible(
        timeout=READY_MS
    )  # nobody loads it again
    acts.get_by_role("button", name="Start", exact=True).click()
    expect(acts.get_by_text("Restart…")).to_be_visible(timeout=READY_MS)
    again = ask(demo, "GET", f"environments/{known['id']}").json()["run"]["allocation_id"]
    assert again > run
    print_line(demo, again, "the second run prints")
    expect(page.get_by_role("log")).to_contain_text("the second run prints", timeout=30_000)
    expect(page.get_by_role("log")).not_to_contain_text(NASTY)
    viewer = visit("dora", at=f"environments/{known['id']}")
    expect(viewer.get_by_text("Cost so far").first).to_be_visible()
    assert viewer.locator("main form[method=post]").count() == 0


def test_nothing_jumps_and_axe_finds_nothing_on_any_page(demo: Demo, visit: Visit, known: dict[str, Any]) -> None:
    for user, paths in (("ada", HELD), ("admin", OF_ADMINS)):
        page = watch(visit(user, at="keys"))
        for path in paths:
            open_page(page, demo, path.format(**known))
            check_calm(page, path)
            check_axe(page)
        page.close()


def test_every_page_speaks_chinese_in_the_dark_and_fits_a_phone_with_the_longest_names(
    demo: Demo, visit: Visit, known: dict[str, Any]
) -> None:
    own = visit("chen", at="", width=360)
    expect(own.get_by_text(LONG).first).to_be_visible()
    assert own.evaluate("document.documentElement.scrollWidth") <= 360
    others = visit("boris", at="keys")
    for user, paths in (("ada", HELD), ("admin", OF_ADMINS)):
        page = visit(user, at="", locale="zh-CN", dark=True)
        expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
        expect(page.get_by_role("heading", name="我的环境")).to_be_visible()
        for path in (one.format(**known) for one in paths):
            open_page(page, demo, path)
            check_axe(page)
            page.set_viewport_size({"width": 360, "height": 740})
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360, f"{path} is {wide} px wide on a phone of 360"
            page.set_viewport_size({"width": 1280, "height": 900})
            if user == "admin":
                refused = others.context.request.get(f"{demo.address}services/workspaces/{path}")
                assert refused.status == 403, path
                assert "Only an admin of the hub may do that." in refused.text()


def test_no_text_of_a_person_runs_as_a_script(demo: Demo, visit: Visit, known: dict[str, Any]) -> None:
    image = ask(demo, "GET", f"images/{known['image']}").json()
    sent = 0
    try:
        for user, paths in (("ada", HELD), ("admin", OF_ADMINS)):
            page = visit(user, at="keys")
            for path in (one.format(**known) for one in paths):
                open_page(page, demo, path)
                forms = page.evaluate(
                    "(fields) => [...document.querySelectorAll('main form')].map((form, number) => form.querySelector(fields)"
                    " ? number : -1).filter((number) => number >= 0)", FIELDS,
                )  # fmt: skip
                for number in forms[:4]:
                    page.goto(f"{demo.address}services/workspaces/{path}")
                    if number >= page.locator("main form").count():
                        continue  # what was asked for is decided by now
                    with page.expect_navigation() as answer:
                        page.evaluate(
                            "([number, fields, nasty]) => { const form = document.querySelectorAll('main form')[number];"
                            " for (const one of form.querySelectorAll(fields)) { one.type = 'text'; one.value = nasty; }"
                            " form.submit(); }", [number, FIELDS, NASTY],
                        )  # fmt: skip
                    text = answer.value.text()
                    assert "<script>alert" not in text, f"form {number} of {path}"
                    assert answer.value.status < 500, f"form {number} of {path}"
                    sent += "&lt;script&gt;alert" in text
        assert sent > 8, "most pages show again what was typed"
        open_page(page, demo, "admin/catalog")
        expect(page.get_by_text(NASTY).first).to_be_visible()
    finally:
        ask(demo, "PATCH", f"images/{known['image']}", json={"display_name": image["display_name"]})
        ask(demo, "PATCH", "workspaces/vision-lab", json={"display_name": "Vision Lab", "hub_group": None})
