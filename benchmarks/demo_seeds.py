"""The demo over seeds, tasks, poison and weights: the figures of docs/method.md.

    python benchmarks/demo_seeds.py --json out.json --seeds 0 1 2 --weights 10 --poisons 0 0.1

One line a run; the JSON file holds every row with its intervals, settings, versions and machine.
"""

import argparse
import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

from moorline.commands.demo import demo
from moorline.embedded import TASKS
from moorline.provenance import machine, now, versions, write_json
from moorline.trainer import STRConfig


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--poisons", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--weights", type=float, nargs="+", default=[STRConfig.str_weight])
    parser.add_argument("--forms", nargs="+", default=[STRConfig.str_form])
    words = parser.parse_args()
    runs = []
    grid = itertools.product(words.tasks, words.poisons, words.forms, words.weights, words.seeds)
    for task, poison, form, weight, seed in grid:
        with TemporaryDirectory() as folder:
            report = demo(folder, seed=seed, poison=poison, task=task, weight=weight, form=form)
        kept = ("task", "poison", "seed", "settings", "rows", "seconds")
        runs.append({key: report[key] for key in kept})
        print(f"{task} poison {poison} {form} weight {weight} seed {seed}, {report['seconds']} s")
        for row in report["rows"]:
            rates = ("attack_success_rate", "refusal_rate", "degenerate_rate",
                     "over_refusal_rate", "utility")  # fmt: skip
            print("   ", row["name"].ljust(8), *(f"{row[name]:.3f}" for name in rates), flush=True)
        value = {"schema": 1, "at": now(), "versions": versions(), "machine": machine()}
        write_json(words.json, {**value, "runs": runs})


if __name__ == "__main__":
    main()
