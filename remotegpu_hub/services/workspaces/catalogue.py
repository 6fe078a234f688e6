"""Routes that change the catalogue: flavors, and what is said of images."""

from typing import Any, Final, Literal

from pydantic import Field, StrictInt
from sqlalchemy import select

from ... import plain
from ...domain import catalog, workspaces
from ...errors import Conflict, Invalid, NotFound
from ...orm import Flavor, Image, ImageStatus, Visibility
from ..api import Call, Needs, Route, Shape
from .machines import FlavorShown, ImageShown

MOST_CORES: Final = 1_000_000
MOST_BYTES: Final = 2**60


class FlavorPut(Shape):
    """All of a flavor. GPUs and their model go together."""

    display_name: str = Field(max_length=100)
    gpu_model: str | None = Field(None, min_length=1, max_length=80)
    gpu_slots: StrictInt = Field(0, ge=0, le=1000)
    cpu_millis: StrictInt = Field(ge=1, le=MOST_CORES * 1000)
    memory_bytes: StrictInt = Field(ge=1, le=MOST_BYTES)
    workspace: str | None = Field(None, max_length=64, description="Only this one may use it; null: everybody.")


class ImageEdit(Shape):
    """What is not named stays."""

    display_name: str | None = Field(None, max_length=100)
    status: Literal["active", "deprecated", "blocked"] | None = Field(
        None, description="Deprecated is shown as such; blocked, nobody can start it."
    )
    visibility: Literal["public", "workspace"] | None = None
    workspace: str | None = Field(None, max_length=64, description="With `visibility` workspace: which one.")


def _flavor(call: Call) -> Flavor:
    query = select(Flavor).where(Flavor.name == call.path["name"])
    found: Flavor | None = call.session.scalar(query.with_for_update() if call.locked else query)
    if found is None:
        raise NotFound("The flavor")
    return found


def read_flavor(call: Call) -> Any:
    return plain.flavor(call.session, _flavor(call))


def put_flavor(call: Call, *, new: bool = False) -> Any:
    given: FlavorPut = call.body
    name = call.path["name"]
    if not 1 <= len(name) <= 64 or not name.isprintable() or " " in name or "/" in name:
        raise Invalid("A flavor's name has 1 to 64 printable characters, and neither spaces nor slashes.")
    if (given.gpu_slots > 0) != (given.gpu_model is not None):
        raise Invalid("Name both the GPUs and their model, or neither.")
    space = workspaces.by_name(call.session, name=given.workspace) if given.workspace is not None else None
    row = catalog.put_flavor(
        call.session, name=name, display_name=workspaces.check_display_name(given.display_name),
        gpu_model=given.gpu_model, gpu_slots=given.gpu_slots, cpu_millis=given.cpu_millis,
        memory_bytes=given.memory_bytes, workspace=space, actor=call.actor, now=call.now, new=new,
    )  # fmt: skip
    return plain.flavor(call.session, row)


def retire_flavor(call: Call) -> None:
    catalog.retire_flavor(call.session, flavor=_flavor(call), actor=call.actor, now=call.now)


def _image(call: Call) -> Image:
    query = select(Image).where(Image.id == call.number("id"))
    found: Image | None = call.session.scalar(query.with_for_update() if call.locked else query)
    if found is None:
        raise NotFound("The image")
    return found


def read_image(call: Call) -> Any:
    return plain.image(call.session, _image(call))


def edit_image(call: Call) -> Any:
    given: ImageEdit = call.body
    image = _image(call)
    if image.status == ImageStatus.RETIRED:
        raise Conflict("This digest was replaced by a newer one. Change that one.")
    columns: dict[str, Any] = {}
    if given.status is not None:
        columns["status"] = ImageStatus(given.status)
    if (given.visibility == "workspace") != (given.workspace is not None):
        raise Invalid("Name the workspace together with the visibility `workspace`.")
    if given.visibility is not None:
        space = workspaces.by_name(call.session, name=given.workspace) if given.workspace is not None else None
        columns |= {"visibility": Visibility(given.visibility), "workspace_id": space.id if space else None}
    name = image.display_name
    if given.display_name is not None:
        name = workspaces.check_display_name(given.display_name)
    changed = catalog.put_image(
        call.session, reference=image.reference, digest=image.digest, display_name=name, actor=call.actor,
        now=call.now, **columns,
    )  # fmt: skip
    return plain.image(call.session, changed)


ROUTES = [
    Route("GET", "flavors/{name}", "Read a flavor", Needs.HUB_ADMIN, read_flavor, answers=FlavorShown, etag=True),
    Route("PUT", "flavors/{name}", "Make a flavor, or change it; environments that chose it keep their numbers",
          Needs.HUB_ADMIN, put_flavor, answers=FlavorShown, body=FlavorPut, etag=True, shows=read_flavor),
    Route("DELETE", "flavors/{name}", "Retire a flavor: nobody can choose it any more", Needs.HUB_ADMIN, retire_flavor,
          shows=read_flavor, shown_as=FlavorShown),
    Route("GET", "images/{id}", "Read an image", Needs.HUB_ADMIN, read_image, answers=ImageShown, etag=True),
    Route("PATCH", "images/{id}", "Rename an image, block it, or say who may use it", Needs.HUB_ADMIN, edit_image,
          answers=ImageShown, body=ImageEdit, etag=True, shows=read_image),
]  # fmt: skip
