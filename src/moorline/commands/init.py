"""`moorline init`: a commented `run.yaml` for one's model and rows, after looking at both."""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch

from ..errors import InputError
from ..method.settings import AUTO_ANCHORS, DEFAULT_FORM, DEFAULT_WEIGHT
from ..provenance import write_text
from .library_messages import quiet
from .look import Look, fitting_rate, look, steps_of, told
from .tune_settings import Settings, parse

_ENOUGH_STEPS = 300  # in 100 the embedded model did half of its task right, in 300 seven eighths
_MOST_EPOCHS = 20
_SMALL = 300e6  # weights up to which activations fit without recomputing them
_CHECKED = 32
RANK = 16
"""Of LoRA."""

_FILE = Template("""\
# Written by `moorline init` for $model and $rows.
# Run it:  moorline tune --config $file
# Ask what it would do, without training:  moorline tune --config $file --dry-run
#
$seen

model_name_or_path: $model_yaml
dataset_name: $rows_yaml
output_dir: $output

# LoRA: the reference is the model itself with the adapter off, live or kept on disk beforehand,
# so no second copy is kept in memory.
use_peft: true
lora_r: $rank
lora_alpha: $alpha
lora_target_modules: [all-linear]

# Suits a hidden size of $hidden (5e-4 * (2000 / hidden)^0.78); halve it if the loss jumps.
learning_rate: $rate
# $steps steps in all; $why_epochs
num_train_epochs: $epochs
per_device_train_batch_size: $batch
# The longest row has $longest tokens.
max_length: $length
$precision
# Recomputes activations to save memory; slower by about a third.
gradient_checkpointing: $checkpointing

# How hard the refusals are held. Larger holds harder and may cost some of the task; 0 holds
# nothing and measures the drift. `moorline try` compares weights on your own rows.
str_weight: $weight
# Holds the model where it would refuse, and leaves a task alone that it would answer. The
# paper's form is logit, with a weight of 10.
str_form: $form
# Hold it at 64 prompts that ought to be refused and 64 that ought to be answered too, with its
# own answers. They are extra data, and no audit may ask them.
str_anchors: $anchors
# Rows that answer what the model itself would refuse: auto leaves them out of what is learned
# where the form is kl; learn learns them.
str_conflicts: auto

# Prompts asked before and after, so that the run ends with what it kept; 0 asks none.
check_prompts: $checked
logging_steps: 10
save_strategy: "no"
report_to: none
""")


def init(model: str, rows: str, file: Path, *, output: str = "out") -> list[str]:
    """Look at a model and rows, and write settings for them that `moorline tune` takes.

    Args:
        model: Folder or hub id of a chat model.
        rows: File of rows or hub id.
        file: The YAML file to write.
        output: The `output_dir` in it.

    Returns:
        What was seen, in lines.

    Raises:
        InputError: If `file` is there, or the model or the rows cannot be used.
    """
    if file.exists():
        raise InputError(f"{file} is there already. Give another file with --output, or delete it.")
    first = ["--model_name_or_path", model, "--dataset_name", rows, "--output_dir", output]
    with quiet():
        settings = parse([*first, "--use_peft"])
    seen = look(settings)
    words = _words(seen, fitting(seen, settings))
    text = _FILE.substitute(
        words, model=shlex.quote(model), rows=shlex.quote(rows), file=shlex.quote(str(file)),
        model_yaml=_quoted(model), rows_yaml=_quoted(rows), output=_quoted(output), seen="",
        steps="N", checked=_CHECKED, weight=DEFAULT_WEIGHT,
        form=DEFAULT_FORM, anchors=AUTO_ANCHORS,
    )  # fmt: skip
    write_text(file, text)
    try:
        with quiet():
            settings = parse(["--config", str(file)])  # as `tune` will read it
    except InputError:
        file.unlink()
        raise
    lines = told(seen, settings)
    text = text.replace("#\n\n", "".join(f"# {line}\n" for line in lines) + "\n", 1)
    write_text(file, text.replace("# N steps", f"# {steps_of(seen, settings)} steps"))
    return lines


class Fitting(NamedTuple):
    """Settings that fit a model and rows."""

    learning_rate: float
    epochs: int
    batch: int
    max_length: int
    bf16: bool
    fp16: bool
    checkpointing: bool


def fitting(seen: Look, settings: Settings) -> Fitting:
    """The settings that follow from what was seen."""
    batch = 8 if seen.rows.num >= 400 else 4
    epochs = math.ceil(_ENOUGH_STEPS * batch / seen.rows.num)
    longest = 64 * math.ceil(seen.rows.longest / 64)
    return Fitting(
        learning_rate=fitting_rate(seen.hidden),
        epochs=min(_MOST_EPOCHS, max(3, epochs)),
        batch=batch,
        max_length=min(longest, seen.context or longest, 4096),
        bf16=bool(settings.training.bf16),
        fp16=bool(settings.training.fp16),
        checkpointing=seen.parameters > _SMALL and torch.cuda.is_available(),
    )


def _words(seen: Look, of: Fitting) -> Mapping[str, str]:
    """The settings as the file has them, each with why."""
    if of.bf16 or of.fp16:
        name = "bf16" if of.bf16 else "fp16"
        precision = f"# {name}, which this machine has.\n{name}: true"
    else:
        precision = "# This machine has no bf16, so everything is in float32.\nbf16: false"
    few = f"{seen.rows.num} rows must be seen often; fewer do for a large model"
    return {
        "hidden": str(seen.hidden), "rate": f"{of.learning_rate:.1e}", "epochs": str(of.epochs),
        "why_epochs": few if of.epochs > 3 else "three passes are usual", "batch": str(of.batch),
        "longest": str(seen.rows.longest), "length": str(of.max_length), "precision": precision,
        "checkpointing": str(of.checkpointing).lower(), "rank": str(RANK), "alpha": str(2 * RANK),
    }  # fmt: skip


def _quoted(text: str) -> str:
    """A text as YAML has it, whatever is in it: JSON is YAML."""
    return json.dumps(text, ensure_ascii=False)
