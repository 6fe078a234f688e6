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

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.hubs import free_ports

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_SECONDS = 180
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Closed with its file: while it is open, this thread has an event loop, and nothing else may begin one."""
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the browser tests did not run. Install Debian's package chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


Visit = Callable[..., Page]


@pytest.fixture
def visit(chromium: Browser, demo: Demo) -> Iterator[Visit]:
    """Log a user in, in a browser of the given language, colours and width; every request must stay on the hub."""
    contexts: list[BrowserContext] = []
    strangers: list[str] = []

    def log_in(name: str, *, locale: str = "en", dark: bool = False, width: int = 1280, script: bool = True) -> Page:
        context = chromium.new_context(
            locale=locale,
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": 900},
            java_script_enabled=script,
        )
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("request", lambda one: strangers.append(one.url) if not _ours(one.url, demo) else None)
        page.goto(f"{demo.address}hub/login?next=/hub/spawn/{name}")
        page.fill("#username_input", name)
        page.fill("#password_input", demo.password)
        page.click("#login_submit")
        page.wait_for_selector("#spawn_form, #start, .spawn-error-msg")
        return page

    yield log_in
    for context in contexts:
        context.close()
    assert strangers == [], "a page asked the Internet"


def _ours(url: str, demo: Demo) -> bool:
    return url.startswith((demo.address, demo.address.replace("http", "ws"), "data:", "blob:", "about:"))


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[Page, str], None]:
    """Take a picture; with REMOTEGPU_SCREENSHOTS set it goes to docs/images, to be looked at and committed."""
    folder = ROOT / "docs" / "images" if os.environ.get("REMOTEGPU_SCREENSHOTS") else tmp_path

    def take(page: Page, name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return take
