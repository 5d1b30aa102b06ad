"""Precision and recall of the judges on the labelled answers: the table of docs/judges.md.

    python benchmarks/judges.py --json out.json
    python benchmarks/judges.py --judges guard:wildguard=PATH keywords --json out.json
    python benchmarks/judges.py --answers rows.jsonl --field output

The last form judges answers of your own that have no labels, and shows the share of each outcome.
"""

import argparse
import json
from pathlib import Path

from moorline.audit.judges import JUDGED, JUDGES, agreement, judge
from moorline.audit.statistics import wilson
from moorline.provenance import now, sha256_of, versions, write_json
from moorline.tables import rows_of

FOLDER = Path(__file__).parent.parent / "tests" / "labelled_answers"
FILES = ("written.jsonl", "embedded.jsonl")
TASK_LABELS = ("positive", "negative", "neutral", "entailment", "sports")
"""The answers of the imagined downstream task."""

MEASURED = tuple(name for name in JUDGES if name.startswith("keywords"))
"""Judges that need no weights and no program."""


def labelled_rows():
    """All labelled answers, in order."""
    return [json.loads(line) for name in FILES for line in (FOLDER / name).open(encoding="utf-8")]


def outcomes_of(name, rows):
    """What a judge says of each row."""
    found = judge(name, labels=TASK_LABELS).verdicts(
        [row["prompt"] for row in rows], [row["answer"] for row in rows]
    )
    return [each.outcome for each in found]


def precision_and_recall(outcomes, rows):
    """For each outcome: how many that are called so are so, and how many that are so are called so.

    Each is a rate with its count, number and Wilson interval.
    """
    found = {}
    for outcome in JUDGED:
        called = [row["label"] for row, each in zip(rows, outcomes, strict=True) if each == outcome]
        so = [each for row, each in zip(rows, outcomes, strict=True) if row["label"] == outcome]
        found[outcome] = {
            "precision": wilson(called.count(outcome), len(called))._asdict(),
            "recall": wilson(so.count(outcome), len(so))._asdict(),
        }
    return found


def measure(name, rows):
    """All numbers of one judge: English as a whole and by part, other languages, and by style."""
    outcomes = dict(zip((row["id"] for row in rows), outcomes_of(name, rows), strict=True))

    def scores(kept):
        return precision_and_recall([outcomes[row["id"]] for row in kept], kept)

    english = [row for row in rows if row["language"] == "en"]
    styles = dict.fromkeys(f"{row['label']}, {row['style']}" for row in english)
    return {
        "judge": name,
        "english": scores(english),
        "look": scores([row for row in english if row["part"] == "look"]),
        "held_out": scores([row for row in english if row["part"] == "held_out"]),
        "other_languages": scores([row for row in rows if row["language"] != "en"]),
        "right_by_style": {
            style: {
                "count": sum(outcomes[row["id"]] == row["label"] for row in kept),
                "num": len(kept),
            }
            for style in styles
            for kept in [[row for row in english if f"{row['label']}, {row['style']}" == style]]
        },
        "agreement_with_labels": agreement(
            [row["label"] for row in english], [outcomes[row["id"]] for row in english]
        )._asdict(),
        "wrong": {
            row["id"]: outcomes[row["id"]] for row in rows if outcomes[row["id"]] != row["label"]
        },
    }


def table(measured, part):
    """The rows of one part as Markdown: rate, 95 % interval, and the number that it is of."""
    lines = [
        "| judge | refused: precision | refused: recall | complied: precision | complied: recall |",
        "|---|---|---|---|---|",
    ]
    for each in measured:
        cells = [
            f"{rate['rate']:.3f} [{_short(rate['low'])}, {_short(rate['high'])}] {rate['num']}"
            for outcome in ("refused", "complied")
            for rate in (each[part][outcome]["precision"], each[part][outcome]["recall"])
        ]
        name = each["judge"].removeprefix("keywords:")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(share):
    return f"{share:.2f}".removeprefix("0")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    parser.add_argument("--judges", nargs="+", default=list(MEASURED))
    parser.add_argument("--answers", type=Path, help="answers without labels to judge instead")
    parser.add_argument("--field", default="answer", help="the field with the answer")
    words = parser.parse_args()
    if words.answers:
        answers = [str(row.values[words.field]) for row in rows_of(words.answers)]
        for name in words.judges:
            found = judge(name).verdicts([""] * len(answers), answers)
            said = [each.outcome for each in found]
            print(name, *(f"{each} {said.count(each)}/{len(said)}" for each in JUDGED))
        return
    rows = labelled_rows()
    measured = [measure(name, rows) for name in words.judges]
    for part in ("english", "look", "held_out"):
        print(f"\n{part}\n{table(measured, part)}")
    if words.json:
        hashes = {name: sha256_of(FOLDER / name) for name in FILES}
        birth = {"schema": 1, "at": now(), "versions": versions(), "sha256": hashes}
        write_json(words.json, {**birth, "num": len(rows), "judges": measured})


if __name__ == "__main__":
    main()
