"""`remotegpu images` and `remotegpu flavors`: what can be chosen when an environment is started."""

from ..orm import ImageStatus, Visibility
from ..units import parse_bytes, parse_cores, show_bytes, show_thousandths
from .asking import Asking
from .command import Text, chosen, option, whole
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


FLAVOR = "flavors/{name}"
SETTABLE = ("active", "deprecated", "blocked")


class ImagesList(Asking):
    name = "list"
    description = "List the images of the catalogue."

    def run(self) -> None:
        rows = self.every("images")
        self.show_rows("images", rows, IMAGE_COLUMNS, empty="There are no images: c.RemoteGPU.images names them.")


class ImagesSet(Asking):
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
    status = option(
        Text(help="`active`, `deprecated` or `blocked` (nobody can start it)."), "status", "STATUS", values=SETTABLE
    )
    visibility = option(
        Text(help="Who may start it: `public` or `workspace`."), "visibility", "WHO", values=("public", "workspace")
    )
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
        named = {
            "display_name": self.display_name, "status": status, "visibility": visibility, "workspace": self.workspace,
        }  # fmt: skip
        body = {name: value for name, value in named.items() if value is not None}
        number = str(self._image()["id"])
        seen = self.ask("GET", "images/{id}", id=number)
        row = self.ask("PATCH", "images/{id}", body=body, match=seen.tag, id=number).value
        who = row["workspace"] or row["visibility"]
        self.show_one("image", row, f"{row['reference']} is {row['status']}, for {who}.")

    def _image(self) -> Row:
        """The one of this reference that can be started; of several the digest tells which."""
        found = [
            row
            for row in self.every("images", query={"search": self.need(0)[:100]})
            if row["reference"] == self.need(0) and self.digest in (None, row["digest"])
        ]
        if not found:
            raise Refused(f"The image {self.need(0)} was not found; `remotegpu images` lists them.")
        current = [row for row in found if row["status"] != ImageStatus.RETIRED] or found
        if len(current) > 1:
            raise Refused(f"{len(current)} images are named {self.need(0)}: add --digest.")
        return current[0]


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


class FlavorsSet(Asking):
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
        if self.gpu_model:
            known = {slot["model"] for gpu in self.every("gpus") for slot in gpu["slots"]}
            if self.gpu_model not in known:
                self.log.warning("no host has %s now (known: %s)", self.gpu_model, ", ".join(sorted(known)) or "none")
        body = {
            "display_name": self.display_name or self.need(0), "gpu_model": self.gpu_model or None, "gpu_slots": gpus,
            "cpu_millis": parse_cores(self.cpu), "memory_bytes": parse_bytes(self.memory), "workspace": self.workspace,
        }  # fmt: skip
        row = self.ask("PUT", FLAVOR, body=body, name=self.need(0)).value
        shown = _gpus(row) if row["gpu_slots"] else "no GPUs"
        sizes = f"{show_thousandths(row['cpu_millis'])} cores, {show_bytes(row['memory_bytes'])}"
        who = row["workspace"] or "everybody"
        self.show_one("flavor", row, f"The flavor {row['name']} is {shown}, {sizes}, for {who}.")


class FlavorsRetire(Asking):
    name = "retire"
    words = ("FLAVOR",)
    description = "Let nobody choose a flavor any more. Environments that chose it keep their numbers."
    examples = "remotegpu flavors retire a100"

    def run(self) -> None:
        row = self.read(FLAVOR, name=self.need(0))
        self.ask("DELETE", FLAVOR, name=self.need(0))
        self.show_one("flavor", {**row, "retired": True}, f"The flavor {row['name']} can be chosen no more.")


class Flavors(FlavorsList):
    name = "flavors"
    description = (
        "Presets of GPUs, cores and memory. Their price is always that of what they hold. Without a command: list them."
    )
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (FlavorsList, "list them"),
        "set": (FlavorsSet, "make or change one"),
        "retire": (FlavorsRetire, "let nobody choose one any more"),
    }
