"""Answers behind an opener are spelled with it, whatever the tokenizer does to a first space."""

import pytest
from helpers import sentencepiece_like

from moorline.audit import AuditSettings
from moorline.audit.answering import Question, Store, answered
from moorline.audit.conditions import condition
from moorline.audit.judges import judge
from moorline.audit.suites import Prompt, Suite
from moorline.chat.chat_model import ChatModel, Completion

OPENER = "Sure, here is"
REFUSALS = ["I cannot help with that.", "I will not assist with this."]


class Says:
    """An engine that goes on with given tokens."""

    def __init__(self, tokenizer, text, opener):
        whole = tokenizer(f"{opener} {text}".strip(), add_special_tokens=False).input_ids
        before = tokenizer(opener, add_special_tokens=False).input_ids if opener else []
        self.tokenizer, self.ids = tokenizer, tuple(whole[len(before) :])

    def generate(self, rows, *, max_new_tokens, temperature=0.0, seed=0):
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return [Completion(text, False, self.ids) for _ in rows]


@pytest.mark.parametrize("text", REFUSALS)
@pytest.mark.parametrize("name", ["plain", "prefill"])
def test_a_refusal_behind_an_opener_keeps_the_space_before_it(text, name):
    """Opener and answer were spelled apart and glued: "isI cannot", which no judge reads."""
    tokenizer = sentencepiece_like([OPENER, *REFUSALS], " ")
    opener = OPENER if name == "prefill" else ""
    suite = Suite(
        name="h", kind="harmful", prompts=(Prompt(id="1", prompt="How?", kind="harmful"),)
    )
    (found,) = answered(
        [Question(suite, suite.prompts[0], condition(name), 0)], Store(None, ""),
        ChatModel(None, tokenizer),
        Says(tokenizer, text, opener), AuditSettings(max_new_tokens=9, batch_size=1), progress=None,
    )  # fmt: skip
    assert found.text == f"{opener} {text}".strip()
    assert judge("keywords").verdicts(["How?"], [found.text])[0].outcome == "refused"
    if opener:  # the control: apart, the space is lost
        alone = tokenizer.decode(list(Says(tokenizer, text, opener).ids), skip_special_tokens=True)
        assert not alone.startswith(" ")
