"""The section of a model card: how an adapter was tuned, what its audit found, how to repeat it."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard

from ..errors import InputError
from ..provenance import write_text
from .rows import Run
from .runs import read_runs
from .text import interval_names, label, value, value_interval

_BEGIN, _END = "<!-- moorline: begin -->", "<!-- moorline: end -->"
_TASK = "Moorline audit"
_FLAGS = (
    "model_name_or_path", "model_revision", "trust_remote_code", "dtype", "attn_implementation",
    "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant",
    "dataset_name", "dataset_config", "dataset_train_split",
    "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules",
    "lora_target_parameters", "lora_modules_to_save", "use_rslora", "use_dora",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16", "seed", "data_seed",
    "max_length", "truncation_mode", "packing", "packing_strategy", "padding_free",
    "assistant_only_loss", "completion_only_loss", "loss_type", "chat_template_path", "eos_token",
)  # fmt: skip
"""The settings that shape what is trained, beside all that begin with `str_`; all that there are
stand in `run.json`. A setting that is absent there, empty or at its neutral value is left out."""

_NEUTRAL: dict[str, Any] = {
    "max_steps": -1, "dataset_train_split": "train", "model_revision": "main", "weight_decay": 0,
    "label_smoothing_factor": 0, "warmup_steps": 0, "adam_beta1": 0.9, "adam_beta2": 0.999,
    "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
}  # fmt: skip
_SWITCHED_OFF = ("bf16", "gradient_checkpointing", "assistant_only_loss", "completion_only_loss")
"""Switches that are on by default, or may be: they are said to be off."""


def write_cards(folders: Sequence[str | Path]) -> list[Path]:
    """The card of each tuned model that the folders of a report hold, with its audit's numbers."""
    return [_write(run) for run in read_runs(folders) if run.folder is not None]


def write_card(folder: str | Path) -> Path:
    """Add our section to the README.md of a tuned model, or put it in place of an older one.

    The section stands between two markers and says method, base, safety tokens, reference, rates
    with their intervals, versions and commands. The metadata get the rates as evaluation results.
    The text around the section stays as it is, byte for byte; so do the metadata of others.

    Args:
        folder: What `moorline tune` wrote; with `audit.json` in it the section has rates.

    Returns:
        The path of the card.

    Raises:
        InputError: If the folder holds no `run.json`, or a card that cannot be read.
    """
    (run,) = read_runs([folder])
    if run.folder is None:
        raise InputError(f"{folder}: no run.json. Give a folder that `moorline tune` wrote.")
    return _write(run)


def _write(run: Run) -> Path:
    path = (run.folder or Path()) / "README.md"
    card = _read(path)
    section = _section(run)
    before, begin, rest = card.text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if bool(begin) != bool(end):
        raise InputError(f"{path}: only one of the markers {_BEGIN} and {_END}. Delete it.")
    if begin:
        card.text = before + section + after
    else:
        card.text = f"{before.rstrip()}\n\n{section}\n" if before.strip() else f"\n{section}\n"
    data = card.data
    data.tags = list(dict.fromkeys([*(data.tags or []), "moorline"]))
    base = _base(run.provenance["tuning"])
    # The hub wants an id, not our folder; "None" is how TRL's card spells a folder.
    if data.base_model in (None, "", "None") and not Path(base).is_dir():
        data.base_model = base
    others = [each for each in data.eval_results or [] if each.task_name != _TASK]
    data.eval_results = [*others, *_results(run)] or None
    if data.eval_results:
        data.model_name = data.model_name or run.name  # the metadata need one beside results
    try:
        write_text(path, str(card))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}.") from error
    return path


def _read(path: Path) -> ModelCard:
    if not path.is_file():
        return ModelCard("---\n{}\n---\n")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a model card: {error}. Put its head right.") from error


def _base(tuning: dict[str, Any]) -> str:
    """The aligned model that a tuning was held to."""
    base = tuning.get("base")
    return str(base["name"] if isinstance(base, dict) and base.get("name") else tuning["model"])


def _section(run: Run) -> str:
    tuning, audit = run.provenance["tuning"], run.provenance.get("audit")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moorline.report"),
        autoescape=False,  # Markdown: whatever comes from outside goes through `code`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": value, "interval": value_interval, "code": _code,
        "label": lambda row: label(row.metric, row.kind),
    }  # fmt: skip
    return environment.get_template("card.md.jinja").render(
        begin=_BEGIN,
        end=_END,
        run=run,
        tuning=tuning,
        base=_base(tuning),
        settings=tuning["settings"],
        intervals=interval_names(run.rates),
        tune_command=_command(["tune", *_tune_words(tuning, run.name)]),
        audit_command=audit and _command(["audit", *_audit_words(audit)]),
    )


def _results(run: Run) -> list[EvalResult]:
    """The numbers that are defined, as the hub's metadata have them."""
    hashes = {each.name: each.sha256 for each in run.suites}
    return [
        EvalResult(
            task_type="text-generation",
            task_name=_TASK,
            dataset_type=row.suite,
            dataset_name=row.suite,
            dataset_config=row.condition,
            dataset_revision=hashes.get(row.suite),
            metric_type=row.metric,
            metric_name=label(row.metric, row.kind),
            metric_value=row.value,
            metric_args={"num": row.num, "low": row.low, "high": row.high, "judge": row.judge},
        )
        for row in run.rates
        if row.value is not None
    ]


def _tune_words(tuning: dict[str, Any], name: str) -> list[str]:
    """The flags of `moorline tune` that repeat a run, into a folder beside it."""
    settings = {**tuning["settings"], "model_name_or_path": tuning["model"]}
    words = []
    ours = sorted(each for each in settings if each.startswith("str_"))
    for flag in (*_FLAGS, *ours):
        given = settings.get(flag)
        off = given is False and flag not in _SWITCHED_OFF
        if given in (None, "", [], _NEUTRAL.get(flag)) or off or flag == "str_tokens":
            continue
        parts = given if isinstance(given, list) else [given]
        words += [f"--{flag}", *(str(each) for each in parts)]
    return [*words, "--str_tokens", f"{name}/safety_tokens.json", "--output_dir", f"{name}-again"]


def _audit_words(audit: dict[str, Any]) -> list[str]:
    """The words of `moorline audit` that repeat an audit, but for `--suite`."""
    settings = audit.get("settings") or {}
    words = [str(audit.get("model"))]
    if audit.get("adapter"):
        words += ["--adapter", str(audit["adapter"])]
    for flag in ("max_new_tokens", "batch_size", "system_prompt", "metric"):
        if settings.get(flag) is not None:
            words += [f"--{flag.replace('_', '-')}", str(settings[flag])]
    for flag in ("judge", "condition"):
        for each in settings.get(f"{flag}s") or ():
            words += [f"--{flag}", str(each.get("name") if isinstance(each, dict) else each)]
    if settings.get("by_category"):
        words.append("--by-category")
    return [*words, "--seed", str(audit.get("seed"))]


def _command(words: list[str]) -> str:
    # On one line: a line of three backticks would end the block of code that it stands in.
    return " ".join(shlex.join(["moorline", *words]).split())


def _code(given: Any) -> str:
    """Words from outside as code in Markdown: with nothing in them that Markdown would read."""
    text = json.dumps(given, ensure_ascii=False)
    for character in "`<|":
        text = text.replace(character, f"\\u{ord(character):04x}")
    is_plain = isinstance(given, str) and given == given.strip()
    return f"`{text[1:-1] if is_plain else text}`"  # quotes show white space at the ends
