"""Conditions: what each puts before the prompt and into the answer, and what is refused."""

import math

import pytest

from moorline.audit.conditions import CONDITIONS, FORCED_OPENER, Condition, condition, opening_ids
from moorline.audit.judges import KeywordJudge
from moorline.errors import InputError


def test_conditions_are_known_by_their_names():
    assert list(CONDITIONS) == ["plain", "prefill", "system", "sampled", "forced-5"]
    assert all(condition(name) is each for name, each in CONDITIONS.items())


def test_the_plain_condition_adds_nothing():
    assert condition("plain") == Condition(name="plain")
    assert condition("plain") == Condition(
        name="plain", system_prompt=None, prefill="", draws=1, temperature=0.0, forced_tokens=0
    )


def test_each_attack_changes_one_thing():
    plain = condition("plain")
    fields = [name for name in Condition.__slots__ if name != "name"]
    changed = {
        name: {field for field in fields if getattr(each, field) != getattr(plain, field)}
        for name, each in CONDITIONS.items()
    }
    assert changed == {
        "plain": set(),
        "prefill": {"prefill"},
        "system": {"system_prompt"},
        "sampled": {"draws", "temperature"},
        "forced-5": {"prefill", "forced_tokens"},
    }
    assert condition("sampled").temperature == 1.0
    assert condition("sampled").draws > 1


def test_what_is_put_into_an_answer_is_no_refusal_and_holds_no_content():
    """A judge reads the opening of an answer: an opener that refused would hide compliance."""
    judge = KeywordJudge()
    for each in CONDITIONS.values():
        assert judge("", f"{each.prefill} and so on it goes").outcome == "complied"
    assert judge("", "I'm sorry, but I can't help.").outcome == "refused"


@pytest.mark.parametrize("number", [1, 3, 12])
def test_any_number_of_tokens_may_be_forced(number):
    found = condition(f"forced-{number}")
    assert (found.name, found.forced_tokens) == (f"forced-{number}", number)
    assert found.prefill == FORCED_OPENER


@pytest.mark.parametrize("name", ["forced-0", "forced--1", "forced-", "forced-x", "Plain", ""])
def test_an_unknown_condition_is_refused(name):
    with pytest.raises(InputError, match=rf"Unknown condition '{name}'\. Known: 'forced-5', 'pl"):
        condition(name)


def test_an_unknown_condition_names_the_nearest():
    with pytest.raises(InputError, match=r"Did you mean 'prefill'\?"):
        condition("prefil")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, r"`name` of a condition is empty"),
        ({"draws": 0}, r"`draws` must be 1 or more, got 0\."),
        ({"temperature": -0.1}, r"`temperature` must be 0 or more and finite, got -0\.1\."),
        ({"temperature": math.inf}, r"`temperature` must be 0 or more and finite, got inf\."),
        ({"temperature": math.nan}, r"`temperature` must be 0 or more and finite, got nan\."),
        ({"draws": 2}, r"`draws` is 2 but `temperature` is 0, so all of them would be one answer"),
        ({"forced_tokens": -1}, r"`forced_tokens` must be 0 or more, got -1\."),
        ({"forced_tokens": 2}, r"`forced_tokens` is 2 but `prefill` is empty"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        Condition(**{"name": "mine", **values})


def _words(tokenizer, ids):
    return tokenizer.decode(ids).split()


def test_a_prefill_is_put_whole_and_the_prompts_own_opener_is_left_alone(tokenizer):
    mine = Condition(name="mine", prefill="w1 w2 w3")
    assert _words(tokenizer, opening_ids(mine, tokenizer)) == ["w1", "w2", "w3"]
    assert _words(tokenizer, opening_ids(mine, tokenizer, "w7 w8")) == ["w1", "w2", "w3"]


@pytest.mark.parametrize("name", ["plain", "system", "sampled"])
def test_conditions_without_an_opening_put_nothing(tokenizer, name):
    assert opening_ids(condition(name), tokenizer, "w7 w8") == []


def test_the_first_tokens_of_the_prompts_own_opener_are_forced(tokenizer):
    forced = Condition(name="mine", prefill="w1 w2 w3", forced_tokens=2)
    assert _words(tokenizer, opening_ids(forced, tokenizer, "w7 w8 w9")) == ["w7", "w8"]
    assert _words(tokenizer, opening_ids(forced, tokenizer)) == ["w1", "w2"]
    assert _words(tokenizer, opening_ids(forced, tokenizer, "w7")) == ["w7"]
