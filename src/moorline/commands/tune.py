"""Fine-tune with the refusals held, from flags and a YAML file as `trl sft` has them.

    moorline tune --model_name_or_path MODEL --dataset_name rows.jsonl --use_peft --output_dir out

In order: settings, output folder, data, model, safety tokens, training, files.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    ProgressCallback,
)

from ..chat.chat_model import ChatModel
from ..chat.loading import check_adapter_folder, check_model_folder, load, with_adapter
from ..errors import InputError
from ..exports.trackers import log_files
from ..method.adapters import weights_fingerprint
from ..method.anchors import anchor_prompts
from ..method.checkpoint import resumed, whole_checkpoints
from ..method.head import check_whole
from ..method.mining import mine_safety_tokens
from ..method.safety_tokens import SafetyTokens
from ..method.settings import AUTO_ANCHORS, NO_ANCHORS
from ..processes import from_first
from ..provenance import (
    as_json,
    fingerprint,
    machine,
    now,
    peak_memory,
    reset_peak_memory,
    sha256_of,
    versions,
)
from ..trainer import STRTrainer, get_peft_config, get_quantization_config
from . import refused_rows
from .anchors_file import write_anchors
from .library_messages import in_one_line, quiet
from .lineage import Lineage, lineage_of, tokens_fingerprint
from .phases import TrainingLine, phase
from .run_file import TOKENS, Aligned, Link, Run, check_free, check_unchanged, is_idle, locked
from .training_data import read_training_data, split_of
from .tune_check import checked
from .tune_end import leave_the_group, push
from .tune_method import with_method
from .tune_settings import Settings, is_plain, parse

_log = logging.getLogger(__name__)


def tune(arguments: Sequence[str]) -> Run:
    """Fine-tune a model with its refusals held.

    Args:
        arguments: Flags, as on the command line; `--config FILE` reads YAML first.

    Returns:
        What `run.json` holds: settings, versions, safety tokens, figures of the run.

    Raises:
        InputError: For anything that the user can put right, before training where it can be seen.
        PrerequisiteError: If the model or data cannot be fetched, or a package is missing.
    """
    with quiet():
        settings = parse(arguments)
    training, output = settings.training, Path(settings.training.output_dir)
    if training.hub_token is not None:  # or the host writes it into training_args.bin
        os.environ["HF_TOKEN"], training.hub_token = training.hub_token, None
    lineage = lineage_of(settings.model.model_name_or_path)
    check_model_folder(lineage.model)
    if lineage.adapter is not None:
        check_adapter_folder(lineage.adapter)
    if training.str_reference_model is not None:
        check_model_folder(training.str_reference_model)
    if training.str_tokens is not None:
        SafetyTokens.load(training.str_tokens)
    if training.str_anchors not in (NO_ANCHORS, AUTO_ANCHORS):
        anchor_prompts(training.str_anchors)
    training.resume_from_checkpoint = _checkpoint(
        training.resume_from_checkpoint, output, with_state=training.str_budget is not None
    )
    _check_processes(training.world_size)
    plain = settings.plain()
    known_as = _fingerprint(settings, plain)
    with locked(output), quiet():
        resumes = bool(training.resume_from_checkpoint)
        check_free(output, plain, known_as, resumes=resumes)
        try:
            trainer, run = prepared(settings, lineage, known_as)
        except KeyboardInterrupt:
            _log.warning(
                "Stopped before training. The same command begins anew; what a reference cache "
                "holds already is not computed again."
            )
            raise
        return _trained(trainer, replace(run, settings=settings.plain()), output)


def _check_processes(num: int) -> None:
    """Refuse a launch whose processes the host does not join: each would train alone, unseen.

    Raises:
        InputError: If there are more processes than the host knows of.
    """
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started != num:
        raise InputError(
            f"{started} processes were started, and the host trains in {num} of them together: "
            "each would train a copy of its own into one folder. Without a GPU add --use_cpu true."
        )


def prepared(settings: Settings, lineage: Lineage, known_as: str) -> tuple[STRTrainer, Run]:
    """A trainer that is ready to begin, and what is known of its run."""
    training, output = settings.training, Path(settings.training.output_dir)
    name = settings.model.model_name_or_path
    reset_peak_memory()
    _log.info("Reading the data: %s.", settings.script.dataset_name or "a mixture")
    data = read_training_data(settings.script, settings.mixture)
    train_rows = split_of(data, settings.script.dataset_train_split)
    eval_rows = None
    if training.eval_strategy != "no":
        eval_rows = split_of(data, settings.script.dataset_test_split)
    tokenizer = _tokenizer(settings, train_rows)
    _log.info("Loading the model: %s.", lineage.model)
    with in_one_line():
        model = _load_model(lineage.model, settings)
    check_whole(model)
    tokens = _safety_tokens(training, lineage, model, tokenizer, output)
    model, reference_model, base = _held_to(lineage, model, training)
    own = base.weights
    if reference_model is not None:
        own = from_first(lambda: weights_fingerprint(model))
    if training.resume_from_checkpoint:
        check_unchanged(output, base, own)
    with in_one_line():
        kind, more, train_rows = with_method(
            settings, ChatModel(reference_model or model, tokenizer), tokens, train_rows,
            second=reference_model is not None,
        )  # fmt: skip
        trainer = kind(
            model,
            training,
            safety_tokens=tokens,
            reference_model=reference_model,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            peft_config=None if lineage.adapter else get_peft_config(settings.model),
            **more,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingLine())
    link = Link(
        output_dir=str(output.resolve()),
        fingerprint=known_as,
        dataset=settings.script.dataset_name,
        tokens=tokens_fingerprint(tokens),
        reference=trainer.regularizer.kind,
    )
    asked = None
    if trainer.accelerator.is_main_process and trainer.regularizer.settings.holds:
        asked = refused_rows.ask(trainer, ChatModel(reference_model or trainer.model, tokenizer))
        refused_rows.tell(asked, skips=trainer.regularizer.settings.skips)
    return trainer, Run(
        status="running",
        model=name,
        weights_from=_resolved(lineage.model),
        weights=own,
        base=base,
        chain=(*lineage.links, link),
        reference=trainer.regularizer.kind,
        fingerprint=known_as,
        safety_tokens={"num": len(tokens), "strings": list(tokens.strings)},
        settings={},
        versions=versions(),
        machine=machine(),
        started=now(),
        refused_rows=asked,
    )


def _trained(trainer: STRTrainer, run: Run, output: Path) -> Run:
    """Train, and write what came of it; `run.json` is right at every moment."""
    args, is_main = trainer.args, trainer.accelerator.is_main_process
    began = time.monotonic()
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    _log.info(
        "Training on %s rows in %s, learning rate %g; held to %s (%s), %s.",
        len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else "streamed",  # pyright: ignore
        precision, args.learning_rate, run.base.name, run.reference,
        trainer.regularizer.settings.strength,
    )  # fmt: skip
    try:
        with in_one_line(building=False):
            if is_main:
                trainer.regularizer.tokens.save(output / TOKENS)
                write_anchors(output, trainer.regularizer.anchors, run.model)
                run.write(output)
            trains = time.monotonic()
            result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
            training_seconds = round(time.monotonic() - trains, 3)
            trainer.save_model(args.output_dir)
            if is_main:
                trainer.processing_class.save_pretrained(output)  # pyright: ignore
        run = _finished(run, trainer, result, began, training_seconds)
        if is_main:
            run.write(output)
    except BaseException:
        if is_main:
            _write_stopped(run, trainer, output, began)
        raise
    try:
        if is_main and run.settings["log_files"]:
            log_files(output, run.settings["log_files"])
        if args.push_to_hub:
            push(trainer, output, run.chain[-1].dataset)
        leave_the_group(trainer)
    except KeyboardInterrupt:
        _log.warning("Stopped after the run was finished: %s is whole.", output)
        raise
    return run


def _finished(
    run: Run, trainer: STRTrainer, result: Any, began: float, training_seconds: float
) -> Run:
    """What is known of a run whose weights are saved."""
    steps, (peak, peak_of) = trainer.state.global_step, peak_memory()
    run = replace(
        run,
        status="finished",
        finished=now(),
        seconds=round(time.monotonic() - began, 3),
        training_seconds=training_seconds,
        peak_memory_bytes=peak,
        peak_memory_of=peak_of,
        steps=steps,
        chain=(*run.chain[:-1], replace(run.chain[-1], steps=steps)),
        train_loss=result.training_loss if is_plain(result.training_loss) else None,
        log=_log_of(trainer),
    )
    return replace(run, check=checked(trainer, run))


def _write_stopped(run: Run, trainer: STRTrainer, output: Path, began: float) -> None:
    steps, seconds = trainer.state.global_step, round(time.monotonic() - began, 3)
    stopped = replace(run, status="stopped", steps=steps, seconds=seconds, log=_log_of(trainer))
    try:
        stopped.write(output)
    except OSError:
        _log.warning("run.json could not be written, and still says 'running'.")
    kept = whole_checkpoints(output, with_state=trainer.regularizer.strength.is_found)
    if kept:
        _log.warning(
            "Stopped at step %d. %s is kept; resume with the same command and "
            "--resume_from_checkpoint true.", steps, kept[-1],
        )  # fmt: skip
    else:
        _log.warning(
            "Stopped at step %d, before the first checkpoint (`save_steps`): the same command "
            "begins anew.", steps,
        )  # fmt: skip


def _log_of(trainer: STRTrainer) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {key: value if is_plain(value) else None for key, value in entry.items()}
        for entry in trainer.state.log_history
    )


def _tokenizer(settings: Settings, train_rows: Any) -> Any:
    """The tokenizer of the model, with a chat template where one is needed."""
    name = settings.model.model_name_or_path
    tokenizer = load(AutoTokenizer, name, revision=settings.model.model_revision)
    first = next(iter(train_rows))
    conversational = "messages" in first or not isinstance(first.get("prompt", ""), str)
    mines = settings.training.str_tokens is None
    if not tokenizer.chat_template and (conversational or mines):
        raise InputError(
            f"{name}: its tokenizer has no chat template, which "
            + ("the conversations of the data need" if conversational else "mining needs")
            + ". Use the chat version of the model."
        )
    return tokenizer


def _held_to(lineage: Lineage, model: Any, training: Any) -> tuple[Any, Any, Aligned]:
    """The model to train; the aligned model where it is another one; and what that one is."""
    name = training.str_reference_model or lineage.base
    reference_model = None
    if name != lineage.model:
        check_model_folder(name)
        reference_model = load(
            AutoModelForCausalLM, name, dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            trust_remote_code=training.trust_remote_code,
        )  # fmt: skip
    aligned = model if reference_model is None else reference_model
    weights = from_first(lambda: weights_fingerprint(aligned))
    if training.str_reference_model is None:
        lineage.check_base(weights)
    if lineage.adapter is not None:
        model = with_adapter(model, lineage.adapter, is_trainable=True)
    return model, reference_model, Aligned(name=_resolved(name), weights=weights)


def _resolved(name: str) -> str:
    """A folder by its whole path, so that the next run finds it; a hub id as it is."""
    return str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name


def _load_model(name: str, settings: Settings) -> Any:
    training, model = settings.training, settings.model
    quantization = get_quantization_config(model)
    settled = {} if quantization is None else {"quantization_config": quantization}
    if isinstance(training.model_init_kwargs, dict):
        settled |= training.model_init_kwargs
    training.model_init_kwargs = None
    named = {each: getattr(model, each) for each in ("attn_implementation", "dtype")}
    remote = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    return load(AutoModelForCausalLM, name, **{**named, **remote, **settled})


def _checkpoint(given: Any, output: Path, *, with_state: bool) -> str | bool | None:
    """`--resume_from_checkpoint`: a folder, or yes for the newest one in the output folder."""
    if given in (None, False, "", "false", "False"):
        return None
    if given in (True, "true", "True", "last"):
        if not whole_checkpoints(output, with_state=with_state):
            raise InputError(
                f"`resume_from_checkpoint` is set but {output} holds no whole checkpoint. Leave it "
                "out to begin anew."
            )
        return True
    if not Path(given).is_dir():
        raise InputError(f"{given}: no such checkpoint (`resume_from_checkpoint`). Check the path.")
    return resumed(str(given), str(output), with_state=with_state)


def _safety_tokens(
    training: Any, lineage: Lineage, model: Any, tokenizer: Any, output: Path
) -> SafetyTokens:
    """The tokens to hold: of a file, of the run that is resumed, of the run before, or mined."""
    given = training.str_tokens
    earlier = output / TOKENS
    resumes = training.resume_from_checkpoint and earlier.is_file()
    found = lineage.safety_tokens(str(earlier) if given is None and resumes else given)
    if found is None:
        _log.info("Mining safety tokens from %s.", model.config._name_or_path)
        with phase("Mining", hidden=training.disable_tqdm) as tell:
            return from_first(lambda: mine_safety_tokens(model, tokenizer, progress=tell))
    if resumes and tokens_fingerprint(SafetyTokens.load(earlier)) != tokens_fingerprint(found):
        raise InputError(
            f"`str_tokens` {given} are other tokens than those that the run in {output} holds. "
            "Leave `str_tokens` out to resume it."
        )
    return found


def _fingerprint(settings: Settings, plain: Mapping[str, Any]) -> str:
    """What makes a run the same run: data, anchors, and the settings that steer the training."""
    steering = {name: value for name, value in plain.items() if not is_idle(name)}
    name = settings.script.dataset_name
    data = str(name)
    if name and Path(name).exists():
        files = sorted(each for each in [Path(name), *Path(name).rglob("*")] if each.is_file())
        data = fingerprint([sha256_of(each) for each in files])
    mixture = str([asdict(each) for each in settings.mixture.datasets])
    files = (settings.method.method_file, settings.training.str_anchors)
    more = [sha256_of(each) for each in files if each and Path(each).is_file()]
    return fingerprint([as_json(steering), data, mixture, *more])
