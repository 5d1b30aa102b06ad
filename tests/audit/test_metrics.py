"""Metrics of a task: worked examples, laws, and what each is blind to."""

import functools

import pytest
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from moorline.audit.metrics import (
    METRICS,
    choice,
    exact_match,
    exact_match_strict,
    metric,
    rouge_l,
)
from moorline.errors import InputError

LAW = settings(deadline=None, derandomize=True, database=None, max_examples=examples(100))


def test_metrics_are_known_by_their_names():
    assert {
        "exact_match": exact_match, "exact_match_strict": exact_match_strict, "choice": choice,
        "rouge_l": rouge_l,
    } == METRICS  # fmt: skip
    assert all(metric(name) is each for name, each in METRICS.items())
    words = r"Unknown metric 'rouge'\. Known: 'choice', 'exact_match', .*'rouge_l'\. Did you mean"
    with pytest.raises(InputError, match=words):
        metric("rouge")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("answer", "right"), [("7", "7"), ("", "7"), ("B", "B"), ("so 7", "B")])
def test_a_metric_is_a_float_between_0_and_1(name, answer, right):
    found = metric(name)(answer, right)
    assert type(found) is float
    assert 0 <= found <= 1


@pytest.mark.parametrize("name", METRICS)
def test_the_right_answer_itself_scores_1_and_no_answer_0(name):
    for right in ("B", "42"):
        assert metric(name)(right, right) == metric(name)(f" {right}\n", right) == 1.0
        assert metric(name)("", right) == 0.0


@pytest.mark.parametrize(
    ("answer", "right", "score", "strict"),
    [
        ("positive", "positive", 1.0, 1.0),
        ("\tpositive \n", " positive", 1.0, 1.0),
        ("Positive", "positive", 1.0, 0.0),
        ("positive.", "positive", 1.0, 0.0),
        ("New  York!", "new york", 1.0, 0.0),
        ("It is positive", "positive", 0.0, 0.0),
        ("negative", "positive", 0.0, 0.0),
        ("3.5", "35", 0.0, 0.0),
        ("?", "!", 0.0, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_an_exact_match_forgives_case_space_and_final_marks_unless_strict(
    answer, right, score, strict
):
    """A classifier that answers "Positive" where "positive" is right scored nothing."""
    assert exact_match(answer, right) == score
    assert exact_match_strict(answer, right) == strict


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        ("B", "B"),
        ("b", "B"),
        (" b. ", "B"),
        ("(c)", "C"),
        ("**D**", "D"),
        ("B) because A is wrong", "B"),
        ("b) this one", "B"),
        ("The answer is C.", "C"),
        ("I think it is D, not A", "D"),
        ("I'd say C", "C"),
        ("A", "A"),
        ("A.", "A"),
        ("A: Paris", "A"),
        ("A is right, B is not", "A"),
        ("A good guess would be B", "B"),
        ("A cat (C)", "C"),
        ("Option E", "E"),
    ],
)
def test_the_first_option_letter_counts(answer, first):
    for right in "ABCDE":
        assert choice(answer, right) == choice(answer, right.lower()) == float(right == first)


@pytest.mark.parametrize("answer", ["", "I don't know.", "a cat", "no idea", "ABBA", "42"])
def test_an_answer_without_an_option_is_wrong(answer):
    assert not any(choice(answer, right) for right in "ABCDEFGHIJ")


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("42", "42", 1.0),
        ("It is 42.", "42", 1.0),
        ("42.0", "42", 1.0),
        ("$1,234.50 in all", "1234.5", 1.0),
        ("-3 degrees", "-3", 1.0),
        ("3 degrees", "-3", 0.0),
        ("6 * 7 = 42", "42", 0.0),  # the first number is part of the working
        ("forty-two", "42", 0.0),
        ("about 420", "42", 0.0),
        ("1,2 or 3", "1", 1.0),
    ],
)
def test_the_first_number_counts_by_value(answer, right, score):
    assert choice(answer, right) == score


@pytest.mark.parametrize("right", ["", "Paris", "AB", "4 or 5", "(B)"])
def test_a_right_answer_that_is_no_option_is_refused(right):
    words = r"`right` must be one letter or one number for the metric 'choice', got '.*'\. Use"
    with pytest.raises(InputError, match=words):
        choice("B", right)


def test_what_choice_cannot_see():
    assert choice("Not A, but B.", "B") == 0.0  # dismisses a wrong option first
    assert choice("Paris", "B") == 0.0  # the option by its text


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("the cat sat", "the cat sat on the mat", 2 * 3 / 9),
        # Lin 2004, section 3: S1 police killed the gunman; S2 and S3 with L of 3 and 2
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("A, b! C?", "a b c", 1.0),
        ("c b a", "a b c", 1 / 3),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("", "", 1.0),
        ("?!", "...", 1.0),
        ("d\u00e9j\u00e0 vu", "D\u00c9J\u00c0 VU", 1.0),
    ],
)
def test_rouge_l_by_hand(answer, right, score):
    assert rouge_l(answer, right) == pytest.approx(score)


def _longest(first, second):
    """The longest common subsequence, by its recursive definition."""

    @functools.cache
    def length(i, j):
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


_TEXT = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


@LAW
@given(first=_TEXT, second=_TEXT)
def test_rouge_l_is_its_definition_and_symmetric(first, second):
    common = _longest(tuple(first), tuple(second))
    precision, recall = common / len(first), common / len(second)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    found = rouge_l(" ".join(first), " ".join(second))
    assert found == pytest.approx(expected)
    assert found == rouge_l(" ".join(second), " ".join(first))
