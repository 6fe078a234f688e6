"""A data scientist's first day: log in, choose, start, work in JupyterLab, stop; and what refuses to go."""

import re
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import Demo, Started, Visit

OPEN = "SELECT count(*) FROM remotegpu_allocations WHERE state <> 'ended'"
READY_MS = 120_000


def ask(demo: Demo, question: str) -> Any:
    with closing(sqlite3.connect(demo.state / "jupyterhub.sqlite")) as database:
        return database.execute(question).fetchall()


def stop_all(demo: Demo) -> None:
    for name in ("ada", "boris", "chen"):
        demo.hub("DELETE", f"/users/{name}/server")
    deadline = time.monotonic() + 60
    while ask(demo, OPEN)[0][0]:
        assert time.monotonic() < deadline, "something is still held"
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def nothing_runs_afterwards(demo: Demo) -> Any:
    yield
    stop_all(demo)


def test_a_data_scientist_starts_a_gpu_notebook_and_sees_her_gpu_in_it(demo: Demo, visit: Visit) -> None:
    page = visit("ada")
    page.get_by_text("JupyterLab 4").click()
    page.get_by_text("1 × RTX 4090").click()
    expect(page.locator("#rg-quote")).to_contain_text("RTX-4090")
    expect(page.locator("#rg-quote")).to_contain_text("¥")
    page.fill("#rg-name", "resnet-sweep")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url(re.compile(r"/user/ada/"), timeout=READY_MS)
    held = ask(demo, "SELECT g.uuid FROM remotegpu_allocation_slots s JOIN remotegpu_gpu_slots p ON p.id = s.slot_id "
                     "JOIN remotegpu_gpus g ON g.id = p.gpu_id WHERE s.open")  # fmt: skip
    assert len(held) == 1
    page.locator(".jp-LauncherCard[title^='Python 3']").first.click(timeout=READY_MS)
    cell = page.locator(".jp-NotebookPanel .jp-Cell .cm-content").first
    expect(page.get_by_text("(ipykernel) | Idle")).to_be_visible(timeout=READY_MS)
    cell.click(timeout=READY_MS)
    page.keyboard.type("import os; print('held:', os.environ['CUDA_VISIBLE_DEVICES'])")
    expect(cell).to_contain_text("CUDA_VISIBLE_DEVICES")
    page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-OutputArea-output", has_text="held:")
    expect(output.first).to_contain_text(held[0][0], timeout=READY_MS)
    assert demo.hub("DELETE", "/users/ada/server").status_code in (202, 204)
    stop_all(demo)
    state, started, ended = ask(
        demo, "SELECT state, started_at, ended_at FROM remotegpu_allocations ORDER BY id DESC LIMIT 1"
    )[0]
    assert state == "ended"
    assert started < ended


def test_the_page_speaks_chinese_in_the_dark_and_fits_a_phone(visit: Visit) -> None:
    page = visit("chen", locale="zh-CN", dark=True)
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.get_by_role("button", name="启动", exact=True)).to_be_visible()
    page.set_viewport_size({"width": 360, "height": 740})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360, f"the page is {wide} px wide on a phone of 360"


def test_a_refusal_names_the_limits_and_keeps_the_choices(demo: Demo, visit: Visit) -> None:
    page = visit("chen", script=False)
    page.get_by_label("Own numbers").check()
    page.locator("#rg-gpus label", has_text=re.compile("^A100-80GB$")).click()
    page.fill("#rg-count", "3")
    page.fill("#rg-name", "太大的实验")
    page.get_by_role("button", name="Start", exact=True).click()
    alert = page.locator(".alert-danger").first
    expect(alert).to_contain_text("were asked for")
    expect(page.locator("#rg-name")).to_have_value("太大的实验")
    expect(page.locator("#rg-count")).to_have_value("3")
    assert ask(demo, OPEN)[0][0] == 0


def test_a_viewer_is_told_why_she_cannot_start(visit: Visit) -> None:
    page = visit("dora")
    page.select_option("#rg-workspace", "vision-lab") if page.locator(
        "#rg-workspace option[value=vision-lab]:not([disabled])"
    ).count() else None
    expect(page.locator("#rg-workspace option[value=vision-lab]")).to_be_disabled()


def test_a_wrong_password_lets_nobody_in(demo: Demo, chromium: Any) -> None:
    page = chromium.new_context().new_page()
    page.goto(f"{demo.address}hub/login")
    page.fill("#username_input", "ada")
    page.fill("#password_input", "wrong")
    page.click("#login_submit")
    expect(page.locator(".login_error")).to_be_visible()
    page.context.close()


def test_the_whole_form_can_be_used_by_keyboard(demo: Demo, visit: Visit) -> None:
    page = visit("boris")
    page.locator("#rg-workspace").focus()
    reached = []
    for _press in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.innerText.trim()"))
        if reached[-1] == "Start":
            break
    assert {"name", "image", "flavor", "gpu_model", "cpu", "memory_gib"} <= set(reached), reached
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/(spawn-pending|user)/boris"), timeout=READY_MS)
    deadline = time.monotonic() + READY_MS / 1000
    while not ask(demo, OPEN)[0][0]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_numbers_renew_themselves_without_touching_what_was_typed(visit: Visit, started: Started) -> None:
    first = visit("chen")
    first.fill("#rg-name", "half typed")
    first.locator("#rg-name").focus()
    free = first.locator("tr", has_text="RTX-4090").locator(".small", has_text="free").first
    before = free.inner_text()
    started("ada", "takes one", gpu=True)
    expect(free).not_to_have_text(before, timeout=30_000)
    expect(first.locator("#rg-name")).to_have_value("half typed")
    assert first.evaluate("document.activeElement.id") == "rg-name"


def test_a_link_from_a_foreign_site_starts_nothing(demo: Demo, visit: Visit) -> None:
    page = visit("ada")
    page.goto(f"{demo.address}hub/spawn/ada?opt-gpu_model=RTX-4090&opt-gpus=2&opt-flavor=")
    expect(page.locator("#rg-count")).to_have_value("2")
    page.locator("label[for=rg-gpu-none]").click()
    expect(page.locator("#rg-count")).to_be_hidden()
    assert ask(demo, OPEN)[0][0] == 0
