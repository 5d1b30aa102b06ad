"""The controller of a budget: its laws alone, and in real trainers."""

import math

import pytest
import torch
from helpers import conversations, lora, moved, paper, settings, str_trainer, trained
from hypothesis import given
from hypothesis import strategies as st

from moorline import InputError, Regularizer, STRConfig
from moorline.method.budget import HIGHEST, LOWEST, RATIO, WeightController


def test_a_drift_at_the_budget_leaves_the_weight_where_it_is():
    controller = WeightController(0.2)
    for _ in range(20):
        controller.update(0.2**2)
    assert controller.weight == pytest.approx(1.0)


@pytest.mark.parametrize(("drift", "sign"), [(0.2, 1), (0.001, -1)])
def test_the_weight_goes_against_the_drift(drift, sign):
    controller = WeightController(0.2)
    before = math.log(controller.weight)
    for _ in range(3):
        controller.update(drift)
        assert sign * (math.log(controller.weight) - before) > 0
        before = math.log(controller.weight)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(1e-3, 10))
def test_the_weight_stays_within_its_bounds_whatever_is_measured(drifts, budget):
    controller = WeightController(budget)
    for each in drifts:
        controller.update(each, task_norm=1.0, drift_norm=each)
        assert LOWEST <= controller.weight <= HIGHEST


def test_the_drift_never_drowns_the_task():
    controller = WeightController(1e-3)
    for _ in range(50):  # a drift whose gradient is 40 times the task's for each unit of weight
        controller.update(1.0, task_norm=1.0, drift_norm=40 * controller.weight)
        assert 40 * controller.weight <= RATIO * (1 + 1e-9)
    free = WeightController(1e-3)
    for _ in range(50):
        free.update(1.0)
    assert 40 * free.weight > RATIO, "without norms nothing caps it"


@pytest.mark.parametrize("strength", [0.05, 1.0, 20.0])
def test_it_finds_the_weight_of_a_quadratic_problem(strength):
    """Minimise strength * (x - 1)^2 subject to x^2 <= b^2: x = strength / (strength + weight)."""
    budget, controller = 0.25, WeightController(0.25)
    for _ in range(200):
        x = strength / (strength + controller.weight)
        controller.update(x**2)
    assert abs(x) <= budget * 1.05
    exact = strength * (1 / budget - 1)
    if exact > LOWEST:
        assert controller.weight == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_and_leaves_the_weight(bad):
    controller = WeightController(0.2)
    controller.update(0.5)
    before = controller.weight
    with pytest.raises(InputError, match=r"checkpoint.*learning_rate"):
        controller.update(bad)
    assert controller.weight == before
    controller.update(0.2**2, 1.0, bad)  # a step that a gradient scaler skips
    assert math.isfinite(controller.weight)


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    unbroken, first = WeightController(0.2), WeightController(0.2)
    for each in (0.5, 0.3, 0.01):
        unbroken.update(each, 1.0, 3.0)
        first.update(each, 1.0, 3.0)
    second = WeightController(0.2)
    second.load(first.state())
    for each in (0.2, 0.04):
        unbroken.update(each, 1.0, 3.0)
        second.update(each, 1.0, 3.0)
        assert second.weight == unbroken.weight
    with pytest.raises(InputError, match=r"budget 0\.2.*0\.3"):
        WeightController(0.3).load(first.state())


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), math.inf])
def test_a_budget_is_above_zero(budget):
    with pytest.raises(InputError, match="`budget` must be a number above 0"):
        paper(budget=budget)


def test_a_weight_and_a_budget_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match="`weight` 3.0 and `budget` 0.1 are both given"):
        paper(weight=3.0, budget=0.1)
    with pytest.raises(InputError, match="`str_weight` 3.0 and `str_budget`"):
        settings(STRConfig, tmp_path, str_weight=3.0, str_budget=0.1)


@pytest.mark.lengthy
def test_a_budget_holds_where_plain_training_leaves_it(
    make_model, rows, tokenizer, tokens, tmp_path
):
    def last_drifts(**changes):
        trainer = str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(), max_steps=60, **changes
        )
        return [each["str/drift"] for each in trained(trainer)[1][-10:]]

    budget = 0.3
    free, held = last_drifts(str_weight=0.0), last_drifts(str_budget=budget)
    assert min(free) > 4 * budget**2
    assert math.sqrt(sum(held) / len(held)) < 1.25 * budget


LAYOUTS = [(4, 1), (1, 4), (2, 2)]


@pytest.mark.lengthy
def test_the_weight_found_is_the_same_in_every_layout_of_a_batch(
    make_model, rows, tokenizer, tokens, tmp_path
):
    found = []
    for batch, accumulation in LAYOUTS:
        trainer = str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path, max_steps=4, str_budget=0.2,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential", optim="sgd",
        )  # fmt: skip
        _, log = trained(trainer)
        found.append([entry["str/weight"] for entry in log])
    assert found[0][-1] != found[0][0], "the controller is at work"
    for other in found[1:]:
        # 1e-4: float32 sums in another order, through three steps
        assert other == pytest.approx(found[0], rel=1e-4)


@pytest.mark.lengthy
def test_a_resumed_run_finds_the_weights_of_an_unbroken_one(
    make_model, rows, tokenizer, tokens, tmp_path
):
    def trainer(**changes):
        return str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(), str_budget=0.2, max_steps=6,
            save_strategy="steps", save_steps=3, **changes,
        )  # fmt: skip

    whole, log = trained(trainer())
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    for name, each in resumed.model.named_parameters():
        if each.requires_grad:
            assert torch.equal(each, whole[name]), name
    again = [entry for entry in resumed.state.log_history if "loss" in entry]
    assert len({each["str/weight"] for each in again}) > 3, "the controller is at work"
    assert [each["str/weight"] for each in again] == [each["str/weight"] for each in log]
    (tmp_path / "out" / "checkpoint-3" / "moorline_state.json").unlink()
    with pytest.raises(InputError, match=r"moorline_state\.json is missing"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))


def test_a_loop_of_ones_own_settles_the_weight_after_each_step(make_model, tokenizer, tokens):
    model = moved(make_model)
    regularizer = Regularizer(model, tokens, paper(budget=0.1))
    texts = [tokenizer.apply_chat_template(each["messages"], tokenize=False)
             for each in conversations(4)]  # fmt: skip
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.train()
    weights = []
    for _ in range(3):
        with regularizer.watch(model, batch) as drift:
            loss = model(**batch).loss
        (loss + regularizer.weighted(drift)).backward()
        model.zero_grad()
        regularizer.next_step()
        weights.append(regularizer.strength.weight_of("drift"))
    assert weights == sorted(weights)
    assert weights[-1] > 1


def test_a_step_without_a_task_leaves_the_weight_alone():
    """A step in which every row is in conflict took the next weight to its lowest."""
    weights = []
    for task in (1.0, 0.0):
        controller = WeightController(0.5)
        for _ in range(30):
            controller.update(1.0, 1.0, 0.1)
        before = controller.weight
        controller.update(1.0, task, 0.1)
        weights.append(controller.weight / before)
    assert weights[1] > 0.9
    assert weights[1] == pytest.approx(weights[0], rel=0.2)
