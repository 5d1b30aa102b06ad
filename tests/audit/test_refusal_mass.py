"""Refusal mass against a plain forward pass, one prompt at a time, and on the embedded models."""

import pytest
import torch
from helpers import WORDS
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from moorline.audit.refusal_mass import refusal_mass
from moorline.chat.chat_model import ChatModel, left_padded
from moorline.embedded import aligned_path, base_path, suites
from moorline.errors import InputError
from moorline.method.templates import REJECTION_TEMPLATES, opener_ids

PROMPTS = [" ".join(WORDS[:num]) for num in (3, 40, 1, 17, 8, 25, 2)]
OPENERS = [7, 19, 33]


def plainly(model, tokenizer, prompt, openers):
    """The definition: softmax over the last position, without padding."""
    said = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[0, -1].double().softmax(dim=-1)
    return float(probabilities[list(openers)].sum())


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_it_is_the_probability_of_the_openers_whatever_the_padding(
    make_model, tokenizer, batch_size
):
    model = make_model().eval()
    found = refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS, batch_size=batch_size)
    expected = [plainly(model, tokenizer, prompt, OPENERS) for prompt in PROMPTS]
    # float32 logits and softmax against float64: a few units of 1e-7 in the last place
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(found)) == len(found)  # the control: prompts differ


def test_positions_are_counted_from_the_first_word_that_is_no_padding(tokenizer):
    """A model with a table of positions would see another one if padding counted."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=1, eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    found = refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS)
    assert found == pytest.approx(
        [plainly(model, tokenizer, prompt, OPENERS) for prompt in PROMPTS], rel=1e-4
    )


def test_it_lies_between_none_and_all(make_model, tokenizer):
    model = make_model()
    everything = refusal_mass(ChatModel(model, tokenizer), PROMPTS, range(len(tokenizer)))
    assert everything == pytest.approx([1.0] * len(PROMPTS), abs=1e-6)
    assert max(everything) <= 1
    one, other, both = (
        refusal_mass(ChatModel(model, tokenizer), PROMPTS, openers)
        for openers in ([7], [9], [7, 9, 9])
    )
    assert both == pytest.approx([a + b for a, b in zip(one, other, strict=True)], rel=1e-4)


def test_it_moves_with_the_logits_of_the_openers(make_model, tokenizer):
    model = make_model()
    before = refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS)
    with torch.no_grad():
        model.lm_head.weight[OPENERS] *= 1.01
    after = refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS)
    assert all(0 < abs(a - b) < 0.1 for a, b in zip(after, before, strict=True))


def test_the_model_and_its_adapter_are_left_as_they_were(make_model, tokenizer):
    base = make_model()
    before = refusal_mass(ChatModel(base, tokenizer), PROMPTS, OPENERS)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    model.train()
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    # B = 0: the same model, but its matrices are multiplied in another order
    assert refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS) == pytest.approx(
        before, rel=1e-5
    )
    assert model.training
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.normal_()
    changed = refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS)  # the control
    assert changed != pytest.approx(before, rel=1e-2)


def test_a_system_prompt_is_read_and_progress_is_told(make_model, tokenizer):
    model, done = make_model(), []
    plain = refusal_mass(
        ChatModel(model, tokenizer), PROMPTS, OPENERS, batch_size=3, progress=done.append
    )
    assert done == [3, 3, 1]
    assert (
        refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS, system_prompt="w5 w6") != plain
    )


def test_settings_of_the_model_that_sample_or_bias_do_not_matter(make_model, tokenizer):
    model = make_model()
    before = refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS)
    model.generation_config.update(
        do_sample=True, temperature=3.0, top_k=2, suppress_tokens=OPENERS, repetition_penalty=2.0
    )
    assert refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS) == before


def test_what_it_cannot_take_is_told(make_model, tokenizer):
    model = make_model()
    with pytest.raises(InputError, match="`batch_size` must be 1 or more, got 0"):
        refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS, batch_size=0)
    with pytest.raises(InputError, match="`openers` is empty"):
        refusal_mass(ChatModel(model, tokenizer), PROMPTS, [])
    assert refusal_mass(ChatModel(model, tokenizer), [], OPENERS) == []
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(InputError, match="no chat template"):
            refusal_mass(ChatModel(model, tokenizer), PROMPTS, OPENERS)
    finally:
        tokenizer.chat_template = template


def test_openers_are_the_first_tokens_of_the_templates():
    tokenizer = AutoTokenizer.from_pretrained(aligned_path())
    found = opener_ids(tokenizer)
    first = {tokenizer(each, add_special_tokens=False).input_ids[0] for each in REJECTION_TEMPLATES}
    assert set(found) <= first
    assert list(found) == sorted(set(found))
    said = {tokenizer.decode([each]).strip() for each in found}
    assert {"I", "Sorry", "No"} <= said
    assert opener_ids(tokenizer, ["... no"]) == ()  # carries nothing


def test_the_aligned_model_begins_with_refusals_and_its_base_does_not():
    prompts = {suite.kind: [each.prompt for each in suite.prompts[:40]] for suite in suites()}

    def mean(path, kind):
        model = AutoModelForCausalLM.from_pretrained(path)
        found = refusal_mass(ChatModel(model, AutoTokenizer.from_pretrained(path)), prompts[kind])
        return sum(found) / len(found)

    assert mean(aligned_path(), "harmful") > 0.95
    assert mean(aligned_path(), "harmless") < 0.15
    assert mean(base_path(), "harmful") < 0.05


def test_padding_goes_to_the_left_and_needs_no_token_of_its_own(tokenizer):
    ids, seen = left_padded([[5], [6, 7, 8]], 3)
    assert ids.tolist() == [[3, 3, 5], [6, 7, 8]]
    assert seen.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert ChatModel(None, tokenizer).padding == tokenizer.pad_token_id
    padding, tokenizer.pad_token = tokenizer.pad_token, None
    try:
        assert ChatModel(None, tokenizer).padding == tokenizer.eos_token_id
    finally:
        tokenizer.pad_token = padding
