"""Agreement of two judges, against worked arithmetic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorline.audit.judges import Agreement, agreement
from moorline.errors import InputError

LAW = settings(deadline=None, derandomize=True, database=None)
OUTCOMES = st.sampled_from(["refused", "complied", "degenerate"])


def test_a_table_worked_by_hand():
    # 20 + 15 of 50 agree: p_o = 0.7. First says yes to 25, second to 30:
    # p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, so kappa = 0.2 / 0.5.
    first = ["yes"] * 20 + ["yes"] * 5 + ["no"] * 10 + ["no"] * 15
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = agreement(first, second)
    assert found == Agreement(50, pytest.approx(0.7), pytest.approx(0.4))


def test_three_outcomes_worked_by_hand():
    # p_o = 4/6; p_e = (3*2 + 2*2 + 1*2) / 36 = 1/3; kappa = (2/3 - 1/3) / (1 - 1/3)
    first = ["refused", "refused", "refused", "complied", "complied", "degenerate"]
    second = ["refused", "refused", "complied", "complied", "degenerate", "degenerate"]
    assert agreement(first, second).kappa == pytest.approx(0.5)


def test_the_ends_of_the_scale():
    assert agreement(["a", "b"], ["a", "b"]).kappa == 1
    assert agreement(["a", "b"], ["b", "a"]).kappa == -1
    assert agreement(["a", "a", "b", "b"], ["a", "b", "a", "b"]).kappa == 0


def test_what_is_undefined_is_none():
    assert agreement([], []) == Agreement(0, None, None)
    assert agreement(["refused"] * 3, ["refused"] * 3) == Agreement(3, 1.0, None)
    # the control: two judges of one mind each, but not the same, are defined
    assert agreement(["refused"] * 3, ["complied"] * 3) == Agreement(3, 0.0, 0.0)


def test_different_lengths_are_refused():
    with pytest.raises(InputError, match="the same answers, got 1 and 2"):
        agreement(["a"], ["a", "b"])


@LAW
@given(st.lists(st.tuples(OUTCOMES, OUTCOMES), min_size=1, max_size=60))
def test_agreement_is_symmetric_and_bounded(pairs):
    first, second = [list(side) for side in zip(*pairs, strict=True)]
    found, other = agreement(first, second), agreement(second, first)
    assert found.kappa == (None if other.kappa is None else pytest.approx(other.kappa))
    assert found.kappa is None or -1 <= found.kappa <= found.agreement <= 1
