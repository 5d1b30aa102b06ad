"""Which tokens are responses: from labels, and from chat templates with and without markers."""

import re
import string
from pathlib import Path

import pytest
import torch
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moorline.chat.conversation import (
    IGNORED_LABEL,
    conversation_of,
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


@pytest.mark.lengthy
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
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A user's own markers, wrong at both ends: the header, and the newline behind the end of turn.
WRONG = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ '<|im_start|>assistant\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
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
    letters = string.ascii_letters + string.digits + " \n!?.,'<>/|_{}:=\"-[]()#*"
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
@pytest.mark.parametrize(
    "template", [PLAIN, MARKED, WRONG], ids=["without markers", "with markers", "wrong markers"]
)
def test_responses_are_those_that_right_markers_would_mark(name, template):
    """Markers that were wrong used to be believed: headers were trained and held."""
    messages = CONVERSATIONS[name]
    expected = _tokenizer(MARKED).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    found = mark_responses(_tokenizer(template), messages)
    assert found.keys() == {"input_ids", "assistant_masks"}
    assert found["input_ids"] == expected["input_ids"]
    assert found["assistant_masks"] == expected["assistant_masks"]
    assert 0 < sum(found["assistant_masks"]) < len(found["input_ids"])


def test_a_first_message_by_the_assistant_answers_no_prompt_and_is_no_response():
    """There is nothing to render before it, which used to end in a bare error."""
    messages = _messages(ANSWER, SECOND, AGAIN)
    assert spoken(_tokenizer(PLAIN), messages) == ["Very well,\nthank you.<|im_end|>"]


def spoken(tokenizer, messages, **template):
    """The response tokens as text, one for each run of them."""
    found = mark_responses(tokenizer, messages, **template)
    runs = [""]
    for index, mask in zip(found["input_ids"], found["assistant_masks"], strict=True):
        if mask:
            runs[-1] += tokenizer.convert_ids_to_tokens(index)
        elif runs[-1]:
            runs.append("")
    return [each for each in runs if each]


def test_a_response_is_the_answer_with_its_end_of_turn_and_nothing_else():
    tokenizer = _tokenizer(PLAIN)
    turns = ["Hello!", "Very well,\nthank you.", "Hello!"]
    found = spoken(tokenizer, CONVERSATIONS["three turns and a system message"])
    assert found == [f"{turn}<|im_end|>" for turn in turns]


def test_answers_within_the_prompt_do_not_count():
    tokenizer, messages = _tokenizer(PLAIN), CONVERSATIONS["two turns"]
    assert spoken(tokenizer, messages, after=3) == ["Very well,\nthank you.<|im_end|>"]
    assert len(spoken(tokenizer, messages)) == 2


def test_variables_of_the_template_are_passed_on():
    template = "{{ greeting }}" + PLAIN
    tokenizer = _tokenizer(template)
    short = mark_responses(tokenizer, CONVERSATIONS["one turn"], greeting="")
    long = mark_responses(tokenizer, CONVERSATIONS["one turn"], greeting="Hello")
    assert long["input_ids"][5:] == short["input_ids"]
    assert long["assistant_masks"] == [0] * 5 + short["assistant_masks"]


@pytest.mark.parametrize(
    "messages",
    [[], _messages(FIRST), _messages(SYSTEM, FIRST), [{"content": "no role"}], _messages(ANSWER)],
)
def test_a_conversation_without_an_answer_is_refused(messages):
    words = r"no message of role 'assistant' that answers another one, so nothing to learn\."
    with pytest.raises(InputError, match=words):
        mark_responses(_tokenizer(PLAIN), messages)


def test_where_the_past_is_rewritten_the_rule_holds_for_the_text_as_it_stands():
    """Such templates used to be refused, or to be swapped for a twin that marks headers."""
    messages = _messages(FIRST, ("assistant", "thinking!Hello"), SECOND, AGAIN)
    assert spoken(_tokenizer(FORGETFUL), messages) == [
        "Hello<|im_end|>", "Very well,\nthank you.<|im_end|>",
    ]  # fmt: skip
    messages = _messages(FIRST, ("assistant", "Hello"), SECOND, ("assistant", "x!y"), FIRST)
    assert spoken(_tokenizer(FORGETFUL), messages) == ["Hello<|im_end|>", "y<|im_end|>"]


def test_a_generation_prompt_that_an_answer_does_not_follow_ends_where_they_part():
    messages = CONVERSATIONS["two turns"]
    turns = ["Hello!<|im_end|>", "Very well,\nthank you.<|im_end|>"]
    assert spoken(_tokenizer(THOUGHTFUL), messages) == turns
    messages = _messages(FIRST, ("assistant", "<th"))  # shares letters with the prompt, no token
    tokenizer = _tokenizer(THOUGHTFUL)
    tokenizer.add_tokens(["<think>"])
    assert spoken(tokenizer, messages) == ["<th<|im_end|>"]


def test_a_message_that_the_template_leaves_out_or_refuses_is_named():
    hides = "{% for m in messages if m['role'] != 'user' %}" + FORGETFUL.split("%}", 1)[1]
    hides = hides.replace("message[", "m[")
    messages = _messages(FIRST, ("assistant", "a!b"), SECOND, AGAIN)
    with pytest.raises(InputError, match=r"leaves out message 3 of 4 \(role 'user'\)"):
        mark_responses(_tokenizer(hides), messages)
    refuses = PLAIN + "{{ raise_exception('no') if messages[0]['role'] == 'system' }}"
    with pytest.raises(InputError, match=r"refuses a conversation of 3 messages: no\. Change"):
        mark_responses(_tokenizer(refuses), CONVERSATIONS["a system message"])


# What TRL ships

SHIPPED = Path(trl.__file__).parent / "chat_templates"
_AS_PARTS = ("idefics3", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl")

# Where an answer has more or less than its words and one token of end.
_ENDS = {
    "cohere2": ("", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "glm4moe": ("\n", ""),  # the model ends with the next turn's header
    "gptoss": ("<|channel|>final<|message|>", "<|return|>"),
    "muse_glimmer": (" to=user<|message|>", "<|eot|>"),
    "idefics3": (" ", "<end_of_utterance>"),
    "smolvlm": (" ", "<end_of_utterance>"),
    "llava_next": (" ", "</s>"),
}


def _shipped_tokenizer(path):
    """A tokenizer of single characters, with the special tokens that a template names."""
    template = path.read_text(encoding="utf-8")
    special = sorted(set(re.findall(r"</?[|\uff5c]?[\w|\uff5c\u2581/]+>|<turn\|>", template)))
    tokenizer = _tokenizer(template)
    tokenizer.add_tokens([AddedToken(each, special=True, normalized=False) for each in special])
    tokenizer.bos_token = "<bos>"
    return tokenizer


def _twins():
    for path in sorted(SHIPPED.glob("*.jinja")):
        if (twin := path.with_stem(f"{path.stem}_training")).is_file():
            yield pytest.param(path, twin, id=path.stem)


@pytest.mark.lengthy
@pytest.mark.parametrize(("path", "twin"), _twins())
def test_a_response_begins_behind_the_generation_prompt_of_every_template_that_trl_ships(
    path, twin
):
    """TRL's marked twins of many templates mark headers, which were trained and held: for Qwen2.5
    the newline behind `<|im_start|>assistant`, for others the whole header or `<think>`."""
    messages = _messages(("user", "Ask"), ("assistant", "HELLO"), ("user", "On"),
                         ("assistant", "WORLD"))  # fmt: skip
    if path.stem in _AS_PARTS:
        messages = [
            {**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages
        ]
    tokenizer = _shipped_tokenizer(path)
    first, last = spoken(tokenizer, messages)
    lead, end = _ENDS.get(path.stem, ("", None))
    assert first.startswith(lead + "HELLO")
    assert last.startswith(lead + "WORLD")
    tail = last.removeprefix(lead + "WORLD")
    assert tail == end or (end is None and tail in tokenizer.get_vocab())
    # in the past gpt-oss has another end, which the model does not say
    assert first in (lead + "HELLO" + tail, lead + "HELLO")
    # the twin's markers change nothing, even where a user has taken it for a template
    of_twin = spoken(_shipped_tokenizer(twin), messages)
    assert [each.removesuffix("<|user|>") for each in of_twin] == [first, last]


def test_the_twins_of_trl_do_mark_more_than_the_response():
    """The control: what the test above guards against is there."""
    tokenizer = _shipped_tokenizer(SHIPPED / "qwen2_5_training.jinja")
    messages = _messages(("user", "Ask"), ("assistant", "HELLO"))
    found = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    marked = "".join(tokenizer.convert_ids_to_tokens([index for index, mask in pairs if mask]))
    assert marked.startswith("\nHELLO")
    assert spoken(tokenizer, messages) == ["HELLO<|im_end|>"]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "nemotron_3_nano", "glm4moe"])
def test_an_empty_block_of_thoughts_is_the_templates_and_thoughts_are_the_models(name):
    tokenizer = _shipped_tokenizer(SHIPPED / f"{name}.jinja")
    asked = {"role": "user", "content": "Ask"}
    answer = {"role": "assistant", "content": "HELLO"}
    (without,) = spoken(tokenizer, [asked, answer])
    (with_thoughts,) = spoken(tokenizer, [asked, {**answer, "reasoning_content": "I see."}])
    assert "think" not in without
    assert "I see." in with_thoughts
    assert "</think>" in with_thoughts


def test_a_call_of_a_tool_is_a_response_and_what_the_tool_says_is_none():
    tokenizer = _shipped_tokenizer(SHIPPED / "qwen2_5.jinja")
    function = {"name": "weather", "arguments": {"city": "Rome"}}
    call = {"type": "function", "function": function}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    calls, answer = spoken(tokenizer, messages, tools=tools)
    assert calls.startswith("<tool_call>")
    assert "Rome" in calls
    assert answer == "It rains.<|im_end|>"


def test_tools_that_are_no_json_are_refused_by_name():
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert conversation_of({**row, "tools": "[]"}).variables == {"tools": []}
    with pytest.raises(InputError, match=r"`tools` of a row must be a list.*got 'none'"):
        conversation_of({**row, "tools": "none"})


@pytest.mark.parametrize("content", ["", "I look."])
def test_calls_that_the_template_leaves_out_are_refused(tokenizer, content):
    """They were trained as answers that say nothing."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
    ]
    with pytest.raises(InputError, match="leaves out the calls of tools .* message 2 of 2"):
        mark_responses(tokenizer, messages)
    assert mark_responses(tokenizer, [messages[0], {"role": "assistant", "content": "w1"}])
