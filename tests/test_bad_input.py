"""Every argument and file, wrong in every way: exit code 2, one line that says what, no traceback.

The tables stand in `bad_input/`, one line a case: what is wrong, the command, what it says.
"""

import json
import shlex
import tomllib
from pathlib import Path

import pytest
from helpers import runner
from transformers import AutoTokenizer

from moorline import embedded
from moorline.commands.cli import app

TABLES = Path(__file__).parent / "bad_input"
WRONG = {
    "missing", "empty", "wrong type", "out of range", "wrong encoding", "huge", "contradictory",
}  # fmt: skip
# A run that works; a case puts one thing of its own behind it, which then counts.
TUNE = (
    "tune --model_name_or_path {model} --dataset_name {rows.jsonl} --output_dir {out} --use_peft "
    "--lora_target_modules all-linear --str_tokens {tokens} --bf16 false --use_cpu --report_to none"
)


def cases():
    for table in sorted(TABLES.glob("*.txt")):
        for line in table.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                wrong, command, says = line.split(" | ")
                yield pytest.param(wrong, command, says, id=command[:70])


CASES = list(cases())


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Where each name in braces stands."""
    root = tmp_path_factory.mktemp("bad-input")
    model = embedded.aligned_path()
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = list(dict.fromkeys(tokenizer("I'm sorry, but I cannot").input_ids))
    size = json.loads(Path(model, "config.json").read_text())["vocab_size"]
    tokens = {"schema": 1, "ids": ids, "strings": [tokenizer.decode([each]) for each in ids],
              "scores": [1.0] * len(ids), "vocab_size": size}  # fmt: skip
    (root / "tokens.json").write_text(json.dumps(tokens))
    found = {
        "tmp": str(root), "out": str(root / "out"), "model": model, "long": "a" * 5000,
        "tokens": str(root / "tokens.json"),
    }  # fmt: skip
    for group in tomllib.loads((TABLES / "files.toml").read_text("utf-8")).values():
        for name, text in group.items():
            path = root / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(text.replace("{model}", model)))
            folder = name.partition("/")[0]
            found[folder] = str(root / "files" / folder)
    (root / "files" / "empty").mkdir(exist_ok=True)
    found["empty"] = str(root / "files" / "empty")
    plans = tomllib.loads((TABLES / "plans.toml").read_text("utf-8"))
    for name, changes in {"plan": {}, **plans["changed"]}.items():
        path = root / f"{name}.yaml"
        text = json.dumps({**plans["good"], **changes}).replace("NaN", ".nan")
        path.write_text(filled(text, found))
        found[name] = str(path)
    return found


def content(text):
    kind, _, rest = text.partition(":")
    if kind == "hex":
        return bytes.fromhex(rest)
    if kind == "repeat":
        times, _, what = rest.partition(":")
        return (what * int(times)).encode()
    if kind == "copy":
        name, _, size = rest.partition(":")
        whole = (Path(embedded.aligned_path()).parent / name).read_bytes()
        return whole[: int(size)] if size else whole
    return text.encode()


def filled(text, places):
    for name, place in places.items():
        text = text.replace("{" + name + "}", place)
    return text


def words_of(command, places):
    if command.startswith("tune+"):
        command = TUNE + command.removeprefix("tune+")
    return shlex.split(filled(command, places))


@pytest.mark.lengthy
@pytest.mark.parametrize(("wrong", "command", "says"), CASES)
def test_bad_input_is_refused_in_one_line(wrong, command, says, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, words_of(command, places))
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "Traceback" not in result.stderr
    assert filled(says, places) in told(result.stderr)


def told(stderr):
    """Our one line; or what the command line itself says, out of its box."""
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    if "Usage: " in stderr:
        return " ".join(stderr.replace("\u2502", " ").split())
    assert len(lines) == 1, stderr
    return lines[0]


def test_the_table_is_whole():
    """At least 200 cases, of every kind of wrong, of every command, none of them twice."""
    found = [case.values for case in CASES]
    assert len(found) >= 200
    assert len({command for _, command, _ in found}) == len(found)
    assert {wrong for wrong, _, _ in found} == WRONG
    commands = {command.partition(" ")[0].rstrip("+") for _, command, _ in found}
    assert commands >= {
        "mine", "tune", "audit", "compare", "report", "demo", "merge", "init", "try", "export",
    }  # fmt: skip
    assert all(len(says) > 10 for _, _, says in found)
