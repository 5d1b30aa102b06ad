"""What the documentation site says of settings, errors and pages is so; `make docs` builds it."""

import ast
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import typer
from helpers import unknown_in

import moorline
from moorline import STRConfig
from moorline.commands.cli import app
from moorline.hosts import given

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import messages as made_messages  # noqa: E402

DOCS = ROOT / "docs"
PAGES = [each for each in sorted(DOCS.rglob("*.md")) if not {"generated", "_build"} & {*each.parts}]


def test_every_setting_has_its_row_with_its_default():
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(str_\w+)` \| ([^|]+) \|", page, flags=re.MULTILINE))
    known = {each.name: each for each in fields(STRConfig) if each.name.startswith("str_")}
    assert rows.keys() == known.keys() >= given.NAMES.keys()
    for name, each in known.items():
        default = None if each.default is MISSING else each.default
        if default is not None:
            assert rows[name].strip().lower() == str(default).lower(), name


def messages():
    """The text of every string in the program, pieces of one message joined."""
    found = []
    for path in Path(moorline.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
                )
                found.append("".join(map(str, parts)))
    return "\n".join(found)


def test_every_message_that_is_explained_is_one():
    page = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        each
        for line in re.findall(r"^### (.*)$", page, flags=re.MULTILINE)
        for each in re.findall(r'"([^"]+)"', line)
    ]
    known = messages()
    assert len(quoted) > 60
    assert [each for each in quoted if each not in known] == []
    assert "no such message anywhere in the program" not in known


def raised():
    """Where the program makes an error of ours, as file and line, counted by a plain search."""
    package = Path(moorline.__file__).parent
    for path in package.rglob("*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"(?<!class )\b(InputError|PrerequisiteError)\((?!MoorlineError)", line):
                yield f"{path.relative_to(package)}:{number}"


@pytest.mark.lengthy
def test_every_message_has_its_entry():
    """Of some three hundred the page of troubleshooting said nothing."""
    found = made_messages.messages(Path(moorline.__file__).parent)
    sources = {each.source for each in found}
    silent = {each for each in raised() if each not in sources}
    # whole texts that come from elsewhere: of another module, of an error beneath
    passed_on = {"baselines/states.py", "commands/training_data.py", "compare/__init__.py",
                 "method/mixin.py", "method/regularizer.py", "records.py", "tables.py"}  # fmt: skip
    assert {each.partition(":")[0] for each in silent} <= passed_on, sorted(silent)
    assert len(silent) < 8
    page = made_messages.page(
        Path(moorline.__file__).parent,
        (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8"),
    )
    entries = re.findall(r"^- ", page, flags=re.MULTILINE)
    assert len(entries) >= len({each.text for each in found}) > 350
    assert page.count("[More](../how-to/troubleshooting.md#") > 80
    for words in (
        "has no chat template",
        "with other `budget` or `anchors`",
        "`use_logits_to_keep` cuts",
    ):
        assert words in page


@pytest.mark.parametrize("page", PAGES, ids=lambda each: each.relative_to(DOCS).as_posix())
def test_every_page_is_reached_and_its_lines_are_readable(page):
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(DOCS).with_suffix("").as_posix()
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    by_glob = "/" not in name or name.startswith("how-to/")
    assert by_glob or f"\n{name}\n" in index, f"no menu reaches {name}"
    for number, line in enumerate(text.splitlines() if page.parent != DOCS else (), start=1):
        assert len(line) <= 120 or "2>/dev/null" in line or "](http" in line, (number, line)
    for target in re.findall(r"\{doc\}`/?([^`]+)`", text):
        there = (DOCS / f"{target}.md").is_file() or (page.parent / f"{target}.md").is_file()
        assert there, f"{name} links to {target}"
    for cited in re.findall(r"`((?:tests|docs|benchmarks|examples)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / cited).exists(), f"{name} cites {cited}"


def commands(text):
    """Every command line of a page: in a block of its own, or within a sentence."""
    whole = text.replace("\\\n", " ")
    blocks = re.findall(r"^ *(?:!|\$ )?(moorline [a-z][^\n]*)$", whole, flags=re.MULTILINE)
    return [*blocks, *re.findall(r"`(moorline [a-z][^`]*)`", whole)]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda each: each.relative_to(ROOT).as_posix()
)
def test_every_command_that_is_shown_is_one(page):
    for line in commands(page.read_text(encoding="utf-8")):
        assert not line.count("`")
        assert unknown_in(line.replace("...", "").replace("|", " ")) == [], line


def test_a_command_that_is_none_is_found():
    assert commands("Run `moorline tune --a b`.\n\n    moorline audit \\\n        out\n") == [
        "moorline audit          out", "moorline tune --a b",
    ]  # fmt: skip
    assert unknown_in("moorline merge out --into x") == ["--into"]
    assert unknown_in("moorline tune --str_weigth 3") == ["--str_weigth"]
    assert unknown_in("moorline mend out") == ["mend"]
    assert unknown_in("moorline export hub out --json") == []


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda at: at.stem)
def test_a_command_of_a_notebook_cannot_fail_unseen(page):
    """`!` goes on after a command that failed; `%%bash` ends the build."""
    assert not re.findall(r"^!", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_llms_txt_links_to_pages():
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([\w/-]+)\.html\)", text):
        assert (DOCS / f"{target}.md").is_file(), target
    told = text.partition("Commands:")[2].partition("Python:")[0]
    for name in typer.main.get_command(app).commands:
        assert re.search(rf"`(moorline )?{name}\b", told), name
