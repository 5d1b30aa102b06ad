"""`moorline try`: plain tuning and three weights on one's own model and rows, and which to take."""

import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml

from ..audit.suites import BUILT_IN
from ..compare import Compared
from ..compare.fronts import alternative
from ..compare.plan import ALIGNED, Value
from ..compare.record import Judged, Pooled
from ..compare.tables import ends, percent
from ..errors import InputError
from ..method.settings import DEFAULT_WEIGHT
from ..provenance import as_json, write_text
from .compare import check_whole, run_compare
from .default_suites import is_embedded
from .init import RANK, fitting
from .library_messages import quiet
from .look import Look, look, told
from .training_data import read_training_data, split_of
from .tune_settings import Settings, parse

WEIGHTS = (DEFAULT_WEIGHT / 3, DEFAULT_WEIGHT, DEFAULT_WEIGHT * 3)
"""The default between two others."""

_DATA, _MODEL = "rows", "model"
_HELD_OUT = 0.1  # share of the rows that nothing is trained on: their perplexity is the utility
_FEWEST, _MOST = 12, 200
_MARGIN = 0.05  # nats per token that count as equal

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """What came of it."""

    recommendation: str
    certainty: str
    command: str
    """The whole line of the tuning that is recommended; empty where none is."""

    page: str
    rows: tuple[tuple[str, str, str, str], ...]
    """Way of tuning; attack success; over-refusal; perplexity of the rows held out; each with its
    interval."""


def try_out(
    model: str, rows: str, output: Path, *, seeds: Sequence[int] = (0,), limit: int = 200,
    workers: int = 1, say: Say = print,
) -> Tried:  # fmt: skip
    """Tune plainly and with three weights at equal settings, audit all, and say which to take.

    A tenth of the rows is held out; their perplexity says whether the task was learned. The weight
    is chosen on three tenths of the prompts and reported on the others. A run that was stopped goes
    on where it was.

    Args:
        model: Folder or hub id of a chat model.
        rows: File of rows or hub id.
        output: Folder for everything; `trade-off.html` in it is the page.
        seeds: Seeds of the tunings. One tells little of chance; three tell more.
        limit: Prompts of each kind.
        workers: Tunings at a time.
        say: Called with lines of progress.

    Raises:
        InputError: If the model or the rows cannot be used, or a tuning failed.
    """
    plan = _plan(model, rows, output, seeds, limit, say)
    found = run_compare(plan, output, workers=workers, say=say)
    check_whole(found)
    tried = _tried(found, model, rows, output)
    figure = (output / "figures" / f"{_MODEL}-{_DATA}.svg").read_text(encoding="utf-8")
    template = (Path(__file__).parent / "trade_off.html.jinja").read_text(encoding="utf-8")
    page = (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            tried=tried,
            figure=figure,
            shown=alternative(found, _MODEL, _DATA),
            model=model,
            rows=rows,
        )
    )
    write_text(tried.page, page)
    return tried


def shown(tried: Tried) -> str:
    """The table, the advice and the line to run, for a terminal."""
    table = [("", "attack success", "over-refusal", "perplexity"), *tried.rows]
    first, *widths = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [
        f"{name:<{first}}"
        + "".join(f"  {each:>{width}}" for each, width in zip(numbers, widths, strict=True))
        for name, *numbers in table
    ]
    lines += ["", *textwrap.wrap(f"{tried.recommendation} {tried.certainty}", 80)]
    lines += ["", f"Written: {tried.page}"]
    return "\n".join([*lines, *([f"To tune with it:\n  {tried.command}"] * bool(tried.command))])


def _plan(model: str, rows: str, output: Path, seeds: Sequence[int], limit: int, say: Say) -> Path:
    """Write the rows' two parts and the plan; gives the plan's path."""
    first = _settings(model, rows)
    look(first)  # refuses rows by their places in the file
    with quiet():
        data = split_of(
            read_training_data(first.script, first.mixture), first.script.dataset_train_split
        )
    held_out = max(_FEWEST, min(_MOST, round(_HELD_OUT * len(data))))
    if len(data) < 3 * held_out:
        raise InputError(
            f"{rows}: {len(data)} rows are too few to hold {held_out} of them out and learn from "
            f"the others. Give {3 * _FEWEST} rows or more."
        )
    parts = data.train_test_split(test_size=held_out, seed=0)
    files = {"train": output / "rows" / "train.jsonl", "test": output / "rows" / "held_out.jsonl"}
    for name, path in files.items():
        write_text(path, "".join(as_json(dict(row)) for row in parts[name]))
    settings = _settings(model, str(files["train"]))
    seen = look(settings)
    training = _training(seen, settings)
    for line in told(seen, _settings(model, str(files["train"]), training)):
        say(line)
    tunings = len(seeds) * (1 + len(WEIGHTS))
    say(
        f"Now {tunings} tunings as above on {len(parts['train'])} of {len(data)} rows, and "
        f"{tunings + 1} audits with {limit} prompts of each kind at most. How long that takes is "
        "said when the first tuning is done."
    )
    harmful, harmless = ("embedded", "embedded") if is_embedded(model) else BUILT_IN
    plan = {
        "models": [{"name": _MODEL, "path": model}],
        "data": [{"name": _DATA, "train": str(files["train"]), "held_out": str(files["test"])}],
        "methods": [{"name": "plain"}, {"name": "str", "weights": list(WEIGHTS)}],
        "seeds": list(seeds),
        "training": training,
        "audit": {"harmful": [harmful], "harmless": [harmless], "limit": limit,
                  "max_new_tokens": 64},
        "margin": _MARGIN,
    }  # fmt: skip
    path = output / "plan.yaml"
    write_text(path, yaml.safe_dump(plan, sort_keys=False, allow_unicode=True))
    return path


def _settings(model: str, rows: str, training: Mapping[str, Value] | None = None) -> Settings:
    """Settings of a tuning on these rows, as `moorline tune` reads them."""
    words = ["--model_name_or_path", model, "--dataset_name", rows, "--output_dir", "out"]
    words += [f"--{name}={value}" for name, value in (training or {"use_peft": True}).items()]
    with quiet():
        return parse(words)


def _training(seen: Look, settings: Settings) -> dict[str, Value]:
    """The settings that all tunings share; `init` would write the same."""
    of = fitting(seen, settings)
    return {
        "use_peft": True, "lora_r": RANK, "lora_alpha": 2 * RANK,
        "lora_target_modules": "all-linear", "learning_rate": of.learning_rate,
        "num_train_epochs": of.epochs, "per_device_train_batch_size": of.batch,
        "max_length": of.max_length, "bf16": of.bf16, "fp16": of.fp16,
        "gradient_checkpointing": of.checkpointing, "logging_steps": 10, "save_strategy": "no",
        "report_to": "none",
    }  # fmt: skip


def _tried(found: Compared, model: str, rows: str, output: Path) -> Tried:
    ways = [(ALIGNED, ""), ("plain", ""), *(("str", f"weight {each:g}") for each in WEIGHTS)]
    table = tuple(
        (
            f"{name} {strength}".strip(),
            *(_with_ends(each) for each in _numbers(found, name, strength)),
        )
        for name, strength in ways
    )
    chosen = found.chosen_at(_MODEL, _DATA)["str"]
    words = {each.method: each for each in found.judged}
    recommendation, certainty = _advice(words["str"], words["plain"], chosen)
    weight = chosen.removeprefix("weight ")
    line = ["moorline", "tune", "--model_name_or_path", model, "--dataset_name", rows]
    for name, value in found.plan.training.items():
        shown = value if isinstance(value, tuple) else (value,)
        line += [f"--{name}", *map(str, shown)] if value is not True else [f"--{name}"]
    line += ["--str_weight", weight, "--output_dir", "out"]
    takes = words["str"].word in ("kept", "open")
    return Tried(
        recommendation=recommendation,
        certainty=certainty + f" Seeds: {len(found.plan.seeds)}.",
        command=shlex.join(line) if takes else "",
        page=str(output / "trade-off.html"),
        rows=table,  # pyright: ignore[reportArgumentType]
    )


def _numbers(found: Compared, name: str, strength: str) -> list[Pooled | None]:
    at = {"strength": strength}
    return [
        found.number(_MODEL, _DATA, name, "attack_success_rate", **at),
        found.number(_MODEL, _DATA, name, "over_refusal_rate", **at),
        found.utility(_MODEL, _DATA, name, strength),
    ]


def _with_ends(row: Pooled | None) -> str:
    if row is None or row.value is None:
        return "undefined"
    value = f"{row.value:.3g}" if row.metric == "perplexity" else percent(row.value)
    return f"{value} {ends(row)}".strip()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _advice(held: Judged, plain: Judged, chosen: str) -> tuple[str, str]:
    """What to do, and how sure that is, in words."""
    why = f"By the 95 % interval: {held.why}."
    if held.word == "no witness":
        return "Nothing can be said of safety with this model.", f"{_sentence(held.why)}."
    if plain.word == "kept":
        return (
            f"Plain tuning on these rows keeps the refusals as well; `{chosen}` holds them at no "
            "loss shown here.",
            f"By the 95 % interval: {plain.why}.",
        )
    if held.word == "kept":
        return f"Take {chosen}: it keeps the refusals and learns the task.", why
    if held.word == "open":
        return (
            f"{chosen.capitalize()} looks best; that it keeps the refusals is not shown.",
            f"{why} More prompts (--limit) or seeds (--seed) would tell.",
        )
    if held.word == "task lost":
        return (
            "Take none of these (task lost): no weight learns the task as well as plain tuning. "
            "Try a smaller weight, more epochs, or more rows.",
            why,
        )
    remedy = "Try a larger weight, or a smaller learning rate."
    return f"Take none of these ({held.word}). {remedy}", why
