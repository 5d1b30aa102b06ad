"""What a cache would hold: by columns as row by row, each row once, in whatever order."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import conversations, labelled, str_trainer
from transformers import DataCollatorForSeq2Seq

from moorline.method import cache_plan
from moorline.method.cache import key_of, order_of
from moorline.method.host import _as_loaded
from moorline.method.positions import PositionRule

LAYOUTS = {
    "padding": {},
    "packing": {"packing": True, "max_length": 48},
    "padding-free": {"padding_free": True, "max_length": None},
}


@pytest.fixture(params=LAYOUTS)
def prepared(request, make_model, tokenizer, tokens, tmp_path):
    """Rows and collator as TRL's trainer has them."""
    data = conversations(num=40, turns=3)
    trainer = str_trainer(
        make_model(), data, tokenizer, tokens, tmp_path, str_reference="frozen_copy",
        **LAYOUTS[request.param],
    )  # fmt: skip
    return _as_loaded(trainer, trainer.train_dataset)


@pytest.mark.parametrize("rule", ["all", "first:2"])
def test_columns_say_what_the_collator_says_of_every_row(rule, prepared):
    rows, collate = prepared
    rule = PositionRule.parse(rule)
    assert cache_plan._can_read_columns(rows, collate, rule)
    for data in (rows, rows.shuffle(seed=3), rows.select(range(5, len(rows)))):
        fast = list(cache_plan._read_columns(data, collate, rule))
        slow = list(cache_plan._read_rows(data, collate, rule))
        for one, other in zip(zip(*fast, strict=True), zip(*slow, strict=True), strict=True):
            assert np.array_equal(np.concatenate(one), np.concatenate(other))
        assert np.concatenate([count for _, _, count in fast]).sum() > 0


def test_where_the_collator_finds_the_responses_it_is_asked_about_every_row(rows, tokenizer):
    """Columns that say something else than the collator are not believed."""
    data = labelled(rows, tokenizer)
    plain = DataCollatorForSeq2Seq(tokenizer)

    def cutting(examples):
        batch = plain(examples)
        batch["labels"][:, -2:] = -100
        return batch

    rule = PositionRule()
    assert cache_plan._can_read_columns(data, plain, rule), "the control"
    assert not cache_plan._can_read_columns(data, cutting, rule)
    assert not cache_plan._can_read_columns(data.remove_columns("labels"), plain, rule)
    assert not cache_plan._can_read_columns(list(data), plain, rule)
    fewer = cache_plan.plan(data, cutting, rule)
    assert fewer.num_positions.sum() < cache_plan.plan(data, plain, rule).num_positions.sum()


def test_each_row_stands_once_by_length_in_whatever_order(rows, tokenizer):
    data = labelled(rows, tokenizer)
    twice = Dataset.from_list([*data, *data])
    plain, rule = DataCollatorForSeq2Seq(tokenizer), PositionRule()
    once, both = cache_plan.plan(data, plain, rule), cache_plan.plan(twice, plain, rule)
    mixed = cache_plan.plan(twice.shuffle(seed=1), plain, rule)
    listed = cache_plan.plan(list(data), plain, rule)
    lengths = [len(data[int(each)]["input_ids"]) for each in once.rows]
    assert lengths == sorted(lengths)
    for other in (both, mixed, listed):
        assert np.array_equal(other.keys, once.keys)
        assert np.array_equal(other.num_positions, once.num_positions)
        assert other.fingerprint() == once.fingerprint()
    assert np.array_equal(both.rows, once.rows), "the first of equals"
    assert [key_of(data[int(each)]) for each in once.rows] == [each.tobytes() for each in once.keys]
    assert cache_plan.plan(data.select(range(7)), plain, rule).fingerprint() != once.fingerprint()


def test_keys_are_ordered_as_bytes():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (500, 16), generator=generator, dtype=torch.uint8).numpy()
    raw[100:200, :8] = raw[:100, :8]  # equal in their first half
    keys = raw.reshape(-1).view("V16")
    assert [keys[each].tobytes() for each in order_of(keys)] == sorted(
        each.tobytes() for each in keys
    )
