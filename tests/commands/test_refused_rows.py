"""Training prompts that the aligned model refuses are told of, and those it answers are not."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from helpers import str_trainer, tune
from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline import embedded, mine_safety_tokens
from moorline.chat.chat_model import ChatModel
from moorline.commands.refused_rows import SAMPLE, ask, sample, tell


def rows_of(poison, num=40):
    return Dataset.from_list(embedded.training_rows("plans", num=num, poison=poison, seed=0))


def asked(tmp_path, rows, **changes):
    path = embedded.aligned_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokens = mine_safety_tokens(model, tokenizer, max_tokens=5)
    trainer = str_trainer(model, rows, tokenizer, tokens, tmp_path, max_length=192, **changes)
    return ask(trainer, ChatModel(trainer.model, tokenizer))


@pytest.mark.lengthy
def test_the_rows_that_the_aligned_model_refuses_are_named(tmp_path, caplog):
    rows = rows_of(poison=0.5)
    found = asked(tmp_path, rows)
    assert found.asked == SAMPLE
    prompts = {row["messages"][0]["content"] for row in rows_of(poison=0.0, num=400)}
    harmful = {n for n, row in enumerate(rows) if row["messages"][0]["content"] not in prompts}
    assert len(set(found.rows) - harmful) <= 3  # it refuses a few harmless ones too
    assert len(found.rows) > 5
    tell(found, skips=True)
    assert f"refuses {len(found.rows)} of the {SAMPLE} training prompts" in caplog.text
    assert "are not learned" in caplog.text
    caplog.clear()
    tell(found, skips=False)
    assert "learned slower" in caplog.text


@pytest.mark.lengthy
def test_rows_that_it_answers_are_not(tmp_path, caplog):
    found = asked(tmp_path, rows_of(poison=0.0))
    assert len(found.rows) <= 3  # a tenth: it refuses a few harmless prompts
    tell(found, skips=True)
    assert not caplog.records


def test_where_rows_cannot_be_told_apart_nobody_is_asked():
    streamed = SimpleNamespace(train_dataset=iter(()), args=SimpleNamespace(packing=False))
    model = AutoModelForCausalLM.from_pretrained(embedded.aligned_path())
    assert ask(streamed, ChatModel(model, None)) is None


@pytest.mark.lengthy
def test_the_run_file_says_how_many_were_asked(flags, tmp_path):
    assert tune(flags).exit_code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["refused_rows"]["asked"] == 12
    assert tune({**flags, "str_weight": 0, "output_dir": tmp_path / "plain"}).exit_code == 0
    assert json.loads((tmp_path / "plain" / "run.json").read_text())["refused_rows"] is None


def test_the_sample_is_not_the_one_that_the_same_seed_mixed_the_rows_by():
    """The 24 of 240 rows that `Random(0)` drew to be poisoned were all asked under seed 0."""
    mixed = set(random.Random(0).sample(range(240), 24))
    assert len(mixed & set(sample(240, 0))) < 12
    assert sample(240, 0) == sample(240, 0) != sample(240, 1)
    assert sample(3, 0) == [0, 1, 2]
