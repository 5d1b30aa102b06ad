"""The demo over seeds, tasks, poison and weights: the figures of docs/method.md.

    python benchmarks/demo_seeds.py --json out.json --seeds 0 1 2 --poisons 0 0.1
    python benchmarks/demo_seeds.py --json paper.json --forms logit --weights 10 --anchors off

One line a run; the JSON file holds every number with its interval, settings, versions and machine.
"""

import argparse
import itertools
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from moorline.commands.demo import TRAINING, Demo, demo
from moorline.embedded import TASKS
from moorline.method.settings import AUTO_ANCHORS, DEFAULT_FORM
from moorline.provenance import machine, now, versions, write_json

RATES = ("attack_success_rate", "refusal_rate", "over_refusal_rate", "compliance_rate", "utility")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--poisons", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--weights", type=float, nargs="+", default=[None])
    parser.add_argument("--forms", nargs="+", default=[DEFAULT_FORM])
    parser.add_argument("--anchors", default=AUTO_ANCHORS)
    words = parser.parse_args()
    runs = []
    grid = itertools.product(words.tasks, words.poisons, words.forms, words.weights, words.seeds)
    for task, poison, form, weight, seed in grid:
        began = time.time()
        asked = Demo(
            seed=seed, poison=poison, task=task, weight=weight, form=form, anchors=words.anchors
        )
        with TemporaryDirectory() as folder:
            models = demo(folder, asked).runs
        seconds = round(time.time() - began, 1)
        rows = [
            {
                "name": run.name,
                "seconds": run.training_seconds,
                "measurements": [row.to_json() for row in run.rates],
            }
            for run in models
        ]
        runs.append({**asdict(asked), "training": TRAINING, "seconds": seconds, "models": rows})
        print(
            f"{task} poison {poison} {form} weight {weight or 'its own'} seed {seed}, {seconds} s"
        )
        for run in models:
            found = {row.metric: row.value for row in run.rates if row.condition == "plain"}
            rates = (f"{found[name]:.3f}" for name in RATES)
            print("   ", run.name.ljust(8), *rates, flush=True)
        value = {"schema": 2, "at": now(), "versions": versions(), "machine": machine()}
        write_json(words.json, {**value, "runs": runs})


if __name__ == "__main__":
    main()
