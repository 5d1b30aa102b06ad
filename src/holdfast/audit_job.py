"""`holdfast audit` as one call: load, ask, judge, measure, compare, write."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import embedded
from .audit import Audit, audit, parse_gate
from .chain import start_of
from .errors import InputError, unknown_choice
from .generation import VLLM
from .lm_eval_tasks import lm_eval_tasks
from .loading import load_chat_model
from .perplexity import perplexity
from .prompts import Suite, builtin_suites, read_suites
from .provenance import fingerprint, sha256_of
from .reference import weights_fingerprint
from .tables import rows_of

BACKENDS = ("transformers", "vllm")
"""What can answer."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def run_audit(
    model: str,
    output: str | Path,
    *,
    adapter: str | Path | None = None,
    against: str | None = None,
    suites: Sequence[str] = (),
    backend: str = "transformers",
    held_out: str | Path | None = None,
    lm_eval: Sequence[str] = (),
    gates: Sequence[str] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Audit a model and write `audit.json` and `answers.jsonl`; goes on where a run was stopped.

    Args:
        model: Folder or hub id, or the output folder of `holdfast tune`.
        output: Folder for the files; the answers of `against` go into a folder in it.
        adapter: Folder of a PEFT adapter.
        against: Folder or hub id of a model to compare with, asked the same prompts.
        suites: What to ask, each as `prompts.read_suites` takes it, or "embedded", or
            "embedded:TASK". By default the embedded suites for the embedded models, and the
            built-in ones for any other.
        backend: What answers, one of `BACKENDS`.
        held_out: File of rows to measure perplexity on.
        lm_eval: Tasks of lm-eval to run.
        gates: Requirements, such as "attack_success_rate<=0.05".
        progress: Called as work gets done.
        **settings: For `audit.audit`.

    Returns:
        The content of `audit.json`; its `gates` say which requirements hold.

    Raises:
        InputError: If an argument does not fit, before any answer is generated.
        PrerequisiteError: If a model, a set or a package is missing.
    """
    began = time.monotonic()
    for gate in gates:
        parse_gate(gate)
    if backend not in BACKENDS:
        raise unknown_choice("backend", backend, BACKENDS)
    found = [each for source in suites for each in _suites(source)] or _default(model)
    rows = [] if held_out is None else [row.values for row in rows_of(held_out)]
    total = sum(len(each.prompts) for each in found)

    def measure(name: str, adapter: str | None, folder: Path) -> tuple[Audit, Any, Any]:
        loaded, tokenizer, weights = _load(name, adapter)
        done = 0

        def advance(num: int) -> None:
            nonlocal done
            done += num
            if progress is not None:
                # Conditions and draws add to the prompts: the bar grows with them.
                progress(f"audit {Path(name).name}", done, max(done, total))

        engine = VLLM(name, adapter) if backend == "vllm" else None
        result = audit(
            loaded, tokenizer, found, name=name, adapter=adapter, weights=weights, backend=engine,
            folder=folder, progress=advance, **settings,
        )  # fmt: skip
        return result, loaded, tokenizer

    output = Path(output)
    path = None if adapter is None else str(adapter)
    other = None if against is None else measure(against, None, output / "against")[0]
    result, loaded, tokenizer = measure(model, path, output)
    measures = list(result.measures)
    if rows:
        of = perplexity(loaded, tokenizer, rows, seed=result.seed)
        measures.append(
            {
                "suite": Path(str(held_out)).name,
                "condition": "plain",
                "measure": "perplexity",
                "num": of.num_rows,
                "mean": of.perplexity,
                "low": of.low,
                "high": of.high,
            }
        )
    for score in lm_eval_tasks(loaded, tokenizer, lm_eval) if lm_eval else ():
        half = None if score.standard_error is None else 1.96 * score.standard_error
        measures.append(
            {
                "suite": score.task,
                "condition": "plain",
                "measure": score.metric,
                "num": score.num,
                "mean": score.value,
                "low": None if half is None else score.value - half,
                "high": None if half is None else score.value + half,
            }
        )
    result = replace(result, measures=tuple(measures))
    if other is not None:
        other.save(output / "against")
    seconds = round(time.monotonic() - began, 1)
    return result.save(output, against=other, gates=gates, seconds=seconds)


def _suites(source: str) -> list[Suite]:
    name, _, task = source.partition(":")
    if name == "embedded":
        return embedded.suites(task or None)
    return read_suites(source)


def _default(model: str) -> list[Suite]:
    ours = (embedded.aligned_path(), embedded.base_path())
    return embedded.suites() if start_of(model).model in ours else builtin_suites()


def _load(name: str, adapter: str | None) -> tuple[Any, Any, str]:
    """A model, its tokenizer, and what its weights are known by."""
    start = start_of(name)
    if start.adapter is not None and adapter is not None:
        raise InputError(f"{name} is an adapter itself, and `adapter` {adapter} names another.")
    adapter = adapter or start.adapter
    model, tokenizer = load_chat_model(start.model)
    parts = [weights_fingerprint(model), str(model.dtype)]
    if adapter is not None:
        folder = Path(adapter)
        if not (folder / "adapter_config.json").is_file():
            raise InputError(f"{adapter}: no adapter_config.json (`adapter`). Give a PEFT folder.")
        from peft import PeftModel

        parts += [sha256_of(path) for path in sorted(folder.glob("adapter_model.*"))]
        model = PeftModel.from_pretrained(model, adapter)
    return model, tokenizer, fingerprint(parts)
