"""The demo as a newcomer starts it, and a real Chromium before it."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Error, Page, expect, sync_playwright

from tests.hubs import free_ports

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_SECONDS = 180
READY_SECONDS = 120
RENEW = 'document.dispatchEvent(new Event("visibilitychange"))'
"""Lets a page that lives ask for news now."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Demo:
    address: str
    state: Path
    token: str

    @property
    def password(self) -> str:
        return (self.state / "password").read_text().strip()

    def hub(self, method: str, path: str, **given: object) -> httpx.Response:
        """Ask the hub's REST API as its admin."""
        headers = {"Authorization": f"token {self.token}"}
        return httpx.request(method, f"{self.address}hub/api{path}", headers=headers, timeout=60, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """`python -m demo`, started and ended as a person would."""
    state, token = tmp_path_factory.mktemp("demo") / "state", secrets.token_hex(16)
    (port,) = free_ports(1)
    env = {**os.environ, "PORT": str(port), "STATE": str(state), "TOKEN": token}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "demo"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        deadline, said = time.monotonic() + START_SECONDS, []
        for line in process.stdout:
            said.append(line)
            if line.startswith("ready "):
                break
            assert time.monotonic() < deadline, "".join(said)
        assert said[-1] == f"ready http://127.0.0.1:{port}/\n", "".join(said)
        yield Demo(f"http://127.0.0.1:{port}/", state, token)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Go to a page once more where Chromium let the request go because this machine's network changed: the tests'
    cluster gives each of its pods an interface."""
    go = Page.goto

    def goto(page: Page, url: str, **given: Any) -> Any:
        try:
            return go(page, url, **given)
        except Error as error:
            if "ERR_NETWORK_CHANGED" not in str(error):
                raise
            page.wait_for_url("chrome-error://chromewebdata/")
            return go(page, url, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Page, "goto", goto)
        yield


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Closed with its file: while it is open, this thread has an event loop, and nothing else may begin one."""
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the browser tests did not run. Install Debian's package chromium.")
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


Visit = Callable[..., Page]
Started = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def passes() -> dict[str, list[Any]]:
    """The cookies of who was logged in once, by user."""
    return {}


@pytest.fixture
def visit(chromium: Browser, demo: Demo, passes: dict[str, list[Any]]) -> Iterator[Visit]:
    """Open the spawn page, or a page of the service, as a user, in a browser of the given language, colours and width;
    every request must stay on the hub, and no text of a person may run as a script. Everybody logs in once."""
    contexts: list[tuple[str, BrowserContext]] = []
    strangers: list[str] = []

    def come(
        name: str,
        *,
        at: str | None = None,
        locale: str = "en",
        dark: bool = False,
        width: int = 1280,
        script: bool = True,
    ) -> Page:
        context = chromium.new_context(
            locale=locale,
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": 900},
            java_script_enabled=script,
        )
        contexts.append((name, context))
        context.set_default_timeout(60_000)
        context.on("request", lambda one: strangers.append(one.url) if not _ours(one.url, demo) else None)
        context.on("dialog", _no_dialog)
        context.add_cookies(passes.get(name, []))
        page = context.new_page()
        place = f"hub/spawn/{name}" if at is None else f"services/workspaces/{at}"
        if name not in passes:
            page.goto(f"{demo.address}hub/login?next=/hub/token")
            page.fill("#username_input", name)
            page.fill("#password_input", demo.password)
            page.click("#login_submit")
            page.wait_for_url("**/hub/token")
        page.goto(demo.address + place)
        if at is None:
            page.wait_for_selector("#spawn_form, #start, .spawn-error-msg")
        passes[name] = [one for one in context.cookies() if one["path"].startswith(("/hub/", "/services/"))
                        or one["name"] == "jupyterhub-session-id"]  # fmt: skip
        return page

    yield come
    for _, context in contexts:
        context.close()
    assert strangers == [], "a page asked the Internet"


def _no_dialog(dialog: Dialog) -> None:
    if dialog.type == "beforeunload":
        dialog.accept()
    else:
        pytest.fail(f"a script of a text field ran: {dialog.message}")


@pytest.fixture
def started(demo: Demo) -> Iterator[Started]:
    """Start an environment of a user by the API, and take it away afterwards."""
    made: list[tuple[str, dict[str, Any]]] = []

    def start(user: str, name: str, *, workspace: str = "nlp-lab", gpu: bool = False) -> dict[str, Any]:
        made.append((user, start_by_api(demo, user, name, workspace=workspace, gpu=gpu)))
        return made[-1][1]

    yield start
    for user, one in made:
        take_away(demo, user, one)


def api_of(demo: Demo, user: str, method: str, path: str, **given: Any) -> httpx.Response:
    """Ask the service's API with a token of the user's own."""
    token = demo.hub("POST", f"/users/{user}/tokens", json={"expires_in": 600}).json()["token"]
    return httpx.request(
        method, f"{demo.address}services/workspaces/api/{path}", headers={"Authorization": f"token {token}"}, timeout=60,
        trust_env=False, **given,
    )  # fmt: skip


def start_by_api(demo: Demo, user: str, name: str, *, workspace: str, gpu: bool = False) -> dict[str, Any]:
    """An environment that runs."""
    wish = {"name": name, "workspace": workspace} | ({"gpu_model": "RTX-4090", "gpus": 1} if gpu else {})
    answer = api_of(demo, user, "POST", "environments", json=wish)
    assert answer.is_success or answer.status_code == 503, answer.text  # a hub without a moment answers later
    deadline, found = time.monotonic() + READY_SECONDS, []
    while time.monotonic() < deadline:
        listed = api_of(demo, user, "GET", "environments?running=true").json()["items"]
        found = [one for one in listed if one["display_name"] == name]
        if found and found[0]["state"] == "running":
            return dict(found[0])
        time.sleep(0.2)
    raise AssertionError(f"it does not run: {found}")


def take_away(demo: Demo, user: str, one: dict[str, Any]) -> None:
    demo.hub("DELETE", f"/users/{user}/servers/{one['server_name']}")
    deadline = time.monotonic() + READY_SECONDS
    while api_of(demo, user, "DELETE", f"environments/{one['id']}").status_code not in (200, 404):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.2)


def _ours(url: str, demo: Demo) -> bool:
    return url.startswith((demo.address, demo.address.replace("http", "ws"), "data:", "blob:", "about:"))


@pytest.fixture
def keep() -> Callable[[Page, str], None]:
    """Take a picture for docs/images where REMOTEGPU_SCREENSHOTS is set, to be looked at and committed."""

    def take(page: Page, name: str) -> None:
        if os.environ.get("REMOTEGPU_SCREENSHOTS"):
            page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png", full_page=True)

    return take
