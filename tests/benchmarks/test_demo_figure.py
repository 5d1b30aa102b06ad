"""The figure of the README says what its dated result says, and so does the table beneath it."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
from demo_figure import MODELS, PANELS, rates, run_of, svg

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
(RESULT,) = set(re.findall(r"benchmarks/results/[\w-]+-demo-[\w-]+\.json", README))
POISONED = run_of(ROOT / RESULT, 0.1)


def shown(text):
    """The rates that a figure tells, panel by panel, model by model."""
    return [float(each) for each in re.findall(r">([\d.]+) %</text>", text)]


def told(run):
    return [round(100 * row["value"], 1) for rows in rates(run).values() for _, row in rows]


def test_the_committed_figure_has_the_numbers_of_the_result():
    text = (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8")
    assert shown(text) == told(POISONED)
    assert len(shown(text)) == len(MODELS) * len(PANELS)
    for words in (*MODELS.values(), *PANELS):
        assert f">{words}</text>" in text


def test_the_committed_figure_is_what_the_command_draws():
    text = (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8")
    drawn_by = re.search(r"Matplotlib v([\d.]+)", text).group(1)
    if drawn_by != matplotlib.__version__:
        pytest.skip(f"drawn by matplotlib {drawn_by}, here is {matplotlib.__version__}")
    assert svg(POISONED) == text


def test_the_figure_of_another_result_differs():
    clean = run_of(ROOT / RESULT, 0.0)
    assert shown(svg(clean)) == told(clean) != told(POISONED)


def test_a_share_that_was_not_measured_is_refused(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"runs": [{"poison": 0.1}]}))
    with pytest.raises(SystemExit, match=r"has no run with `poison` 0.5. It has \[0.1\]"):
        run_of(path, 0.5)


def test_the_table_of_the_readme_has_the_numbers_of_the_result():
    table = re.search(r"<!-- demo table: begin -->(.*?)<!-- demo table: end", README, re.DOTALL)
    lines = re.findall(r"^\| ([\w -]+?) \| (.*%) \|$", table.group(1), flags=re.MULTILINE)
    columns = (
        ("attack_success_rate", "harmful"), ("refusal_rate", "harmful"),
        ("compliance_rate", "harmless"), ("degenerate_rate", "harmless"), ("utility", "task"),
    )  # fmt: skip
    measured = {
        MODELS[model["name"]]: [
            f"{100 * each['value']:.1f} %"
            for metric, kind in columns
            for each in model["measurements"]
            if (each["metric"], each["kind"]) == (metric, kind)
        ]
        for model in POISONED["models"]
    }
    assert {name: cells.split(" | ") for name, cells in lines} == measured
