"""A notebook with a GPU on a real cluster: the form, the pull by digest, JupyterLab through the proxy, a file that stays."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from remotegpu_hub.db import begin
from remotegpu_hub.domain import catalog
from tests.cluster.cluster import LocalCluster
from tests.hubs import PASSWORD
from tests.kube_hubs import A100, KubeHub
from tests.worlds import ADMIN

Keep = Callable[[Page, str], None]
READY_MS = 120_000


@pytest.fixture(scope="module")
def hub(test_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeHub]:
    with KubeHub(tmp_path_factory.mktemp("cluster"), test_cluster) as running:
        with begin(running.engine) as session:
            catalog.put_flavor(
                session, name="one-a100", display_name="1 × A100", gpu_model=A100, gpu_slots=1, cpu_millis=1000,
                memory_bytes=2**31, actor=ADMIN, now=running.world.now,
            )  # fmt: skip
        yield running


def run_cell(page: Page, code: str, told: str) -> str:
    """Run code in a new notebook; what it printed."""
    page.locator(".jp-LauncherCard[title^='Python 3']").first.click(timeout=READY_MS)
    expect(page.get_by_text("(ipykernel) | Idle")).to_be_visible(timeout=READY_MS)
    cell = page.locator(".jp-NotebookPanel .jp-Cell .cm-content").first
    cell.click(timeout=READY_MS)
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-OutputArea-output", has_text=told).first
    expect(output).to_be_visible(timeout=READY_MS)
    return output.inner_text()


def start(page: Page, hub: KubeHub, keep: Keep | None = None) -> None:
    page.goto(f"{hub.url}hub/spawn/alice")
    page.get_by_text("JupyterLab on a pod").click()
    page.get_by_text("1 × A100", exact=True).click()
    expect(page.locator("#rg-quote")).to_contain_text("A100")
    if keep:
        keep(page, "spawn-on-a-cluster")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url(re.compile(r"/user/alice/lab"), timeout=READY_MS)


def test_a_notebook_on_a_cluster_holds_its_gpu_and_finds_its_file_again(
    hub: KubeHub, chromium: Browser, keep: Keep
) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(f"{hub.url}hub/login?next=/hub/spawn/alice")
    page.fill("#username_input", "alice")
    page.fill("#password_input", PASSWORD)
    page.click("#login_submit")
    start(page, hub, keep)
    said = run_cell(page, "import os; open('kept.txt', 'w').write('from the first run'); "
                          "print('held:', os.environ['NVIDIA_VISIBLE_DEVICES'], os.getuid())", "held:")  # fmt: skip
    assert re.search(r"held: GPU-[0-9a-f-]{36} 1000", said), said
    keep(page, "lab-on-a-cluster")
    hub.stop_server("alice")
    start(page, hub)
    page.goto(f"{hub.url}user/alice/files/kept.txt")
    expect(page.get_by_text("from the first run")).to_be_visible()
    hub.stop_server("alice")
    hub.check()
    context.close()
