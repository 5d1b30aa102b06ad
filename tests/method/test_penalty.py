"""The drift against its definition, its gradient, its laws, its blindness, and deliberate faults.

Each check is a function of the implementation, so that the same check that passes for ours can be
shown to fail for a faulty one.
"""

import math

import pytest
import torch
from helpers import examples
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moorline.errors import InputError
from moorline.method.penalty import (
    FORMS,
    DriftSum,
    difference,
    form,
    kl_drift,
    squared_drift,
)

IMPLEMENTATIONS = {
    name: lambda z, z0, measure=each.drift: measure(difference(z, z0), z0)
    for name, each in FORMS.items()
    if name != "kl"  # which is no square: see below
}

# float64 carries 53 bits; the sums here have at most some tens of terms of like size.
EXACT = 1e-12
# float32 carries 24 bits; some tens of roundings of 2^-24 each.
SINGLE = 2e-6

LAW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=examples(60),
    phases=[Phase.explicit, Phase.generate],
)


def _definition(z, z0):
    """The docstring's formula as loops over Python's floats, which are float64."""
    total = 0.0
    for row, row0 in zip(z.tolist(), z0.tolist(), strict=True):
        at_position = 0.0
        for value, value0 in zip(row, row0, strict=True):
            at_position += (value - value0) ** 2
        total += at_position / len(row)
    return total


def _values(positions=5, safety=4, *, seed=0, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(positions, safety, generator=generator, dtype=torch.float64)
    z0 = scale * torch.randn(positions, safety, generator=generator, dtype=torch.float64)
    return z.to(dtype), z0.to(dtype)


@st.composite
def _pairs(draw, min_positions=1):
    """Two tables of one shape, of numbers that a float64 holds exactly."""
    positions, safety = draw(st.integers(min_positions, 5)), draw(st.integers(1, 5))
    number = st.integers(-6400, 6400).map(lambda value: value / 128)
    row = st.lists(number, min_size=safety, max_size=safety)
    table = st.lists(row, min_size=positions, max_size=positions)
    return (
        torch.tensor(draw(table), dtype=torch.float64),
        torch.tensor(draw(table), dtype=torch.float64),
    )


def _near(first, second, tolerance=EXACT):
    assert math.isclose(float(first), float(second), rel_tol=tolerance, abs_tol=tolerance)


# Checks


def check_definition(drift):
    for seed, shape in enumerate([(1, 1), (1, 7), (7, 1), (5, 4), (12, 20)]):
        z, z0 = _values(*shape, seed=seed)
        found = drift(z, z0)
        _near(found.total, _definition(z, z0))
        assert int(found.num_positions) == shape[0]
        assert float(found.max_abs) == max(
            abs(a - b) for a, b in zip(z.flatten().tolist(), z0.flatten().tolist(), strict=True)
        )


def check_gradient(drift):
    z, z0 = _values()
    assert torch.autograd.gradcheck(lambda each: drift(each, z0).total, z.requires_grad_())


def check_gradient_by_hand(drift):
    z, z0 = _values()
    drift(z.requires_grad_(), z0).total.backward()
    torch.testing.assert_close(z.grad, 2 * (z.detach() - z0) / z.shape[1], rtol=EXACT, atol=EXACT)


def check_reference_gets_no_gradient(drift):
    z, z0 = (each.requires_grad_() for each in _values())
    drift(z, z0).total.backward()
    assert z0.grad is None
    assert z.grad is not None  # the control
    assert bool(z.grad.any())


def check_largest_difference_carries_no_gradient(drift):
    z, z0 = _values()
    found = drift(z.requires_grad_(), z0)
    assert not found.max_abs.requires_grad
    assert found.total.requires_grad  # the control


def check_zero_at_equality(drift):
    z, _ = _values()
    z.requires_grad_()
    found = drift(z, z.detach().clone())
    found.total.backward()
    assert float(found.total.detach()) == 0.0
    assert float(found.max_abs.detach()) == 0.0
    assert z.grad is not None
    assert z.grad.tolist() == torch.zeros_like(z).tolist()
    # the control: one value moved a little, of any position and token
    for position in range(z.shape[0]):
        for token in range(z.shape[1]):
            moved = z.detach().clone()
            moved[position, token] += 0.5
            assert float(drift(moved, z.detach()).total) > 0.0


def check_never_negative(drift):
    @LAW
    @given(pair=_pairs())
    def law(pair):
        found = drift(*pair)
        assert float(found.total) >= 0.0
        assert float(found.max_abs) >= 0.0

    law()


def check_order_is_irrelevant(drift):
    @LAW
    @given(pair=_pairs(), data=st.data())
    def law(pair, data):
        z, z0 = pair
        positions = data.draw(st.permutations(range(z.shape[0])))
        tokens = data.draw(st.permutations(range(z.shape[1])))
        before = drift(z, z0)
        for other in (
            drift(z[positions], z0[positions]),
            drift(z[:, tokens], z0[:, tokens]),
        ):
            _near(other.total, before.total)
            assert other.max_abs == before.max_abs

    law()


def check_pairing_is_relevant(drift):
    """The control of the order: what belongs together is not mixed up."""
    z = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert float(drift(z, z).total) == 0.0
    assert float(drift(z, z[[1, 0]]).total) > 0.0
    assert float(drift(z, z[:, [1, 0]]).total) > 0.0


def check_additive_over_positions(drift):
    @LAW
    @given(pair=_pairs(min_positions=2), data=st.data())
    def law(pair, data):
        z, z0 = pair
        cut = data.draw(st.integers(0, z.shape[0]))
        whole, first, second = drift(z, z0), drift(z[:cut], z0[:cut]), drift(z[cut:], z0[cut:])
        _near(first.total + second.total, whole.total)
        assert first.num_positions + second.num_positions == whole.num_positions
        assert torch.maximum(first.max_abs, second.max_abs) == whole.max_abs

    law()


def check_common_shift_counts(drift):
    """Raising every safety logit by c costs c^2 at each position; nothing is normalised away."""
    z, _ = _values(6, 4)
    _near(drift(z + 1.5, z).total, 6 * 1.5**2)


def check_no_positions(drift):
    weights = torch.ones(4, 3, requires_grad=True)
    found = drift(weights[:0], torch.ones(0, 3))
    assert float(found.total.detach()) == 0.0
    assert float(found.max_abs) == 0.0
    assert int(found.num_positions) == 0
    assert found.total.requires_grad
    found.total.backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == torch.zeros(4, 3).tolist()


def check_half_precision(drift):
    """The result is that of the rounded inputs, as if nothing later had been rounded."""
    for dtype in (torch.bfloat16, torch.float16):
        for seed in range(4):
            # values of unlike size, whose differences the narrow type itself cannot hold
            z, z0 = _values(8, 6, seed=seed, scale=8.0, dtype=dtype)
            found = drift(z, z0)
            assert found.total.dtype == torch.float32
            assert found.max_abs.dtype == torch.float32
            _near(found.total, _definition(z.double(), z0.double()), SINGLE)
            _near(found.max_abs, (z.double() - z0.double()).abs().max(), SINGLE)


def check_small_differences_of_large_logits(drift):
    """At 16 to 32 bfloat16 has steps of 1/8, so squares and sums need more than its 8 bits."""
    z0 = torch.full((317, 3), 20.0, dtype=torch.bfloat16)
    z = z0.clone()
    z[:, 0] += 0.125
    _near(drift(z, z0).total, 317 * 0.125**2 / 3, SINGLE)


def check_types(drift):
    z, z0 = _values()
    assert drift(z, z0).total.dtype == torch.float64
    assert drift(z.float(), z0.float()).total.dtype == torch.float32
    assert drift(z, z0).num_positions.dtype == torch.int64
    assert drift(z, z0).total.shape == drift(z, z0).max_abs.shape == torch.Size([])


CHECKS = [
    check_definition,
    check_gradient,
    check_gradient_by_hand,
    check_reference_gets_no_gradient,
    check_largest_difference_carries_no_gradient,
    check_zero_at_equality,
    check_never_negative,
    check_order_is_irrelevant,
    check_pairing_is_relevant,
    check_additive_over_positions,
    check_common_shift_counts,
    check_no_positions,
    check_half_precision,
    check_small_differences_of_large_logits,
    check_types,
]


@pytest.mark.lengthy
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_drift_keeps(name, check):
    check(IMPLEMENTATIONS[name])


# Deliberate faults


def _right(
    z: Tensor,
    z0: Tensor,
    *,
    difference=lambda z, z0, dtype: z.to(dtype) - z0.detach().to(dtype),
    measure=Tensor.square,
    over_tokens=lambda each: each.mean(dim=-1),
    over_positions=Tensor.sum,
    dtype=lambda dtype: torch.promote_types(dtype, torch.float32),
    num=lambda z: torch.tensor(z.shape[0]),
    largest=lambda each: (
        each.detach().abs().amax() if each.numel() else each.new_zeros(()).detach()
    ),
) -> DriftSum:
    """The right thing in parts, each of which a fault replaces."""
    found = difference(z, z0, dtype(z.dtype))
    return DriftSum(over_positions(over_tokens(measure(found))), num(z), largest(found))


FAULTS = {
    # fault: (what is replaced, the checks that must catch it)
    "absolute instead of squared": (
        {"measure": Tensor.abs},
        [check_definition, check_gradient_by_hand, check_common_shift_counts],
    ),
    "fourth power": ({"measure": lambda each: each**4}, [check_definition]),
    "signed, not squared": (
        {"measure": lambda each: each},
        [check_definition, check_never_negative, check_zero_at_equality],
    ),
    "half of it": ({"measure": lambda each: each.square() / 2}, [check_definition]),
    "sum over S": (
        {"over_tokens": lambda each: each.sum(dim=-1)},
        [check_definition, check_gradient_by_hand, check_common_shift_counts],
    ),
    "largest of S": ({"over_tokens": lambda each: each.amax(dim=-1)}, [check_definition]),
    "root over S": (
        {"over_tokens": lambda each: each.mean(dim=-1).sqrt()},
        [check_definition, check_zero_at_equality],
    ),
    "unbiased mean over S": (
        {"over_tokens": lambda each: each.sum(dim=-1) / max(1, each.shape[-1] - 1)},
        [check_definition],
    ),
    "first token weighs twice": (
        {"over_tokens": lambda each: (each.sum(dim=-1) + each[:, 0]) / (each.shape[-1] + 1)},
        [check_definition, check_order_is_irrelevant],
    ),
    "mean over positions": (
        {"over_positions": Tensor.mean},
        [check_definition, check_additive_over_positions, check_no_positions],
    ),
    "last position forgotten": (
        {"over_positions": lambda each: each[:-1].sum()},
        [check_definition, check_zero_at_equality, check_additive_over_positions],
    ),
    "later positions weigh more": (
        {"over_positions": lambda each: (each * torch.arange(1, len(each) + 1)).sum()},
        [check_definition, check_order_is_irrelevant, check_additive_over_positions],
    ),
    "reference not detached": (
        {"difference": lambda z, z0, dtype: z.to(dtype) - z0.to(dtype)},
        [check_reference_gets_no_gradient],
    ),
    "model detached instead": (
        {"difference": lambda z, z0, dtype: z.detach().to(dtype) - z0.to(dtype)},
        [check_gradient, check_reference_gets_no_gradient, check_no_positions],
    ),
    "no upcast": (
        {"dtype": lambda dtype: dtype},
        [check_half_precision, check_small_differences_of_large_logits],
    ),
    "upcast after the difference": (
        {"difference": lambda z, z0, dtype: (z - z0.detach()).to(dtype)},
        [check_half_precision],
    ),
    "float64 cut to float32": (
        {"dtype": lambda dtype: torch.float32},
        [check_definition, check_types],
    ),
    "common shift taken out": (
        {
            "difference": lambda z, z0, dtype: (
                z - z.mean(-1, keepdim=True) - z0 + z0.mean(-1, keepdim=True)
            ).to(dtype)
        },
        [check_definition, check_common_shift_counts],
    ),
    "tokens sorted before they are compared": (
        {"difference": lambda z, z0, dtype: z.sort().values.to(dtype) - z0.detach().sort().values},
        [check_definition, check_pairing_is_relevant],
    ),
    "values counted, not positions": (
        {"num": lambda z: torch.tensor(z.numel())},
        [check_definition],
    ),
    "at least one position": (
        {"num": lambda z: torch.tensor(max(1, z.shape[0]))},
        [check_no_positions, check_additive_over_positions],
    ),
    "largest difference with its sign": (
        {"largest": lambda each: each.detach().amax() if each.numel() else each.sum().detach()},
        [check_definition],
    ),
    "largest difference in the graph": (
        {"largest": lambda each: each.abs().amax() if each.numel() else each.sum()},
        [check_largest_difference_carries_no_gradient],
    ),
    "no positions leave the graph": (
        {"over_positions": lambda each: each.sum() if each.numel() else each.new_zeros(())},
        [check_no_positions],
    ),
    "largest of no positions": (
        {"largest": lambda each: each.detach().abs().amax()},
        [check_no_positions],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault):
    replaced, checks = FAULTS[fault]

    def faulty(z, z0):
        return _right(z, z0, **replaced)

    for check in checks:
        with pytest.raises((AssertionError, RuntimeError, IndexError)):
            check(faulty)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_the_faults_are_made_from_is_right(check):
    """The control of the faults: unchanged, it passes, so it is the fault that each check sees."""
    check(_right)


def test_every_check_is_seen_to_fail():
    """A check that no fault can make fail would prove nothing."""
    assert {check for _, checks in FAULTS.values() for check in checks} == set(CHECKS)


# What it cannot see


SAFETY = [2, 5, 7]


def _full_logits():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 11, generator=generator, dtype=torch.float64)


def test_on_logits_the_drift_is_blind_to_all_other_logits_rising_together():
    reference = _full_logits()
    model = reference + 5.0
    model[:, SAFETY] = reference[:, SAFETY]
    found = squared_drift(difference(model[:, SAFETY], reference[:, SAFETY]))
    assert float(found.total) == 0.0
    assert float(found.max_abs) == 0.0
    # while the probability of the safety tokens falls at every position
    after, before = (each.softmax(-1)[:, SAFETY].sum(-1) for each in (model, reference))
    assert bool((after < before / 2).all())


def test_on_log_probabilities_the_drift_sees_all_other_logits_rising():
    reference = _full_logits()
    model = reference + 5.0
    model[:, SAFETY] = reference[:, SAFETY]
    log_p, log_p0 = (each.log_softmax(-1)[:, SAFETY] for each in (model, reference))
    assert float(squared_drift(difference(log_p, log_p0)).total) > 1.0


def test_in_both_forms_the_drift_is_blind_to_what_happens_outside_the_safety_tokens():
    reference = _full_logits()
    model = reference.clone()
    model[:, [0, 1]] = reference[:, [1, 0]]
    assert float((model.softmax(-1) - reference.softmax(-1)).abs().max()) > 0.01
    assert float(squared_drift(difference(model[:, SAFETY], reference[:, SAFETY])).total) == 0.0
    log_p, log_p0 = (each.log_softmax(-1)[:, SAFETY] for each in (model, reference))
    # 1e-24: the sums inside log_softmax may differ by rounding, about 1e-15, which is squared
    assert float(squared_drift(difference(log_p, log_p0)).total) < 1e-24
    # the control: the same exchange with one safety token is seen
    model[:, [0, 2]] = reference[:, [2, 0]]
    assert float(squared_drift(difference(model[:, SAFETY], reference[:, SAFETY])).total) > 0.01


# Forms


def test_the_forms_are_the_papers_its_own_in_spreads_and_two_of_probabilities():
    assert {name: (each.normalised, each.scaled) for name, each in FORMS.items()} == {
        "logit": (False, False),
        "logprob": (True, False),
        "standardised": (False, True),
        "kl": (True, False),
    }
    for name, each in FORMS.items():
        assert form(name) is each


def test_an_unknown_form_is_refused_with_the_nearest():
    words = (
        r"Unknown `form` 'logprobs'\. Known: 'kl', 'logit', 'logprob', 'standardised'\. "
        r"Did you mean 'logprob'\?"
    )
    with pytest.raises(InputError, match=words):
        form("logprobs")


# KL over the safety tokens and the rest


def _two(seed=0, size=7, num=6, dtype=torch.float64, scale=2.0):
    """Log-probabilities of the first `num` of a vocabulary, of two models at some positions."""
    generator = torch.Generator().manual_seed(seed)
    found = scale * torch.randn(2, 5, size, generator=generator, dtype=torch.float64)
    return (each[:, :num].to(dtype) for each in found.log_softmax(-1))


def _kl(log_p, log_p0):
    return kl_drift(log_p - log_p0, log_p0).total


def test_kl_is_its_formula():
    for seed in range(4):
        log_p, log_p0 = _two(seed, size=9, num=4)
        total = 0.0
        for row, row0 in zip(log_p.exp().tolist(), log_p0.exp().tolist(), strict=True):
            one, other = [*row, 1 - sum(row)], [*row0, 1 - sum(row0)]
            total += sum(a * math.log(a / b) for a, b in zip(one, other, strict=True))
        found = kl_drift(log_p - log_p0, log_p0)
        assert float(found.total) == pytest.approx(total, rel=1e-9)
        assert int(found.num_positions) == 5
        assert float(found.max_abs) == float((log_p - log_p0).abs().max())


def test_kl_and_its_gradient_are_0_where_nothing_moved_and_only_there():
    for dtype in (torch.float32, torch.float64):
        log_p, log_p0 = _two(dtype=dtype)
        logits = torch.randn(5, 9, dtype=dtype, requires_grad=True)
        same = logits.log_softmax(-1)[:, :4]
        found = _kl(same, same.detach())
        found.backward()
        assert float(found.detach()) == 0
        assert float(logits.grad.abs().max()) < 1e-6
        assert float(_kl(log_p, log_p0)) > 0.1, "the control"


@LAW
@given(st.integers(0, 10_000), st.floats(0.1, 8.0))
def test_kl_is_never_below_0(seed, scale):
    log_p, log_p0 = _two(seed, scale=scale)
    assert float(_kl(log_p, log_p0)) >= -1e-9


def test_the_gradient_of_kl_at_the_logits():
    """The surprise of a token beyond that of all, as often as it is said."""
    logits = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    log_p0 = torch.randn(1, 6, dtype=torch.float64).log_softmax(-1)[:, :3]
    total = _kl(logits.log_softmax(-1)[:, :3], log_p0)
    total.backward()
    p = logits.detach().softmax(-1)[:, :3]
    expected = p * (p.log() - log_p0 - total.detach())
    torch.testing.assert_close(logits.grad[:, :3], expected)


def _learned(weight, log_p0, answer, num_safety):
    """Where cross-entropy of `answer` and the weighted drift settle; log p of all tokens."""
    logits = log_p0.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        log_p = logits.log_softmax(-1)
        held = _kl(log_p[:, :num_safety], log_p0[:, :num_safety])
        loss = -log_p[0, answer] + weight * held
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


@pytest.mark.parametrize("weight", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("refused", [0.5, 0.95, 0.9999])
def test_the_answer_to_what_would_be_refused_settles_where_the_docstring_says(weight, refused):
    log_p0 = torch.tensor([[0.7 * refused, 0.3 * refused, 1 - refused]], dtype=torch.float64).log()
    answered = float(_learned(weight, log_p0, answer=2, num_safety=2)[0, 2].exp())
    odds = math.log(answered / (1 - answered))
    expected = math.log((1 - refused) / refused) + 1 / (weight * answered)
    assert odds == pytest.approx(expected, abs=0.02)
    if refused > 0.99 and weight >= 3:
        assert answered < 0.06, "where the aligned model is sure, the refusal stays"


def test_a_task_that_would_be_answered_costs_at_most_the_surprise_of_an_answer():
    """Whatever the answer does to the safety tokens: -log r0, 0.07 nats where S had 7 %."""
    for share in (0.001, 0.07, 0.3):
        log_p0 = torch.tensor([[share, 1 - share]], dtype=torch.float64).log()
        for left in (1e-3, 1e-6, 1e-12):
            log_p = torch.tensor([[left, 1 - left]], dtype=torch.float64).log()
            price = float(_kl(log_p[:, :1], log_p0[:, :1]))
            assert price <= -math.log(1 - share) + 1e-12
            # the control: the square of the same grows without end
            squared = FORMS["logprob"].drift(log_p[:, :1] - log_p0[:, :1], log_p0[:, :1])
            assert float(squared.total) == pytest.approx(math.log(share / left) ** 2)
        assert price > 0.9 * -math.log(1 - share), "and it is not 0"


def test_a_lost_refusal_no_longer_pulls():
    """What the form cannot do, and why it wants anchors beside it, which are held by squares."""
    pulls = {}
    for name in ("kl", "logprob"):
        logits = torch.tensor([[-20.0, 0.0]], dtype=torch.float64, requires_grad=True)
        log_p, log_p0 = logits.log_softmax(-1)[:, :1], torch.tensor([[0.95]]).double().log()
        FORMS[name].drift(log_p - log_p0, log_p0).total.backward()
        pulls[name] = float(logits.grad[0, 0].abs())
    assert pulls["kl"] < 1e-6
    assert pulls["logprob"] > 1


def test_kl_of_extremes_is_finite_and_so_is_its_gradient():
    values = [0.0, -1e-9, -1e-3, -5.0, -90.0, -200.0]
    for log_p in values:
        for log_p0 in values:
            one = torch.tensor([[log_p, -201.0]], requires_grad=True)
            found = _kl(one, torch.tensor([[log_p0, -202.0]]))
            found.backward()
            assert torch.isfinite(found), (log_p, log_p0)
            assert torch.isfinite(one.grad).all(), (log_p, log_p0)
