"""What all pages have in common in a real browser: nothing jumps, axe finds nothing serious, no text of a person runs as a
script or widens a phone's page; and the pictures of the main ones."""

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from remotegpu_hub.clients import outputs
from remotegpu_hub.runtime import Runtime

from .conftest import Demo, Visit
from .test_first_day import stop_all
from .test_pages import NASTY, READY_MS, Keep, check_axe, open_page
from .test_spaces import LAB, ask

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
RENEW = 'document.dispatchEvent(new Event("visibilitychange"))'
FIELDS = "input:not([type]), input[type=text], input[type=search], input[type=number], input[type=date], input[type=url], textarea"
HELD = ("", "environments/{id}", "limits", "limits/ask", "spaces", LAB, f"{LAB}/environments", f"{LAB}/members",
        f"{LAB}/members/chen", f"{LAB}/requests", f"{LAB}/settings", f"{LAB}/usage", "spaces/nlp-lab/usage", "keys", "new",
        "spaces/nothing-of-the-kind")  # fmt: skip
OF_ADMINS = ("admin", "admin/spaces", "admin/spaces/new", "admin/quotas", "admin/quotas/edit?scope=workspace&workspace=vision-lab",
             "admin/quotas/budget?workspace=vision-lab", "gpus", "admin/catalog", "admin/catalog/flavors",
             "admin/catalog/images/{image}", "admin/policy?month={month}&user-gpus=0", "admin/audit",
             "admin/webhooks")  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(demo: Demo) -> Iterator[None]:
    yield
    stop_all(demo)


@pytest.fixture
def known(demo: Demo) -> Iterator[dict[str, Any]]:
    """An environment with the longest name that runs, and what the paths of pages name."""
    made = demo.hub("POST", "/users/chen/tokens", json={}).json()
    chen = {"Authorization": f"token {made['token']}"}
    api = f"{demo.address}services/workspaces/api"
    body = {"name": LONG, "workspace": "vision-lab", "gpu_model": "RTX-4090", "gpus": 1}
    answer = httpx.post(f"{api}/environments", headers=chen, json=body, timeout=60, trust_env=False)
    assert answer.is_success or answer.status_code == 503, answer.text  # a hub without a moment answers later
    deadline = time.monotonic() + READY_MS / 1000
    while True:
        listed = httpx.get(f"{api}/environments?running=true", headers=chen, timeout=60, trust_env=False).json()[
            "items"
        ]
        (one,) = [found for found in listed if found["display_name"] == LONG] or [{"state": "", "id": 0}]
        if one["state"] == "running":
            break
        assert time.monotonic() < deadline, listed
        time.sleep(0.2)
    image = ask(demo, "GET", "images").json()["items"][0]["id"]
    yield {"id": one["id"], "image": image, "month": time.strftime("%Y-%m"), "server": one["server_name"]}
    demo.hub("DELETE", f"/users/chen/servers/{one['server_name']}")
    for _ in range(100):
        gone = httpx.delete(f"{api}/environments/{one['id']}", headers=chen, timeout=60, trust_env=False)
        if gone.status_code in (200, 404):
            break
        time.sleep(0.2)
    demo.hub("DELETE", f"/users/chen/tokens/{made['id']}")


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


def test_the_page_of_one_environment_lives_and_can_be_acted_on(
    demo: Demo, visit: Visit, known: dict[str, Any], keep: Keep
) -> None:
    page = open_page(visit("chen"), demo, f"environments/{known['id']}")
    acts = page.locator(".rg-acts").first
    expect(page.get_by_text("Cost so far").first).to_be_visible()
    run = ask(demo, "GET", f"environments/{known['id']}").json()["run"]["allocation_id"]
    print_line(demo, run, NASTY)
    expect(page.get_by_role("log")).to_contain_text(NASTY, timeout=30_000)
    keep(page, "environment-long-en-light")
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
    viewer = open_page(visit("dora"), demo, f"environments/{known['id']}")
    expect(viewer.get_by_text("Cost so far").first).to_be_visible()
    assert viewer.locator("main form[method=post]").count() == 0


def test_nothing_jumps_and_axe_finds_nothing_on_any_page(demo: Demo, visit: Visit, known: dict[str, Any]) -> None:
    for user, paths in (("ada", HELD), ("admin", OF_ADMINS)):
        page = watch(visit(user))
        for path in paths:
            open_page(page, demo, path.format(**known))
            check_calm(page, path)
            check_axe(page)
        page.close()


def test_a_hundred_chinese_characters_fit_a_phone(demo: Demo, visit: Visit, known: dict[str, Any]) -> None:
    name = "视觉研究员" * 20
    try:
        demo.hub("POST", f"/users/{name}")
        put = ask(demo, "PUT", f"workspaces/vision-lab/members/{name}", json={"role": "viewer"})
        assert put.is_success, put.text
        headers = {"Authorization": f"token {demo.hub('POST', f'/users/{name}/tokens', json={}).json()['token']}"}
        wish = {"scope": "user", "limits": {"cpu_millis": 64000}, "reason": LONG}
        made = httpx.post(f"{demo.address}services/workspaces/api/quota-requests", headers=headers, json=wish, timeout=60,
                          trust_env=False)  # fmt: skip
        assert made.is_success, made.text
        phone = visit("admin", locale="zh-CN", width=360)
        for path in ("environments/{id}", f"{LAB}/environments", f"{LAB}/members", f"{LAB}/members/{name}", "admin/quotas",
                     "gpus", "admin", "admin/audit"):  # fmt: skip
            open_page(phone, demo, path.format(**known))
            wide = phone.evaluate("document.documentElement.scrollWidth")
            assert wide <= 360, f"{path} is {wide} px wide on a phone of 360"
        own = open_page(visit("chen", width=360), demo)
        expect(own.get_by_text(LONG).first).to_be_visible()
        assert own.evaluate("document.documentElement.scrollWidth") <= 360
    finally:
        ask(demo, "DELETE", f"workspaces/vision-lab/members/{name}")
        demo.hub("DELETE", f"/users/{name}")


def test_no_text_of_a_person_runs_as_a_script(demo: Demo, visit: Visit, known: dict[str, Any]) -> None:
    image = ask(demo, "GET", f"images/{known['image']}").json()
    sent = 0
    try:
        for user, paths in (("ada", HELD), ("admin", OF_ADMINS)):
            page = visit(user)
            for path in (one.format(**known) for one in paths):
                open_page(page, demo, path)
                forms = page.evaluate(
                    "(fields) => [...document.querySelectorAll('main form')].map((form, number) => form.querySelector(fields)"
                    " ? number : -1).filter((number) => number >= 0)", FIELDS,
                )  # fmt: skip
                for number in forms[:4]:
                    page.goto(f"{demo.address}services/workspaces/{path}")
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


@pytest.mark.skipif(not os.environ.get("REMOTEGPU_SCREENSHOTS"), reason="pictures are made on demand")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_pictures_of_the_main_pages(demo: Demo, visit: Visit, known: dict[str, Any], locale: str, dark: bool) -> None:
    folder = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "images")
    for user, name, path in (
        ("chen", "environments", ""), ("chen", "environment", "environments/{id}"), ("admin", "gpus", "gpus"),
        ("admin", "overview", "admin"), ("ada", "space", LAB),
    ):  # fmt: skip
        page = open_page(visit(user, locale=locale, dark=dark), demo, path.format(**known))
        page.wait_for_timeout(500)
        page.screenshot(path=f"{folder}/{name}-{locale[:2]}-{'dark' if dark else 'light'}.png")
