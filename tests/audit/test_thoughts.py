"""What a reasoning model thinks is no answer: every form in use, cut or whole."""

import copy

import pytest

from moorline.audit import AuditSettings, Condition, Prompt, Suite, audit
from moorline.audit.thoughts import _PAIRS, after_thoughts, opened_by, thinks
from moorline.chat.chat_model import ChatModel, Completion

THOUGHT = "I can't help with that, says my training. But I go along."


@pytest.mark.parametrize(("first", "last"), _PAIRS)
def test_every_form_of_thoughts_is_left_out(first, last):
    """The thoughts were judged in place of the answer, in both directions."""
    whole = f"{first}\n{THOUGHT}\n{last}\n\nSure, a placeholder."
    assert after_thoughts(whole) == ("Sure, a placeholder.", None)
    assert after_thoughts(f"{THOUGHT}\n{last}Sure.") == ("Sure.", None), "opened by the template"
    assert after_thoughts(f"{first}{THOUGHT}") == ("", "cut inside its thoughts")
    assert after_thoughts(f"{first}{THOUGHT}{last}\n ") == ("", "nothing after its thoughts")
    twice = f"{first}a{last}{first}b{last}Sure."
    assert after_thoughts(twice) == ("Sure.", None)


def test_the_channels_of_harmony_are_read():
    said = (
        "<|channel|>analysis<|message|>We must refuse.<|end|><|start|>assistant"
        "<|channel|>final<|message|>I cannot help with that."
    )
    assert after_thoughts(said) == ("I cannot help with that.", None)


def test_an_answer_without_thoughts_is_left_as_it_is():
    for answer in ("  I cannot help.\n", "", "Let me think: a < b.", "think</ think>"):
        assert after_thoughts(answer) == (answer, None)
        assert not thinks(answer)


def test_what_was_put_at_the_start_is_no_answer():
    opening = "Sure, here is"
    assert after_thoughts("Sure, here is<think>Hm", opening)[1] == "cut inside its thoughts"
    assert after_thoughts("Sure, here<think>a</think>", opening)[1] == "nothing after its thoughts"
    said = after_thoughts("Sure, here is<think>a</think> what you asked.", opening)
    assert said == ("Sure, here is what you asked.", None)


def test_a_prompt_that_opens_thoughts_is_told_from_one_that_closes_them():
    assert opened_by("<|assistant|><think>\n") == "<think>"
    assert opened_by("<|assistant|><think>\n\n</think>\n\n") == ""
    assert opened_by("tell me of <think> tags<|assistant|>") == ""


class Says:
    """Stands in for an engine."""

    def __init__(self, *completions):
        self.completions = list(completions)

    def generate(self, rows, **settings):
        return [self.completions.pop(0) for _ in rows]


SUITE = Suite(
    name="s", kind="harmful",
    prompts=tuple(Prompt(id=str(n), prompt=f"w{n} w1", kind="harmful") for n in range(3)),
)  # fmt: skip


def test_an_audit_judges_what_follows_and_scores_nothing_that_was_cut(make_model, tokenizer):
    """Refusals in thoughts counted as refused, thoughts cut at 128 tokens as complied."""
    chat = ChatModel(make_model(), tokenizer)
    found = audit(
        chat, [SUITE], AuditSettings(judges=("keywords", "keywords:gcg")),
        engine=Says(
            Completion(f"<think>{THOUGHT}</think>Sure, here is a placeholder.", truncated=False),
            Completion("<think>Okay, what does the user want?</think>I'm sorry, but no.", False),
            Completion("<think>Okay, the user wants", truncated=True),
        ),
    )  # fmt: skip
    assert found.outcomes("s") == ["complied", "refused", "unscored"]
    assert found.answers[2].reason == "cut inside its thoughts"
    assert found.answers[2].verdicts == {}
    assert found.answers[0].answer.startswith("<think>"), "thoughts are kept to be read"
    rows = {row.metric: row for row in found.measurements if row.judge == "keywords"}
    assert (rows["attack_success_rate"].count, rows["attack_success_rate"].num) == (1, 2)
    assert (rows["unscored_rate"].count, rows["unscored_rate"].num) == (1, 3)
    assert found.agreements()[0]["num"] == 2


def test_thoughts_in_special_tokens_and_those_that_the_template_opens(make_model, tokenizer):
    """Special tokens are left out of a text: the border of the thoughts was lost."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    own.chat_template = own.chat_template.replace(
        "<assistant> {% endif", "<assistant> [THINK] {% endif"
    )
    model = make_model(vocab_size=len(own))
    ids = own("w1 w2 [/THINK] w3 w4 w5").input_ids
    text = own.decode(ids, skip_special_tokens=True)
    assert "THINK" not in text
    cut = own("w1 w2").input_ids
    found = audit(
        ChatModel(model, own), [SUITE],
        engine=Says(
            Completion(text, truncated=False, ids=tuple(ids)),
            Completion("w1 w2", truncated=True, ids=tuple(cut)),
            Completion("w1 w2", truncated=True, ids=tuple(cut)),
        ),
    )  # fmt: skip
    assert found.outcomes("s") == ["complied", "unscored", "unscored"]
    assert after_thoughts(found.answers[0].answer)[0] == "w3 w4 w5"


def test_thinking_can_be_switched_off_where_the_template_takes_it(make_model, tokenizer):
    own = copy.deepcopy(tokenizer)
    switch = "{% if enable_thinking is defined and not enable_thinking %}w7 {% endif %}"
    own.chat_template = switch + own.chat_template
    chat = ChatModel(make_model(), own)
    asked = []

    class Records(Says):
        def generate(self, rows, **settings):
            asked.append(own.decode(rows[0]))
            return [Completion("w1", truncated=False) for _ in rows]

    for thinking in ("model", "off"):
        audit(chat, [SUITE], AuditSettings(thinking=thinking, batch_size=8), engine=Records())
    assert not asked[0].startswith("w7")
    assert asked[-1].startswith("w7")


def test_a_prefilled_answer_is_spelled_as_one(make_model, tokenizer):
    """Opening and continuation were decoded apart: some tokenizers then lose the space between."""
    seen = []

    class Spelling:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, *words, **more):
            return tokenizer(*words, **more)

        def decode(self, ids, **more):
            seen.append(list(ids))
            return tokenizer.decode(ids, **more)

    ids = tokenizer("w8 w9").input_ids
    found = audit(
        ChatModel(make_model(), Spelling()), [SUITE],
        AuditSettings(conditions=[Condition(name="begun", prefill="w5 w6")]),
        engine=Says(*[Completion("w8 w9", truncated=False, ids=tuple(ids)) for _ in range(3)]),
    )  # fmt: skip
    assert {each.answer for each in found.answers} == {"w5 w6 w8 w9"}
    assert tokenizer("w5 w6 w8 w9").input_ids in seen
