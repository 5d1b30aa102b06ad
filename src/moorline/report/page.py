"""The page: verdict, tables, figures, examples, in one HTML text without any outside reference.

Answers of models are hidden until the reader asks, and always escaped.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from .figures import LOOKS, Drawing, look
from .runs import Number, Rows, Run

METRICS = (
    {"name": "attack_success_rate", "label": "attack success"},
    {"name": "refusal_rate", "label": "refused"},
    {"name": "degenerate_rate", "label": "degenerate"},
    {"name": "over_refusal_rate", "label": "over-refusal"},
    {"name": "utility", "label": "utility"},
)
"""What sums a model up."""

LABELS = {
    **{each["name"]: each["label"] for each in METRICS},
    "compliance_rate": "complied",
    "refusal_mass": "refusal mass",
    "rouge_l": "ROUGE-L",
}
_NUM_EXAMPLES = 8


def render(
    title: str, runs: Sequence[Run], drawings: Sequence[Drawing], *, notes: Sequence[str] = ()
) -> str:
    """The page as one HTML text.

    Args:
        title: What was measured, in a few words.
        runs: The models, first the one with which the others are compared.
        drawings: What `figures.draw` made of them.
        notes: What else these numbers cannot see.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moorline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "points": _points,
        "points_interval": _points_interval,
        "number": _number,
        "p_value": _p_value,
        "label": lambda name: LABELS.get(name, name.replace("_", " ")),
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
    }
    # What an audit was held against bears the name of its folder, where that is shown too.
    names = {audit.get("model"): run.name for run in reversed(runs)
             if (audit := run.origin.get("audit", {})).get("adapter") is None}  # fmt: skip
    environment.filters["called"] = lambda model: names.get(model, model)
    rows = headline(runs)
    gates = [{"run": run.name, **gate} for run in runs for gate in run.gates]
    return environment.get_template("report.html.jinja").render(
        title=title,
        verdict=verdict(rows),
        runs=runs,
        looks=[look(place) for place in range(len(runs))],
        palette=LOOKS,
        tiles=[_tile(run, row) for run, row in zip(runs, rows, strict=True)],
        gates=gates,
        passed=sum(bool(gate["passed"]) for gate in gates),
        rates=_rates_table(runs),
        categories=_side_by_side(runs, "categories", ("suite", "condition", "metric", "judge")),
        measures=_side_by_side(runs, "measures", ("suite", "condition")),
        figures={
            part: [each for each in drawings if each.name.split("-")[0] == part]
            for part in ("rates", "trade", "categories", "curves", "drift")
        },
        examples=examples_of(runs),
        token_sets=_token_sets(runs),
        facts=_facts(runs),
        inputs=list({tuple(each.items()): each for run in runs for each in run.inputs}.values()),
        conditions=list(dict.fromkeys(row["condition"] for run in runs for row in run.rates)),
        judges=list(
            dict.fromkeys(row["judge"] for run in runs for row in run.rates if row["judge"])
        ),
        origins=[(run.name, json.dumps(run.origin, indent=2, ensure_ascii=False)) for run in runs],
        notes=notes,
    )


def headline(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each model in one row: of every metric the first rate of the first model, plain if there is.

    The other models are read at the same suite, condition and judge; what they lack is None.
    """
    rows: list[dict[str, Any]] = [
        {"name": run.name, "intervals": {}, "num": {}, "chosen": {}} for run in runs
    ]
    for metric in (each["name"] for each in METRICS):
        every = [row for run in runs for row in run.rates if row["metric"] == metric]
        if not every:
            continue
        chosen = next((row for row in every if row["condition"] == "plain"), every[0])
        for run, row in zip(runs, rows, strict=True):
            found = next((each for each in run.rates if _same(each, chosen)), None)
            row[metric] = found and found["rate"]
            row["intervals"][metric] = [found and found["low"], found and found["high"]]
            row["num"][metric] = found["num"] if found else 0
            row["chosen"][metric] = chosen
    return rows


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the figures say, in one sentence.

    A model complies *more often* than the first if their intervals do not overlap; if they do, no
    difference is seen, which is no proof that there is none.

    Args:
        rows: Names with rates and intervals; the first row is what the others are compared with.
    """
    first, *others = rows
    said = []
    if "attack_success_rate" in first:
        rate = f"complies with {percent(first['attack_success_rate'])} of the harmful prompts"
        if others:
            rate = f"Compared with {first['name']}, which {rate}, " + listed(
                f"{row['name']} {_against(row, first, 'attack_success_rate', 'complies')}"
                for row in others
            )
        said.append(rate if others else f"{first['name']} {rate}")
    if "over_refusal_rate" in first and not others:
        said.append(f"it refuses {percent(first['over_refusal_rate'])} of the harmless prompts")
    said += [
        f"{row['name']} {_against(row, first, 'over_refusal_rate', 'refuses harmless prompts')}"
        for row in others
        if "over_refusal_rate" in first and _is_above(row, first, "over_refusal_rate")
    ]
    if "utility" in first:
        rates = listed(percent(row["utility"]) for row in rows)
        said.append(f"the task is done right in {rates}")
    return "; ".join(said) + "." if said else "No rates were measured."


def examples_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A few prompts of each kind with every model's answer: first those where the models differ."""
    columns = ("suite", "id", "condition", "draw")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for place, run in enumerate(runs):
        for each in run.answers:
            key = tuple(each[column] for column in columns)
            shared = ("kind", "prompt", *columns)
            example = found.setdefault(
                key, {**{name: each[name] for name in shared}, "answers": []}
            )
            example["answers"].append({"place": place, "name": run.name, **each})
    # Stable, so that within each group the order is that of the audit.
    ordered = sorted(
        found.values(), key=lambda each: -len({answer["outcome"] for answer in each["answers"]})
    )
    kinds = dict.fromkeys(each["kind"] for each in found.values())
    return [
        each
        for kind in kinds
        for each in [example for example in ordered if example["kind"] == kind][:_NUM_EXAMPLES]
    ]


def _tile(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    """The model in brief: its rates, its worst case, how it differs from what it was held to."""
    attacks = [
        each
        for each in run.rates
        if each["metric"] == "attack_success_rate" and each["rate"] is not None
    ]
    shown = row["chosen"].get("attack_success_rate")
    held = (each for each in run.comparisons if shown and _same(each, shown))
    return {
        "row": row,
        "worst": max(attacks, key=lambda each: each["rate"]) if len(attacks) > 1 else None,
        "difference": next(held, None),
    }


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows speak of the same measurement; a judge that is not named fits any."""
    return all(row[each] == other[each] for each in ("suite", "metric", "condition")) and (
        row["judge"] == other["judge"] or None in (row["judge"], other["judge"])
    )


def _rates_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The suites in order, each with its rows and in each row a cell for every run."""
    suites: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(runs):
        for row in run.rates:
            suite = suites.setdefault(row["suite"], {"kind": row["kind"], "rows": {}})
            key = (row["metric"], row["condition"], row["judge"])
            suite["rows"].setdefault(key, [None] * len(runs))[number] = row
    return [{"suite": name, **each} for name, each in suites.items()]


def _side_by_side(runs: Sequence[Run], table: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """One of the runs' tables, put in groups by some columns, with a cell for every run."""
    other = "category" if table == "categories" else "measure"
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, run in enumerate(runs):
        rows: Rows = getattr(run, table)
        for row in rows:
            key = tuple(row[column] for column in columns)
            cells = groups.setdefault(key, {}).setdefault(row[other], [None] * len(runs))
            cells[number] = row
    return [{**dict(zip(columns, key, strict=True)), "rows": rows} for key, rows in groups.items()]


def _token_sets(runs: Sequence[Run]) -> list[tuple[list[str], Rows]]:
    """Each set of safety tokens once, with the names of the models that share it."""
    found: dict[str, tuple[list[str], Rows]] = {}
    for run in runs:
        if run.safety_tokens:
            found.setdefault(json.dumps(run.safety_tokens), ([], run.safety_tokens))[0].append(
                run.name
            )
    return list(found.values())


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Where each run's numbers come from: the facts that a reader looks for first."""
    parts = [run.origin.get("audit") or run.origin.get("tuning") or run.origin for run in runs]
    settings = [part.get("settings") or {} for part in parts]
    versions = [part.get("versions") or {} for part in parts]
    found = [
        *(
            (name, [part.get(name) for part in parts])
            for name in ("model", "adapter", "seed", "at")
        ),
        *(
            (name.replace("_", " "), [each.get(name) for each in settings])
            for name in ("judges", "conditions", "max_new_tokens", "batch_size", "system_prompt")
        ),
        ("training seconds", [run.training_seconds for run in runs]),
        *(
            (name, [each.get(name) for each in versions])
            for name in dict.fromkeys(name for each in versions for name in each)
        ),
    ]
    return [
        (name, [_fact(value) for value in values])
        for name, values in found
        if any(value is not None for value in values)
    ]


def _fact(value: Any) -> Any:
    """A setting on one line: of a list its names."""
    if not isinstance(value, list):
        return value
    return ", ".join(str(each.get("name") if isinstance(each, dict) else each) for each in value)


def _against(row: Mapping[str, Any], first: Mapping[str, Any], metric: str, does: str) -> str:
    rate = percent(row[metric])
    if None in (*row["intervals"][metric], *first["intervals"][metric]):
        return f"cannot be compared ({rate})"
    if _is_above(row, first, metric):
        return f"{does} more often ({rate})"
    if _is_above(first, row, metric):
        return f"{does} less often ({rate})"
    return f"shows no difference ({rate})"


def _is_above(row: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> bool:
    """Whether the whole interval of one rate lies above that of another."""
    low, high = row["intervals"][metric][0], other["intervals"][metric][1]
    return low is not None and high is not None and low > high


def listed(parts: Iterable[str]) -> str:
    """Words in a row: "a, b and c"."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def percent(rate: Number | None) -> str:
    """A rate as people read it."""
    return "undefined" if rate is None else f"{100 * rate:.1f} %"


def _points(difference: Number | None) -> str:
    return "undefined" if difference is None else f"{_signed(difference)} points"


def _signed(share: Number) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _points_interval(row: Mapping[str, Any]) -> str:
    low, high = row["low"], row["high"]
    return "undefined" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def interval(row: Mapping[str, Any]) -> str:
    """The interval of a rate as people read it."""
    low, high = row["low"], row["high"]
    return "undefined" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"


def _p_value(value: Number | None) -> str:
    return "< 0.0001" if value is not None and value < 1e-4 else _number(value)


def _number(value: Number | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"
