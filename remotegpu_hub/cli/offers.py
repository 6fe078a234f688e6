"""`remotegpu offers`: what you may start now, what it costs, and what would refuse it."""

from typing import Any

from .. import words
from ..units import show_bytes, show_thousandths
from .asking import Asking
from .command import Text, option
from .tables import Column, Row, dump, printable, short

COLUMNS = [
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("WHAT", "what"),
    Column("AN HOUR", "price", right=True),
    Column("WHY NOT", "why"),
]


def _rows(found: Row) -> list[dict[str, Any]]:
    """Everything on offer, a row each."""

    def row(kind: str, name: str, what: str, price: int | None, one: Row) -> dict[str, Any]:
        amount = words.money(price, found["currency"], "en") if price is not None else None
        return {"kind": kind, "name": name, "what": what, "price": amount, "why": (one["reason"] or {}).get("message")}

    def flavor(one: Row) -> str:
        gpus = f"{one['gpus']} × {one['gpu_model']}, " if one["gpus"] else ""
        return f"{gpus}{show_thousandths(one['cpu_millis'])} cores, {show_bytes(one['memory_bytes'])}"

    return [
        *(row("workspace", one["name"], one["display_name"], None, one) for one in found["workspaces"]),
        *(row("image", one["reference"], one["display_name"], None, one) for one in found["images"]),
        *(row("flavor", one["name"], flavor(one), one["price_per_hour"], one) for one in found["flavors"]),
        *(
            row("GPU", one["model"], f"{one['free']} of {one['usable']} free", one["unit_price"], one)
            for one in found["gpus"]
        ),
    ]


def _quote(found: Row) -> str:
    """What the current choice costs, and whether it can start."""
    quote = found["quote"]
    if quote is None:
        return "There is nothing that you could start."
    if quote["refusal"] is not None:
        return f"It would be refused: {quote['refusal']['message']}"
    price = quote["price_per_hour"]
    cost = "for nothing" if not price else f"for {words.money(price, found['currency'], 'en')} an hour"
    until = quote["budget_lasts_until"]
    budget = f" The budget of its workspace would last until {short(until)}." if until else ""
    return f"It can start on {quote['host']}, {cost}.{budget}"


class Choosing(Asking):
    """Takes what an environment is made of; what is not named is as the spawn page would fill it in."""

    workspace = option(Text(help="One of your workspaces."), "workspace", "NAME")
    image = option(Text(help="What is run, by its reference."), "image", "IMAGE")
    flavor = option(Text(help="A preset of the four below."), "flavor", "FLAVOR")
    gpu_model = option(Text(help="The model of its GPUs."), "gpu-model", "MODEL")
    gpus = option(Text(help="How many slots of that model."), "gpus", "COUNT")
    cpu = option(Text(help="Cores, such as 8 or 0.5."), "cpu", "CORES")
    memory = option(Text(help="Memory, such as 64G."), "memory", "SIZE")


class Offers(Choosing):
    name = "offers"
    description = (
        "Show what you may start now, with its price, and quote a choice: what is not named is as the spawn page would "
        "fill it in. `remotegpu environments create` takes the same options."
    )
    examples = (
        "remotegpu offers\nremotegpu offers --workspace vision --gpu-model A100-80GB --gpus 2 --cpu 8 --memory 64G"
    )

    def run(self) -> None:
        self.needs_hub()
        named = ("workspace", "image", "flavor", "gpu_model", "gpus", "cpu", "memory")
        found = self.read("offers", query={name: getattr(self, name) for name in named})
        if self.json:
            self.say(dump({"offers": found}))
            return
        self.show_rows("offers", _rows(found), COLUMNS, empty="Nothing is on offer.")
        self.say("")
        for problem in found["problems"]:
            self.say(printable(problem["message"]))
        self.say(printable(_quote(found)))
