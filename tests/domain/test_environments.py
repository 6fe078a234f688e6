from dataclasses import replace

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import catalog, environments, users, workspaces
from remotegpu_hub.domain.environments import Choice
from remotegpu_hub.errors import Conflict, Denied, Invalid, NotFound, RemoteGPUError
from remotegpu_hub.orm import EnvironmentState, ImageStatus, Role, Visibility
from remotegpu_hub.units import GIB

from ..worlds import A100, ADMIN, IMAGE, World, gpus, host


@pytest.fixture
def world(world: World) -> World:
    """With another workspace `foreign` of alice, its image and flavor, and one flavor for everybody."""
    space = world.workspace("foreign", owner="alice")
    world.image("local:foreign", visibility=Visibility.WORKSPACE, workspace_id=space.id)
    world.image("local:hers", visibility=Visibility.PRIVATE, owner_id=space.owner_id)
    world.image("local:blocked", status=ImageStatus.BLOCKED)
    world.image("local:old", status=ImageStatus.DEPRECATED)
    with db.begin(world.engine) as session:
        for name, workspace in (("small", None), ("secret", workspaces.by_name(session, name="foreign"))):
            catalog.put_flavor(
                session, name=name, display_name=name, gpu_model=A100, gpu_slots=1, cpu_millis=4000,
                memory_bytes=16 * GIB, workspace=workspace, actor=ADMIN, now=world.now,
            )  # fmt: skip
    return world


def refusal(world: World, user: str, choice: Choice, **where: str) -> RemoteGPUError:
    with pytest.raises(RemoteGPUError) as caught:
        world.resolve(user, choice, **where)
    return caught.value


@pytest.mark.parametrize(
    ("foreign", "unknown"),
    [
        (Choice(workspace="foreign"), Choice(workspace="nowhere")),
        (Choice(workspace="lab", image="local:foreign"), Choice(workspace="lab", image="local:none")),
        (Choice(workspace="lab", image="local:hers"), Choice(workspace="lab", image="local:none")),
        (Choice(workspace="lab", image="local:blocked"), Choice(workspace="lab", image="local:none")),
        (Choice(workspace="lab", flavor="secret"), Choice(workspace="lab", flavor="none")),
    ],
    ids=["workspace", "image", "private-image", "blocked-image", "flavor"],
)
def test_foreign_and_unknown_look_the_same_from_outside(world: World, foreign: Choice, unknown: Choice):
    one, other = refusal(world, "bob", foreign), refusal(world, "bob", unknown)
    assert (type(one), str(one), one.facts) == (NotFound, str(other), other.facts)


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        (Choice(workspace="lab", gpu_model="B300", gpus=1), Invalid, "B300 is not a GPU model"),
        (Choice(workspace="lab", gpu_model=A100, gpus=9), Invalid, "At most 8 GPUs"),
        (Choice(workspace="lab", gpus=1), Invalid, "Say which GPU model"),
        (Choice(workspace="lab", cpu_millis=0), Invalid, "Ask for some CPU"),
        (Choice(workspace="lab", memory_bytes=1), Invalid, "at least 64 MiB of memory"),
        (Choice(workspace="lab", ports=("telnet",)), Invalid, "telnet is not a port service"),
        (Choice(workspace="lab", name="two\nlines"), Invalid, "printable"),
        (Choice(workspace="lab", name="x" * 101), Invalid, "1 to 100"),
    ],
    ids=["model", "too-many", "no-model", "no-cpu", "no-memory", "port", "two-lines", "long-name"],
)
def test_a_wish_that_cannot_be_is_refused_in_a_sentence(
    world: World, choice: Choice, error: type[RemoteGPUError], words: str
):
    found = refusal(world, "bob", choice)
    assert type(found) is error
    assert words in str(found)


def test_a_viewer_may_look_and_not_start(world: World):
    assert type(refusal(world, "carol", Choice(workspace="lab"))) is Denied
    assert "viewer of lab" in str(refusal(world, "carol", Choice()))


def test_who_belongs_to_no_workspace_is_told_so(world: World):
    world.user("dave")
    assert "You belong to no workspace yet" in str(refusal(world, "dave", Choice()))


def test_an_archived_workspace_starts_nothing(world: World):
    start = world.prepare("alice", "foreign", cpu=1)
    with db.begin(world.engine) as session:
        foreign = workspaces.by_name(session, name="foreign")
        workspaces.archive(session, workspace=foreign, actor=ADMIN, now=world.now)
    assert type(refusal(world, "alice", Choice(workspace="foreign"))) is NotFound
    with pytest.raises(Denied, match="archived"):
        world.start(start)


def test_gaps_are_filled_from_defaults(world: World):
    wish = world.resolve("bob", Choice(), server="train")
    assert (wish.workspace, wish.flavor, wish.gpu_slots, wish.display_name) == ("lab", "small", 1, "train")
    assert wish.image_reference == IMAGE, "a deprecated image is no default"
    own = world.resolve("bob", Choice(cpu_millis=2000))
    assert (own.flavor, own.gpu_model, own.gpu_slots, own.cpu_millis, own.memory_bytes) == (
        None,
        None,
        0,
        2000,
        2 * GIB,
    )
    assert world.resolve("bob", Choice(gpu_model=A100)).gpu_slots == 1
    assert world.resolve("bob", Choice(flavor="small", gpus=4)).gpu_slots == 1, "a flavor fixes all its numbers"


def test_a_start_without_options_runs_the_kept_environment_again(world: World):
    world.end(world.admit(server="train", gpus=2, cpu=3000, memory=5 * GIB, ports=("ssh",)).attempt)
    wish = world.resolve("bob", Choice(), server="train")
    assert (wish.workspace, wish.gpu_slots, wish.cpu_millis, wish.memory_bytes, wish.ports) == (
        "lab", 2, 3000, 5 * GIB, ("ssh",),
    )  # fmt: skip
    assert world.resolve("bob", Choice(), server="other").flavor == "small"


def test_a_kept_environment_moves_to_no_other_workspace_by_itself(world: World):
    world.workspace("bobs", owner="bob")
    world.end(world.admit(server="train", cpu=1).attempt)
    with db.begin(world.engine) as session:
        lab = workspaces.by_name(session, name="lab")
        bob = users.by_name(session, name="bob")
        workspaces.remove_member(session, workspace=lab, user=bob, actor=ADMIN, now=world.now)
    assert type(refusal(world, "bob", Choice(), server="train")) is NotFound
    assert world.resolve("bob", Choice(workspace="bobs"), server="train").workspace == "bobs"


def test_a_kept_image_that_was_blocked_is_not_replaced_by_another(world: World):
    world.end(world.admit(server="train", cpu=1).attempt)
    world.image("local:other")
    world.image(status=ImageStatus.BLOCKED)
    assert "The image" in str(refusal(world, "bob", Choice(), server="train"))
    assert world.resolve("bob", Choice(image="local:other"), server="train").image_reference == "local:other"


def test_a_refused_new_environment_is_not_kept(world: World):
    with pytest.raises(RemoteGPUError):
        world.admit(server="huge", cpu=10**9)
    with db.begin(world.engine, read_only=True) as session:
        assert environments.of_user(session, user=users.by_name(session, name="bob")) == []


def test_a_running_environment_cannot_be_deleted_and_a_stopped_one_can(world: World):
    run = world.run(server="train")
    with db.begin(world.engine) as session:
        facts = {"user_id": run.user_id, "server_name": "train", "actor": ADMIN, "now": world.now}
        with pytest.raises(Conflict, match="Stop it first"):
            environments.delete(session, **facts)
    world.end(run.attempt)
    with db.begin(world.engine) as session:
        environments.delete(session, **facts)
        environments.delete(session, **facts)
        assert environments.find(session, user_id=run.user_id, server_name="train") is None
    assert world.allocation(run.attempt).environment.state == EnvironmentState.DELETED
    again = world.run(server="train")
    assert again.environment_id != run.environment_id
    assert [one.detail for one in world.audit("environment.delete")] == [{"server_name": "train"}]


def test_a_rename_of_the_server_keeps_the_environment(world: World):
    run = world.run(server="before")
    world.end(run.attempt)
    with db.begin(world.engine) as session:
        for before in ("before", "never-started"):
            environments.rename(session, user_id=run.user_id, before=before, after="after", actor=ADMIN, now=world.now)
    assert world.run(server="after").environment_id == run.environment_id
    assert world.audit("environment.rename")[-1].detail == {
        "before": {"server_name": "before"},
        "after": {"server_name": "after"},
    }


def test_the_most_gpus_at_once_is_the_operators_to_say(world: World):
    world.rules = replace(world.rules, max_gpus=2)
    assert "At most 2 GPUs" in str(refusal(world, "bob", Choice(gpu_model=A100, gpus=3)))
    assert world.resolve("alice", Choice(workspace="lab", gpu_model=A100, gpus=2)).gpu_slots == 2


def test_of_shares_that_cannot_be_joined_one_is_had_and_whole_gpus_are_not_meant(world: World):
    share = f"{A100}/2"
    world.see(replace(host("host-1"), gpus=(*gpus(1, shares=2), *gpus(2, prefix="whole"))))
    world.rules = replace(world.rules, single_models=frozenset({share}))
    assert "only one of these" in str(refusal(world, "bob", Choice(workspace="lab", gpu_model=share, gpus=2)))
    for model, count in ((share, 1), (A100, 2)):
        assert world.resolve("bob", Choice(workspace="lab", gpu_model=model, gpus=count)).gpu_slots == count


def test_a_promoted_viewer_may_start(world: World):
    world.member("lab", "carol", Role.MEMBER)
    assert world.resolve("carol", Choice()).workspace == "lab"
