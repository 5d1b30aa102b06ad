"""The section of a model card: how an adapter was tuned, what its audit found, how to repeat it."""

import json
import shlex
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard

from ..errors import InputError
from ..provenance import write_text
from .page import LABELS, interval, percent
from .runs import Run, read_runs

_BEGIN, _END = "<!-- moorline: begin -->", "<!-- moorline: end -->"
_TASK = "Moorline audit"
_FLAGS = (
    "model_name_or_path", "dataset_name", "use_peft", "lora_r", "lora_alpha", "learning_rate",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_length", "str_weight", "str_form", "str_reference", "seed",
)  # fmt: skip
"""The settings that a reader needs first; all of them are in `run.json`."""


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
    folder = Path(folder)
    (run,) = read_runs([folder])
    if "tuning" not in run.origin:
        raise InputError(f"{folder}: no run.json. Give a folder that `moorline tune` wrote.")
    path = folder / "README.md"
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
    model = run.origin["tuning"]["model"]
    if not data.base_model and not Path(model).is_dir():  # the hub wants an id, not our folder
        data.base_model = model
    others = [each for each in data.eval_results or [] if each.task_name != _TASK]
    data.eval_results = [*others, *_results(run)] or None
    if data.eval_results:
        data.model_name = data.model_name or run.name  # the metadata need one beside results
    write_text(path, str(card))
    return path


def _read(path: Path) -> ModelCard:
    if not path.is_file():
        return ModelCard("---\n{}\n---\n")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a model card: {error}. Put its head right.") from error


def _section(run: Run) -> str:
    tuning, audit = run.origin["tuning"], run.origin.get("audit")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moorline.report"),
        autoescape=False,  # Markdown: whatever comes from outside goes through `code`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval, "code": _code}
    settings = tuning["settings"]
    flags = {name: settings[name] for name in _FLAGS if settings.get(name) is not None}
    return environment.get_template("card.md.jinja").render(
        begin=_BEGIN,
        end=_END,
        run=run,
        tuning=tuning,
        audit=audit,
        settings=settings,
        tune_command=_command(["tune", *_words(flags), "--output_dir", run.name]),
        audit_command=audit and _command(["audit", *_audit_words(audit, run)]),
    )


def _results(run: Run) -> list[EvalResult]:
    """The rates that are defined, as the hub's metadata have them."""
    hashes = {each["name"]: each["sha256"] for each in run.inputs}
    return [
        EvalResult(
            task_type="text-generation",
            task_name=_TASK,
            dataset_type=row["suite"],
            dataset_name=row["suite"],
            dataset_config=row["condition"],
            dataset_revision=hashes.get(row["suite"]),
            metric_type=row["metric"],
            metric_name=LABELS.get(row["metric"], row["metric"]),
            metric_value=row["rate"],
            metric_args={name: row[name] for name in ("num", "low", "high", "judge")},
        )
        for row in run.rates
        if row["rate"] is not None
    ]


def _words(flags: dict[str, Any]) -> list[str]:
    """Flags as `moorline tune` reads them: a switch that is on stands alone, one off is away."""
    words = []
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words += [f"--{name}", str(value)]
    return words


def _audit_words(audit: dict[str, Any], run: Run) -> list[str]:
    settings = audit.get("settings") or {}
    words = [str(audit.get("model")), "--adapter", run.name, "--output", run.name]
    for name in ("max_new_tokens", "batch_size", "system_prompt"):
        if settings.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    return [*words, "--seed", str(audit.get("seed"))]


def _command(words: list[str]) -> str:
    # On one line: a line of three backticks would end the block of code that it stands in.
    return " ".join(shlex.join(["moorline", *words]).split())


def _code(value: Any) -> str:
    """Words from outside as code in Markdown: with nothing in them that Markdown would read."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "`<|":
        text = text.replace(character, f"\\u{ord(character):04x}")
    is_plain = isinstance(value, str) and value == value.strip()
    return f"`{text[1:-1] if is_plain else text}`"  # quotes show white space at the ends
