"""Rates of an audit as the Hugging Face Hub shows them: `model-index`, and `.eval_results/`."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..audit.formats import FORMATS
from ..audit.measurements import Measurement
from ..audit.outcomes import KINDS, deciding
from ..provenance import write_text
from ..report import write_card
from ..report.card import write_results
from .audited import Audited, read_audit


def write_hub(folder: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write the rates of an audit into the metadata of a model's folder.

    `model-index` in `README.md` takes every rate with its interval. A published suite, which has a
    data set on the hub, also gets a file in `.eval_results/`: the hub shows those of data sets that
    are registered as benchmarks. That format has no interval, so the notes say it.

    Args:
        folder: A folder with `audit.json`; with `run.json` too, the card also says how it was
            tuned.
        output: Folder of the model; `folder` itself if None.

    Returns:
        The paths of the files.

    Raises:
        InputError: If the folder holds no finished audit, or a card that cannot be read.
    """
    folder, output = Path(folder), Path(output or folder)
    audited = read_audit(folder)
    if (folder / "run.json").is_file() and output == folder:
        written = [write_card(folder)]
    else:
        written = [write_results(folder, output / "README.md")]
    for suite in audited.suites:
        if entries := list(_entries(audited, suite.name)):
            path = output / ".eval_results" / f"moorline-{suite.name}.yaml"
            found = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
            write_text(path, found)
            written.append(path)
    return written


def _entries(audited: Audited, suite: str) -> Iterator[EvalResultEntry]:
    """The deciding rate of a published suite, put plainly, by each judge."""
    # A set of two kinds gives two suites, named after it and the kind.
    names = [suite, *(suite.removesuffix(f"-{kind}") for kind in KINDS)]
    found = next((FORMATS[each] for each in names if each in FORMATS), None)
    if found is None or not found.hub:
        return
    for row in audited.about(suite, "plain"):
        decides = row.kind in KINDS and row.metric == deciding(row.kind).name
        if decides and row.value is not None:
            yield EvalResultEntry(
                dataset_id=found.hub, task_id=found.config or "default", value=row.value,
                date=audited.at, notes=_notes(row),
            )  # fmt: skip


def _notes(row: Measurement) -> str:
    ends = "" if row.low is None else f", 95 % interval {row.low:.4f} to {row.high:.4f}"
    return f"{row.metric}, n = {row.num}{ends}, judge {row.judge}, by Moorline"
