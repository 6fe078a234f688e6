"""The pictures of docs/images, made on demand: a hub with eight hosts, on which a dozen people work."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import select

from benchmarks.parts.busy_hub import BusyHub
from remotegpu_hub import db
from remotegpu_hub.clients import outputs
from remotegpu_hub.domain import catalog, inventory, prices, requests, users, workspaces
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.orm import (
    Allocation,
    BillingRecord,
    BudgetAction,
    Deadline,
    EndReason,
    GpuStatus,
    HostStatus,
    QuotaScope,
    Role,
    SubjectKind,
)
from remotegpu_hub.units import GIB, MICROS
from tests.hubs import PASSWORD
from tests.worlds import ADMIN, gpus, host

pytestmark = pytest.mark.skipif(
    not os.environ.get("REMOTEGPU_SCREENSHOTS"), reason="pictures are made on demand, with REMOTEGPU_SCREENSHOTS set"
)
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
A100, H200, RTX = "A100-80GB", "H200-141GB", "RTX-4090"
MODELS = {A100: (3, 81920, 9.5), H200: (2, 144384, 21.0), RTX: (3, 24564, 3.2)}
"""Hosts, memory of each GPU in MiB, price of an hour."""
SPACES: dict[str, dict[str, Any]] = {
    "vision-lab": {
        "display_name": "Vision Lab",
        "owner": "ada",
        "members": ("boris", "chen", "emil", "fatima", "dora"),
    },
    "nlp-lab": {
        "display_name": "自然语言处理实验室",
        "owner": "boris",
        "members": ("ada", "li-na", "wang-wei", "chen"),
    },
    "robotics": {"display_name": "Robotics", "owner": "emil", "members": ("fatima", "jonas")},
}
PEOPLE = ("ada", "boris", "chen", "dora", "emil", "fatima", "jonas", "li-na", "wang-wei")
RUNS = (
    ("ada", "vision-lab", "resnet-sweep", A100, 2), ("ada", "nlp-lab", "分词器消融实验", RTX, 1), ("ada", "vision-lab", "data-prep", None, 0),
    ("boris", "nlp-lab", "llm-eval", H200, 4), ("boris", "vision-lab", "augmentations", RTX, 1),
    ("chen", "vision-lab", "detectron-eval", A100, 4), ("chen", "nlp-lab", "对齐训练 第三轮", H200, 2),
    ("emil", "robotics", "grasp-policy", A100, 4), ("emil", "vision-lab", "depth-maps", RTX, 2),
    ("fatima", "robotics", "sim-to-real", A100, 6), ("fatima", "vision-lab", "segment-tiles", RTX, 1),
    ("jonas", "robotics", "world-model", H200, 2), ("li-na", "nlp-lab", "语料清洗", RTX, 4), ("wang-wei", "nlp-lab", "长文本微调", H200, 3),
)  # fmt: skip
CATALOGUE = {
    "local:pytorch": ("PyTorch 2.9, CUDA 12.8", "PyTorch"), "local:jax": ("JAX 0.7, CUDA 12.6", "JAX"),
    "local:plain": ("JupyterLab 4", "JupyterLab"), "local:detectron": ("Vision Lab: Detectron", "PyTorch"),
}  # fmt: skip
CONFIG = """
c.RemoteGPU.simulated_gpus = []
c.RemoteGPU.currency = "CNY"
c.RemoteGPU.port_ranges = {"ssh": (31022, 31081), "tensorboard": (31090, 31139)}
"""


class Town(BusyHub):
    """Everything runs at once, since when is left to chance."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, users=0, db_url=f"sqlite:///{folder}/jupyterhub.sqlite")
        self.members = PEOPLE
        told = {
            name: {
                **self.images["local:plain"],
                "display_name": shown,
                "framework": framework,
                "python_version": "3.12",
            }
            for name, (shown, framework) in CATALOGUE.items()
        }
        text = self.config_file.read_text()
        self.config_file.write_text(
            text.replace("\nconfigure(c)\n", f"\n{CONFIG}c.RemoteGPU.images = {told!r}\nconfigure(c)\n")
        )

    @property
    def servers(self) -> list[tuple[str, str, str]]:
        return [(user, f"s-{number}", space) for number, (user, space, *_) in enumerate(RUNS)]

    def choice(self, number: int) -> dict[str, Any]:
        _, _, name, model, count = RUNS[number]
        return {
            "image": ("local:pytorch", "local:jax", "local:plain")[number % 3], "gpu_model": model, "gpus": count, "name": name,
            "cpu_millis": 8000 * max(count, 1), "memory_bytes": 48 * GIB * max(count, 1),
            "ports": ("ssh", "tensorboard") if number == 0 else (),
        }  # fmt: skip

    def _people(self) -> None:
        self.add_users(*PEOPLE)
        world = self.world
        world.quota(QuotaScope.USER_DEFAULT, gpu_millis=8000, cpu_millis=96_000, memory_bytes=768 * GIB,
                    storage_bytes=500 * GIB, environments=6, gpu_hours=1200)  # fmt: skip
        world.quota(QuotaScope.WORKSPACE_DEFAULT, gpu_millis=20_000, cpu_millis=256_000, memory_bytes=2048 * GIB,
                    storage_bytes=8192 * GIB, environments=30, gpu_hours=9000)  # fmt: skip
        for model, (_, _, price) in MODELS.items():
            world.price(f"gpu:{model}", price)
        for resource, price in {"cpu": 0.1, "memory": 0.01, "storage": 0.0004}.items():
            world.price(resource, price)
        for name, about in SPACES.items():
            world.workspace(name, owner=about["owner"], display_name=about["display_name"],
                            members={one: Role.VIEWER if one == "dora" else Role.MEMBER for one in about["members"]})  # fmt: skip
        world.budget("vision-lab", 30_000)
        world.budget("nlp-lab", 24_000, BudgetAction.WARN)
        with db.begin(self.engine) as session:
            for name, shown, model, count in (("cpu", "CPU, 8 cores", None, 0), ("rtx", "1 × RTX 4090", RTX, 1), ("a100", "2 × A100", A100, 2),
                                              ("h200", "4 × H200", H200, 4)):  # fmt: skip
                catalog.put_flavor(session, name=name, display_name=shown, gpu_model=model, gpu_slots=count,
                                   cpu_millis=8000 * max(count, 1), memory_bytes=64 * GIB * max(count, 1), actor=ADMIN, now=world.now)  # fmt: skip

    def _hosts(self) -> None:
        names = iter(f"gpu-{number:02}" for number in range(1, 9))
        seen = []
        for model, (count, memory, _) in MODELS.items():
            for name in (next(names) for _ in range(count)):
                mine = gpus(8, model=model, prefix=f"GPU-{name}", memory_mib=memory)
                seen.append(host(name, pool="played", gpus=mine, cpu_millis=192_000, memory_bytes=1536 * GIB))
        self.world.see(*seen)

    def furnish(self) -> None:
        """What came of it: charges of the month, requests, a broken GPU, a host out of work, an end that is near."""
        now, chance = self.world.now, Random(11)
        with db.begin(self.engine) as session:
            price = prices.at(session, now=now)["storage"]
            number = 10**9
            for name in SPACES:
                lab = workspaces.by_name(session, name=name)
                for member in workspaces.members(session, workspace=lab):
                    busy = chance.uniform(10, 130)
                    for day in range(1, now.day + 1):
                        number += 1
                        start = datetime(now.year, now.month, day, 0, tzinfo=UTC)
                        session.add(BillingRecord(
                            workspace_id=lab.id, user_id=member.user_id, subject_kind=SubjectKind.VOLUME, subject_id=number,
                            resource="storage", quantity=1, price_id=price.id, unit_price=price.unit_price,
                            amount=round(busy * chance.uniform(0.3, 1.6) * MICROS), start=start, end=start + timedelta(minutes=1),
                            written_at=start,
                        ))  # fmt: skip
            runs = list(session.scalars(select(Allocation).where(Allocation.ended_at.is_(None))))
            printing = next(one.id for one in runs if one.environment.display_name == "resnet-sweep")
            soon = next(one for one in runs if one.environment.display_name == "data-prep")
            session.add(Deadline(allocation_id=soon.id, reason=EndReason.DRAINED, at=now + timedelta(minutes=50),
                                 message=inventory.DRAINED))  # fmt: skip
            inventory.set_gpu_status(session, uuid="GPU-gpu-05-7", status=GpuStatus.MAINTENANCE, actor=ADMIN, now=now)
            inventory.set_host_status(session, name="gpu-08", status=HostStatus.MAINTENANCE, actor=ADMIN, now=now)
        told = outputs.path_of(self.runtime.settings.output_folder, printing)
        with told.open("w") as file:
            for epoch in range(1, 19):
                file.write(
                    f"epoch {epoch:2} of 90  loss {2.9 / (epoch + 1) ** 0.6:.3f}  top-1 {78 - 60 / (epoch + 1):.1f} %  9 min 52 s\n"
                )
        for asker, scope, space, wanted, why in (
            ("chen", QuotaScope.USER, None, {"gpu_millis": 12_000, "gpu_hours": 2000}, "CVPR deadline on 13 December: three ablations of 4 GPUs each, two weeks."),
            ("li-na", QuotaScope.USER, None, {"gpu_millis": 16_000}, "全量语料预训练，需要 16 块 GPU，预计两周；论文截稿前完成。"),
        ):  # fmt: skip
            with db.begin(self.engine) as session:
                requests.ask(session, scope=scope, asker=users.by_name(session, name=asker), workspace=space, wanted=wanted, reason=why,
                             actor=Actor(asker), now=now, needed_until=now + timedelta(days=20))  # fmt: skip

    def id_of(self, name: str) -> int:
        found = self.world.read(select(Allocation).order_by(Allocation.id))
        return int(
            next(one.environment_id for one in found if one.attempt == f"built-{[run[2] for run in RUNS].index(name)}")
        )


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town(tmp_path_factory.mktemp("town")) as hub:
        hub.fill()
        hub.furnish()
        yield hub


PAGES = {
    "ada": {
        "spawn": "hub/spawn/ada", "environments": "services/workspaces/", "environment": "services/workspaces/environments/{id}",
        "limits": "services/workspaces/limits", "ask": "services/workspaces/limits/ask?scope=user", "keys": "services/workspaces/keys",
        "spaces": "services/workspaces/spaces", "space": "services/workspaces/spaces/vision-lab",
        "space-members": "services/workspaces/spaces/vision-lab/members", "space-usage": "services/workspaces/spaces/vision-lab/usage?show=money",
        "space-environments": "services/workspaces/spaces/vision-lab/environments", "space-member": "services/workspaces/spaces/vision-lab/members/chen",
        "space-settings": "services/workspaces/spaces/vision-lab/settings", "new": "services/workspaces/new", "api": "services/workspaces/api",
        "home": "hub/home", "nothing": "services/workspaces/nothing-of-the-kind",
    },
    "admin": {
        "overview": "services/workspaces/admin", "gpus": "services/workspaces/gpus", "quotas": "services/workspaces/admin/quotas?search=lab",
        "quota": "services/workspaces/admin/quotas/edit?scope=workspace&name=vision-lab",
        "budget": "services/workspaces/admin/quotas/budget?name=vision-lab", "catalog": "services/workspaces/admin/catalog",
        "audit": "services/workspaces/admin/audit", "policy": "services/workspaces/admin/policy?month={month}&user-gpus=3",
        "all-spaces": "services/workspaces/admin/spaces", "new-space": "services/workspaces/admin/spaces/new",
        "webhooks": "services/workspaces/admin/webhooks",
    },
}  # fmt: skip
LOOKS = (("en", False, 1280), ("en", True, 1280), ("zh-CN", False, 1280), ("zh-CN", True, 1280), ("zh-CN", False, 360))
IN_DOCS = ("spawn", "environments", "environment", "limits", "space-members", "space-usage", "overview", "gpus", "quotas", "budget",
           "catalog", "audit", "policy")  # fmt: skip
"""Pictured for docs in both languages, light and dark."""
ONCE = ("ask-en-light", "spaces-en-light", "all-spaces-en-light", "webhooks-en-light")
"""Pictured for docs in one look; the others go to the folder REMOTEGPU_SCREENSHOTS."""


def log_in(page: Page, hub: Town, user: str) -> None:
    page.goto(f"{hub.url}hub/login?next=/hub/token")
    page.fill("#username_input", user)
    page.fill("#password_input", PASSWORD)
    page.click("#login_submit")
    page.wait_for_url("**/hub/token")


def test_pictures_of_all_pages(town: Town, chromium: Browser) -> None:
    others = Path(os.environ["REMOTEGPU_SCREENSHOTS"])
    names = {"id": town.id_of("resnet-sweep"), "month": town.world.now.strftime("%Y-%m")}
    for user, pages in PAGES.items():
        for locale, dark, width in LOOKS:
            context = chromium.new_context(
                locale=locale, color_scheme="dark" if dark else "light", viewport={"width": width, "height": 800}
            )
            page = context.new_page()
            log_in(page, town, user)
            look = f"{locale[:2]}-{'phone' if width < 500 else 'dark' if dark else 'light'}"
            for name, path in pages.items():
                page.goto(town.url + path.format(**names))
                page.wait_for_timeout(300)
                if name == "gpus":
                    page.locator(".rg-gpu.held").nth(1).click()
                ours = (name in IN_DOCS and width > 500) or f"{name}-{look}" in ONCE
                folder = IMAGES if ours else others
                page.screenshot(path=folder / f"{name}-{look}.png", full_page=name not in ("audit", "api"))
            context.close()
