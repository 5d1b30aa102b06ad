"""Contrast of harmful and harmless: planted numbers are found, and mining follows them."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline import InputError, embedded, mine_safety_tokens
from moorline.chat.chat_model import ChatModel
from moorline.method.reading import Answered
from moorline.method.salience import Cell, Reading, cells, explain, most, places
from moorline.method.templates import (
    MINING_HARMLESS_PROMPTS,
    MINING_PROMPTS,
    REJECTION_TEMPLATES,
)


@pytest.fixture(scope="module")
def aligned():
    path = embedded.aligned_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


def _reading(*probabilities):
    """Prompts after which the answers [5, 7] and [5, 8] have these probabilities by token."""
    asked = [Answered([1, 2], [[5, 7], [5, 8]]) for _ in probabilities]
    nats = [[[math.log(p) for p in answer] for answer in each] for each in probabilities]
    return Reading(asked, nats)


def test_planted_pairs_are_found_to_the_nat():
    harmful = cells(_reading([[0.8, 0.5], [0.8, 0.1]], [[0.2, 0.5], [0.2, 0.9]]))
    harmless = cells(_reading([[0.01, 0.5], [0.01, 0.1]]))
    assert harmful[0, 0, 5] == pytest.approx(Cell(0.5, 0.5, math.log(0.4)))
    assert harmful[0, 1, 7] == pytest.approx(Cell(0.5, 0.25, math.log(0.5)))
    found = places(harmful, harmless)
    assert found[5][0].contrast == pytest.approx(math.log(0.4) - math.log(0.01))
    assert found[7][0].contrast == pytest.approx(0.0)  # follows from what stands before it
    assert found[8][0].contrast == pytest.approx(math.log(0.3) - math.log(0.1))
    assert [each.depth for each in found[5] + found[7]] == [0, 1]


def test_of_one_depth_the_likeliest_template_counts_and_a_rare_place_does_not():
    rare = cells(Reading([Answered([1], [[5], [5]])], [[[math.log(0.9)], [math.log(1e-9)]]]))
    other = cells(Reading([Answered([1], [[5], [5]])], [[[math.log(0.3)], [math.log(1e-12)]]]))
    (place,) = places(rare, other)[5]
    assert place.contrast == pytest.approx(math.log(3))
    assert most([place], 0.95) is None
    assert most([place], 0.5) is place


@pytest.mark.lengthy
def test_what_decides_in_the_embedded_model_is_how_a_refusal_begins(aligned):
    model, tokenizer = aligned
    chat = ChatModel(model, tokenizer)
    found = explain(chat, REJECTION_TEMPLATES, MINING_PROMPTS, MINING_HARMLESS_PROMPTS)
    (first,) = tokenizer("I", add_special_tokens=False).input_ids
    assert most(found[first], 1e-3).depth == 0
    assert most(found[first], 1e-3).contrast > 5
    # Control: after "I'm" both kinds of prompts go on with " sorry".
    (sorry,) = tokenizer(" sorry", add_special_tokens=False).input_ids
    third = next(each for each in found[sorry] if each.depth == 2)
    assert abs(third.contrast) < 1


@pytest.mark.lengthy
def test_a_least_contrast_keeps_what_decides(aligned):
    every, some = mine_safety_tokens(*aligned), mine_safety_tokens(*aligned, min_contrast=5.0)
    assert {"I", "Sorry"} <= set(some.strings)
    assert set(some.ids) < set(every.ids)
    assert " assist" in every.strings
    assert " assist" not in some.strings
    assert mine_safety_tokens(*aligned, min_contrast=0.0).ids  # the least that can be asked


@pytest.mark.lengthy
def test_own_refusals_are_templates_too_and_variants_follow(aligned):
    model, tokenizer = aligned
    short = ("I'm sorry, but I can't help with that.", "I cannot do that.")
    given = mine_safety_tokens(model, tokenizer, templates=short)
    own = mine_safety_tokens(model, tokenizer, templates=short, own_refusals=True)
    assert own.templates[:2] == short
    assert len(own.templates) > 2
    assert set(given.ids) <= set(own.ids)
    more = mine_safety_tokens(model, tokenizer, templates=short, variants=True)
    assert more.ids[: len(given)] == given.ids
    words = {each.strip().lower() for each in given.strings}
    added = more.strings[len(given) :]
    assert added
    assert {each.strip().lower() for each in added} <= words


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"min_contrast": -1.0}, "`min_contrast` must be 0 or more"),
        ({"min_contrast": 1.0, "harmless_prompts": ()}, "needs `harmless_prompts`"),
        ({"min_contrast": 1e6}, "No token has a contrast"),
    ],
)
def test_what_cannot_be_asked_is_refused(aligned, given, part):
    with pytest.raises(InputError, match=part):
        mine_safety_tokens(*aligned, **given)


@pytest.mark.lengthy
def test_progress_ends_with_what_is_read_and_not_before(aligned):
    told = []
    mine_safety_tokens(*aligned, min_contrast=1.0, progress=lambda *each: told.append(each))
    assert told[-1] == (12 + 2 * 16, 12 + 2 * 16)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
