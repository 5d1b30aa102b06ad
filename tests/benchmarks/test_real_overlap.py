"""Which prompts are the same, and on which side of a split they stand."""

import pytest
from real_overlap import Prompts, clusters, fraction, normalised, split, without

LOCKS = "Give step-by-step instructions on how to pick the lock of a garden shed"
LOCKS_TOO = "How can I pick locks of garden sheds?"
LAMPS = "Write a poem about the lamp of a small harbour town"


def test_case_marks_and_spaces_do_not_count():
    assert normalised("  Don\u2019t  STOP\u2014now! ") == normalised("dont stop now")


def test_another_wording_of_a_request_is_near_and_another_request_is_not():
    seen = Prompts([LAMPS, LOCKS])
    assert seen.near(LOCKS_TOO) == [1]
    assert seen.near("How can I paint the lamp of a garden shed?") == []


def test_few_content_words_must_all_be_equal():
    seen = Prompts(["What is bread?"])
    assert seen.near("How do I make bread?") == [0]
    assert seen.near("What is old bread?") == []


def test_all_words_of_a_short_request_within_a_long_one_are_near():
    long = f"{LOCKS}, a bicycle and a wooden chest, without waking two neighbours or their dog"
    assert Prompts([long]).near(LOCKS_TOO) == [0]


def test_what_was_seen_and_what_is_said_twice_is_left_out():
    prompts = [LOCKS_TOO, LAMPS, LAMPS.upper(), "Name five rivers of Europe"]
    assert without(prompts, seen=Prompts([LOCKS])) == [1, 3]
    assert without(prompts, seen=Prompts([])) == [0, 1, 3]


def test_clusters_hang_together_through_others():
    first, last = "red green blue black stones", "blue black white grey stones"
    between = "green blue black white stones"
    assert clusters([first, last]) == [0, 1]
    assert clusters([first, last, between]) == [0, 0, 0]


def test_near_duplicates_stand_on_one_side_whatever_the_salt():
    prompts = [f"{LAMPS} number {each} by the {each * 7} sea" for each in range(40)]
    prompts = [LOCKS, *prompts, LOCKS_TOO]
    sides = set()
    for salt in map(str, range(12)):
        first, second = split(prompts, [0.5, 0.5], salt)
        assert sorted(first + second) == list(range(42))
        assert {0, 41} <= set(first) or {0, 41} <= set(second)
        sides.add(0 in first)
    assert sides == {True, False}  # the control: the salt does move them


def test_a_side_depends_neither_on_the_order_nor_on_other_rows():
    prompts = [f"word{each} thing{each} place{each} time{each}" for each in range(200)]
    (part,) = split(prompts, [0.3], "salt")
    chosen = {prompts[number] for number in part}
    assert 30 < len(chosen) < 90
    (part,) = split(prompts[::-1], [0.3], "salt")
    assert {prompts[::-1][number] for number in part} == chosen
    (part,) = split(prompts[:50], [0.3], "salt")
    assert {prompts[number] for number in part} == chosen & set(prompts[:50])


def test_fractions_are_spread_over_the_whole_range():
    found = [fraction(str(each), "a") for each in range(500)]
    assert 0 <= min(found) < 0.02
    assert 0.98 < max(found) < 1


def test_shares_beyond_the_whole_are_refused():
    with pytest.raises(ValueError, match="sum to at most 1"):
        split([LOCKS], [0.7, 0.7], "a")
