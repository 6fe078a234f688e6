"""A cluster opens a node port on all of its nodes: it is given once, whichever host a run is on."""

from dataclasses import replace

from tests.worlds import World


def test_runs_on_two_hosts_never_share_a_node_port(world: World) -> None:
    world.rules = replace(world.rules, port_address="cluster")
    one = world.admit("alice", ports=["ssh"], gpus=8)
    two = world.admit("bob", ports=["ssh"], gpus=8)
    assert one.host_id != two.host_id
    assert one.ports[0].external_port != two.ports[0].external_port
