"""`moorline audit` as one call: load, ask, judge, measure, compare, write."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import embedded
from ..audit.drift import drift_of
from ..audit.engines import VLLM
from ..audit.findings import Audit, parse_gate
from ..audit.lm_eval_tasks import lm_eval_tasks
from ..audit.perplexity import perplexity
from ..audit.refusal_mass import refusal_mass
from ..audit.run import audit
from ..audit.statistics import mean_interval
from ..audit.suites import Suite, builtin_suites, read_suites
from ..chat.chat_model import ChatModel
from ..chat.loading import load_chat_model
from ..errors import InputError, unknown_choice
from ..method import capture
from ..method.adapters import adapter_layers, adapters_off, weights_fingerprint
from ..method.reference import AdapterOff, FrozenCopy
from ..method.safety_tokens import SafetyTokens
from ..method.templates import opener_ids
from ..provenance import fingerprint, sha256_of, write_json
from ..tables import rows_of
from .lineage import TOKENS, lineage_of

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
    with_drift: bool = False,
    lm_eval: Sequence[str] = (),
    gates: Sequence[str] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Audit a model and write `audit.json` and `answers.jsonl`; goes on where a run was stopped.

    Args:
        model: Folder or hub id, or the output folder of `moorline tune`.
        output: Folder for the files; the answers of `against` go into a folder in it.
        adapter: Folder of a PEFT adapter.
        against: Folder or hub id of a model to compare with, asked the same prompts.
        suites: What to ask, each as `prompts.read_suites` takes it, or "embedded", or
            "embedded:TASK". By default the embedded suites for the embedded models, and the
            built-in ones for any other.
        backend: What answers, one of `BACKENDS`.
        held_out: File of rows to measure perplexity on.
        with_drift: Whether to write `drift.json` too: the drift on the held-out rows, and the
            refusal mass along the checkpoints. `model` is then what `moorline tune` left.
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
    if with_drift and not (rows and (Path(model) / TOKENS).is_file()):
        raise InputError(
            f"`drift` needs `held_out` rows, and a model that `moorline tune` left; {model} has no "
            f"{TOKENS}, or `held_out` is missing. Give both."
        )
    total = sum(len(each.prompts) for each in found)

    def measure(name: str, adapter: str | None, folder: Path) -> tuple[Audit, ChatModel]:
        start = lineage_of(name)
        if start.adapter is not None and adapter is not None:
            raise InputError(f"{name} is an adapter itself, and `adapter` names {adapter} too.")
        worn = adapter or start.adapter
        loaded, weights = _load(start.model, worn)
        done = 0

        def advance(num: int) -> None:
            nonlocal done
            done += num
            if progress is not None:
                # Conditions and draws add to the prompts: the bar grows with them.
                progress(f"audit {Path(name).name}", done, max(done, total))

        engine = VLLM(start.model, worn) if backend == "vllm" else None
        result = audit(
            loaded, found, name=name, adapter=adapter, weights=weights, engine=engine,
            folder=folder, progress=advance, **settings,
        )  # fmt: skip
        return result, loaded

    output = Path(output)
    path = None if adapter is None else str(adapter)
    other = None if against is None else measure(against, None, output / "against")[0]
    result, loaded = measure(model, path, output)
    measures = list(result.measures)
    if rows:
        of = perplexity(loaded, rows, seed=result.seed)
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
    for score in lm_eval_tasks(loaded.model, loaded.tokenizer, lm_eval) if lm_eval else ():
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
    if with_drift:
        harmful = [
            each.prompt for suite in found if suite.kind == "harmful" for each in suite.prompts
        ]
        write_json(output / "drift.json", _drift(model, loaded, rows, harmful))
    if other is not None:
        other.save(output / "against")
    seconds = round(time.monotonic() - began, 1)
    return result.save(output, against=other, gates=gates, seconds=seconds)


def _drift(
    name: str, chat: ChatModel, rows: Sequence[Any], harmful: Sequence[str]
) -> dict[str, Any]:
    """The drift of a tuned model on some rows, and its refusal mass at each checkpoint."""
    model, start = chat.model, lineage_of(name)
    tokens = SafetyTokens.load(Path(name) / TOKENS)
    adapted = bool(adapter_layers(model))
    if adapted and start.model == start.base:
        reference = AdapterOff(model)
    else:
        reference = FrozenCopy.load(start.base, like=model)
        reference.model.to(next(model.parameters()).device)
        capture.install(reference.model, tokens.tensor())
    picture = drift_of(chat, reference, tokens, rows)
    checkpoints = []
    # A tokenizer that spells none of our templates is left with what was held.
    openers = opener_ids(chat.tokenizer) or tokens.ids

    def measure(step: int) -> None:
        mass = mean_interval(refusal_mass(chat, harmful, openers))
        found = {"refusal_mass": mass.mean, "low": mass.low, "high": mass.high}
        checkpoints.append({"step": step, **found})

    if adapted and harmful:
        with adapters_off(adapter_layers(model)):
            measure(0)
        saved = {
            int(path.name.split("-")[1]): path for path in Path(name).glob("checkpoint-*[0-9]")
        }
        for step in sorted(saved):
            model.load_adapter(str(saved[step]), adapter_name=f"step-{step}")
            model.set_adapter(f"step-{step}")
            measure(step)
            model.set_adapter("default")
            model.delete_adapter(f"step-{step}")
    return {"schema": 1, **picture, "checkpoints": checkpoints}


def _suites(source: str) -> list[Suite]:
    name, _, task = source.partition(":")
    if name == "embedded":
        return embedded.suites(task or None)
    return read_suites(source)


def _default(model: str) -> list[Suite]:
    ours = (embedded.aligned_path(), embedded.base_path())
    return embedded.suites() if lineage_of(model).model in ours else builtin_suites()


def _load(name: str, adapter: str | None) -> tuple[ChatModel, str]:
    """A model, and what its weights are known by."""
    chat = load_chat_model(name)
    parts = [weights_fingerprint(chat.model), str(chat.model.dtype)]
    if adapter is not None:
        folder = Path(adapter)
        if not (folder / "adapter_config.json").is_file():
            raise InputError(f"{adapter}: no adapter_config.json (`adapter`). Give a PEFT folder.")
        from peft import PeftModel

        parts += [sha256_of(path) for path in sorted(folder.glob("adapter_model.*"))]
        chat = ChatModel(PeftModel.from_pretrained(chat.model, adapter), chat.tokenizer)
    return chat, fingerprint(parts)
