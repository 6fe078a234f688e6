from dataclasses import replace

import pytest

from remotegpu_hub.db import begin
from remotegpu_hub.domain import ports
from remotegpu_hub.errors import Invalid, Refused
from remotegpu_hub.orm import Allocation

from ..worlds import World, host


@pytest.fixture
def world(world: World) -> World:
    world.rules = type(world.rules)(port_ranges={"ssh": range(22000, 22003), "tensorboard": range(26000, 26001)})
    world.see(host("host-1", 0, pool="a"), host("host-2", 0, cpu_millis=1))
    return world


def given(world: World, *services: str, **wanted: object) -> dict[str, tuple[int, int]]:
    run = world.admit(server=f"s-{world.number()}", ports=services, **wanted)
    return {port.service.value: (port.external_port, port.internal_port) for port in run.ports}


def test_each_service_gets_the_lowest_free_port_of_its_range(world: World):
    assert given(world, "tensorboard", "ssh") == {"ssh": (22000, 2222), "tensorboard": (26000, 6006)}
    assert given(world, "ssh") == {"ssh": (22001, 2222)}
    assert given(world) == {}


def test_a_service_asked_for_twice_is_given_once(world: World):
    assert given(world, "ssh", "ssh") == {"ssh": (22000, 2222)}


def test_a_full_range_refuses_and_a_released_port_is_used_again(world: World):
    first = world.admit(server="first", ports=("ssh",))
    given(world, "ssh"), given(world, "ssh")
    with pytest.raises(Refused, match=r"No port is free for ssh \(3 in all\)"):
        given(world, "ssh")
    world.mark_ending(first.attempt)
    with pytest.raises(Refused):
        given(world, "ssh")
    world.end(first.attempt)
    assert given(world, "ssh") == {"ssh": (22000, 2222)}


def test_a_port_that_something_else_listens_on_is_not_given(world: World):
    assert given(world, "ssh", busy_ports={22000, 22001}) == {"ssh": (22002, 2222)}
    with pytest.raises(Refused):
        given(world, "ssh", busy_ports={22000, 22001})


def test_a_port_is_taken_on_its_address_only(world: World):
    assert given(world, "tensorboard") == {"tensorboard": (26000, 6006)}
    world.see(host("host-1", 0, cpu_millis=1), host("host-3", 0, address="192.0.2.3"))
    assert given(world, "tensorboard") == {"tensorboard": (26000, 6006)}


def test_a_service_without_a_range_is_refused_with_what_there_is(world: World):
    with pytest.raises(Invalid, match="vscode is not a port service here: choose of ssh, tensorboard"):
        given(world, "vscode")


@pytest.mark.parametrize(
    ("address", "login", "expected"),
    [
        pytest.param("", "", ("ssh -p 22000 bob@127.0.0.1", "127.0.0.1:26000"), id="on this machine"),
        pytest.param("cluster", "jovyan", ("ssh -p 22000 jovyan@127.0.0.1", "127.0.0.1:26000"), id="of a cluster"),
        pytest.param("fd00::7", "jovyan", ("ssh -p 22000 jovyan@fd00::7", "[fd00::7]:26000"), id="by IPv6"),
    ],
)
def test_what_is_pasted_to_reach_a_port(world, address, login, expected):
    world.rules = replace(world.rules, port_address=address)
    run = world.run("bob", server="my server", ports=["tensorboard", "ssh"])
    with begin(world.engine, read_only=True) as session:
        ways = {one.service: one for one in ports.ways(session.get_one(Allocation, run.id), login=login)}
    command, board = expected
    assert ways["ssh"].command == command
    assert (ways["ssh"].url, ways["ssh"].hub_path) == (None, None)
    assert ways["tensorboard"].address == board
    assert ways["tensorboard"].url == f"http://{board}/"
    inside = ports.INTERNAL_PORTS["tensorboard"]
    assert ways["tensorboard"].hub_path == f"user/bob/my%20server/proxy/{inside}/"
    world.end(run.attempt)
    with begin(world.engine, read_only=True) as session:
        assert ports.ways(session.get_one(Allocation, run.id), login=login) == []


@pytest.mark.parametrize(
    ("ingress", "url", "port"),
    [
        pytest.param(ports.Ingress("{service}-{run}.example.org", tls=True), "https://tensorboard-{run}.example.org/", 443,
                     id="by host"),
        pytest.param(ports.Ingress("example.org", "/{run}/{service}/"), "http://example.org/{run}/tensorboard/", 80,
                     id="by path"),
    ],
)  # fmt: skip
def test_what_a_browser_opens_gets_an_address_at_the_ingress_and_no_port_of_a_range(world, ingress, url, port):
    world.rules = replace(world.rules, ingress=ingress, port_ranges={"ssh": range(22000, 22003)})
    run, other = (world.admit(server=f"s-{n}", ports=["tensorboard", "ssh"]) for n in range(2))
    taken = {one.service.value: one for one in run.ports}
    assert taken["tensorboard"].url == url.replace("{run}", str(run.id))
    assert (taken["tensorboard"].internal_port, taken["tensorboard"].external_port) == (6006, port)
    assert taken["ssh"].url is None
    with begin(world.engine, read_only=True) as session:
        ways = {one.service: one for one in ports.ways(session.get_one(Allocation, other.id), login="jovyan")}
    assert ways["tensorboard"].url == url.replace("{run}", str(other.id))
    assert ways["tensorboard"].hub_path.endswith("/proxy/6006/")
    assert world.rules.port_services == ("ssh", "jupyter", "tensorboard", "vscode")
