"""A page with every error message of the program, read from its source: `reference/messages`.

A message names the argument, what it was, what must hold, and what to do, so it is its own entry.
Where `how-to/troubleshooting.md` has more to say about one, the entry leads there.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ERRORS = {"InputError", "PrerequisiteError", "lacks"}
"""What is raised; `lacks` makes the error of a row without a field."""

AREAS = {
    "Models, templates and rows": ("chat", "tables"),
    "The method, its reference and its cache": ("method", "trainer", "__init__"),
    "Commands and settings": (
        "commands",
        "embedded",
        "records",
        "provenance",
        "processes",
        "errors",
    ),
    "Audits, judges and prompt sets": ("audit",),
    "Methods to compare with, and plans": ("baselines", "compare"),
    "Reports and exports": ("report", "exports"),
    "Axolotl and ms-swift": ("hosts",),
}
_PLACE = "\N{HORIZONTAL ELLIPSIS}"
_HEADING = re.compile(r"^### (.*)$", re.MULTILINE)


class Message(NamedTuple):
    """A message with what is filled in left out."""

    area: str
    text: str
    source: str
    """File and line, for the tests."""


def messages(package: Path) -> list[Message]:
    """Every message that the program raises, by area, in the order of the files."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = place.parts[0].removesuffix(".py")
        area = next((name for name, tops in AREAS.items() if top in tops), None)
        for call, within in _calls(tree):
            lacking = _name(call.func) == "lacks"
            for text in _texts(call.args[-1], within, tree):
                if lacking:  # as `tables.Row.lacks` puts it together
                    (column,) = _texts(call.args[0], within, tree)[:1]
                    text = f"{_PLACE}: no field '{column}' (fields: {_PLACE}). {text}"
                if re.search(r"[a-z]{3}", text):
                    if area is None:
                        raise RuntimeError(f"{place}: no area of the page of messages has it")
                    source = f"{place}:{call.lineno}"
                    found.append(Message(area, " ".join(text.split()), source))
    return found


def page(package: Path, troubleshooting: str) -> str:
    """The page in Markdown; `troubleshooting` is the text of the page that explains some."""
    told = {
        words: _anchor(heading)
        for heading in _HEADING.findall(troubleshooting)
        for words in re.findall(r'"([^"]+)"', heading)
    }
    lines = []
    every = messages(package)
    for area in AREAS:
        lines += [f"## {area}", ""]
        for text in dict.fromkeys(each.text for each in every if each.area == area):
            more = next((anchor for words, anchor in told.items() if words in text), None)
            link = f" [More](../how-to/troubleshooting.md#{more})" if more else ""
            lines.append(f"- {_escaped(text)}{link}")
        lines.append("")
    return "\n".join(lines)


def _anchor(heading: str) -> str:
    """The name of a heading as MyST gives it."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def _calls(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Each call that makes an error, with the function around it."""

    def walk(node: ast.AST, within: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and child.args and _name(child.func) in ERRORS:
                yield child, within
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, child if inner else within)

    yield from walk(tree, tree)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def _texts(node: ast.expr, within: ast.AST, tree: ast.AST) -> list[str]:
    """What an expression may say; what is filled in is an ellipsis."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [_PLACE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(_part(each) for each in node.values)]
    if isinstance(node, ast.BinOp):
        sides = (_texts(each, within, tree) for each in (node.left, node.right))
        left, right = sides
        return [one + other for one in left for other in right]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, within, tree), *_texts(node.orelse, within, tree)]
    if isinstance(node, ast.Name):
        given = [*_assigned(node.id, within), *_assigned(node.id, tree)][:1]
        return [text for each in given for text in _texts(each, within, tree)] or [_PLACE]
    if isinstance(node, ast.Call):
        made = next((each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)
                     and each.name == _name(node.func)), None)  # fmt: skip
        returns = [each.value for each in ast.walk(made) if isinstance(each, ast.Return)
                   and each.value is not None] if made else []  # fmt: skip
        return [text for each in returns for text in _texts(each, made, tree)] or [_PLACE]
    return [_PLACE]


def _part(part: ast.expr) -> str:
    """Of an f-string a piece of text, or what stands for a value."""
    return part.value if isinstance(part, ast.Constant) else _PLACE  # pyright: ignore


def _assigned(name: str, within: ast.AST) -> Iterator[ast.expr]:
    for each in ast.walk(within):
        if isinstance(each, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in each.targets
        ):
            yield each.value


def _escaped(text: str) -> str:
    """A text as Markdown shows it: code stays code, all else is no markup."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text.replace("`", "'")]
    plain = (re.sub(r"([\\*_<>\[\]{}|$#])", r"\\\1", part) for part in parts[::2])
    whole = [""] * len(parts)
    whole[::2], whole[1::2] = plain, (f"`{part}`" for part in parts[1::2])
    return "".join(whole)
