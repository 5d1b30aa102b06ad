"""A chat model leaves the model as it found it, and reads answers up to their end only."""

import pytest
import torch
from helpers import conversations, lora
from peft import get_peft_model
from transformers import GenerationConfig

from moorline.chat.chat_model import ChatModel, in_batches
from moorline.errors import InputError

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]


@pytest.fixture
def chat(make_model, tokenizer):
    return ChatModel(make_model().eval(), tokenizer)


def rows_of(chat):
    return [chat.render(prompt) for prompt in PROMPTS]


def by_hand(chat, row, num):
    """Greedy tokens from whole forward passes, one at a time, without any generation settings."""
    ids = list(row)
    with torch.no_grad():
        for _ in range(num):
            ids.append(int(chat.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(row) :]


def ends_after(chat, row, num):
    """A head that makes the model end its answer to a row after so many tokens, if it can."""
    written = by_hand(chat, row, 12)
    end = written[num]
    assert end not in written[:num]
    return end


def test_modes_are_restored_module_by_module(chat):
    chat.model.train()
    chat.model.model.layers[0].eval()
    before = {name: module.training for name, module in chat.model.named_modules()}
    assert len(set(before.values())) == 2
    with chat.evaluating() as model:
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert {name: module.training for name, module in chat.model.named_modules()} == before
    with pytest.raises(RuntimeError), chat.evaluating():
        raise RuntimeError
    assert {name: module.training for name, module in chat.model.named_modules()} == before


def test_greedy_answers_are_those_of_whole_forward_passes_whatever_the_padding(chat):
    rows = rows_of(chat)
    for row, each in zip(rows, chat.generate(rows, max_new_tokens=6), strict=True):
        assert list(each.ids) == by_hand(chat, row, 6)
        assert each.truncated


def test_an_answer_ends_at_the_tokenizers_end_where_the_model_names_none(chat, tokenizer):
    """A folder without an end in its configurations was answered past the end."""
    row = chat.render(PROMPTS[0])
    end = next(n for n in range(1, 12) if by_hand(chat, row, 12)[n] not in by_hand(chat, row, n))
    end_id = ends_after(chat, row, end)
    chat.model.config.eos_token_id = None
    chat.model.generation_config.eos_token_id = None
    (unended,) = chat.generate([row], max_new_tokens=12)
    assert len(unended.ids) > end  # the control: that token does not end it yet
    assert unended.truncated
    before = tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_id)
    try:
        (found,) = chat.generate([row], max_new_tokens=12)
    finally:
        tokenizer.eos_token = before
    assert list(found.ids) == by_hand(chat, row, end)
    assert not found.truncated
    assert found.text == tokenizer.decode(found.ids, skip_special_tokens=True)


def test_every_end_that_the_model_names_ends_an_answer(chat, tokenizer):
    row = chat.render(PROMPTS[0])
    end_id = ends_after(chat, row, 1)
    chat.model.generation_config.eos_token_id = [end_id, 3]
    assert chat.ends == {end_id, 3, tokenizer.eos_token_id}
    (found,) = chat.generate([row], max_new_tokens=12)
    assert (len(found.ids), found.truncated) == (1, False)


BENDING = {
    "num_beams": 3, "no_repeat_ngram_size": 1, "repetition_penalty": 5.0, "min_new_tokens": 7,
    "max_length": 1, "do_sample": True, "temperature": 9.0, "top_k": 3, "min_p": 0.9,
    "exponential_decay_length_penalty": (1, 9.0), "forced_eos_token_id": 7,
}  # fmt: skip


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
def test_a_models_own_generation_settings_bend_nothing_and_stay(make_model, tokenizer, adapted):
    """Suppressed tokens, beams and bans of repeats once changed an audit's answers."""
    model = make_model().eval()
    model = get_peft_model(model, lora(init_lora_weights=False)).eval() if adapted else model
    chat = ChatModel(model, tokenizer)
    rows = rows_of(chat)
    answers, nats = chat.generate(rows, max_new_tokens=6), chat.next_token_nats(rows)
    said = {token for each in answers for token in each.ids}
    base = model.get_base_model() if adapted else model
    bent = GenerationConfig(
        **BENDING, suppress_tokens=sorted(said), bad_words_ids=[[each] for each in said],
        eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    base.generation_config = bent
    had = "generation_config" in vars(model)
    assert chat.generate(rows, max_new_tokens=6) == answers
    assert torch.equal(chat.next_token_nats(rows), nats)
    assert base.generation_config is bent
    assert ("generation_config" in vars(model)) == had
    # the control: left to itself, the model answers otherwise
    bent.max_length, bent.max_new_tokens = None, 6
    bent.num_beams, bent.do_sample, bent.min_new_tokens = 1, False, None
    ids = torch.tensor([rows[0]])
    own = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert own[0, len(rows[0]) :].tolist() != list(answers[0].ids)


def test_draws_repeat_with_their_seed_and_leave_the_callers_random_numbers(chat):
    rows = rows_of(chat)
    state = torch.get_rng_state()
    first, again, other = (
        chat.generate(rows, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_longer_than_the_context_is_marked(make_model, tokenizer):
    """A prompt of several times the model's context was answered and counted without a word."""
    chat = ChatModel(make_model(max_position_embeddings=16).eval(), tokenizer)
    assert chat.context_length == 16
    short, long = chat.render("w1"), chat.render(" ".join(["w2"] * 20))
    found = chat.generate([short, long], max_new_tokens=2)
    assert [each.beyond_context for each in found] == [False, True]
    # the answer counts too
    (grown,) = chat.generate([short], max_new_tokens=20)
    assert grown.beyond_context == (len(short) + len(grown.ids) > 16)
    assert grown.beyond_context
    assert ChatModel(None, tokenizer).context_length is None


def test_answers_come_in_the_order_of_the_prompts(chat):
    done = []
    found = chat.answers(PROMPTS, max_new_tokens=4, batch_size=2, progress=done.append)
    assert found == [chat.answers([prompt], max_new_tokens=4)[0] for prompt in PROMPTS]
    assert done == [2, 1]
    assert in_batches([[1], [1, 2, 3], [1, 2]], 2) == [[0, 2], [1]]
    assert chat.answers([]) == []


@pytest.mark.parametrize("sizes", [{"max_new_tokens": 0}, {"batch_size": -1}])
def test_sizes_below_one_are_refused(chat, sizes):
    ((name, size),) = sizes.items()
    with pytest.raises(InputError, match=f"`{name}` must be 1 or more, got {size}"):
        chat.answers(PROMPTS, **sizes)


def test_a_tokenizer_without_a_chat_template_is_refused(chat, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(InputError, match="no chat template"):
        chat.render("w1")


def test_answer_ids_follow_the_prompt_as_a_conversation_has_them(chat, tokenizer):
    messages = conversations(1)[0]["messages"]
    context, (answer,) = chat.answer_ids(messages[0]["content"], [messages[1]["content"]])
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert context == chat.render(messages[0]["content"])
    assert whole[: len(context) + len(answer)] == context + answer


def test_a_tokenizer_without_padding_or_end_pads_with_anything(chat, tokenizer):
    expected = chat.generate(rows_of(chat), max_new_tokens=3)
    pad, end = tokenizer.pad_token, tokenizer.eos_token
    tokenizer.pad_token = tokenizer.eos_token = None
    try:
        assert chat.padding == 0
        assert chat.generate(rows_of(chat), max_new_tokens=3) == expected
    finally:
        tokenizer.pad_token, tokenizer.eos_token = pad, end
