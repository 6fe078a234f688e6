"""Every address of a page, as somebody opens it who typed it, kept it, or came back to it after a refused form."""

import pkgutil
import re
from importlib import import_module

import httpx
import pytest

from remotegpu_hub.services import workspaces
from tests.gpu_hubs import GpuHub

NAMES = {"name": "lab", "user": "carol"}


def addresses() -> list[str]:
    """Each pattern of a page with the parts filled in: of several words the first."""

    def filled(found: re.Match[str]) -> str:
        name, what = found[1], found[2]
        return "1" if what == "[0-9]+" else NAMES[name] if what == "[^/]+" else what.split("|")[0]

    found = []
    for one in pkgutil.iter_modules(workspaces.__path__):
        if one.name == "__main__":
            continue
        routes = getattr(import_module(f"{workspaces.__name__}.{one.name}"), "ROUTES", ())
        found += [re.sub(r"\(\?P<(\w+)>([^()]*)\)", filled, route[0]) for route in routes if isinstance(route, tuple)]
    return sorted({path.replace("\\.", ".") for path in found})


@pytest.mark.parametrize("user", ["admin", "alice"])
def test_every_address_of_a_page_can_be_opened(hub: GpuHub, user: str):
    headers = {"Authorization": f"token {hub.token_of(user)}"}
    with httpx.Client(
        base_url=f"{hub.url}services/workspaces/", headers=headers, timeout=30, trust_env=False
    ) as client:
        told = {path: client.get(path).status_code for path in addresses()}
    assert len(told) > 30, told
    assert {path: status for path, status in told.items() if status not in (200, 303, 403, 404)} == {}
