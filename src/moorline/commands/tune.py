"""Fine-tune under the constraint, from flags and a YAML file as `trl sft` has them.

    moorline tune --model_name_or_path MODEL --dataset_name rows.jsonl --use_peft --output_dir out

In order: settings, doors (data, model, output folder), safety tokens, training, files.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..chat.loading import check_model_folder, load
from ..errors import InputError, PrerequisiteError, unknown_choice
from ..method.adapters import weights_fingerprint
from ..method.mining import mine_safety_tokens
from ..method.safety_tokens import SafetyTokens
from ..provenance import fingerprint, machine, now, read_json, sha256_of, versions, write_json
from ..tables import Row, is_table, rows_of
from ..trainer import (
    STRConfig,
    STRTrainer,
    get_dataset,
    get_peft_config,
    get_quantization_config,
    make_parser,
)
from .lineage import RUN, TOKENS, Start, start_of, tokens_fingerprint

_log = logging.getLogger(__name__)

_SHAPES = (("messages",), ("prompt", "completion"), ("text",))


def tune(arguments: Sequence[str]) -> dict[str, Any]:
    """Fine-tune a model with its refusals held.

    Args:
        arguments: Flags, as on the command line; `--config FILE` reads YAML first.

    Returns:
        What `run.json` holds: settings, versions, safety tokens, figures of the run.

    Raises:
        InputError: For anything that the user can put right, before training where it can be seen.
        PrerequisiteError: If the model or data cannot be fetched.
    """
    script, settings, model_settings, mixture = _parse(arguments)
    if settings.output_dir in (None, "", "trainer_output"):
        raise InputError("`output_dir` is missing. Say where the run goes: --output_dir DIR.")
    output = Path(settings.output_dir)
    if model_settings.model_name_or_path is None:
        raise InputError(
            "`model_name_or_path` is missing. Give a folder or hub id of a chat model."
        )
    start = start_of(model_settings.model_name_or_path)
    check_model_folder(start.model)
    if settings.str_reference_model is not None:
        check_model_folder(settings.str_reference_model)
    settings.resume_from_checkpoint = _checkpoint(settings.resume_from_checkpoint, output)
    data = _read_data(script, mixture)
    train_rows = _split(data, script.dataset_train_split)
    evaluates = settings.eval_strategy != "no"
    eval_rows = _split(data, script.dataset_test_split) if evaluates else None

    name = model_settings.model_name_or_path
    tokenizer = load(AutoTokenizer, name, revision=model_settings.model_revision)
    conversational = "messages" in train_rows.column_names or not isinstance(
        next(iter(train_rows)).get("prompt", ""), str
    )
    if not tokenizer.chat_template and (conversational or settings.str_tokens is None):
        raise InputError(
            f"{name}: its tokenizer has no chat template, which "
            + ("the conversations of the data need" if conversational else "mining needs")
            + ". Use the chat version of the model."
        )
    model = _load_model(start.model, settings, model_settings)
    tokens = _safety_tokens(settings, start, model, tokenizer, output)
    birth = _birth(script, settings, model_settings, mixture, tokens)
    _claim(output, birth, resumes=bool(settings.resume_from_checkpoint))
    model, reference_model, base = _held_to(start, model, settings)

    try:
        trainer = STRTrainer(
            model,
            settings,
            safety_tokens=tokens,
            reference_model=reference_model,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            peft_config=None if start.adapter else get_peft_config(model_settings),
        )
    except InputError:
        raise
    except ValueError as error:  # how trl and peft say that settings contradict each other
        raise InputError(f"The settings do not fit each other: {error}") from error
    del reference_model  # a cache has read it, and nothing else may keep it in memory
    link = {
        "output_dir": str(output.resolve()),
        "birth": birth,
        "dataset": script.dataset_name,
        "tokens": tokens_fingerprint(tokens),
        "reference": trainer.regularizer.reference.name,
    }
    run = {
        "schema": 1,
        "status": "running",
        "birth": birth,
        "model": name,
        "reference": trainer.regularizer.reference.name,
        "base": base,
        "chain": [*start.links, link],
        "safety_tokens": {"num": len(tokens), "strings": list(tokens.strings)},
        "settings": _plain(script, settings, model_settings, mixture),
        "versions": versions(),
        "machine": machine(),
        "started": now(),
    }
    is_main = trainer.accelerator.is_main_process
    if is_main:
        tokens.save(output / TOKENS)
        write_json(output / RUN, run)
    began = time.monotonic()
    result = trainer.train(resume_from_checkpoint=settings.resume_from_checkpoint)
    trainer.save_model(settings.output_dir)
    if is_main:
        tokenizer.save_pretrained(output)
        run |= {
            "status": "finished",
            "finished": now(),
            "seconds": round(time.monotonic() - began, 3),
            "steps": trainer.state.global_step,
            "chain": [*start.links, {**link, "steps": trainer.state.global_step}],
            "train_loss": result.training_loss,
            "log": [_finite(entry) for entry in trainer.state.log_history],
        }
        write_json(output / RUN, run)
    if settings.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.accelerator.end_training()
    return run


def _parse(arguments: Sequence[str]) -> tuple[Any, STRConfig, Any, Any]:
    """The settings, or an InputError that names the flag or key."""
    parser = make_parser()

    def fail(message: str) -> NoReturn:
        raise InputError(f"moorline tune: {message}. See `moorline tune --help`.")

    parser.error = fail
    arguments = list(arguments)
    known = {action.dest for action in parser._actions}
    if "--config" in arguments:
        place = arguments.index("--config")
        if place + 1 >= len(arguments):
            fail("--config needs a file")
        _check_keys(arguments[place + 1], known)
    *parsed, rest = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    for word in rest:
        if word.startswith("--"):
            flags = [f"--{name}" for name in known]
            raise _unknown("flag", word.split("=")[0], flags)
    if rest:
        fail(f"unexpected {rest[0]!r}")
    return tuple(parsed)  # pyright: ignore[reportReturnType]


def _check_keys(config: str, known: set[str]) -> None:
    path = Path(config)
    if not path.is_file():
        raise InputError(f"{path}: no such settings file (`--config`). Check the path.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InputError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a settings file holds keys and values, one on each line.")
    for key in values:
        if key not in known | {"env"}:
            raise _unknown(f"key in {path}:", str(key), known)


def _unknown(what: str, given: str, known: Any) -> InputError:
    """Like `unknown_choice`, without listing hundreds of names."""
    message = str(unknown_choice(what, given, known))
    nearest = message[message.rindex(" Did you") :] if " Did you" in message else ""
    return InputError(f"Unknown {what} {given!r}.{nearest or ' See `moorline tune --help`.'}")


def _held_to(start: Start, model: Any, settings: STRConfig) -> tuple[Any, Any, dict[str, str]]:
    """The model to train; the aligned model where it is another one; and what that one is."""
    name = settings.str_reference_model or start.base
    reference_model = None
    if name != start.model:
        check_model_folder(name)
        reference_model = load(
            AutoModelForCausalLM, name, dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            trust_remote_code=settings.trust_remote_code,
        )  # fmt: skip
    weights = weights_fingerprint(model if reference_model is None else reference_model)
    if settings.str_reference_model is None:
        start.check_base(weights)
    if start.adapter is not None:
        model = PeftModel.from_pretrained(model, start.adapter, is_trainable=True)
    return model, reference_model, {"name": _resolved(name), "weights": weights}


def _resolved(name: str) -> str:
    """A folder by its whole path, so that the next run finds it; a hub id as it is."""
    return str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name


def _load_model(name: str, settings: STRConfig, model_settings: Any) -> Any:
    quantization = get_quantization_config(model_settings)
    kwargs: dict[str, Any] = {
        "revision": model_settings.model_revision,
        "trust_remote_code": settings.trust_remote_code,
        "attn_implementation": model_settings.attn_implementation,
        "dtype": model_settings.dtype,
    }
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    if isinstance(settings.model_init_kwargs, dict):
        kwargs |= settings.model_init_kwargs
    settings.model_init_kwargs = None
    return load(AutoModelForCausalLM, name, **kwargs)


def _checkpoint(given: Any, output: Path) -> str | bool | None:
    """`--resume_from_checkpoint`: a folder, or yes for the newest one in the output folder."""
    if given in (None, False, "", "false", "False"):
        return None
    if given in (True, "true", "True", "last"):
        if not any(output.glob("checkpoint-*")):
            raise InputError(
                f"`resume_from_checkpoint` is set but {output} holds no checkpoint. Leave it out "
                "to start anew."
            )
        return True
    if not Path(given).is_dir():
        raise InputError(f"{given}: no such checkpoint (`resume_from_checkpoint`). Check the path.")
    return str(given)


def _safety_tokens(
    settings: STRConfig, start: Start, model: Any, tokenizer: Any, output: Path
) -> SafetyTokens:
    given = settings.str_tokens
    if given is None and settings.resume_from_checkpoint and (output / TOKENS).is_file():
        given = str(output / TOKENS)
    if (found := start.safety_tokens(given)) is not None:
        return found
    _log.info("Mining safety tokens from %s.", model.config._name_or_path)
    return mine_safety_tokens(model, tokenizer)


def _read_data(script: Any, mixture: Any) -> Any:
    if mixture.datasets:
        return get_dataset(mixture)
    name = script.dataset_name
    if not name:
        raise InputError(
            "`dataset_name` is missing. Give a JSONL, JSON, CSV or Parquet file, or a hub id."
        )
    if is_table(name):
        try:
            # The digest makes the cache of `datasets` see an edited file.
            given = {"path": name, "digest": sha256_of(name)} if Path(name).is_file() else {}
            if not given:
                next(rows_of(name))
            return DatasetDict(
                {
                    script.dataset_train_split: Dataset.from_generator(
                        _checked_rows, gen_kwargs=given
                    )
                }
            )
        except DatasetGenerationError as error:
            cause = error.__cause__
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            raise cause or error from error
    try:
        return load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise PrerequisiteError(
            f"{name}: no such data set, here or on the hub ({str(error).splitlines()[0]}). Check "
            "`dataset_name`."
        ) from error


def _checked_rows(path: str, digest: str) -> Iterator[dict[str, Any]]:
    """Rows of a local file, each with the columns of the first and nothing else."""
    shape: tuple[str, ...] | None = None
    for row in rows_of(path):
        if shape is None:
            shape = next((each for each in _SHAPES if set(each) <= row.values.keys()), None)
            if shape is None:
                raise row.lacks(
                    "messages",
                    "Training rows have 'messages', or 'prompt' and 'completion', or 'text'.",
                )
        for column in shape:
            if row.values.get(column) in (None, "", []):
                raise row.lacks(column, f"The first row has {', '.join(shape)}; every row must.")
        yield {column: _checked(row, column) for column in shape}


def _checked(row: Row, column: str) -> Any:
    value = row.values[column]
    if isinstance(value, str):
        if column == "messages":
            raise InputError(
                f"{row.place}: 'messages' must be a list of messages with 'role' and 'content', "
                "got text. Use a 'text' column for plain text."
            )
        return value
    ok = isinstance(value, list) and all(
        isinstance(each, Mapping)
        and isinstance(each.get("role"), str)
        and isinstance(each.get("content"), str)
        for each in value
    )
    if not ok or column == "text":
        raise InputError(
            f"{row.place}: {column!r} must be "
            + ("text" if column == "text" else "a list of messages with 'role' and 'content'")
            + f", got {type(value).__name__}."
        )
    if column == "messages" and not any(each["role"] == "assistant" for each in value):
        raise InputError(f"{row.place}: no message of role 'assistant', so nothing to learn.")
    return [{"role": each["role"], "content": each["content"]} for each in value]


def _split(data: Any, name: str) -> Any:
    if name not in data:
        raise InputError(
            f"The data has no split {name!r} (it has: {', '.join(map(repr, data))}). Set "
            "`dataset_train_split` or `dataset_test_split`."
        )
    return data[name]


def _plain(*settings: Any) -> dict[str, Any]:
    """All settings as plain values; secrets stay out."""
    found: dict[str, Any] = {}
    for each in settings:
        values = each.to_dict() if hasattr(each, "to_dict") else dataclasses.asdict(each)
        found |= {
            key: value
            for key, value in values.items()
            if "token" not in key or key.startswith("str_")
        }
    return {key: found[key] if _is_plain(found[key]) else str(found[key]) for key in sorted(found)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return (
        value is None
        or isinstance(value, str | int | bool)
        or (isinstance(value, float) and value == value and abs(value) != float("inf"))
    )


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if _is_plain(value) else None for key, value in entry.items()}


def _birth(
    script: Any, settings: STRConfig, model_settings: Any, mixture: Any, tokens: SafetyTokens
) -> str:
    """What makes a run the same run: model, data, tokens, and the settings that steer training."""
    steering = (
        "seed", "learning_rate", "num_train_epochs", "max_steps", "packing", "max_length",
        "per_device_train_batch_size", "gradient_accumulation_steps", "assistant_only_loss",
        "completion_only_loss", "loss_type", "lr_scheduler_type", "warmup_steps", "weight_decay",
        "optim", "str_weight", "str_form", "str_positions", "str_reference", "str_reference_model",
        "str_reference_fraction",
    )  # fmt: skip
    parts = [f"{name}={getattr(settings, name)}" for name in steering]
    parts += [
        f"{script.dataset_name}",
        f"{script.dataset_config}",
        f"{mixture.datasets}",
        f"{sorted(tokens.ids)}",
    ]
    parts += [f"{key}={value}" for key, value in sorted(dataclasses.asdict(model_settings).items())]
    if script.dataset_name and Path(script.dataset_name).is_file():
        parts.append(sha256_of(script.dataset_name))
    return fingerprint(parts)


def _claim(output: Path, birth: str, *, resumes: bool) -> None:
    """Refuse an output folder that holds another run, or this one where it is not resumed."""
    if not (output / RUN).is_file():
        return
    other = read_json(output / RUN, "run file")
    if other.get("birth") != birth:
        raise InputError(
            f"`output_dir` {output} holds another run (started {other.get('started')}, with other "
            "model, data, tokens or settings). Give another folder."
        )
    stopped_early = other.get("status") == "running" and not any(output.glob("checkpoint-*"))
    if not resumes and not stopped_early:
        raise InputError(
            f"`output_dir` {output} holds this run already ({other.get('status')}). Go on with "
            "--resume_from_checkpoint true, or give another folder."
        )
