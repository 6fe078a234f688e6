"""The hub's pages with our templates before its own, loaded as the hub loads them."""

from pathlib import Path
from types import SimpleNamespace

import jupyterhub._data
import pytest
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader

from remotegpu_hub import words
from remotegpu_hub.hub.form import TEMPLATES

HUBS = Path(jupyterhub._data.DATA_FILES_PATH) / "templates"
EVIL = '<script>alert(1)</script>"'
FORM = '<div id="rg-form" data-rg-language="{}"{}>inside</div>'


@pytest.fixture(scope="module")
def environment() -> Environment:
    loader = ChoiceLoader([PrefixLoader({"templates": FileSystemLoader(HUBS)}), FileSystemLoader([TEMPLATES, HUBS])])
    return Environment(loader=loader, autoescape=True, enable_async=True)


@pytest.fixture
def render(environment):
    async def rendered(name: str, **facts) -> str:
        user = SimpleNamespace(name="alice", escaped_name="alice", json_escaped_name="alice", spawner=None)
        known = {
            "base_url": "/hub/",
            "prefix": "/",
            "user": user,
            "logout_url": "/logout",
            "static_url": lambda path, include_version=True: f"/static/{path}",
            "services": [],
            "parsed_scopes": {},
            "xsrf_token": "token",
            "no_spawner_check": True,
            "remotegpu_translate": words.translate,
        }
        return await environment.get_template(name).render_async({**known, **facts})

    return rendered


async def test_the_spawn_page_holds_the_form_and_no_second_button(render):
    html = await render("spawn.html", spawner_options_form=FORM.format("zh", ""), url="/hub/spawn?_xsrf=1")
    assert html.count('id="rg-form"') == 1
    assert "btn-jupyter" not in html.split("<main", 1)[1].split("</main>")[0]
    assert '<main class="rg-page" lang="zh-CN">' in html
    assert "跳到正文" in html


async def test_a_form_that_is_not_ours_still_has_a_button(render):
    html = await render("spawn.html", spawner_options_form="<input name=x>", url="/")
    assert html.count("btn-jupyter") - html.count(".btn-jupyter") == 1


async def test_without_numbers_the_spawn_page_says_why_and_offers_no_start(render):
    failed = '<span class="rg-what">The database does not answer.</span>'
    html = await render("spawn.html", spawner_options_form=failed, url="/")
    assert html.count("The database does not answer.") == 1
    assert 'type="submit"' not in html


@pytest.mark.parametrize(
    ("marked", "facts", "shown"),
    [
        ("", {"error_message": "No " + EVIL}, "No &lt;script&gt;"),
        ("", {"error_message": "plain", "html_error_message": "<b>No</b>"}, "<b>No</b>"),
        ("", {"error_message": "", "html_error_message": None}, None),
        (" data-rg-error", {"error_message": "No"}, None),
    ],
    ids=["plain is escaped", "html wins", "nothing to say", "the form says it itself"],
)
async def test_a_refusal_is_shown_once(render, marked, facts, shown):
    html = await render("spawn.html", spawner_options_form=FORM.format("en", marked), url="/", **facts)
    assert html.count("spawn-error-msg") == (0 if shown is None else 1)
    assert shown is None or html.count(shown) == 1
    assert "<script>alert" not in html


@pytest.mark.parametrize(
    ("server_name", "stops", "again"),
    [("", "/hub/api/users/alice/server", "/hub/spawn/alice"),
     ("gpu-2", "/hub/api/users/alice/servers/gpu-2", "/hub/spawn/alice/gpu-2")],
    ids=["default", "named"],
)  # fmt: skip
async def test_the_pending_page_cancels_the_server_that_starts(render, server_name, stops, again):
    spawner = SimpleNamespace(name=server_name, display_name=EVIL, reader_language="en")
    html = await render("spawn_pending.html", spawner=spawner, progress_url="/progress?_xsrf=1")
    assert f'data-server="{stops}"' in html
    assert f'href="{again}"' in html
    assert "<script>alert" not in html


async def test_the_pending_page_speaks_the_readers_language_and_english_to_others(render):
    spawner = SimpleNamespace(name="", display_name="", reader_language="zh")
    assert "取消启动" in await render("spawn_pending.html", spawner=spawner, progress_url="/")
    assert "Cancel the start" in await render("spawn_pending.html", spawner=SimpleNamespace(), progress_url="/")


async def test_a_demo_says_so_on_the_hubs_other_pages_too(render):
    html = await render("error.html", status_code=404, remotegpu_insecure_demo=True, remotegpu_simulated=True)
    assert "Demo, no isolation" in html
    assert "Simulated GPUs" in html
    assert 'class="rg-ribbon"' not in await render("error.html", status_code=404)
