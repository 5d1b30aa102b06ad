"""The three exceptions, and the message for a word that is none of the known ones."""

import pytest

from moorline.errors import InputError, MoorlineError, PrerequisiteError, unknown_choice


def test_a_bad_value_is_a_value_error_and_one_of_ours():
    assert issubclass(InputError, MoorlineError)
    assert issubclass(InputError, ValueError)


def test_a_missing_prerequisite_is_a_runtime_error_and_one_of_ours():
    assert issubclass(PrerequisiteError, MoorlineError)
    assert issubclass(PrerequisiteError, RuntimeError)


def test_the_two_remedies_are_not_confused():
    assert not issubclass(InputError, PrerequisiteError)
    assert not issubclass(PrerequisiteError, InputError)


def test_an_unknown_word_is_named_with_the_known_ones_in_order():
    words = r"^Unknown `str_form` 'quux'\. Known: 'alpha', 'beta', 'gamma'\.$"
    with pytest.raises(InputError, match=words):
        raise unknown_choice("`str_form`", "quux", ["gamma", "alpha", "beta"])


@pytest.mark.parametrize(
    ("given", "nearest"), [("keyword", "keywords"), ("comand", "command"), ("kewyords", "keywords")]
)
def test_a_near_miss_is_told_the_nearest_word(given, nearest):
    with pytest.raises(InputError, match=f"Did you mean '{nearest}'\\?$"):
        raise unknown_choice("judge", given, ["keywords", "command"])


def test_a_word_far_from_all_others_gets_no_suggestion():
    assert "Did you mean" not in str(unknown_choice("judge", "zzz", ["keywords", "command"]))


def test_the_known_words_may_come_from_anything_that_can_be_walked():
    assert "Known: 'a', 'b'." in str(unknown_choice("thing", "c", (word for word in "ba")))
    assert "Known: 'a', 'b'." in str(unknown_choice("thing", "c", {"b": 1, "a": 2}))
