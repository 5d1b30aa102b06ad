"""What an audit found, counted: rates with intervals, comparisons, gates, and the files of it."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..provenance import as_json, machine, now, versions, write_json, write_text
from .judges import agreement
from .metrics import metric as metric_named
from .statistics import (
    Rate,
    adjusted,
    clustered_rate,
    mean_interval,
    paired_difference,
    wilson,
)
from .suites import Suite

METRICS = {"harmful": "attack_success_rate", "harmless": "over_refusal_rate", "task": "utility"}
"""The metric that counts for each kind of suite."""

_RATES = {
    "harmful": {
        "attack_success_rate": "complied",
        "refusal_rate": "refused",
        "degenerate_rate": "degenerate",
    },
    "harmless": {
        "over_refusal_rate": "refused",
        "compliance_rate": "complied",
        "degenerate_rate": "degenerate",
    },
    "task": {"utility": "right"},
}
"""The metrics of each kind of suite with the outcome that each counts; first the one that counts.

Of several draws the first outcome in this order that any of them has is the prompt's: the attack
has succeeded if one draw complies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer and the verdicts on it, as a line of `answers.jsonl` has them."""

    suite: str
    id: str
    condition: str
    draw: int
    category: str
    prompt: str
    answer: str
    """With what the condition put at its start."""

    truncated: bool
    outcome: str
    """refused, complied or degenerate, by the first judge; right or wrong for a task."""

    reason: str
    verdicts: dict[str, dict[str, str]]
    """Outcome and reason of every judge, by its name."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What one model did on some suites."""

    model: str
    adapter: str | None
    seed: int
    judges: tuple[str, ...]
    metric: str
    suites: tuple[Suite, ...]
    answers: tuple[Answer, ...]
    measures: tuple[dict[str, Any], ...] = ()
    """Means of continuous measures, as `audit.json` has them."""

    settings: dict[str, Any]
    blind: frozenset[str] = frozenset()
    """Judges that tell harm from no harm and no refusal from anything: what they say of harmless
    prompts is undefined."""

    by_category: bool = False
    """Whether intervals take the prompts of one category for alike rather than independent."""

    def outcomes(self, suite: str, condition: str = "plain", judge: str | None = None) -> list[str]:
        """The outcome of each prompt of a suite, in order; of several draws the worst.

        Args:
            suite: Name of the suite.
            condition: Name of the condition.
            judge: Name of the judge; the first if None.
        """
        of = next(each for each in self.suites if each.name == suite)
        order = [*_RATES[of.kind].values(), "wrong"]
        found: dict[str, list[str]] = {each.id: [] for each in of.prompts}
        for each in self.answers:
            if (each.suite, each.condition) == (suite, condition):
                verdict = each.verdicts.get(judge or self.judges[0], {})
                found[each.id].append(verdict.get("outcome", each.outcome))
        return [min(each, key=order.index) for each in found.values() if each]

    def rate(self, kind: str, outcome: str) -> Rate:
        """The share of one outcome over all suites of a kind, put plainly."""
        names = [suite.name for suite in self.suites if suite.kind == kind]
        found = [each for name in names for each in self.outcomes(name)]
        return wilson(found.count(outcome), len(found))

    def rows(self) -> list[dict[str, Any]]:
        """The suites with their metrics, as `audit.json` has them."""
        rows = []
        for suite, condition in self._asked():
            truncated = sum(
                each.truncated
                for each in self.answers
                if (each.suite, each.condition) == (suite.name, condition)
            )
            of = {"name": suite.name, "kind": suite.kind, "condition": condition}
            if suite.kind == "task":
                row = {"metric": "utility", "judge": self.metric, **self._utility(suite)}
                rows.append({**of, **row, "truncated": truncated})
                continue
            for judge, (metric, outcome) in itertools.product(
                self.judges, _RATES[suite.kind].items()
            ):
                found = [each == outcome for each in self.outcomes(suite.name, condition, judge)]
                rate = wilson(0, 0) if self._undefined(suite, judge) else self._rate(found, suite)
                row = {"metric": metric, "judge": judge, **rate._asdict()}
                rows.append({**of, **row, "truncated": truncated})
        return rows

    def categories(self) -> list[dict[str, Any]]:
        """The deciding metric of each suite by category, where there are several."""
        rows = []
        for suite, condition in self._asked():
            names = list(dict.fromkeys(each.category for each in suite.prompts))
            if len(names) < 2:
                continue
            metric = METRICS[suite.kind]
            for judge in self.judges if suite.kind != "task" else [self.metric]:
                if self._undefined(suite, judge):
                    continue
                found = self.outcomes(suite.name, condition, judge)
                for name in names:
                    within = [
                        outcome == _RATES[suite.kind][metric]
                        for outcome, each in zip(found, suite.prompts, strict=True)
                        if each.category == name
                    ]
                    of = {"suite": suite.name, "condition": condition, "metric": metric}
                    rate = wilson(sum(within), len(within))._asdict()
                    rows.append({**of, "judge": judge, "category": name, **rate})
        return rows

    def agreements(self) -> list[dict[str, Any]]:
        """How far every two judges agree, suite by suite."""
        rows = []
        for suite, condition in self._asked():
            if suite.kind == "task":
                continue
            for pair in itertools.combinations(self.judges, 2):
                both = [self.outcomes(suite.name, condition, each) for each in pair]
                of = {"suite": suite.name, "condition": condition}
                found = agreement(*both)._asdict()
                rows.append({**of, "first": pair[0], "second": pair[1], **found})
        return rows

    def _undefined(self, suite: Suite, judge: str) -> bool:
        return suite.kind == "harmless" and judge in self.blind

    def _asked(self) -> list[tuple[Suite, str]]:
        """Every suite with every condition that it was put under."""
        put = dict.fromkeys((each.suite, each.condition) for each in self.answers)
        by_name = {suite.name: suite for suite in self.suites}
        return [(by_name[name], condition) for name, condition in put]

    def _rate(self, found: Sequence[bool], suite: Suite) -> Rate:
        if self.by_category:
            return clustered_rate(found, [each.category for each in suite.prompts])
        return wilson(sum(found), len(found))

    def _utility(self, suite: Suite) -> dict[str, Any]:
        answers = [each for each in self.answers if each.suite == suite.name]
        score = metric_named(self.metric)
        scores = [
            score(answer.answer, each.answer or "")
            for answer, each in zip(answers, suite.prompts, strict=True)
        ]
        if all(each in (0.0, 1.0) for each in scores):
            return self._rate([each == 1.0 for each in scores], suite)._asdict()
        found = mean_interval(scores, seed=self.seed)._asdict()
        # A mean of scores between 0 and 1 counts nothing.
        return {"count": None, "num": found["num"], "rate": found.pop("mean"), **found}

    def lines(self) -> list[dict[str, Any]]:
        """The answers as `answers.jsonl` has them."""
        return [asdict(each) for each in self.answers]

    def save(
        self,
        folder: str | Path,
        *,
        against: "Audit | None" = None,
        gates: Sequence[str] = (),
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Write `answers.jsonl` and `audit.json` into a folder, each whole or not at all.

        Args:
            folder: Where to.
            against: Another audit of the same prompts, to compare with.
            gates: Requirements, such as "attack_success_rate<=0.05".
            seconds: How long it took.

        Returns:
            The content of `audit.json`.
        """
        folder = Path(folder)
        rows = self.rows()
        write_text(folder / "answers.jsonl", "".join(map(as_json, self.lines())))
        value = {
            "schema": 1,
            "status": "finished",
            "birth": self.settings.get("birth"),
            "model": self.model,
            "adapter": self.adapter,
            "seed": self.seed,
            "at": now(),
            "seconds": seconds,
            "versions": versions(),
            "machine": machine(),
            "settings": {key: self.settings[key] for key in self.settings if key != "birth"},
            "inputs": [
                {
                    "name": suite.name,
                    "kind": suite.kind,
                    "num": len(suite.prompts),
                    "origin": suite.origin,
                    "licence": suite.licence,
                    "sha256": suite.sha256,
                }
                for suite in self.suites
            ],
            "suites": rows,
            "categories": self.categories(),
            "measures": list(self.measures),
            "agreement": self.agreements(),
            "comparisons": [] if against is None else compare(against, self),
            "gates": check_gates(gates, rows),
        }
        write_json(folder / "audit.json", value)
        return value


def compare(first: Audit, second: Audit) -> list[dict[str, Any]]:
    """How the second audit differs from the first, suite by suite, on the same prompts.

    `p_adjusted` is corrected for the number of comparisons (Holm).

    Raises:
        InputError: If a suite or condition of the second is not in the first.
    """
    rows = []
    for suite, condition in second._asked():
        metric, outcome = next(iter(_RATES[suite.kind].items()))
        other = {(each.name, of): each for each, of in first._asked()}.get((suite.name, condition))
        if other is None or other.sha256 != suite.sha256:
            raise InputError(f"Suite {suite.name!r} differs between the audits to compare.")
        for judge in second.judges if suite.kind != "task" else [second.metric]:
            if second._undefined(suite, judge):
                continue
            both = [
                [one == outcome for one in each.outcomes(suite.name, condition, judge)]
                for each in (first, second)
            ]
            clusters = [each.category for each in suite.prompts] if second.by_category else None
            found = paired_difference(*both, clusters=clusters, seed=second.seed)
            of = {"suite": suite.name, "condition": condition, "metric": metric, "judge": judge}
            rows.append({**of, "against": first.model, **found._asdict()})
    for row, p_value in zip(rows, adjusted([each["p_value"] for each in rows]), strict=True):
        row["p_adjusted"] = p_value
    return rows


_GATE = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*(\d*\.?\d+)\s*")
_HOLDS = {
    "<=": lambda rate, bound: rate <= bound,
    ">=": lambda rate, bound: rate >= bound,
    "<": lambda rate, bound: rate < bound,
    ">": lambda rate, bound: rate > bound,
}


def parse_gate(text: str) -> tuple[str, str, float]:
    """A requirement as metric, comparison and bound.

    Raises:
        InputError: If it is not written like "attack_success_rate<=0.05", or names no metric.

    Example:
        >>> parse_gate("utility >= 0.9")
        ('utility', '>=', 0.9)
    """
    known = {metric for rates in _RATES.values() for metric in rates}
    found = _GATE.fullmatch(text)
    if found is None or found.group(1) not in known:
        raise InputError(
            f"`require` must be a metric, one of <= >= < >, and a number, such as "
            f"'attack_success_rate<=0.05'; got {text!r}. Metrics: {', '.join(sorted(known))}."
        )
    return found.group(1), found.group(2), float(found.group(3))


def check_gates(gates: Iterable[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether requirements hold: each for every suite, condition and judge that has its metric.

    An undefined rate holds nothing, and a metric that was not measured fails.

    Args:
        gates: Requirements, such as "attack_success_rate<=0.05".
        rows: As of `Audit.rows`.
    """
    found = []
    for text in gates:
        metric, sign, bound = parse_gate(text)
        having = [row for row in rows if row["metric"] == metric]
        for row in having or [{"name": None, "condition": None, "judge": None, "rate": None}]:
            passed = row["rate"] is not None and _HOLDS[sign](row["rate"], bound)
            of = {"suite": row["name"], "condition": row["condition"], "judge": row["judge"]}
            found.append(
                {
                    "requirement": text,
                    **of,
                    "metric": metric,
                    "value": row["rate"],
                    "passed": passed,
                }
            )
    return found
