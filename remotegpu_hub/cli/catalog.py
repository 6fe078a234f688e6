"""`remotegpu images` and `remotegpu flavors`: what can be chosen when an environment is started."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .. import plain
from ..domain import catalog, inventory, workspaces
from ..orm import Image, ImageStatus, Visibility
from ..runtime import utcnow
from ..units import parse_bytes, parse_cores, show_bytes, show_thousandths
from .asking import Asking
from .command import Command, Text, chosen, option, whole
from .stop import Refused, Usage
from .tables import Column, Row

IMAGE_COLUMNS = [
    Column("IMAGE", "reference"),
    Column("NAME", "display_name"),
    Column("FRAMEWORK", "framework"),
    Column("CUDA", "cuda_version"),
    Column("PYTHON", "python_version"),
    Column("STATUS", "status"),
    Column("FOR", lambda row: row["workspace"] or row["visibility"]),
]


def _gpus(row: Row) -> str:
    return f"{row['gpu_slots']} × {row['gpu_model']}" if row["gpu_slots"] else "none"


FLAVOR_COLUMNS = [
    Column("FLAVOR", "name"),
    Column("NAME", "display_name"),
    Column("GPUS", _gpus),
    Column("CORES", lambda row: show_thousandths(row["cpu_millis"]), right=True),
    Column("MEMORY", lambda row: show_bytes(row["memory_bytes"]), right=True),
    Column("FOR", lambda row: row["workspace"] or "everybody"),
]


class ImagesList(Asking):
    name = "list"
    description = "List the images of the catalogue."

    def run(self) -> None:
        rows = self.every("images")
        self.show_rows("images", rows, IMAGE_COLUMNS, empty="There are no images: c.RemoteGPU.images names them.")


class ImagesSet(Command):
    name = "set"
    words = ("IMAGE",)
    description = (
        "Change what the catalogue says of an image. Local images come from c.RemoteGPU.images, and the hub writes "
        "their names anew when it starts."
    )
    examples = (
        "remotegpu images set local:old --status blocked\n"
        "remotegpu images set local:secret --visibility workspace --workspace vision"
    )
    display_name = option(Text(help="Its name on pages, in any script."), "display-name", "TEXT")
    status = option(Text(help="`active`, `deprecated` or `blocked` (nobody can start it)."), "status", "STATUS")
    visibility = option(Text(help="Who may start it: `public` or `workspace`."), "visibility", "WHO")
    workspace = option(Text(help="The workspace that may start it."), "workspace", "NAME")
    digest = option(Text(help="Which one, where several digests have this reference."), "digest", "DIGEST")

    def run(self) -> None:
        status = chosen(ImageStatus, self.status, "--status", without=[ImageStatus.RETIRED])
        visibility = chosen(Visibility, self.visibility, "--visibility")
        if (visibility == Visibility.WORKSPACE) != (self.workspace is not None):
            raise Usage("--visibility workspace and --workspace NAME go together.")
        if visibility == Visibility.PRIVATE:
            raise Usage("--visibility is public or workspace here.")
        if self.display_name is None and status is None and visibility is None:
            raise Usage(f"Nothing to change was named. Try `{self.path} --help`.")
        with self.transaction() as session:
            image = self._image(session)
            columns: dict[str, Any] = {}
            if status is not None:
                columns["status"] = status
            if visibility is not None:
                space = workspaces.by_name(session, name=self.workspace) if self.workspace is not None else None
                columns |= {"visibility": visibility, "workspace_id": space.id if space else None}
            name = image.display_name
            if self.display_name is not None:
                name = workspaces.check_display_name(self.display_name)
            changed = catalog.put_image(
                session, reference=image.reference, digest=image.digest, display_name=name, actor=self.actor,
                now=utcnow(), **columns,
            )  # fmt: skip
            row = plain.image(session, changed)
        who = row["workspace"] or row["visibility"]
        self.show_one("image", row, f"{row['reference']} is {row['status']}, for {who}.")

    def _image(self, session: Session) -> Image:
        query = select(Image).where(Image.reference == self.need(0))
        if self.digest is not None:
            query = query.where(Image.digest == self.digest)
        found = list(session.scalars(query))
        if not found:
            raise Refused(f"The image {self.need(0)} was not found; `remotegpu images` lists them.")
        if len(found) > 1:
            raise Refused(f"{len(found)} images are named {self.need(0)}: add --digest.")
        return found[0]


class Images(ImagesList):
    name = "images"
    description = "What can be run. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (ImagesList, "list the catalogue"),
        "set": (ImagesSet, "block one, rename it, or say who may start it"),
    }


class FlavorsList(Asking):
    name = "list"
    description = "List the flavors that can be chosen."

    def run(self) -> None:
        rows = [row for row in self.every("flavors") if not row["retired"]]
        rows.sort(key=lambda row: (row["gpu_slots"], row["gpu_model"] or "", row["name"]))
        self.show_rows("flavors", rows, FLAVOR_COLUMNS, empty="There are no flavors.")


class FlavorsSet(Command):
    name = "set"
    words = ("FLAVOR",)
    description = "Make a flavor, or change its numbers. Environments that chose it keep theirs until they are edited."
    examples = (
        "remotegpu flavors set a100 --display-name '1 × A100' --gpus 1 --gpu-model A100-80GB --cpu 8 --memory 64G"
    )
    display_name = option(Text(help="Its name on pages, in any script. Default: FLAVOR."), "display-name", "TEXT")
    gpu_model = option(Text(help="The model of its GPUs, as `remotegpu gpus` shows it."), "gpu-model", "MODEL")
    gpus = option(Text(help="How many slots of that model. Default: 0."), "gpus", "COUNT")
    cpu = option(Text(help="Cores, such as 8 or 0.5. Required."), "cpu", "CORES")
    memory = option(Text(help="Memory, such as 64G. Required."), "memory", "SIZE")
    workspace = option(Text(help="Only this workspace may use it. Default: everybody."), "workspace", "NAME")

    def run(self) -> None:
        if self.cpu is None or self.memory is None:
            raise Usage(f"--cpu and --memory are required. Try `{self.path} --help`.")
        gpus = whole(self.gpus or "0", "--gpus")
        if (gpus > 0) != bool(self.gpu_model):
            raise Usage("--gpus and --gpu-model go together.")
        with self.transaction() as session:
            if self.gpu_model and self.gpu_model not in (known := inventory.known_models(session)):
                self.log.warning("no host has %s now (known: %s)", self.gpu_model, ", ".join(sorted(known)) or "none")
            space = workspaces.by_name(session, name=self.workspace) if self.workspace is not None else None
            flavor = catalog.put_flavor(
                session, name=_name(self.need(0)),
                display_name=workspaces.check_display_name(self.display_name or self.need(0)),
                gpu_model=self.gpu_model or None, gpu_slots=gpus, cpu_millis=parse_cores(self.cpu),
                memory_bytes=parse_bytes(self.memory), workspace=space, actor=self.actor, now=utcnow(),
            )  # fmt: skip
            row = plain.flavor(session, flavor)
        shown = _gpus(row) if row["gpu_slots"] else "no GPUs"
        sizes = f"{show_thousandths(row['cpu_millis'])} cores, {show_bytes(row['memory_bytes'])}"
        who = row["workspace"] or "everybody"
        self.show_one("flavor", row, f"The flavor {row['name']} is {shown}, {sizes}, for {who}.")


def _name(text: str) -> str:
    if not 1 <= len(text) <= 64 or not text.isprintable() or " " in text:
        raise Usage("A flavor's name has 1 to 64 printable characters without spaces.")
    return text


class Flavors(FlavorsList):
    name = "flavors"
    description = (
        "Presets of GPUs, cores and memory. Their price is always that of what they hold. Without a command: list them."
    )
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (FlavorsList, "list them"),
        "set": (FlavorsSet, "make or change one"),
    }
