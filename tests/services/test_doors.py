"""What every page and every route has in common, by generation over all of them: no form of another site counts."""

import re
from collections.abc import Iterator

import httpx
import pytest
from tornado.web import RequestHandler

from remotegpu_hub.services.workspaces.routes import ROUTES
from remotegpu_hub.services.workspaces.service import PAGES
from tests.gpu_hubs import GpuHub

GROUP = re.compile(r"\(\?P<(\w+)>((?:[^()]|\([^()]*\))*)\)")
POSTED = [pattern for pattern, page, _ in PAGES if page.post is not RequestHandler.post]  # type: ignore[comparison-overlap]
READ_PAGES = [pattern for pattern, page, _ in PAGES if page.get is not RequestHandler.get]  # type: ignore[comparison-overlap]
CHANGING = [route for route in ROUTES if route.changes]


def fill(pattern: str, **known: object) -> str:
    """A path that a page's pattern takes: what is known, else one of the words that it names, else what is nowhere."""

    def value(match: re.Match[str]) -> str:
        name, inside = match.groups()
        if name in known:
            return str(known[name])
        return "0" if inside == "[0-9]+" else "nothing" if "[" in inside else inside.split("|")[0]

    path = GROUP.sub(value, pattern).replace(r"\.", ".")
    return path.replace("([a-z]+.(?:css|js))", "pages.css")


@pytest.fixture(scope="module")
def browser(hub: GpuHub) -> Iterator[httpx.Client]:
    """The hub's admin, logged in to the service by its own cookie, who may do everything."""
    with hub.login("admin") as client:
        client.follow_redirects = False
        client.get("services/workspaces/", follow_redirects=True).raise_for_status()
        yield client


def token_of_forms(browser: httpx.Client) -> str:
    found = re.search(r'<meta name="xsrf" content="([^"]+)"', browser.get("services/workspaces/keys").text)
    assert found, "the admin is not logged in to the service"
    return found[1]


def test_no_form_of_another_site_counts(browser: httpx.Client):
    right = token_of_forms(browser)
    assert len(POSTED) > 25
    for pattern in POSTED:
        path = f"services/workspaces/{fill(pattern)}"
        codes = [browser.post(path, data=form).status_code for form in ({}, {"_xsrf": "wrong"}, {"_xsrf": right})]
        assert codes[:2] == [403, 403], pattern
        assert codes[2] != 403, f"{pattern}: with its token the form is taken"
        assert codes[2] < 500, pattern


def test_no_script_of_another_site_counts(browser: httpx.Client):
    right = token_of_forms(browser)
    for route in CHANGING:
        path = "services/workspaces/api/" + re.sub(r"{\w+}", "0", route.path)
        ask = lambda headers: browser.request(route.method, path, headers=headers, json={})  # noqa: B023, E731
        codes = [ask(given).status_code for given in ({}, {"X-XSRFToken": "wrong"}, {"X-XSRFToken": right})]
        assert codes[:2] == [403, 403], route.operation
        assert codes[2] != 403, f"{route.operation}: with its token it is taken"
