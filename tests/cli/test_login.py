"""Which hub a command works on, and the file that keeps a login."""

import json
import os
import re

import pytest

from remotegpu_hub.cli import logins
from remotegpu_hub.cli.asking import hub_of
from remotegpu_hub.cli.stop import Stop
from remotegpu_hub.clients.api import Address, hub_token, hub_url
from remotegpu_hub.errors import Invalid

A, B = "https://a.example.org/", "https://b.example.org/"
CONFIG = "jupyterhub_config.py"
DATABASE = None


def keep(url: str = A, token: str = "secret-of-a") -> None:
    logins.write(logins.Login(Address(url, token)))


@pytest.mark.parametrize(
    ("login", "here", "variables", "options", "expected"),
    [
        (False, True, {}, {}, DATABASE),
        (True, False, {}, {}, (A, "secret-of-a")),
        (True, True, {}, {}, "Which hub? There is a jupyterhub_config.py in this folder, and you are logged in to"),
        (False, False, {}, {}, "Which hub? There is no jupyterhub_config.py in this folder, and no login."),
        (True, True, {}, {"config_file": CONFIG}, DATABASE),
        (True, True, {}, {"hub": A}, (A, "secret-of-a")),
        (True, False, {}, {"db_file": "url"}, DATABASE),
        (True, False, {}, {"hub": A, "config_file": CONFIG}, "--hub and --config name two hubs"),
        (True, True, {"REMOTEGPU_DB_URL": "sqlite:///x"}, {}, DATABASE),
        (True, True, {"REMOTEGPU_HUB_URL": B, "REMOTEGPU_TOKEN": "of-b"}, {}, (B, "of-b")),
        (True, True, {"REMOTEGPU_HUB_URL": B, "REMOTEGPU_TOKEN": "of-b"}, {"hub": A}, (A, "secret-of-a")),
        (True, True, {"REMOTEGPU_HUB_URL": B, "REMOTEGPU_TOKEN": "of-b"}, {"config_file": CONFIG}, DATABASE),
        (True, False, {"REMOTEGPU_HUB_URL": B}, {}, "You are not logged in to https://b.example.org/"),
        (True, False, {"REMOTEGPU_HUB_URL": A}, {}, (A, "secret-of-a")),
        (True, False, {"REMOTEGPU_TOKEN": "of-whom"}, {}, (A, "secret-of-a")),
        (False, False, {"REMOTEGPU_TOKEN": "of-b"}, {"hub": B}, (B, "of-b")),
        (False, False, {"REMOTEGPU_HUB_URL": B, "REMOTEGPU_HUB_TOKEN_FILE": "file"}, {}, (B, "of-the-file")),
        (
            False, False, {"REMOTEGPU_HUB_URL": B, "REMOTEGPU_HUB_TOKEN_FILE": "file", "REMOTEGPU_TOKEN": "of-b"}, {},
            "one is enough",
        ),
        (
            False, False, {"REMOTEGPU_HUB_URL": B, "REMOTEGPU_DB_URL": "sqlite:///x"}, {}, "name two hubs",
        ),
    ],
)  # fmt: skip
def test_the_nearest_name_decides_and_two_equally_near_are_refused(
    folder, monkeypatch, login, here, variables, options, expected
):
    if login:
        keep()
    if here:
        (folder / CONFIG).touch()
    (folder / "file").write_text("of-the-file\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given = {"hub": None, "config_file": None, "db_file": None, **options}
    if isinstance(expected, str):
        with pytest.raises(Stop, match=re.escape(expected)):
            hub_of(**given)
        return
    found = hub_of(**given)
    assert expected == (found and (found.url, found.token))


def test_what_works_on_the_database_says_so_where_an_api_is_named(call, folder, monkeypatch):
    keep()
    told = call("reconcile")
    assert (told.code, told.out) == (2, "")
    assert "works on the hub's database, on the hub's machine" in told.err
    monkeypatch.setenv("REMOTEGPU_HUB_URL", A)
    (folder / CONFIG).touch()
    told = call("reconcile")
    assert told.code == 1
    assert "`remotegpu reconcile` works on the hub's database" in told.err
    assert "no option --hub" in call("doctor", "--hub", A).err


def test_a_login_that_others_can_read_is_refused(call, folder):
    keep()
    assert (logins.path().stat().st_mode & 0o777, logins.path().parent.stat().st_mode & 0o777) == (0o600, 0o700)
    logins.path().chmod(0o640)
    told = call("workspaces")
    assert told.code == 1
    assert "others may have read it" in told.err
    assert "secret-of-a" not in told.err
    assert call("logout").code == 0
    assert not logins.path().exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "ftp://x", "token": "t"}', '{"url": "https://x/"}'])
def test_a_broken_login_is_told(call, folder, text):
    keep()
    logins.path().write_text(text)
    told = call("workspaces")
    assert told.code == 1
    assert "remotegpu login" in told.err or "is not the address" in told.err


def test_a_login_is_renewed_whole_or_not_at_all(folder, monkeypatch):
    keep()
    with pytest.raises(OSError, match="full"):
        monkeypatch.setattr(json, "dump", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        try:
            keep(B, "other")
        except Stop as stop:
            raise OSError("full") from stop
    assert logins.read() == logins.Login(Address(A, "secret-of-a"))
    assert os.listdir(logins.path().parent) == ["login.json"]


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("https://hub.example.org", "https://hub.example.org/"),
        ("Hub.Example.org", "https://hub.example.org/"),
        (" https://hub.example.org:8443/hub/home ", "https://hub.example.org:8443/"),
        ("https://example.org/jupyter/hub/token", "https://example.org/jupyter/"),
        ("https://example.org/jupyter/services/workspaces/", "https://example.org/jupyter/"),
        ("https://example.org/jupyter/user/alice/lab?x=1#y", "https://example.org/jupyter/"),
        ("http://localhost:8000/", "http://localhost:8000/"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/"),
        ("http://[::1]:8000", "http://[::1]:8000/"),
    ],
)
def test_the_address_is_what_a_browser_shows(typed, url):
    assert hub_url(typed) == url


@pytest.mark.parametrize(
    "typed", ["http://hub.example.org/", "http://127.0.0.1.example.org", "http://localhost.evil.org", "ftp://x", "",
              "https://", "https://user:word@hub.example.org/", "https://x:y/"],
)  # fmt: skip
def test_an_address_that_would_show_the_token_is_refused(typed):
    with pytest.raises(Invalid) as told:
        hub_url(typed)
    assert "word" not in str(told.value)
    if typed == "http://hub.example.org/":
        assert hub_url(typed, allow_http=True) == typed


@pytest.mark.parametrize("text", ["", "  ", "two words", "line\nline", "é", "\x1b[2J", "x" * 2000])
def test_what_is_no_token_is_refused_without_repeating_it(text):
    with pytest.raises(Invalid) as told:
        hub_token(text)
    assert str(told.value) == "This is no token: it is one word, as the hub showed it once."
    assert repr(Address(A, "secret")) == f"Address(url='{A}')"
