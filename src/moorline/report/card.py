"""The section of a model card: how an adapter was tuned, what its audit found, how to repeat it."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from ..errors import InputError
from ..provenance import write_text
from .rows import Origin, Run
from .runs import read_runs
from .text import TEMPLATES, environment, label, quoted

_BEGIN, _END = "<!-- moorline: begin -->", "<!-- moorline: end -->"
_TASK = "Moorline audit"
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_FLAGS = json.loads((TEMPLATES / "tune_flags.json").read_text(encoding="utf-8"))
"""The settings that shape what is trained, beside all that begin with `str_`; all that there are
stand in `run.json`. A setting that is absent there, empty or at its neutral value is left out;
switches that are on by default, or may be, are said to be off."""


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


def write_results(folder: str | Path, path: Path) -> Path:
    """Put the numbers of an audit into the metadata of any model's card, its text left as it is.

    Args:
        folder: A folder with `audit.json`.
        path: The card; written if it is not there.

    Raises:
        InputError: If the folder holds no audit, or the card cannot be read.
    """
    (run,) = read_runs([folder])
    card = _read(path)
    _put_results(card, run)
    return _save(card, path)


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
    base = _base(run.tuning)
    # "None" is how TRL's card spells a folder, and PEFT's has the whole path of one
    if isinstance(data.base_model or "", str) and not _is_hub_id(data.base_model):
        data.base_model = base if _is_hub_id(base) else None
    of_base = {each for each in data.tags if each.startswith("base_model:")}
    data.tags = [
        each for each in data.tags if each not in of_base or _is_hub_id(each.rpartition(":")[2])
    ]
    _put_results(card, run)
    return _save(card, path)


def _is_hub_id(name: str | None) -> bool:
    """Whether a name can be of the hub, and is no folder of this machine."""
    if name in (None, "None") or not _HUB_ID.fullmatch(name):
        return False
    return not Path(name).is_dir()


def _put_results(card: ModelCard, run: Run) -> None:
    data = card.data
    others = [each for each in data.eval_results or [] if each.task_name != _TASK]
    data.eval_results = [*others, *_results(run)] or None
    if data.eval_results:
        data.model_name = data.model_name or run.name  # the metadata need one beside results


def _save(card: ModelCard, path: Path) -> Path:
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


def _base(tuning: Origin) -> str:
    """The aligned model that a tuning was held to."""
    return str((tuning.base or {}).get("name") or tuning.model)


def _section(run: Run) -> str:
    # Markdown is not escaped: whatever comes from outside goes through `code`.
    made = environment(autoescape=False)
    made.filters["code"] = _code
    return made.get_template("card.md.jinja").render(
        begin=_BEGIN,
        end=_END,
        run=run,
        base=_base(run.tuning),
        tune_command=_command(["tune", *_tune_words(run)]),
        audit_command="audit" in run.provenance and _command(["audit", *_audit_words(run)]),
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
            metric_name=label(row),
            metric_value=row.value,
            metric_args={"num": row.num, "low": row.low, "high": row.high, "judge": row.judge},
        )
        for row in run.rates
        if row.value is not None
    ]


def _again(run: Run) -> str:
    """The folder beside that of a run that its repetition goes into."""
    return f"{run.name}-again"


def _tune_words(run: Run) -> list[str]:
    """The flags of `moorline tune` that repeat a run, into a folder beside it."""
    settings = {**run.tuning.settings, "model_name_or_path": run.tuning.model}
    words = []
    ours = sorted(each for each in settings if each.startswith("str_") and each != "str_tokens")
    for flag in (*_FLAGS["shaping"], *ours):
        given = settings.get(flag)
        off = given is False and flag not in _FLAGS["said_to_be_off"]
        if given in (None, "", [], _FLAGS["neutral"].get(flag)) or off:
            continue
        parts = given if isinstance(given, list) else [given]
        words += [f"--{flag}", *map(str, parts)]
    return [*words, "--str_tokens", f"{run.name}/safety_tokens.json", "--output_dir", _again(run)]


def _audit_words(run: Run) -> list[str]:
    """The words of `moorline audit` that repeat an audit, of the repeated tuning; no suites."""
    audit, settings = run.audit, run.audit.settings
    words = [str(audit.model), "--adapter", _again(run)] if audit.adapter else [_again(run)]
    for against in dict.fromkeys(row.against for row in run.comparisons):
        words += ["--against", against]
    for flag in ("max_new_tokens", "batch_size", "system_prompt", "metric", "thinking", "limit"):
        if (given := settings.get(flag)) is not None:
            words += [f"--{flag.replace('_', '-')}", str(given)]
    for flag in ("judge", "condition"):
        for each in settings.get(f"{flag}s") or ():
            words += [f"--{flag}", str(each.get("name") if isinstance(each, dict) else each)]
    if settings.get("by_category"):
        words.append("--by-category")
    for gate in dict.fromkeys(each.requirement for each in run.gates):
        words += ["--require", gate]
    if "rate" in {each.on for each in run.gates}:
        words += ["--gate-on", "rate"]
    return [*words, "--seed", str(audit.seed)]


def _command(words: list[str]) -> str:
    # On one line: a line of three backticks would end the block of code that it stands in.
    return " ".join(shlex.join(["moorline", *words]).split())


def _code(given: Any) -> str:
    """Words from outside as code in Markdown: with nothing in them that Markdown would read."""
    text = quoted(given)
    for character in "`<|":
        text = text.replace(character, f"\\u{ord(character):04x}")
    is_plain = isinstance(given, str) and given == given.strip()
    return f"`{text[1:-1] if is_plain else text}`"  # quotes show white space at the ends
