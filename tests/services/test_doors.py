"""What every page and every route has in common, by generation over all of them: no form of another site counts, the
headers that keep a browser safe, and how often one may ask."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tornado.web import RequestHandler

from remotegpu_hub.services.api import WRITE, Route
from remotegpu_hub.services.workspaces.routes import ROUTES
from remotegpu_hub.services.workspaces.service import PAGES
from tests.gpu_hubs import GpuHub
from tests.hubs import TRUST

from .conftest import SERVICE_TOKENS
from .test_api import Desk

GROUP = re.compile(r"\(\?P<(\w+)>((?:[^()]|\([^()]*\))*)\)")
POSTED = [pattern for pattern, page, _ in PAGES if page.post is not RequestHandler.post]  # type: ignore[comparison-overlap]
READ_PAGES = [pattern for pattern, page, _ in PAGES if page.get is not RequestHandler.get]  # type: ignore[comparison-overlap]
CHANGING = [route for route in ROUTES if route.changes]
MOST = 1500
"""Requests that are sent at most until one is refused."""


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


@pytest.fixture(scope="module")
def desk(hub: GpuHub) -> Desk:
    made = Desk(hub)
    made.restore()
    return made


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


def check_headers(answer: httpx.Response) -> None:
    """Nothing runs in the page but our own scripts, nothing frames it, nothing guesses what it is, nobody is told of it."""
    policy = {one.split()[0]: one.split()[1:] for one in answer.headers["Content-Security-Policy"].split(";")}
    assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"], answer.url
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*"} & {source for one in policy.values() for source in one}
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        assert (policy["script-src"], policy["style-src"]) == (["'self'"], ["'self'"]), answer.url
        assert policy["base-uri"] == ["'none'"], answer.url
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", answer.text), answer.url
    assert answer.headers["X-Content-Type-Options"] == "nosniff", answer.url
    assert answer.headers["Referrer-Policy"] in ("same-origin", "no-referrer"), answer.url
    assert "Server" not in answer.headers or "ornado" not in answer.headers["Server"], answer.url


def test_every_page_tells_the_browser_what_to_refuse(hub: GpuHub, browser: httpx.Client, desk: Desk):
    known = {"user": "carol", "id": desk.environment, "name": "lab"}
    shown = 0
    for pattern in READ_PAGES:
        if pattern.startswith("static"):
            answer = browser.get(f"services/workspaces/{fill(pattern)}")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            continue
        more = {"id": desk.image} if "images" in pattern else {"name": "small"} if "flavors" in pattern else {}
        for path in (fill(pattern, **known | more), fill(pattern)):
            for who in (
                browser.get,
                lambda path: httpx.get(f"{hub.url}{path}", verify=TRUST, trust_env=False, timeout=60),
            ):
                answer = who(f"services/workspaces/{path}")
                assert answer.status_code < 500, (path, answer.status_code)
                check_headers(answer)
                shown += answer.status_code == 200
    assert shown > 20, "most of them were seen as they are"
    refused = browser.post("services/workspaces/keys", data={})
    assert refused.status_code == 403
    check_headers(refused)


def test_every_answer_of_the_api_tells_the_browser_what_to_refuse(hub: GpuHub, desk: Desk):
    for route in ROUTES:
        if route.method == "GET":
            given = {"headers": {"Accept": "application/json"}}
            answers = [desk.send("hub admin", route, **given), desk.send("hub admin", route, token="wrong", **given)]
            assert answers[0].is_success, (route.operation, answers[0].text)
            for answer in answers:
                check_headers(answer)
    for method, path in (("GET", "no/such/path"), ("PUT", "workspaces/lab"), ("GET", "audit?limit=0"),
                         ("GET", "openapi.json"), ("GET", "offers")):  # fmt: skip
        check_headers(desk.ask("hub admin", method, path))


@pytest.fixture
def hasty(hub: GpuHub) -> str:
    """A token of somebody whom no other test is, which carries nothing: what it asks costs the service little."""
    return hub.token_of("hasty", ["access:services!service=workspaces"])


def too_many(ask: Callable[[], httpx.Response], seen: set[int]) -> httpx.Response:
    """Ask, faster than anybody may for long, until it is refused."""
    with ThreadPoolExecutor(16) as threads:
        for _ in range(MOST // 50):
            for answer in threads.map(lambda _: ask(), range(50)):
                if answer.status_code == 429:
                    return answer
                seen.add(answer.status_code)
    raise AssertionError(f"{MOST} requests at once, and none was refused")


@pytest.mark.parametrize(
    ("path", "else_"), [("api/workspaces", 403), ("environments/0/stop", 303)], ids=["API", "pages"]
)
def test_who_asks_too_often_is_told_when_to_ask_again(hub: GpuHub, hasty: str, path: str, else_: int):
    seen: set[int] = set()
    with httpx.Client(base_url=f"{hub.url}services/workspaces/", trust_env=False, timeout=60) as client:
        headers = {"Authorization": f"token {hasty}", "Accept-Language": "zh-CN"}
        answer = too_many(lambda: client.get(path, headers=headers), seen)
    assert seen == {else_}, "until then it is answered"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    check_headers(answer)
    if path.startswith("api"):
        error = answer.json()["error"]
        assert set(error) == {"code", "message", "facts", "request_id"}
        assert error["code"] == "too_many_requests"
        assert error["facts"]["after_seconds"] == int(answer.headers["Retry-After"])
    else:
        assert "请求" in answer.text


PERSONAL = {
    "list_environments", "list_keys", "list_ports", "list_my_invitations", "list_quota_requests", "list_volumes",
    "list_workspaces", "read_me", "read_offers",
}  # fmt: skip
"""What only somebody has, and a service is nobody."""


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_a_service_does_what_its_role_says_and_no_more(desk: Desk, route: Route):
    reads, writes = (desk.send("owner", route, token=SERVICE_TOKENS[name]) for name in ("reader", "writer"))
    if route.changes:
        assert reads.status_code == 403, "it may only read"
    elif route.operation not in PERSONAL:
        assert reads.is_success, f"{reads.status_code} {reads.text}"
    else:
        assert reads.status_code in (403, 404), reads.text
    if route.operation in ("read_who", "list_prices"):
        assert writes.is_success, "it is about nobody"
    else:
        assert writes.status_code in (403, 404), (
            f"{WRITE} is about what is one's own: {writes.status_code} {writes.text}"
        )
