"""The starter of real hubs leaves nothing behind, whatever died."""

from pathlib import Path

import pytest

from tests.hubs import SMALL_SPAWNER, HubFailed, RealHub


def test_a_killed_hub_starts_again_on_its_ports_and_database_and_nothing_is_left(tmp_path: Path) -> None:
    with RealHub(tmp_path, base_url="/base/") as hub:
        hub.api("POST", "users/alice").raise_for_status()
        assert hub.api("POST", "users/alice/server").status_code in {201, 202}
        token, before = hub.token, hub.pid
        hub.restart(killed=True)
        assert (hub.token, hub.pid != before) == (token, True)
        assert {user["name"] for user in hub.api("GET", "users").json()} == {"admin", "alice"}
        with hub.login("alice") as browser:
            assert browser.get("hub/home").status_code == 200
        hub.kill()
        assert len(list(hub.leftovers())) >= 2, "the proxy and the server live on"
    assert list(hub.leftovers()) == []


def test_a_hub_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(HubFailed, match="no such thing"),
        RealHub(tmp_path, SMALL_SPAWNER + "raise OSError('no such thing')"),
    ):
        pass
