"""`moorline audit` as one call: load, ask, judge, measure, compare, write."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer

from .. import embedded
from ..audit.comparing import compare
from ..audit.drift import drift_of
from ..audit.engines import VLLM
from ..audit.findings import Audit
from ..audit.gates import check_gates, parse_gate
from ..audit.lm_eval_tasks import check_tasks, lm_eval_tasks
from ..audit.measurements import Comparison, Measurement, measured
from ..audit.perplexity import labelled, perplexity
from ..audit.refusal_mass import refusal_mass
from ..audit.run import answer_share, audit, resolved
from ..audit.settings import AuditSettings
from ..audit.statistics import Mean, mean_interval
from ..audit.suites import Suite, builtin_suites, read_suites
from ..chat.chat_model import ChatModel
from ..chat.loading import (
    DTYPES,
    check_adapter_folder,
    check_model_folder,
    load,
    load_chat_model,
)
from ..errors import InputError, unknown_choice
from ..method import capture
from ..method.adapters import adapter_layers, adapters_off
from ..method.reference import AdapterOff, FrozenCopy
from ..method.safety_tokens import SafetyTokens
from ..method.templates import opener_ids
from ..processes import Share, count, from_first, joined
from ..provenance import write_json
from ..tables import rows_of
from .anchors_file import check_apart
from .audit_endpoint import audit_served, plan_of
from .audit_options import Asked, Progress
from .default_suites import default_suites
from .library_messages import quiet
from .lineage import TOKENS, lineage_of
from .run_file import locked

BACKENDS = ("transformers", "vllm")
"""What can answer."""


class Loading(NamedTuple):
    """How a model is loaded: what `load_chat_model` takes."""

    dtype: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    device_map: str | None = None
    quantization: str | None = None


class _Source(NamedTuple):
    """Where a model, its adapter and its tokenizer come from."""

    name: str
    """As the user has it."""

    model: str
    adapter: str | None
    tokenizer: str
    """The folder of the adapter where a tokenizer was saved in it: the one it was trained with."""


def run_audit(asked: Asked, *, progress: Progress | None = None) -> Mapping[str, Any]:
    """Audit a model and write `audit.json` and `answers.jsonl`; resumes where a run was stopped.

    The answers of `against` go into a folder in `output`. By default the embedded models are asked
    the embedded suites, and others the built-in ones. `drift.json` holds the drift on the held-out
    rows, and the refusal mass along the checkpoints. The revision is that of `model` alone.

    Args:
        asked: What to ask of which model, and where the files go.
        progress: Called as work gets done.

    Returns:
        The content of `audit.json`; its `gates` say which requirements hold. Empty in a process
        beside the first, which answers its share alone.

    Raises:
        InputError: If an argument does not fit, before any answer is generated.
        PrerequisiteError: If a model, a set or a package is missing.
    """
    began, say, output = time.monotonic(), progress or (lambda *_: None), asked.output
    settings, loading = _settings(asked), _loading(asked)
    _check_words(asked)
    suites = suites_of(asked)
    resolved(settings, suites).judging()
    if asked.endpoint is not None:
        return _of_endpoint(asked, suites, settings, began, say)
    for each in filter(None, (asked.adapter or asked.model, asked.against)):
        check_apart(each, suites)
    source, other = _source(asked.model, asked.adapter), None
    rows = _held_out(asked.held_out, _check(source, loading))
    if asked.drift and not (rows and (Path(asked.model) / TOKENS).is_file()):
        raise InputError(
            f"`drift` needs `held_out` rows, and a model that `moorline tune` left; {asked.model} "
            f"has no {TOKENS}, or `held_out` is missing. Give both."
        )
    of_other = loading._replace(revision=None)
    if asked.against:
        other = _source(asked.against, None)
        _check(other, of_other)
    with joined() as share, ExitStack() as stack:
        lock = locked(output, what="audit", setting="output")
        from_first(lambda: stack.enter_context(lock) and None)
        return _audited(asked, settings, loading, suites, rows, source, other, say, began, share)


def _audited(
    asked: Asked,
    settings: AuditSettings,
    loading: Loading,
    suites: Sequence[Suite],
    rows: Sequence[Any],
    source: _Source,
    other: _Source | None,
    say: Progress,
    began: float,
    share: Share,
) -> Mapping[str, Any]:
    """What `run_audit` does once all that was asked for is there."""
    output, of_other = asked.output, loading._replace(revision=None)

    def answered(
        chat: ChatModel, of: _Source, adapter: Path | None, folder: Path, does: Any = audit
    ) -> Audit:
        return does(
            chat, suites, settings, name=of.name, adapter=adapter and str(adapter), folder=folder,
            engine=VLLM(of.model, of.adapter) if asked.backend == "vllm" else None,
            progress=partial(say, f"audit {Path(of.name).name}"), share=share,
        )  # fmt: skip

    chat = _loaded(source, loading, say)
    if share.process:
        answered(chat, source, asked.adapter, output, answer_share)
        if other:
            del chat
            answered(_loaded(other, of_other, say), other, None, output / "against", answer_share)
        return {}
    result = answered(chat, source, asked.adapter, output)
    others = [*result.others, *_tasks(chat, asked.lm_eval or ())]
    if rows:
        others.append(_perplexity(chat, rows, Path(str(asked.held_out)).name, settings.seed))
    result = replace(result, others=tuple(others))
    if asked.drift:
        write_json(output / "drift.json", _drift(asked.model, chat, rows, suites))
    comparisons = ()
    if other:
        del chat  # its memory is the other model's
        beside = answered(_loaded(other, of_other, say), other, None, output / "against")
        beside.save(output / "against", loading=of_other._asdict())
        comparisons = compare(beside, result)
    return _saved(asked, result, loading._asdict(), began, comparisons)


def plan_audit(asked: Asked) -> str:
    """What an audit of an endpoint would still ask for, in requests and tokens.

    Raises:
        InputError: If an argument does not fit.
    """
    _check_words(asked)
    return plan_of(asked, suites_of(asked), _settings(asked))


def suites_of(asked: Asked) -> list[Suite]:
    """The suites that are named, or those that are asked by default."""
    suites = [each for source in asked.suite or () for each in _suites(source)]
    return suites or (builtin_suites() if asked.endpoint else default_suites(asked.model))


def _of_endpoint(
    asked: Asked, suites: list[Suite], settings: AuditSettings, began: float, say: Progress
) -> Mapping[str, Any]:
    """An audit of what is served; `against` is a model of one's own all the same."""
    other, loading = None, _loading(asked)
    if asked.against:
        other = _source(asked.against, None)
        _check(other, loading)
    with locked(asked.output, what="audit", setting="output"):
        result, comparisons = audit_served(asked, suites, settings, say), ()
        if other:
            folder, chat = asked.output / "against", _loaded(other, loading, say)
            label = f"audit {Path(other.name).name}"
            beside = audit(
                chat, suites, settings, name=other.name, folder=folder, progress=partial(say, label)
            )
            beside.save(folder, loading=loading._asdict())
            comparisons = compare(beside, result)
        return _saved(asked, result, {"endpoint": asked.endpoint}, began, comparisons)


def _saved(
    asked: Asked, result: Audit, loading: Mapping[str, Any], began: float,
    comparisons: Sequence[Comparison],
) -> Mapping[str, Any]:  # fmt: skip
    return result.save(
        asked.output, comparisons=comparisons, loading=loading,
        gates=check_gates(asked.require or (), result.measurements, on=asked.gate_on),
        seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


def _settings(asked: Asked) -> AuditSettings:
    names = {each.name for each in fields(AuditSettings)} & {each.name for each in fields(Asked)}
    return AuditSettings(
        judges=asked.judge or ("keywords",),
        conditions=asked.condition or ("plain",),
        **{name: getattr(asked, name) for name in names},
    )


def _loading(asked: Asked) -> Loading:
    given = {name: getattr(asked, name) for name in Loading._fields if name != "quantization"}
    return Loading(**given, quantization="4bit" if asked.load_in_4bit else None)


def _check_words(asked: Asked) -> None:
    """Refuse what can be told wrong before anything is read."""
    if not asked.model or (asked.named or asked.model) != asked.model:
        raise InputError(
            "`model` must be given once: moorline audit MODEL, or --endpoint URL --model NAME."
        )
    for gate in asked.require or ():
        parse_gate(gate, asked.gate_on)
    if asked.backend not in BACKENDS:
        raise unknown_choice("backend", asked.backend, BACKENDS)
    if asked.lm_eval:
        check_tasks(asked.lm_eval)
    if count() > 1:
        _check_shared(asked)


def _check_shared(asked: Asked) -> None:
    """Refuse what several processes cannot share out."""
    why = {
        "endpoint": "sends several requests at a time from one process",
        "device_map": "shares one model out over the devices by itself",
        "lm_eval": "starts processes of its own",
    }
    given = [f"`{name}` {why[name]}" for name in why if getattr(asked, name)]
    if asked.backend == "vllm":
        given.append("backend 'vllm' shares a model out by itself")
    if given:
        raise InputError(
            f"This audit was started in {count()} processes, and {given[0]}. Start it in one, or "
            "leave that out."
        )


def _held_out(path: Path | None, tokenizer: Any) -> Sequence[Mapping[str, Any]]:
    """The rows to measure perplexity on, each of a shape that can be read."""
    rows = [] if path is None else [row.values for row in rows_of(path)]
    for number, row in enumerate(rows, start=1):
        labelled(tokenizer, row, f"{path}, row {number}", None)
    return rows


def _source(name: str, adapter: str | Path | None) -> _Source:
    """Where a model comes from; an adapter folder that is not one is refused."""
    start = lineage_of(name)
    if start.adapter is not None and adapter is not None:
        raise InputError(f"{name} is an adapter itself, and `adapter` names {adapter} too.")
    chosen = start.adapter if adapter is None else str(adapter)
    if chosen is None:
        return _Source(name, start.model, None, start.model)
    check_adapter_folder(chosen)
    own = (Path(chosen) / "tokenizer_config.json").is_file()
    return _Source(name, start.model, chosen, chosen if own else start.model)


def _check(source: _Source, loading: Loading) -> Any:
    """Refuse a model that is not there, before any is loaded; gives its tokenizer."""
    if loading.dtype not in (None, *DTYPES):
        raise unknown_choice("dtype", str(loading.dtype), DTYPES)
    check_model_folder(source.model)
    remote = {"trust_remote_code": loading.trust_remote_code}
    load(AutoConfig, source.model, revision=loading.revision, **remote)
    revision = loading.revision if source.tokenizer == source.model else None
    tokenizer = load(AutoTokenizer, source.tokenizer, revision=revision, **remote)
    ChatModel(None, tokenizer).render("Hello!")
    return tokenizer


def _loaded(source: _Source, loading: Loading, say: Progress) -> ChatModel:
    label = f"load {Path(source.name).name}"
    say(label, 0, 1)
    tokenizer = None if source.tokenizer == source.model else source.tokenizer
    with quiet():
        chat = load_chat_model(
            source.model, adapter=source.adapter, tokenizer=tokenizer, **loading._asdict()
        )
    say(label, 1, 1)
    return chat


def _perplexity(chat: ChatModel, rows: Sequence[Any], name: str, seed: int) -> Measurement:
    of = perplexity(chat, rows, seed=seed)
    mean = Mean(of.num_rows, of.perplexity, of.low, of.high)
    return measured(mean, suite=name, kind="rows", metric="perplexity")


def _tasks(chat: ChatModel, names: Sequence[str]) -> list[Measurement]:
    """What a model scores on tasks of lm-eval, with 1.96 of its standard errors."""
    rows = []
    for score in lm_eval_tasks(chat.model, chat.tokenizer, names) if names else ():
        half = None if score.standard_error is None else 1.96 * score.standard_error
        ends = (None, None) if half is None else (score.value - half, score.value + half)
        mean, of = (
            Mean(score.num, score.value, *ends),
            {"suite": score.task, "metric": score.metric},
        )
        rows.append(measured(mean, kind="lm_eval", interval="normal", **of))
    return rows


def _drift(
    name: str, chat: ChatModel, rows: Sequence[Any], suites: Sequence[Suite]
) -> Mapping[str, Any]:
    """The drift of a tuned model on some rows, and its refusal mass at each checkpoint."""
    harmful = [each.prompt for of in suites if of.kind == "harmful" for each in of.prompts]
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
