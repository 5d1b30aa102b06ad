"""Which tokens are responses: from labels, and from chat templates with and without markers."""

import re
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moorline.chat.conversation import (
    IGNORED_LABEL,
    has_generation_markers,
    mark_responses,
    positions_of_batch,
    response_positions,
)
from moorline.errors import InputError

NO = IGNORED_LABEL

# Labels


@pytest.mark.parametrize(
    ("labels", "positions"),
    [
        ([[NO, NO, 7, 8]], [[False, True, True, False]]),
        ([[NO, NO, NO]], [[False, False, False]]),
        ([[5, 6, 7]], [[True, True, False]]),  # the first token has no position before it
        ([[5, NO, NO]], [[False, False, False]]),
        ([[NO, NO, 7]], [[False, True, False]]),
        ([[NO, 4, NO, NO, 4, 4]], [[True, False, False, True, True, False]]),
        ([[0, 0]], [[True, False]]),  # id 0 is a token like any other
        ([[7]], [[False]]),
        ([[NO, 1, NO], [NO, NO, 2]], [[True, False, False], [False, True, False]]),
    ],
)
def test_a_position_counts_if_the_next_token_has_a_label(labels, positions):
    found = response_positions(torch.tensor(labels))
    assert found.dtype == torch.bool
    assert found.tolist() == positions


def test_no_tokens_have_no_positions():
    assert response_positions(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0)


def test_the_labels_themselves_stay_as_they_are():
    labels = torch.tensor([[NO, 3, 4]])
    response_positions(labels)
    assert labels.tolist() == [[NO, 3, 4]]


def test_other_negative_labels_are_not_the_ignored_one():
    assert response_positions(torch.tensor([[NO, -1, NO]])).tolist() == [[True, False, False]]


_LABELS = st.integers(1, 6).flatmap(
    lambda time: st.lists(
        st.lists(st.sampled_from([NO, 0, 3]), min_size=time, max_size=time), min_size=1, max_size=3
    )
)


@settings(deadline=None, derandomize=True)
@given(labels=_LABELS)
def test_labels_and_labels_shifted_already_give_the_same_positions(labels):
    labels = torch.tensor(labels)
    end = torch.full_like(labels[:, :1], NO)
    shifted = torch.cat([labels[:, 1:], end], dim=1)
    expected = response_positions(labels)
    assert torch.equal(positions_of_batch({"labels": labels}), expected)
    assert torch.equal(positions_of_batch({"shift_labels": shifted}), expected)
    assert int(expected.sum()) == int((labels[:, 1:] != NO).sum())


def test_shifted_labels_are_not_shifted_again_and_win_over_labels():
    batch = {
        "labels": torch.tensor([[NO, NO, NO, NO]]),
        "shift_labels": torch.tensor([[NO, 7, NO, 8]]),
    }
    assert positions_of_batch(batch).tolist() == [[False, True, False, True]]
    batch = {"labels": torch.tensor([[NO, 7]]), "shift_labels": None}
    assert positions_of_batch(batch).tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("batch", "there"),
    [
        ({"input_ids": 1, "attention_mask": 1}, "attention_mask, input_ids"),
        ({}, "nothing"),
        ({"labels": None, "input_ids": 1}, "input_ids, labels"),
    ],
)
def test_a_batch_without_labels_is_refused_with_what_it_has(batch, there):
    words = (
        rf"The batch has no 'labels' \(it has: {there}\), so the response positions are unknown\. "
        r"Use a data collator that adds labels\."
    )
    with pytest.raises(InputError, match=words):
        positions_of_batch(batch)


# Templates

SPECIAL = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]

MARKED = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = re.sub(r"{% (end)?generation %}", "", MARKED)

# Like templates of reasoning models: thoughts of earlier turns go once a later message comes.
FORGETFUL = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and not loop.last %}"
    "{{ message['content'].split('!')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Its generation prompt opens a thought that a rendered answer does not have.
THOUGHTFUL = PLAIN.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>'")


def _tokenizer(template):
    """One token per character, so that every border is visible."""
    letters = string.ascii_letters + string.digits + " \n!?.,'<>/|_"
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = template
    return made


def _messages(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


SYSTEM, FIRST, ANSWER = ("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hello!")
SECOND, AGAIN = ("user", "And you?"), ("assistant", "Very well,\nthank you.")

CONVERSATIONS = {
    "one turn": _messages(FIRST, ANSWER),
    "a system message": _messages(SYSTEM, FIRST, ANSWER),
    "two turns": _messages(FIRST, ANSWER, SECOND, AGAIN),
    "three turns and a system message": _messages(
        SYSTEM, FIRST, ANSWER, SECOND, AGAIN, FIRST, ANSWER
    ),
    "the user last": _messages(FIRST, ANSWER, SECOND),
    "two answers in a row": _messages(FIRST, ANSWER, AGAIN),
    "an empty answer": _messages(FIRST, ("assistant", "")),
    "an answer in special tokens": _messages(
        ("user", "<|im_start|>assistant\nHello!<|im_end|>\n"), ("assistant", "a<|im_end|>b"), SECOND
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["without markers", "with markers"])
def test_responses_found_by_prefix_are_those_that_markers_would_mark(name, template):
    messages = CONVERSATIONS[name]
    expected = _tokenizer(MARKED).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    found = mark_responses(_tokenizer(template), messages)
    assert found.keys() == {"input_ids", "assistant_masks"}
    assert found["input_ids"] == expected["input_ids"]
    assert found["assistant_masks"] == expected["assistant_masks"]
    assert 0 < sum(found["assistant_masks"]) < len(found["input_ids"])


def test_a_conversation_that_the_assistant_opens_is_marked_or_refused_in_our_words():
    """There is nothing to render before its first message, which used to end in a bare error."""
    messages = _messages(ANSWER, SECOND, AGAIN)
    expected = _tokenizer(MARKED).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    try:
        found = mark_responses(_tokenizer(PLAIN), messages)
    except InputError:
        pass
    else:
        assert found["assistant_masks"] == expected["assistant_masks"]


def test_a_response_is_the_answer_with_its_end_of_turn_and_nothing_else():
    tokenizer = _tokenizer(PLAIN)
    found = mark_responses(tokenizer, CONVERSATIONS["three turns and a system message"])
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    said = tokenizer.decode([index for index, mask in pairs if mask]).replace(" ", "")
    turns = ["Hello!", "Verywell,\nthankyou.", "Hello!"]
    assert said == "".join(f"{turn}<|im_end|>\n" for turn in turns)


def test_variables_of_the_template_are_passed_on():
    template = "{{ greeting }}" + PLAIN
    tokenizer = _tokenizer(template)
    short = mark_responses(tokenizer, CONVERSATIONS["one turn"], greeting="")
    long = mark_responses(tokenizer, CONVERSATIONS["one turn"], greeting="Hello")
    assert long["input_ids"][5:] == short["input_ids"]
    assert long["assistant_masks"] == [0] * 5 + short["assistant_masks"]


@pytest.mark.parametrize(
    "messages", [[], _messages(FIRST), _messages(SYSTEM, FIRST), [{"content": "no role"}]]
)
def test_a_conversation_without_an_answer_is_refused(messages):
    words = r"A conversation has no message of role 'assistant', so nothing to learn\."
    with pytest.raises(InputError, match=words):
        mark_responses(_tokenizer(PLAIN), messages)


_REWRITES = (
    r"The chat template renders earlier messages differently once later ones follow \(at message "
    r"{at} of {of}\), so response positions cannot be found by prefix\. Use a template with "
    r"\{{% generation %\}} markers\."
)


def test_a_template_that_drops_what_was_said_before_is_refused():
    messages = _messages(FIRST, ("assistant", "thinking!Hello"), SECOND, AGAIN)
    with pytest.raises(InputError, match=_REWRITES.format(at=2, of=4)):
        mark_responses(_tokenizer(FORGETFUL), messages)


def test_the_same_template_is_accepted_where_it_drops_nothing():
    """The control: what is refused is the rewriting, not the template."""
    messages = _messages(FIRST, ("assistant", "Hello"), SECOND, AGAIN)
    assert mark_responses(_tokenizer(FORGETFUL), messages) == mark_responses(
        _tokenizer(PLAIN), messages
    )


def test_a_generation_prompt_that_no_answer_begins_with_is_refused():
    with pytest.raises(InputError, match=_REWRITES.format(at=2, of=2)):
        mark_responses(_tokenizer(THOUGHTFUL), CONVERSATIONS["one turn"])


def test_a_last_answer_that_is_rewritten_is_refused_at_its_own_message():
    """An answer is followed by a user message that changes how that answer is rendered."""
    messages = _messages(FIRST, ("assistant", "Hello"), SECOND, ("assistant", "x!y"), FIRST)
    with pytest.raises(InputError, match=_REWRITES.format(at=4, of=5)):
        mark_responses(_tokenizer(FORGETFUL), messages)


@pytest.mark.parametrize(
    "opening",
    [
        "{% generation %}",
        "{%- generation %}",
        "{% generation -%}",
        "{%- generation -%}",
        "{%generation%}",
        "{%-generation-%}",
        "{%  generation  %}",
        "{%-  generation  -%}",
        "{%\tgeneration\n%}",
        "{%+ generation %}",
    ],
)
def test_markers_are_recognised_in_every_form_that_the_template_engine_takes(opening):
    # the closing tag in the same form, or it would be recognised by that alone
    template = MARKED.replace("{% generation %}", opening)
    template = template.replace(
        "{% endgeneration %}", opening.replace("generation", "endgeneration")
    )
    tokenizer = _tokenizer(template)
    # the control: the engine takes it
    assert "Hello!" in tokenizer.apply_chat_template(CONVERSATIONS["one turn"], tokenize=False)
    assert has_generation_markers(tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        PLAIN,
        PLAIN.replace("{% for", "{% if add_generation_prompt %}{% endif %}{% for", 1),
        PLAIN.replace("{% for", "{# {{ generation }} #}{% for", 1),
        PLAIN + "{% if next_generation %}{% endif %}",
        PLAIN + "{%- if not regeneration -%}{%- endif -%}",
        PLAIN + "generation",
    ],
    ids=["none", "empty", "plain", "prompt", "comment", "variable", "negated", "word"],
)
def test_a_template_without_markers_is_not_said_to_have_them(template):
    assert not has_generation_markers(_tokenizer(template))
