"""The house stays readable: short functions and files, few untyped values, few layers.

A bound that is met is moved down, never up without a reason in the commit.
"""

import ast
import statistics
import tomllib
from pathlib import Path

import pytest

import moorline

ROOT = Path(__file__).parents[1]
SOURCES = sorted(Path(moorline.__file__).parent.rglob("*.py"))


def _length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def _functions():
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                yield f"{path.name}: {node.name}", _length(node)


@pytest.mark.lengthy
def test_no_function_is_longer_than_80_lines_and_half_have_at_most_10():
    lengths = dict(_functions())
    assert len(lengths) > 500
    assert {name: each for name, each in lengths.items() if each > 80} == {}
    assert statistics.median(each for _, each in _functions()) <= 10


@pytest.mark.parametrize(("name", "most"), [("", 400), ("method/mixin.py", 200)])
def test_no_file_is_longer_than_it_may_be(name, most):
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCES
        if path.as_posix().endswith(name)
    }
    assert lengths
    assert {each: length for each, length in lengths.items() if length > most} == {}


def test_few_values_are_dictionaries_of_anything():
    found = [path.name for path in SOURCES for _ in range(path.read_text().count("dict[str, Any]"))]
    assert len(found) < 20, found


def test_imports_have_at_most_eight_layers_and_none_is_a_list_of_files():
    path = ROOT / "pyproject.toml"
    contracts = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = [each["layers"] for each in contracts if each["type"] == "layers"]
    assert len(layers) <= 8
    package = Path(moorline.__file__).parent
    files = {
        name for layer in layers for name in layer.split(" | ") if not (package / name).is_dir()
    }
    assert files == {"trainer"}
