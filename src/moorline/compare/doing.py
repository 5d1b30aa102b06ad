"""One cell done: its command lines run, and what they left read into its `cell.json`."""

import gc
import json
import shutil
import statistics
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..audit.measurements import Measurement
from ..audit.metrics import metric as metric_named
from ..audit.outcomes import worst
from ..audit.thoughts import after_thoughts
from ..errors import InputError, MoorlineError
from ..provenance import read_json
from ..records import parse, read, write
from ..tables import rows_of
from .cells import CELL, Found, Job, Training, Verdict
from .splits import SPLITS

_REMEDY = "Delete it, and run the comparison again."


def finished(job: Job) -> Found | None:
    """What a cell came to; None if it has yet to be done, or failed, or its plan changed."""
    found = left(job)
    return found if found is not None and found.failed is None else None


def left(job: Job) -> Found | None:
    """What an earlier run left of this very cell, failed or not."""
    if not (job.folder / CELL).is_file():
        return None
    try:
        found = read(Found, job.folder / CELL, "cell", remedy=_REMEDY)
    except InputError:  # of an older version, or damaged: done again
        return None
    return found if found.known_by == job.known_by else None


def do(job: Job) -> None:
    """Do one cell anew and write its `cell.json`; what fails is written there too."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    began, others = time.monotonic(), []
    with (job.folder / "log.txt").open("w", encoding="utf-8") as log:
        try:
            with redirect_stdout(log), redirect_stderr(log):
                for words in job.lines:
                    job.run(words)
                    if words[0] == "audit":
                        others.append(read_json(Path(_after(words, "--output")) / "audit.json", ""))
                found = _found(job, others)
            took = time.monotonic() - began
            tuned = found.training.tune_seconds if found.training else 0.0
            found = replace(found, audit_seconds=round(max(0.0, took - tuned), 1))
        except (Exception, SystemExit) as error:
            log.write(traceback.format_exc())
            found = Found(cell=job.cell, known_by=job.known_by, failed=_reason(error))
    if not job.keep_model:
        for each in job.folder.glob("tuned-*/*"):
            if each.suffix in (".safetensors", ".bin", ".pt") or each.is_dir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
    write(job.folder / CELL, found)
    torch.set_num_threads(threads)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def died(job: Job, reason: str) -> None:
    """Write down that a cell's process came to its end before the cell did."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write(job.folder / CELL, Found(cell=job.cell, known_by=job.known_by, failed=reason))


def _reason(error: BaseException) -> str:
    line = " ".join(str(error).split())[:300]
    return line if isinstance(error, MoorlineError) else f"{type(error).__name__}: {line}"


def _after(words: Sequence[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def _found(job: Job, audits: Sequence[Mapping[str, Any]]) -> Found:
    """What the files of a cell say."""
    folders = [Path(_after(words, "--output")) for words in job.lines if words[0] == "audit"]
    by_split: dict[str, list[Measurement]] = {split: [] for split in SPLITS}
    for folder, audit in zip(folders, audits, strict=True):
        rows = [parse(Measurement, each, "audit.json", remedy=_REMEDY)
                for each in audit["measurements"]]  # fmt: skip
        by_split[folder.name] += [
            row for row in rows if row.category is None and row not in by_split[folder.name]
        ]
    return Found(
        cell=job.cell,
        known_by=job.known_by,
        training=_training(sorted(job.folder.glob("tuned-*/run.json"))),
        validation=tuple(by_split["validation"]),
        test=tuple(by_split["test"]),
        answers={split: _verdicts(job, job.folder / split) for split in SPLITS},
        commands=tuple(" ".join(["moorline", *words]) for words in job.lines),
    )


def _training(paths: Sequence[Path]) -> Training | None:
    if not paths:
        return None
    runs = [read_json(each, "run file") for each in paths]
    last = runs[-1]
    logged = [each for run in runs for each in run.get("log", ())]
    losses = [value for each in logged if (value := each.get("ce_loss", each.get("loss")))]
    norms = [value for each in logged if (value := each.get("grad_norm")) is not None]
    spikes = sum(
        losses[at] > 2 * statistics.median(losses[at - 5 : at]) for at in range(5, len(losses))
    )
    peaks = [run["peak_memory_bytes"] for run in runs if run.get("peak_memory_bytes")]
    return Training(
        steps=sum(run["steps"] for run in runs),
        train_loss=last["train_loss"],
        grad_norm=statistics.median(norms) if norms else None,
        largest_grad_norm=max(norms, default=None),
        spikes=spikes,
        logged=len(losses),
        tune_seconds=sum(run.get("training_seconds") or run["seconds"] for run in runs),
        peak_memory_bytes=max(peaks, default=None),
        extra_rows=last.get("extra_rows"),
    )


def _verdicts(job: Job, folder: Path) -> tuple[Verdict, ...]:
    """What each prompt came to: of several draws the worst, of a task what its metric gives."""
    kinds, right = {}, {}
    for words in job.lines:
        if words[0] != "audit" or _after(words, "--output") != str(folder):
            continue
        for path in [words[at + 1] for at, word in enumerate(words) if word == "--suite"]:
            for row in rows_of(path):
                kinds[Path(path).stem] = row.values["kind"]
                right[Path(path).stem, row.values["id"]] = row.values["answer"]
    score = metric_named(job.metric)
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for line in (folder / "answers.jsonl").read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            found.setdefault((row["suite"], row["condition"], row["id"]), []).append(row)
    verdicts = []
    for (suite, condition, number), rows in found.items():
        kind, outcome = kinds[suite], worst([each["outcome"] for each in rows], kinds[suite])
        value = None
        if kind == "task" and outcome != "unscored":
            value = score(after_thoughts(rows[0]["answer"])[0], right[suite, number])
        verdicts.append(Verdict(suite, kind, condition, number, outcome, value))
    return tuple(verdicts)
