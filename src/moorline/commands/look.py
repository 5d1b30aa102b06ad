"""What a tuning would be, told before it is done: model, rows, lengths, memory, settings.

Nothing is trained and no weights are loaded: the model's configuration says how large it is.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..chat.loading import check_model_folder, load
from ..chat.training_rows import prepared_row, settle_responses
from ..errors import InputError
from ..trainer import ADAPTER_LEARNING_RATE, FULL_LEARNING_RATE
from .library_messages import quiet
from .lineage import lineage_of
from .training_data import read_training_data, split_of
from .tune_settings import Settings

_MOST_ROWS = 2000
"""Rows that are tokenized; of more, the first ones stand for all."""

_ADAM_BYTES = 12  # of a trained weight in float32, beside the weight: gradient and two moments
# Bytes kept of a layer for each token and hidden unit, in 16 bits, with gradient checkpointing and
# without: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
_CHECKPOINTED, _WHOLE = 2.0, 34.0


class Rows(NamedTuple):
    """The rows, in tokens of the model."""

    num: int
    columns: tuple[str, ...]
    longest: int
    usual: int
    """Median length."""

    responses: int
    """Tokens that are learned, of all rows that were read."""

    cut: int
    """Rows longer than `max_length`, of those read."""

    read: int


class Look(NamedTuple):
    """What is known before a tuning."""

    model: str
    base: str
    """The aligned model that it is held to."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    context: int | None
    has_template: bool
    rows: Rows


def look(settings: Settings) -> Look:
    """Look at the model and the rows that settings name.

    Raises:
        InputError: If one is missing, damaged, or does not fit the other.
    """
    name, training = settings.model.model_name_or_path, settings.training
    lineage = lineage_of(name)
    check_model_folder(lineage.model)
    remote = {"trust_remote_code": training.trust_remote_code}
    config = load(AutoConfig, lineage.model, **remote)
    tokenizer = load(AutoTokenizer, name)
    with quiet():
        data = read_training_data(settings.script, settings.mixture)
        rows = split_of(data, settings.script.dataset_train_split)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, **remote)
        found = _rows(rows, settings, tokenizer)
    text = config.get_text_config()
    return Look(
        model=name, base=lineage.base, parameters=sum(each.numel() for each in empty.parameters()),
        hidden=text.hidden_size, layers=text.num_hidden_layers, vocabulary=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None),
        has_template=bool(tokenizer.chat_template), rows=found,
    )  # fmt: skip


def _rows(rows: Any, settings: Settings, tokenizer: Any) -> Rows:
    training, first = settings.training, next(iter(rows))
    if not tokenizer.chat_template and not isinstance(first.get("text"), str):
        raise InputError(
            f"{settings.model.model_name_or_path}: its tokenizer has no chat template, which the "
            "rows need. Use the chat version of the model."
        )
    marks = settle_responses(training, rows, tokenizer, None)
    lengths, responses = [], 0
    for number, row in enumerate(itertools.islice(rows, _MOST_ROWS), 1):
        try:
            made = prepared_row(row, training, tokenizer, marks=marks)
        except InputError as error:
            raise InputError(f"Row {number} of the data: {error}") from error
        ids = made.get("input_ids") or _plain_ids(made, tokenizer)
        lengths.append(len(ids))
        responses += sum(made["assistant_masks"]) if marks else len(ids)
    longest = training.max_length
    return Rows(
        num=len(rows) if hasattr(rows, "__len__") else len(lengths),
        columns=tuple(first),
        longest=max(lengths),
        usual=round(statistics.median(lengths)),
        responses=responses,
        cut=sum(longest is not None and each > longest for each in lengths),
        read=len(lengths),
    )


def _plain_ids(row: Any, tokenizer: Any) -> Sequence[int]:
    text = row.get("text")
    if text is None:
        text = f"{row.get('prompt', '')}{row.get('completion', '')}"
    return tokenizer(str(text)).input_ids


def steps_of(seen: Look, settings: Settings) -> int:
    """Steps of a tuning on one device."""
    training = settings.training
    if training.max_steps > 0:
        return training.max_steps
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return math.ceil(math.ceil(seen.rows.num / batch) * training.num_train_epochs)


def memory_bytes(seen: Look, settings: Settings) -> int:
    """About how much memory a tuning needs on one device: weights, optimizer, activations, logits.

    A rule of thumb, right to about a factor of two; it knows no attention kernel and no host.
    """
    training, model = settings.training, settings.model
    bytes_each = 2 if training.bf16 or training.fp16 else 4
    weights = seen.parameters * (0.55 if model.load_in_4bit else bytes_each)
    if model.use_peft:
        trained = min(seen.parameters, 7 * seen.layers * 2 * seen.hidden * model.lora_r)
        own = trained * (4 + _ADAM_BYTES)
    else:  # a second copy is the reference
        own = seen.parameters * _ADAM_BYTES + weights
    longest = min(seen.rows.longest, training.max_length or seen.rows.longest)
    tokens = training.per_device_train_batch_size * longest
    kept = _CHECKPOINTED if training.gradient_checkpointing else _WHOLE
    activations = tokens * seen.hidden * seen.layers * kept * bytes_each / 2
    logits = tokens * seen.vocabulary * 8
    return round(weights + own + activations + logits)


def told(seen: Look, settings: Settings) -> list[str]:
    """What a look saw, in lines; the last ones warn."""
    rows, training = seen.rows, settings.training
    of = "" if rows.read == rows.num else f" (of the first {rows.read:,})"
    precision = "bf16" if training.bf16 else "fp16" if training.fp16 else "float32"
    what = f"LoRA of rank {settings.model.lora_r}" if settings.model.use_peft else "all weights"
    rate = training.learning_rate or (
        ADAPTER_LEARNING_RATE if settings.model.use_peft else FULL_LEARNING_RATE
    )
    lines = [
        f"Model     {seen.model}: {seen.parameters / 1e6:,.1f} million weights, context "
        f"{seen.context or 'unknown'}, {'with' if seen.has_template else 'without'} chat template",
        f"Held to   {seen.base}: {_strength(settings)}, anchors {training.str_anchors}",
        f"Rows      {rows.num:,} with {', '.join(rows.columns)}; {rows.usual} tokens as a rule, "
        f"{rows.longest} at most, {rows.responses:,} learned{of}",
        f"Training  {what}, {precision}, learning rate {rate:.2g}, {steps_of(seen, settings)} "
        f"steps of {training.per_device_train_batch_size} x "
        f"{training.gradient_accumulation_steps} rows",
        f"Memory    about {_amount(memory_bytes(seen, settings))} a device (to a factor of two)",
    ]  # fmt: skip
    if rows.cut:
        lines.append(
            f"Warning   {rows.cut} of {rows.read} rows are longer than `max_length` "
            f"({training.max_length}) and lose their end."
        )
    wanted = fitting_rate(seen.hidden)
    if settings.model.use_peft and not wanted / 8 < rate < wanted * 8:
        lines.append(
            f"Warning   a learning rate of {rate:.2g} is far from {wanted:.2g}, which suits a "
            f"hidden size of {seen.hidden}."
        )
    if steps_of(seen, settings) < 30:
        lines.append(
            f"Warning   {steps_of(seen, settings)} steps are few: the task may not be learned. "
            "Raise `num_train_epochs`."
        )
    return lines


def _amount(num: int) -> str:
    return f"{num / 2**30:.1f} GiB" if num >= 2**30 else f"{num / 2**20:.0f} MiB"


def _strength(settings: Settings) -> str:
    """How hard the refusals are held, in words."""
    training, method = settings.training, settings.method.method
    if method != "str":
        return f"method {method}"
    if training.str_budget is not None:
        return f"budget {training.str_budget:g}"
    return f"weight {training.str_weight:g}" if training.str_weight else "nothing is held"


def fitting_rate(hidden: int) -> float:
    """A learning rate for LoRA that suits a model's width, to one digit.

    5e-4 * (2000 / hidden)^0.78, kept between 5e-5 and 5e-3.

    Source:
        Schulman and Thinking Machines Lab 2025, "LoRA Without Regret": ten times the rate of full
        fine-tuning, falling with the width; the exponent is theirs for Llama. The bounds are ours.

    Example:
        >>> fitting_rate(4096), fitting_rate(128)
        (0.0003, 0.004)
    """
    rate = min(5e-3, max(5e-5, 5e-4 * (2000 / hidden) ** 0.78))
    return float(f"{rate:.0e}")
