"""The reference of a data set computed ahead, as a job of its own.

    moorline cache --model_name_or_path MODEL --dataset_name rows.jsonl --str_cache_dir z0 ...

The flags and YAML of `moorline tune`: what the tuning would read is what is computed, whatever
starts either of them.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..chat.loading import check_model_folder
from ..errors import InputError
from ..method.cache import Manifest
from ..provenance import size_in_words
from .library_messages import quiet
from .lineage import lineage_of
from .tune import prepared
from .tune_settings import parse

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The reference of one data set, as it lies on disk."""

    folder: str
    rows: int
    """Distinct rows."""

    positions: int
    """Response positions that count."""

    bytes: int
    dtype: str
    rounded_by: float
    """What its precision changed at most, in logits."""


def cache(arguments: Sequence[str]) -> tuple[Kept, ...]:
    """Compute the reference of every data set that a tuning with these settings would read.

    Args:
        arguments: Those of `moorline tune`; nothing is trained or written to `output_dir`.

    Returns:
        One for each data set; opened if it was there before, resumed if it was begun.

    Raises:
        InputError: For what `moorline tune` refuses, and under FSDP and DeepSpeed.
        PrerequisiteError: If model or data cannot be fetched, or the disk is full.
    """
    with quiet():
        settings = parse(arguments)
    training = settings.training
    if training.str_reference not in ("auto", "cached", "write_through"):
        raise InputError(
            f"`str_reference` {training.str_reference!r} computes no cache. Leave it out."
        )
    # Anchors are read beside a cache and not from it.
    training.str_reference, training.str_anchors = "cached", "off"
    training.resume_from_checkpoint = None
    lineage = lineage_of(settings.model.model_name_or_path)
    check_model_folder(lineage.model)
    output = Path(training.output_dir)
    is_new = not output.exists()
    with quiet():
        try:
            trainer, _ = prepared(settings, lineage, known_as="")
        except KeyboardInterrupt:
            _log.warning(
                "Stopped. What is computed is kept, and the same command goes on after the last "
                "whole shard."
            )
            raise
    if is_new:
        with suppress(OSError):  # the host makes the folder, and nothing goes there
            output.rmdir()
    return tuple(_kept(each.folder) for each in trainer.regularizer.reference.caches)  # pyright: ignore


def _kept(folder: Path) -> Kept:
    found = Manifest.load(folder)
    return Kept(
        folder=str(folder), rows=found.num_rows, positions=found.num_positions, bytes=found.bytes,
        dtype=found.dtype, rounded_by=found.rounding["max_abs"],
    )  # fmt: skip


def summary(made: Sequence[Kept]) -> str:
    """What there is, and what reads it, for the terminal."""
    lines = [
        f"{each.folder}: {each.rows} rows, {each.positions} response tokens, "
        f"{size_in_words(each.bytes)}, {each.dtype}."
        for each in made
    ]
    next_step = "Next: `moorline tune` with the same settings and --str_reference cached."
    return "\n".join([*lines, next_step])
