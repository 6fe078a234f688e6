import pytest

from remotegpu_hub.errors import Invalid, Refused

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
    assert given(world, "tensorboard", "ssh") == {"ssh": (22000, 22), "tensorboard": (26000, 6006)}
    assert given(world, "ssh") == {"ssh": (22001, 22)}
    assert given(world) == {}


def test_a_service_asked_for_twice_is_given_once(world: World):
    assert given(world, "ssh", "ssh") == {"ssh": (22000, 22)}


def test_a_full_range_refuses_and_a_released_port_is_used_again(world: World):
    first = world.admit(server="first", ports=("ssh",))
    given(world, "ssh"), given(world, "ssh")
    with pytest.raises(Refused, match=r"No port is free for ssh \(3 in all\)"):
        given(world, "ssh")
    world.mark_ending(first.attempt)
    with pytest.raises(Refused):
        given(world, "ssh")
    world.end(first.attempt)
    assert given(world, "ssh") == {"ssh": (22000, 22)}


def test_a_port_that_something_else_listens_on_is_not_given(world: World):
    assert given(world, "ssh", busy_ports={22000, 22001}) == {"ssh": (22002, 22)}
    with pytest.raises(Refused):
        given(world, "ssh", busy_ports={22000, 22001})


def test_a_port_is_taken_on_its_address_only(world: World):
    assert given(world, "tensorboard") == {"tensorboard": (26000, 6006)}
    world.see(host("host-1", 0, cpu_millis=1), host("host-3", 0, address="192.0.2.3"))
    assert given(world, "tensorboard") == {"tensorboard": (26000, 6006)}


def test_a_service_without_a_range_is_refused_with_what_there_is(world: World):
    with pytest.raises(Invalid, match="vscode is not a port service here: choose of ssh, tensorboard"):
        given(world, "vscode")
