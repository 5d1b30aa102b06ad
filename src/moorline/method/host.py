"""What a trainer was given: what does not fit, and its data sets, whose z0 may be kept on disk."""

import importlib.util
import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..chat.conversation import IGNORED_LABEL
from ..errors import InputError
from ..processes import from_first
from ..provenance import fingerprint
from . import adapters, cache, cache_job, cache_plan, capture, penalty
from .conflicts import HostBatch
from .reference import TrainingPlan
from .regularizer import Regularizer
from .settings import AUTO_ANCHORS, NO_ANCHORS, STRSettings
from .strength import num_readers
from .write_through import Recorded, Target, WriteThrough

if TYPE_CHECKING:
    from transformers import Trainer

_log = logging.getLogger(__name__)


def fitted(trainer: "Trainer", settings: STRSettings) -> STRSettings:
    """The settings as a host can have them.

    Returns:
        The settings; without anchors where they were left to us and cannot be had.

    Raises:
        InputError: For what the host would do beside, under which the drift is wrong or missing.
    """
    if trainer.args.n_gpu > 1:
        raise InputError(
            "Several GPUs are visible to one process, and `nn.DataParallel` hides the model. "
            "Launch with `accelerate launch` or `torchrun`, or make one GPU visible."
        )
    if splits_sequences(trainer):
        raise InputError(
            "Context and sequence parallelism split a row over processes, where no process sees a "
            "whole response, and the hosts add up their losses in ways of their own. Set `cp_size` "
            "and `sp_size` to 1; FSDP2 and DeepSpeed share a model without splitting rows."
        )
    if trainer.args.neftune_noise_alpha is not None:
        raise InputError(
            "`neftune_noise_alpha` puts noise into the model's safety logits and not into those of "
            "the reference, so the drift would measure the noise. Leave it out."
        )
    if trainer.model_init is not None:
        raise InputError(
            "`model_init` makes another model when training begins, which nothing was checked on. "
            "Give `model`."
        )
    if not settings.reads_anchors or (why := _no_second_call(trainer)) is None:
        return settings
    wanted = penalty.form(settings.form).wants_anchors
    if settings.anchors != AUTO_ANCHORS or wanted:
        remedy = "Set `form` to 'logit' and `anchors`" if wanted else "Set it"
        raise InputError(
            f"`anchors` {settings.anchors!r} calls the model a second time in each step, and "
            f"{why}. {remedy} to 'off'."
        )
    _log.warning("No anchors: they call the model a second time in each step, and %s.", why)
    return replace(settings, anchors=NO_ANCHORS)


def _no_second_call(trainer: "Trainer") -> str | None:
    """Why a model cannot be called twice before one backward pass; None if it can."""
    if trainer.is_deepspeed_enabled:
        return "under DeepSpeed no machine has tested what its gradient hooks make of that"
    if trainer.is_fsdp_enabled and not getattr(trainer.accelerator, "is_fsdp2", False):
        return "FSDP 1 gathers its weights for one call (set fsdp_version: 2)"
    return None


def training_plan(trainer: "Trainer", settings: STRSettings) -> TrainingPlan:
    """What is known of a training, to choose a reference by."""
    rows, args = trainer.train_dataset, trainer.args
    why = None
    if rows is None:
        why = "there is no train_dataset"
    elif settings.reference_fraction < 1:
        why = "`reference_fraction` saves the pass of a running reference, and a cache has none"
    elif importlib.util.find_spec("datasets") is None:
        why = "the package 'datasets' is not installed"
    else:
        loaded = [_as_loaded(trainer, each) for each in _data_sets(trainer).values()]
        why = next(filter(None, (cache_plan.why_not(*each) for each in loaded)), None)
    if why is not None or rows is None:
        return TrainingPlan(no_cache=why)
    if is_sharded(trainer):
        why = "under FSDP and DeepSpeed one is read only, where `moorline cache` computed it before"
        return TrainingPlan(no_cache=why, reads_cache=True)
    epochs = float(args.num_train_epochs)
    if args.max_steps > 0:
        num_rows = args.max_steps * args.gradient_accumulation_steps
        num_rows *= args.train_batch_size * args.world_size
        epochs = num_rows / max(len(rows), 1)  # pyright: ignore[reportArgumentType]
    return TrainingPlan(epochs=epochs)


def is_sharded(trainer: "Trainer") -> bool:
    """Whether the host spreads the model over processes, by FSDP or DeepSpeed."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def splits_sequences(trainer: "Trainer") -> bool:
    """Whether no process sees a whole row."""
    return trainer.get_cp_size() * trainer.get_sp_size() > 1


def is_logged_next(trainer: "Trainer") -> bool:
    """Whether the host logs after the present step, as far as can be known."""
    step = trainer.state.global_step + 1
    every = trainer.state.logging_steps or trainer.args.logging_steps
    return step == 1 or (every >= 1 and step % int(every) == 0)


def adds_up_losses(trainer: "Trainer") -> bool:
    """Whether the losses of a step's micro-batches add up to the step's, or are means."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)  # absent before transformers 5.19
    if scaled is not None:
        return scaled
    return bool(trainer.model_accepts_loss_kwargs or trainer.compute_loss_func)


def own_batch(
    trainer: "Trainer", regularizer: Regularizer, batch: Any, num_items: Tensor | int | None
) -> HostBatch:
    """The host's own copy of a batch, and what is known of the loss that it takes from it.

    A host may say more of itself by attributes of its class: `takes_own_loss`, if a loss of its own
    is read from the labels after the model's call; `smooths_by_mean`, if its label smoothing takes
    the mean over what is left.
    """
    own, smoother = regularizer.editable(batch), trainer.label_smoother
    is_own = bool(smoother or trainer.compute_loss_func)
    own.is_known = is_own or getattr(trainer, "takes_own_loss", False)
    own.is_counted = num_items is not None
    if own.is_counted and smoother is not None and trainer.compute_loss_func is None:
        # the smoothing of transformers 5.10 is not told the number
        is_told = "num_items_in_batch" in inspect.signature(smoother).parameters
        own.is_counted = is_told and not getattr(trainer, "smooths_by_mean", False)
    return own


def positions_of_step(
    trainer: "Trainer", regularizer: Regularizer, batches: Sequence[Mapping[str, Any]]
) -> Tensor | int | None:
    """The positions that count in a step, over all processes; None where the host's count holds."""
    if regularizer.rule.first is None or not batches or "labels" not in batches[0]:
        return None
    counted = map(regularizer.positions, batches)
    marked = [torch.where(each, 0, IGNORED_LABEL) for each in counted]
    rows = [{"labels": each, "shift_labels": each} for each in marked]
    return trainer._get_num_items_in_batch(rows, trainer.args.device)  # pyright: ignore


def divided_by_host(
    trainer: "Trainer", num_batches: int, divisor: Tensor | int | None
) -> tuple[int, int]:
    """What a batch's drift and its anchors are to be taken times, for what the host divides by.

    Args:
        trainer: The host.
        num_batches: How many batches the step has.
        divisor: What the host divides the loss of a batch by; None for its own tokens.
    """
    readers, times = num_readers(trainer), 1
    if trainer.args.average_tokens_across_devices and divisor is not None:
        # The divisor counts the tokens of every process, and DDP averages over processes.
        times = readers
    # Anchors are counted over all batches and processes; hosts may divide by both once more.
    beside = 1 if adds_up_losses(trainer) else num_batches
    return times, beside * (readers // times)


def keep_reference(trainer: "Trainer", regularizer: Regularizer) -> WriteThrough | None:
    """Compute z0 of every row the trainer was given where it is not on disk, and read it there.

    With a model in shards it is read only: one process need not have the room for the whole.

    Returns:
        What fills the cache of the training rows in the first epoch, with write_through and where
        there is none yet; None otherwise.
    """
    reference, settings, sharded = regularizer.reference, regularizer.settings, is_sharded(trainer)
    second = reference.model
    origin = None if second is None else next(second.parameters()).device
    source = regularizer.model if second is None else second
    if second is not None and not sharded:
        second.to(trainer.args.device)
    parts = _parts(trainer, regularizer, source)
    caches, target = [], None
    for role, rows in _data_sets(trainer).items():
        rows, collate = _as_loaded(trainer, rows)
        planned = cache_plan.plan(rows, collate, regularizer.rule)
        known = parts | {"data": planned.fingerprint()}
        folder = cache_job.folder_of(settings.cache_dir, known, settings.cache_dtype, role)
        if sharded:
            caches.append(cache_job.finished(folder, known, settings.cache_dtype))
            continue
        with tqdm(
            total=len(planned.keys), desc=f"Reference of {role}", unit=" rows", delay=2,
            disable=trainer.args.disable_tqdm or not trainer.accelerator.is_main_process,
        ) as bar:  # fmt: skip
            job = cache_job.CacheJob(
                reference=reference, model=regularizer.model, dataset=rows, collate=collate,
                rule=regularizer.rule, num_safety=len(regularizer.tokens),
                batch_size=trainer.args.per_device_eval_batch_size, device=trainer.args.device,
                autocast=lambda: trainer.accelerator.autocast(), advance=bar.update,
                process=trainer.args.process_index, num_processes=trainer.args.world_size,
                wait=trainer.accelerator.wait_for_everyone,
            )  # fmt: skip
            is_filled = role == "train" and regularizer.kind == "write_through"
            if is_filled and not cache_job.is_finished(folder):
                cache_job.check_folder(folder, known, settings.cache_dtype)
                job = job._replace(advance=lambda _: None)
                target = Target(folder, known, planned, job, settings.cache_dtype)
                continue
            caches.append(cache_job.build(folder, known, planned, job, settings.cache_dtype))
    adding = []
    for name in ("data_collator", "eval_data_collator"):  # the second is Axolotl's
        if (collate := getattr(trainer, name, None)) is not None:
            adding.append(cache.WithReference(collate, caches, with_keys=target is not None))
            setattr(trainer, name, adding[-1])

    def opened(*filled: cache.Cache) -> None:
        for each in adding:
            each.caches, each.with_keys = (*filled, *each.caches), False
        if second is not None:
            second.to(origin)  # whoever gave it may keep it, but not on the device
            prepared = trainer.accelerator._models
            prepared[:] = [each for each in prepared if each is not second]

    if target is None:
        opened()
        regularizer.read_from(cache.Cached(caches))
        return None
    reference.place(trainer.accelerator)
    recorded = Recorded(reference)
    regularizer.reference, regularizer.running = cache.Cached(caches), recorded
    return WriteThrough(target, recorded, regularizer, opened)


def _parts(trainer: "Trainer", regularizer: Regularizer, source: Any) -> dict[str, str]:
    """What a cache is made from, by name."""
    base = capture.base_of(source)
    kept = adapters.frozen_beneath(source)
    template = getattr(tokenizer_of(trainer.processing_class), "chat_template", None)
    return {
        "weights of the reference": from_first(lambda: adapters.weights_fingerprint(source, kept)),
        "safety tokens": fingerprint(map(str, regularizer.tokens.ids)),
        "form": str(regularizer.form.normalised),
        "positions": regularizer.settings.positions,
        "dtype of the model": f"{base.dtype}, {trainer.accelerator.mixed_precision}",
        "attention": str(base.config._attn_implementation),
        "configuration": _configuration(base.config),
        "chat template": fingerprint([str(template)]),
    }


def _configuration(config: Any) -> str:
    """What a model computes beside its weights: positions, windows, scales, norms."""
    named = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")
    kept = {key: value for key, value in config.to_dict().items() if key not in named}
    return fingerprint([json.dumps(kept, sort_keys=True, default=str)])


def _data_sets(trainer: "Trainer") -> dict[str, object]:
    """The data sets that the trainer was given, by what they are for."""
    sets: dict[str, object] = {"train": trainer.train_dataset}
    if isinstance(trainer.eval_dataset, Mapping):
        sets |= {f"eval-{name}": each for name, each in trainer.eval_dataset.items()}
    elif trainer.eval_dataset is not None:
        sets["eval"] = trainer.eval_dataset
    return sets


def _as_loaded(trainer: "Trainer", rows: Any) -> tuple[Any, cache.Collate]:
    """A data set and its collator as the host's data loader has them."""
    if getattr(rows, "column_names", None) is not None:
        return trainer._remove_unused_columns(rows), trainer.data_collator
    return rows, trainer._get_collator_with_removed_columns(trainer.data_collator)


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer inside a processor, the tokenizer itself, or None."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if hasattr(tokenizer, "get_vocab") else None
