"""Every command block of the pages runs here, or says why it does not.

What runs is the line as it stands, in the order of a first project on the embedded model: MODEL is
its folder, and to be quick a tuning takes two steps and an audit asks four prompts of each kind.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from helpers import files_that_fit, labelled, runner
from transformers import TrainingArguments, default_data_collator

from moorline import embedded, mine_safety_tokens
from moorline.chat.loading import load_chat_model
from moorline.commands.cli import app

DOCS = Path(__file__).parents[1] / "docs"

IN_ORDER = (
    "moorline mine MODEL",
    "moorline init MODEL rows.jsonl",
    "moorline tune --config run.yaml",
    "moorline tune --config run.yaml --str_reference cached",
    "moorline tune --config run.yaml --str_reference write_through",
    "moorline cache --config run.yaml --str_cache_dir z0",
    'moorline audit out --against MODEL --require "attack_success_rate<=0.05"',
    "moorline export junit moorline-audit",
    'moorline audit out --against MODEL --require "attack_success_rate<=0.05"'
    ' --require "over_refusal_rate<=0.1"',
    'moorline audit out --judge "command:python my_judge.py"',
    "moorline merge out",
    "moorline audit out-merged --against MODEL",
    "moorline report aligned plain str --output page",
    "moorline tune --method kl --method_strength 0.3 --model_name_or_path MODEL "
    "--dataset_name rows.jsonl --use_peft --output_dir out",
)

ELSEWHERE = {
    "moorline try MODEL": "test_a_try_gives_a_page_a_recommendation_and_the_line",
    "moorline audit --endpoint": "test_a_served_model_killed_in_the_middle_gives_the_files_of_the_"
    "local_one",
    "torchrun --nproc_per_node 8 -m moorline audit": "test_two_processes_write_the_files_of_one_"
    "and_resume_each_others",
    "accelerate launch --config_file": "test_a_shipped_configuration_is_read_by_accelerate",
    "torchrun --n": "test_several_processes_equal_one_through_the_command_line",
    "inspect eval": "test_inspect_finds_the_entry_point",
    "axolotl train": "test_axolotl_trains_as_the_plain_trainer_with_the_mixin_does",
    "MOORLINE_SETTINGS=": "test_ms_swift_trains_as_the_plain_trainer_with_the_mixin_does",
    "python examples/unsloth_check.py": "test_every_check_runs_and_holds_with_the_stock_libraries",
}
"""What needs a server, several processes or another package, and the test that has it instead."""

NOT_RUN = ("pip install .",)
"""What fetches from the network."""

JUDGE = """\
import json, sys
for line in sys.stdin:
    print(json.dumps({"outcome": "complied", "reason": "mine"}))
"""


def blocks():
    """Each command of a block that is no notebook's cell, with its page."""
    for page in sorted(DOCS.rglob("*.md")):
        if {"generated", "_build", "tutorials"} & {*page.parts}:
            continue
        text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
        known = r"moorline|pip|python|accelerate|torchrun|axolotl|inspect|swift|make|[A-Z_]+="
        for line in re.findall(rf"^    ((?:{known})[^\n]*)$", text, flags=re.MULTILINE):
            yield page.relative_to(DOCS).as_posix(), line


def test_every_block_runs_or_says_why_not():
    known = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py")
    )
    for name in ELSEWHERE.values():
        assert f"def {name}(" in known, name
    found = list(blocks())
    assert len(found) > 25
    for page, line in found:
        assert (
            line in IN_ORDER
            or line.startswith(NOT_RUN)
            or any(line.startswith(each) for each in ELSEWHERE)
        ), f"{page}: {line}"
    shown = {line for _, line in found}
    assert [each for each in IN_ORDER if each not in shown] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.md", "how-to/trainer.md", "how-to/own-loop.md"])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat = load_chat_model(embedded.aligned_path())
    mine_safety_tokens(chat.model, chat.tokenizer).save("safety_tokens.json")
    ids = torch.arange(5, 21).reshape(2, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    data = Dataset.from_list(embedded.training_rows("plans", num=8))
    names = {
        "model": chat.model, "tokenizer": chat.tokenizer, "batches": [batch, batch],
        "data": labelled(data, chat.tokenizer) if page == "how-to/trainer.md" else data,
        "args": TrainingArguments(
            output_dir="out", use_cpu=True, report_to="none", per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
        ),
        "collator": default_data_collator,
        "optimizer": torch.optim.AdamW(chat.model.parameters(), lr=1e-3),
    }  # fmt: skip
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], page, "exec"), names)


@pytest.mark.slow
def test_the_blocks_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = embedded.training_rows("plans", num=16)
    Path("rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    Path("my_judge.py").write_text(JUDGE)
    for line in IN_ORDER:
        words = shlex.split(line.replace("MODEL", embedded.aligned_path()))[1:]
        if words[0] == "tune":
            shutil.rmtree("out", ignore_errors=True)
        if "--method" in words:
            words += ["--max_steps", "2", "--str_tokens", "safety_tokens.json"]
        if words[0] == "audit":
            words += ["--limit", "4", "--max-new-tokens", "24"]
            shutil.rmtree("moorline-audit", ignore_errors=True)
        if words[0] == "report":
            for each in words[1:4]:
                shutil.copytree("moorline-audit", each)
        result = runner.invoke(app, words)
        # 3: a requirement is not met, which four prompts cannot show
        allowed = (0, 3) if "--require" in words else (0,)
        assert result.exit_code in allowed, (line, result.output, result.stderr, result.exception)
        if words[0] == "init":
            settings = yaml.safe_load(Path("run.yaml").read_text())
            quick = {"max_steps": 2, "check_prompts": 0, "str_tokens": "safety_tokens.json"}
            Path("run.yaml").write_text(yaml.safe_dump({**settings, **quick}))
    for path in ("out/run.json", "out-merged/config.json", "page/report.html", "z0"):
        assert Path(path).exists(), path
    assert files_that_fit(tmp_path) >= {
        "answers.jsonl", "anchors.jsonl", "audit.json", "cache.json", "report.json", "run.json",
        "safety_tokens.json",
    }  # fmt: skip
