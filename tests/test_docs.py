"""The documents: readable width, tests that exist under the names they are cited by."""

import pkgutil
import re
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    each.relative_to(ROOT).as_posix()
    for each in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"))
)


@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_wider_than_120(page):
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        assert len(line) <= 120 or "](http" in line, f"{page}, line {number}: {len(line)} wide"


@pytest.mark.parametrize("page", PAGES)
def test_cited_tests_and_files_exist(page):
    """A name in code style that begins with test_ is one; so is a path of ours."""
    text = (ROOT / page).read_text(encoding="utf-8")
    known = "\n".join(each.read_text(encoding="utf-8") for each in ROOT.glob("tests/**/*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in known, f"{page} cites {name}, which does not exist"
    for path in re.findall(r"`((?:tests|docs|benchmarks)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{page} cites {path}, which does not exist"


def _is_there(place):
    """Whether a place in our code, `audit.statistics.wilson` or `report/figures.py`, exists."""
    if "/" in place:
        return files("moorline").joinpath(place).is_file()
    try:
        pkgutil.resolve_name(f"moorline.{place}")
    except (AttributeError, ModuleNotFoundError):
        return False
    return True


def test_the_code_that_sources_name_is_there():
    """A row named no code at all; others may name what was moved since."""
    text = (ROOT / "SOURCES.md").read_text(encoding="utf-8")
    folders = "|".join(each.name for each in files("moorline").iterdir() if each.is_dir())
    places = re.findall(rf"`((?:{folders})[./][\w./]+)", text)
    assert len(places) > 20
    assert [each for each in places if not _is_there(each)] == []
    for gone in ("audit.statistics.gone", "gone.statistics", "report/gone.py"):
        assert not _is_there(gone)


@pytest.mark.parametrize("path", sorted((*ROOT.glob("tests/hosts/*.txt"), *ROOT.glob("*.txt"))))
def test_what_pip_reads_is_a_package_with_its_version_on_each_line(path):
    """A carriage return within a name had kept every host's environment from being made."""
    for line in path.read_bytes().decode().split("\n"):
        assert re.fullmatch(r"(#.*|[\w.\[\]-]+==[^\s=]+( *[;#].*)?|)", line), (path.name, line)


def test_the_checks_can_fail():
    assert PAGES
    assert re.findall(r"`(test_\w+)`", "see `test_nothing_of_the_kind`") == [
        "test_nothing_of_the_kind"
    ]
