"""A plan is read whole, or refused with its file and the field that does not fit."""

import copy
import re

import pytest
import yaml

from moorline.compare import read_plan
from moorline.compare.cells import Cell, cells
from moorline.errors import InputError

GOOD = {
    "models": [{"name": "tiny", "path": "MODEL"}],
    "data": [{"name": "plans", "train": "hub/rows", "tasks": ["embedded:plans"]}],
    "methods": [
        {"name": "plain"},
        {"name": "str", "weights": [10, 1]},
        {"name": "kl", "strengths": [0.1]},
    ],
    "audit": {"harmful": ["embedded"], "harmless": ["embedded"]},
    "seeds": [0, 1],
    "training": {"max_steps": 30, "learning_rate": 3.0e-4},
}


def changed(place, value):
    """The good plan with one value changed, or left out if it is `...`."""
    plan = copy.deepcopy(GOOD)
    *path, last = place
    at = plan
    for each in path:
        at = at[each]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return plan


def written(tmp_path, plan):
    path = tmp_path / "plan.yaml"
    path.write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan))
    return path


def test_a_good_plan_is_read_and_its_cells_counted(tmp_path):
    plan = read_plan(written(tmp_path, GOOD))
    found = [cell for cell, _ in cells(plan)]
    # aligned, and for each of two seeds: plain, str at two weights, kl
    assert len(found) == 1 + 2 * 4
    assert found[0] == Cell(model="tiny", data="plans", method="aligned")
    assert len({each.path for each in found}) == len(found)
    assert [each.label for each in plan.methods[1].at()] == ["weight 1", "weight 10"]
    assert plan.methods[2].at()[0].words == ("--method", "kl", "--method_strength", "0.1")
    assert "aligned reference" in plan.methods[2].needs({})


def test_anchors_are_extra_data(tmp_path):
    """The cost column left them out."""
    anchored = {"name": "anchored", "method": "str", "weights": [3],
                "settings": {"str_anchors": "built-in"}}  # fmt: skip
    alone = {"name": "alone", "method": "str", "weights": [3], "settings": {"str_anchors": "off"}}
    methods = [{"name": "plain"}, {"name": "str", "weights": [3]}, anchored, alone]
    found = read_plan(written(tmp_path, {**GOOD, "methods": methods})).methods
    told = ["anchor prompts" in each.needs({}) for each in found]
    assert told == [False, True, True, False]  # the default has them
    assert "anchor prompts" not in found[1].needs({"str_anchors": "off"})


def test_the_share_of_wise_ft_protects_the_more_the_smaller_it_is(tmp_path):
    methods = [{"name": "plain"}, {"name": "wise_ft", "strengths": [0.3, 0.9]}]
    plan = read_plan(written(tmp_path, changed(("methods",), methods)))
    assert [each.label for each in plan.methods[1].at()] == ["strength 0.9", "strength 0.3"]


def test_budgets_are_weakest_first_and_a_method_may_have_another_name(tmp_path):
    methods = [
        {"name": "none", "method": "plain"},
        {"name": "held", "method": "str", "budgets": [0.1, 1.0], "settings": {"str_form": "logit"}},
    ]
    plan = read_plan(written(tmp_path, changed(("methods",), methods)))
    assert plan.plain().name == "none"
    assert [each.words for each in plan.methods[1].at()] == [
        ("--str_budget", "1"),
        ("--str_budget", "0.1"),
    ]


BAD = [
    (("models",), ..., "'models'"),
    (("models",), [], "`models`"),
    (("models",), "MODEL", "'models'"),
    (("models", 0, "name"), "a/b", "`name`"),
    (("models", 0, "name"), ..., "'models[0].name'"),
    (("models", 0, "path"), 7, "'models[0].path'"),
    (("models", 0, "folder"), "x", "'models[0].folder'"),
    (("data",), [], "`data`"),
    (("data", 0, "train"), ..., "'data[0].train'"),
    (("data", 0, "train"), [], "`train`"),
    (("data", 0, "train"), "missing.jsonl", "'data[0].train'"),
    (("data", 0, "tasks"), [], "`tasks`"),
    (("data", 0, "tasks"), ["missing.csv"], "'data[0].tasks'"),
    (("data", 0, "held_out"), "x", "`held_out`"),
    (("data", 0, "metric"), "exact", "metric"),
    (("data", 0, "question"), "speed", "'data[0].question'"),
    (("data", 0, "settings"), {"output_dir": "x"}, "'output_dir'"),
    (("methods",), [{"name": "str", "weights": [1]}], "`methods`"),
    (("methods", 0, "weights"), [1], "`weights`"),
    (("methods", 0, "name"), "aligned", "`name`"),
    (("methods", 1, "weights"), ..., "`weights`"),
    (("methods", 1, "weights"), ["heavy"], "'methods[1].weights[0]'"),
    (("methods", 0), {"name": "str", "weights": [1]}, "twice"),
    (("methods", 1, "weights"), [-1.0], "`weights`"),
    (("methods", 1, "weights"), [1, 1.0], "`weights`"),
    (("methods", 1, "budgets"), [0.1], "`budgets`"),
    (("methods", 1, "strengths"), [1], "`strengths`"),
    (("methods", 2, "weights"), [1], "`weights`"),
    (("methods", 2, "strengths"), [float("inf")], "NaN or Infinity"),
    (("methods", 2, "settings"), {"max_steps": 60}, "'max_steps'"),
    (("methods", 2, "settings"), {"method_strength": 2}, "'method_strength'"),
    (("methods", 2, "settings"), {"Max Steps": 60}, "'Max Steps'"),
    (("methods", 2, "name"), "kll", "Did you mean 'kl'"),
    (("methods", 2), {"name": "wise_ft", "strengths": [1.5]}, "alpha"),
    (("methods", 2), {"name": "safe_lora", "strengths": [0.5]}, "`method_base`"),
    (("methods", 2, "strengths"), [-0.1], "`strengths`"),
    (("methods", 2, "name"), "str", "`strengths`"),
    (("methods", 2, "name"), "plain", "`strengths`"),
    (("audit",), ..., "'audit'"),
    (("audit", "harmful"), [], "`harmful`"),
    (("audit", "conditions"), ["prefill"], "`conditions`"),
    (("audit", "conditions"), ["plain", "quiet"], "condition"),
    (("audit", "limit"), 0, "`limit`"),
    (("audit", "batch_size"), 2.5, "'audit.batch_size'"),
    (("audit", "max_new_tokens"), 0, "`max_new_tokens`"),
    (("audit", "perplexity"), "missing.jsonl", "'audit.perplexity'"),
    (("seeds",), [], "`seeds`"),
    (("seeds",), [0, 0], "`seeds`"),
    (("seeds",), [-1], "`seeds`"),
    (("seeds",), [True], "'seeds[0]'"),
    (("training",), {"seed": 3}, "'seed'"),
    (("training",), {"learning_rate": None}, "'training.learning_rate'"),
    (("validation",), 0, "`validation`"),
    (("validation",), 1.0, "`validation`"),
    (("margin",), -0.1, "`margin`"),
    (("threads",), 0, "`threads`"),
    (("keep_models",), "maybe", "'keep_models'"),
    (("speed",), 1, "'speed'"),
]


@pytest.mark.parametrize(("place", "value", "field"), BAD)
def test_a_bad_plan_is_refused_by_file_and_field(tmp_path, place, value, field):
    path = written(tmp_path, changed(place, value))
    with pytest.raises(InputError, match=re.escape(field)) as found:
        read_plan(path)
    assert str(found.value).startswith(str(path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "words"), [("models: [", "not YAML"), ("- a", "holds keys and values"), ("", "holds")]
)
def test_what_is_no_plan_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_plan(written(tmp_path, text))
    with pytest.raises(InputError, match="no such plan"):
        read_plan(tmp_path / "other.yaml")


def test_a_bare_off_in_a_plan_is_off_and_budgets_look_at_every_form(tmp_path):
    """YAML reads `off` as false, which the cells handed on as the word "False"."""
    off = {"str_anchors": False}
    methods = [{"name": "plain"}, {"name": "str", "weights": [3], "settings": off}]
    found = read_plan(written(tmp_path, {**GOOD, "methods": methods})).methods[1]
    assert found.settings == {"str_anchors": "off"}
    held = [{"name": "plain"}, {"name": "str", "budgets": [0.2]}]
    data = [{**GOOD["data"][0], "settings": {"str_form": "logprob"}}]
    assert read_plan(written(tmp_path, {**GOOD, "methods": held, "data": data})).methods[1].budgets
    data[0]["settings"] = {"str_form": "kl"}
    training = {**GOOD["training"], "str_form": "logprob"}
    with pytest.raises(InputError, match="form kl has none of"):
        read_plan(written(tmp_path, {**GOOD, "methods": held, "data": data, "training": training}))
