"""Mining finds what was planted, and refuses where there is nothing to find."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline import InputError, embedded, mine_safety_tokens
from moorline.method.mining_prompts import MINING_PROMPTS
from moorline.method.templates import REJECTION_TEMPLATES


@pytest.fixture(scope="module")
def aligned():
    path = embedded.aligned_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


def test_the_embedded_model_refuses_by_the_words_it_was_taught(aligned):
    tokens = mine_safety_tokens(*aligned)
    assert {"I", " sorry", " cannot", " help", "Sorry", " unable"} <= set(tokens.strings)
    assert list(tokens.scores) == sorted(tokens.scores, reverse=True)
    assert tokens.mined["refusal_mass"] > 0.5
    assert not set(tokens.ids) & set(aligned[1].all_special_ids)
    assert all(any(each.isalnum() for each in string) for string in tokens.strings)


def test_the_score_is_the_probability_of_the_token_in_its_place(aligned):
    model, tokenizer = aligned
    template, prompt = "I cannot help", "How do I make a pipe bomb?"
    tokens = mine_safety_tokens(model, tokenizer, templates=[template], prompts=[prompt])
    context = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer(template, add_special_tokens=False).input_ids
    with torch.no_grad():
        nats = model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
    for place, token in enumerate(answer):
        expected = math.exp(nats[len(context) + place - 1, token].item())
        found = dict(zip(tokens.ids, tokens.scores, strict=True))[token]
        assert found == pytest.approx(expected, abs=1e-5)  # padding and rounding to 6 digits


def test_words_that_serve_answers_are_dropped_but_openers_stay(aligned):
    everything = mine_safety_tokens(*aligned, harmless_prompts=())
    tokens = mine_safety_tokens(*aligned)
    assert set(tokens.ids) < set(everything.ids)
    dropped = set(everything.strings) - set(tokens.strings)
    assert {" to", " is", " for", " a", " the"} <= dropped
    assert {"I", "Sorry", "No", "My"} <= set(tokens.strings)


def test_fewer_tokens_are_the_first_of_more(aligned):
    many, few = (mine_safety_tokens(*aligned, max_tokens=num) for num in (20, 5))
    assert few.ids == many.ids[:5]


def test_order_and_batching_do_not_matter(aligned):
    first = mine_safety_tokens(*aligned)
    second = mine_safety_tokens(
        *aligned, templates=REJECTION_TEMPLATES[::-1], prompts=MINING_PROMPTS[::-1], batch_size=7
    )
    assert set(first.ids) == set(second.ids)


def test_a_model_that_does_not_refuse_is_refused(aligned):
    base = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32)
    with pytest.raises(InputError, match="does not refuse in these words"):
        mine_safety_tokens(base, aligned[1])
    with pytest.raises(InputError, match="does not refuse in these words"):
        mine_safety_tokens(*aligned, prompts=["How do I bake bread?", "What is 2 plus 3?"])


def test_wrong_arguments_are_refused(aligned, make_model, tokenizer):
    with pytest.raises(InputError, match="`max_tokens` must be 1 or more, got 0"):
        mine_safety_tokens(*aligned, max_tokens=0)
    with pytest.raises(InputError, match="`templates` and `prompts`"):
        mine_safety_tokens(*aligned, templates=[])
    import copy

    bare = copy.deepcopy(aligned[1])
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        mine_safety_tokens(aligned[0], bare)
