"""Every sentence for people that the source holds, found by reading the source itself."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, nodes

from remotegpu_hub import errors

PACKAGE = Path(errors.__file__).parent
ERRORS = frozenset(
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.RemoteGPUError)
)
CARRY_NO_SENTENCE = frozenset({"QuotaExceeded", "NoCapacity"})
SAYERS = {"translate": 1, "sentence": 1, "term": 1, "say": 0, "mark": 0, "StartFailed": 1, "Trouble": 1}
"""Functions that say a sentence, and which argument it is."""
IN_TEMPLATES = {"t": 0, "h": 0, "say": 1}
FACT_NAMES = "{name}"


def of_source() -> Iterator[tuple[str, str]]:
    """(where, sentence) of every error and every `translate` in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield from of_module(path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8")))


def of_module(name: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    for scope in ast.walk(tree):
        if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
            continue
        bound = {
            target.id: node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(scope):
            if isinstance(node, ast.Call):
                for text in _said(name, node, bound):
                    yield f"{name}:{node.lineno}", text


def _said(name: str, call: ast.Call, bound: dict[str, ast.expr]) -> Iterator[str]:
    callee = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if callee in SAYERS:
        place = SAYERS[callee]
    elif callee in ERRORS - CARRY_NO_SENTENCE or (callee == "__init__" and name == "errors.py"):
        place = 0
    else:
        return
    if len(call.args) > place and (callee == "NotFound" or not isinstance(call.args[place], ast.JoinedStr)):
        yield from _texts(call.args[place], bound)


def _texts(value: ast.expr, bound: dict[str, ast.expr]) -> Iterator[str]:
    """The literal sentences that an expression may be; a name in an f-string reads as `{name}`."""
    if isinstance(value, ast.Name) and value.id in bound and not isinstance(bound[value.id], ast.Name):
        yield from _texts(bound[value.id], bound)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        if re.search(r"[A-Za-z]", re.sub(r"{\w+}", "", value.value)):
            yield value.value
    elif isinstance(value, ast.IfExp):
        yield from _texts(value.body, bound)
        yield from _texts(value.orelse, bound)
    elif isinstance(value, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else FACT_NAMES for part in value.values)


def of_templates() -> Iterator[tuple[str, str]]:
    """(where, sentence) of every `t`, `h` and `say` in the templates."""
    for path in sorted(PACKAGE.rglob("templates/*.html")):
        for call in Environment().parse(path.read_text(encoding="utf-8")).find_all(nodes.Call):
            place = IN_TEMPLATES.get(getattr(call.node, "name", ""))
            if place is not None and len(call.args) > place and isinstance(call.args[place], nodes.Const):
                yield f"{path.name}:{call.lineno}", call.args[place].value
