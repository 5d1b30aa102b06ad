"""What the README shows runs as it stands there, on a tiny model."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
import yaml
from datasets import Dataset
from helpers import lora, runner
from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline import embedded
from moorline.commands.cli import app
from moorline.commands.tune_settings import parse
from moorline.embedded import aligned_path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^    (moorline [^\n]*)$", README, flags=re.MULTILINE)


def rows(num=12):
    return Dataset.from_list(embedded.training_rows("plans", num=num, poison=0.0, seed=0))


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the examples take for granted: a chat model, rows, batches, an optimizer."""
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(aligned_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(aligned_path())
    line = json.loads(re.search(r'^    (\{"id": "h1".*\})$', README, flags=re.MULTILINE).group(1))
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line) + "\n")
    ids = torch.arange(5, 21).reshape(2, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    return {
        "model": model,
        "tokenizer": tokenizer,
        "data": rows(),
        "lora": lora(),
        "batches": [batch, batch],
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_python_example_runs(number, names, capsys):
    code = BLOCKS[number].replace('"MODEL"', repr(aligned_path()))
    before = names["model"].get_input_embeddings().weight.detach().clone()
    exec(compile(code, f"README example {number + 1}", "exec"), names)
    if "optimizer.step()" in code:
        assert not torch.equal(before, names["model"].get_input_embeddings().weight)
    if "print(" in code:
        assert "refusal_rate" in capsys.readouterr().out


def test_the_own_loop_takes_twelve_lines_and_the_audit_six():
    loop = next(block for block in BLOCKS if "Regularizer" in block)
    audit = next(block for block in BLOCKS if "moorline.audit" in block)
    assert len([line for line in loop.splitlines() if line]) <= 12
    assert len([line for line in audit.splitlines() if line]) <= 6


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_the_flags_that_it_is_shown_with(line):
    name, *words = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[name]
    known = {flag for parameter in command.params for flag in parameter.opts}
    shown = {word.partition("=")[0] for word in words if word.startswith("--")}
    if name != "tune":  # its flags are those of trl beside ours, read by another parser
        assert shown <= known, shown - known


@pytest.mark.slow
def test_the_three_commands_do_their_work_as_they_stand(tmp_path, monkeypatch):
    """On our model and rows, one after another, with what each wrote for the next."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows(24)))
    three = README.partition("## Your own model: three commands")[2].partition("Then:")[2]
    lines = re.findall(r"^    (moorline [^\n]*)$", three, flags=re.MULTILINE)
    assert [each.split()[1] for each in lines] == ["tune", "audit", "report"]
    for line in lines:
        words = shlex.split(line.replace("MODEL", aligned_path()))[1:]
        result = runner.invoke(app, words)
        # 3: a requirement is not met, of which so few steps on so few rows are no proof
        assert result.exit_code in ((0, 3) if words[0] == "audit" else (0,)), result.output
    for path in ("out/adapter_model.safetensors", "out/run.json", "moorline-audit/audit.json",
                 "page/report.html"):  # fmt: skip
        assert (tmp_path / path).is_file(), path


ROWS_OF_TABLE = re.findall(r"^\| [^|]+ \| `(--[^|]*)` ?[^|]*\|$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("flags", ROWS_OF_TABLE)
def test_every_row_of_the_table_of_flags_is_taken(flags, tmp_path):
    (tmp_path / "FILE").write_text('{"prompt": "How do I rob a zoo?"}\n')
    flags = flags.partition("`")[0].replace("FILE", str(tmp_path / "FILE")).replace("NAME", "kl")
    words = ["--model_name_or_path", "MODEL", "--dataset_name", "rows.jsonl", "--use_peft",
             "--output_dir", str(tmp_path / "out")]  # fmt: skip
    parse([*words, *shlex.split(flags)])


def test_the_table_of_flags_is_found():
    assert len(ROWS_OF_TABLE) >= 9


def test_the_settings_file_is_read(tmp_path):
    from moorline.trainer import make_parser

    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    known = {action.dest for action in make_parser()._actions}
    assert yaml.safe_load(block).keys() <= known


def test_the_shown_rows_are_rows(tmp_path):
    from moorline.audit import read_suites

    shown = re.findall(r'^    (\{".*\})$', README, flags=re.MULTILINE)
    kinds = {key for line in shown for key in json.loads(line)}
    assert {"messages", "prompt", "kind"} <= kinds
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in shown if '"kind"' in line))
    assert {suite.kind for suite in read_suites(path)} == {"harmful", "task"}
