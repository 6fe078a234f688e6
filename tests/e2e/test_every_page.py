"""What all pages have in common in a real browser: nothing jumps, and axe finds nothing serious."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page

from .conftest import Demo, Visit
from .test_first_day import stop_all
from .test_pages import READY_MS, check_axe, open_page
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


def test_nothing_jumps_and_axe_finds_nothing_on_any_page(demo: Demo, visit: Visit, known: dict[str, Any]) -> None:
    for user, paths in (("ada", HELD), ("admin", OF_ADMINS)):
        page = watch(visit(user))
        for path in paths:
            open_page(page, demo, path.format(**known))
            check_calm(page, path)
            check_axe(page)
        page.close()
