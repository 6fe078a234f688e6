"""Routes of hosts, GPUs, images and flavors."""

from datetime import datetime, timedelta
from typing import Any, Final, Literal

from pydantic import Field
from sqlalchemy import Select, select

from ... import plain
from ...domain import inventory
from ...errors import NotFound
from ...orm import (
    ENDED,
    Allocation,
    Environment,
    Flavor,
    Gpu,
    GpuStatus,
    Host,
    HostStatus,
    Image,
    ImageStatus,
    User,
    Workspace,
)
from ..api import Call, Needs, Route, Shape
from ..paging import Paging, named, page
from . import runs


class HostShown(Shape):
    name: str
    pool: str
    address: str
    status: HostStatus
    simulated: bool = Field(description="Its GPUs do not exist.")
    gpu_millis: int = Field(description="Thousandths of GPUs.")
    used_gpu_millis: int
    cpu_millis: int
    used_cpu_millis: int = Field(description="What open allocations hold.")
    memory_bytes: int
    used_memory_bytes: int
    environments: int = Field(description="That run there now.")
    overcommitted: bool = Field(description="More is used than there is: the host lost something meanwhile.")
    last_seen_at: datetime


LIVE: Final = frozenset(
    {"used_gpu_millis", "used_cpu_millis", "used_memory_bytes", "environments", "overcommitted", "last_seen_at"}
)
"""What of a host changes while nobody edits it."""


class HostsAsked(Paging):
    sort: Literal["name", "-name"] = "name"
    status: HostStatus | None = None
    pool: str | None = Field(None, max_length=64)
    search: str | None = Field(None, max_length=100)


class HostEdit(Shape):
    status: Literal["online", "maintenance"] = Field(description="In maintenance nothing new starts there.")


class Drain(Shape):
    grace_seconds: int = Field(ge=0, le=7 * 86400, description="How long what runs there may go on: 0 is now.")


class DrainShown(Shape):
    host: str
    ends_at: datetime
    environments: int = Field(description="That end then, unless the host is put back to work before.")


class Slot(Shape):
    model: str
    gpu_millis: int
    usable: bool
    allocation_id: int | None = Field(description="Which run holds it.")
    user: str | None


class GpuShown(Shape):
    host: str
    simulated: bool
    index: int
    uuid: str
    model: str
    memory_mib: int
    status: GpuStatus
    condition: str = Field(description="How it is, in a word: what keeps it from being given out comes first.")
    foreign: bool = Field(description="Somebody outside this hub uses it.")
    missing: bool
    slots: list[Slot]


class GpuEdit(Shape):
    status: Literal["available", "maintenance"]


class ImageShown(Shape):
    id: int
    reference: str
    digest: str | None
    display_name: str
    framework: str | None
    cuda_version: str | None
    python_version: str | None
    size_bytes: int | None
    category: str
    visibility: str
    workspace: str | None
    owner: str | None
    status: ImageStatus


class ImagesAsked(Paging):
    sort: Literal["reference", "-reference"] = "reference"
    status: ImageStatus | None = None
    search: str | None = Field(None, max_length=100)


class FlavorShown(Shape):
    name: str
    display_name: str
    gpu_model: str | None
    gpu_slots: int
    cpu_millis: int
    memory_bytes: int
    workspace: str | None = Field(description="Only this one may use it; null: everybody.")
    retired: bool


class FlavorsAsked(Paging):
    sort: Literal["name", "-name"] = "name"
    search: str | None = Field(None, max_length=100, description="In the name or the display name.")
    gpu_model: str | None = Field(None, max_length=80)
    retired: bool | None = None


def list_hosts(call: Call) -> Any:
    asked: HostsAsked = call.query
    query = select(Host)
    if asked.status is not None:
        query = query.where(Host.status == asked.status)
    if asked.pool is not None:
        query = query.where(Host.pool == asked.pool)
    if asked.search:
        query = query.where(Host.name.icontains(asked.search, autoescape=True))
    return page(call.session, query, asked, sorts={"name": (Host.name,)}, sort=asked.sort, shown=plain.host)


def _host(call: Call) -> Host:
    query = select(Host).where(Host.name == call.path["host"])
    found = call.session.scalar(query.with_for_update(key_share=True) if call.locked else query)
    if found is None:
        raise NotFound("The host")
    return found


def read_host(call: Call) -> Any:
    return plain.host(_host(call))


def edit_host(call: Call) -> Any:
    _host(call)
    return plain.host(
        inventory.set_host_status(
            call.session, name=call.path["host"], status=HostStatus(call.body.status), actor=call.actor, now=call.now
        )
    )


def drain_host(call: Call) -> Any:
    _host(call)
    grace = timedelta(seconds=call.body.grace_seconds)
    done = inventory.drain(call.session, name=call.path["host"], grace=grace, actor=call.actor, now=call.now)
    return {"host": done.host.name, "ends_at": done.ends_at, "environments": done.runs}


def list_environments_of_host(call: Call) -> Any:
    held = select(Allocation.environment_id).where(Allocation.host_id == _host(call).id, Allocation.state != ENDED)
    return runs.listed(call, select(Environment).where(Environment.id.in_(held)))


def list_gpus_of_host(call: Call) -> Any:
    return _gpus(call, select(Gpu).where(Gpu.host_id == _host(call).id), "index")


def list_gpus(call: Call) -> Any:
    return _gpus(call, select(Gpu), "id")


def _gpus(call: Call, query: Select[Any], sort: str) -> Any:
    sorts = {"id": (Gpu.id,), "index": (Gpu.index, Gpu.id)}
    found, following = page(call.session, query, call.query, sorts=sorts, sort=sort, shown=lambda gpu: gpu.id)
    return plain.gpus(call.session, ids=found), following


def edit_gpu(call: Call) -> Any:
    uuid = call.path["uuid"]
    if call.session.scalar(select(Gpu.id).where(Gpu.uuid == uuid)) is None:
        raise NotFound("The GPU")
    return _set(call, uuid, None)


def edit_gpu_of_host(call: Call) -> Any:
    host = _host(call)
    query = select(Gpu.uuid).where(Gpu.host_id == host.id, Gpu.index == call.number("index"), ~Gpu.missing)
    uuid = call.session.scalar(query)
    if uuid is None:
        raise NotFound("The GPU")
    return _set(call, uuid, host.name)


def _set(call: Call, uuid: str, host: str | None) -> Any:
    gpu = inventory.set_gpu_status(
        call.session, uuid=uuid, host=host, status=GpuStatus(call.body.status), actor=call.actor, now=call.now
    )
    return plain.gpus(call.session, ids=[gpu.id])[0]


def list_images(call: Call) -> Any:
    asked: ImagesAsked = call.query
    query = select(Image)
    if asked.status is not None:
        query = query.where(Image.status == asked.status)
    if asked.search:
        query = query.where(
            Image.reference.icontains(asked.search, autoescape=True)
            | Image.display_name.icontains(asked.search, autoescape=True)
        )
    sorts = {"reference": (Image.reference, Image.id)}
    found, following = page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=lambda one: one)
    _kept = (  # in the session, where each image finds its own
        named(call.session, Workspace, [one.workspace_id for one in found]),
        named(call.session, User, [one.owner_id for one in found]),
    )
    return [plain.image(call.session, one) for one in found], following


def list_flavors(call: Call) -> Any:
    asked: FlavorsAsked = call.query
    query = select(Flavor)
    if asked.gpu_model is not None:
        query = query.where(Flavor.gpu_model == asked.gpu_model)
    if asked.retired is not None:
        query = query.where(Flavor.retired == asked.retired)
    if asked.search:
        query = query.where(
            Flavor.name.icontains(asked.search, autoescape=True)
            | Flavor.display_name.icontains(asked.search, autoescape=True)
        )
    sorts = {"name": (Flavor.name,)}
    found, following = page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=lambda one: one)
    _kept = named(call.session, Workspace, [one.workspace_id for one in found])
    return [plain.flavor(call.session, one) for one in found], following


ROUTES = [
    Route("GET", "hosts", "List hosts with what is held of them", Needs.HUB_ADMIN, list_hosts, answers=HostShown,
          query=HostsAsked, listing=True),
    Route("GET", "hosts/{host}", "Read a host", Needs.HUB_ADMIN, read_host, answers=HostShown, etag=True,
          volatile=LIVE),
    Route("PATCH", "hosts/{host}", "Take a host out for maintenance, or put it back to work", Needs.HUB_ADMIN,
          edit_host, answers=HostShown, body=HostEdit, etag=True, shows=read_host, volatile=LIVE),
    Route("POST", "hosts/{host}/drain", "Take a host out, and end what runs there after a while", Needs.HUB_ADMIN,
          drain_host, answers=DrainShown, body=Drain, shows=read_host, shown_as=HostShown, volatile=LIVE),
    Route("GET", "hosts/{host}/environments", "List the environments that hold something of a host", Needs.HUB_ADMIN,
          list_environments_of_host, answers=runs.EnvironmentShown, query=runs.EnvironmentsAsked, listing=True),
    Route("GET", "hosts/{host}/gpus", "List the GPUs of a host with who holds them", Needs.HUB_ADMIN,
          list_gpus_of_host, answers=GpuShown, query=Paging, listing=True),
    Route("GET", "gpus", "List the GPUs of all hosts with who holds them", Needs.HUB_ADMIN, list_gpus,
          answers=GpuShown, query=Paging, listing=True),
    Route("PATCH", "gpus/{uuid}", "Take a GPU out for maintenance, or give it out again", Needs.HUB_ADMIN, edit_gpu,
          answers=GpuShown, body=GpuEdit),
    Route("PATCH", "hosts/{host}/gpus/{index}", "The same, by its host and its number there", Needs.HUB_ADMIN,
          edit_gpu_of_host, answers=GpuShown, body=GpuEdit),
    Route("GET", "images", "List the whole catalogue of images", Needs.HUB_ADMIN, list_images, answers=ImageShown,
          query=ImagesAsked, listing=True),
    Route("GET", "flavors", "List all flavors", Needs.HUB_ADMIN, list_flavors, answers=FlavorShown,
          query=FlavorsAsked, listing=True),
]  # fmt: skip
