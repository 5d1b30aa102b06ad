"""The method, in order: a mixin over `transformers.Trainer` that holds the safety logits.

For every batch: the contexts to hold; the safety logits of the reference there; the host's own
loss, with the model's safety logits recorded as it runs; the drift between the two, divided as the
host divides its loss.
"""

import contextlib
import importlib.util
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..chat.conversation import IGNORED_LABEL, positions_of_batch
from ..errors import InputError, unknown_choice
from ..provenance import fingerprint
from . import cache, cache_job, capture, penalty, reference
from .positions import Held, draw_rows, needed_part
from .safety_tokens import SafetyTokens

if TYPE_CHECKING:
    from transformers import Trainer

    _Host = Trainer
else:
    _Host = object

_log = logging.getLogger(__name__)

# measured on the embedded model: docs/method.md, "Figures" (the paper's value is not known to us)
DEFAULT_WEIGHT = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """What to hold, and how strongly.

    Raises:
        InputError: If the weight is negative or not a number, or a name is unknown.
    """

    weight: float = DEFAULT_WEIGHT
    """Weight of the drift (squared logits) beside the task loss (nats). 0 measures the drift and
    trains exactly as the host would alone."""

    form: str = "logit"
    """Form of the drift, a name of `penalty.FORMS`."""

    reference: str = "auto"
    """Where z0 comes from, one of `reference.REFERENCES`."""

    reference_fraction: float = 1.0
    """Share of the rows of each batch on which the drift is measured, above 0 up to 1; drawn anew
    each time and scaled, so that the drift is right on average and the live reference cheaper."""

    positions: str = "all"
    """Which response positions are held: 'all', or 'first:K' of each response."""

    cache_dtype: str = "float32"
    """Precision in which a cached reference is kept, a name of `cache.DTYPES`."""

    cache_dir: str | None = None
    """Folder for a cached reference; one beside the prepared data sets if None."""

    def __post_init__(self) -> None:
        if not (isinstance(self.weight, int | float) and 0 <= self.weight < math.inf):
            raise InputError(
                f"`str_weight` must be a number of 0 or more, got {self.weight}: a negative value "
                "would reward leaving the aligned model. Give 0 to measure without holding."
            )
        penalty.form(self.form)
        if self.reference not in reference.REFERENCES:
            raise unknown_choice("`str_reference`", self.reference, reference.REFERENCES)
        Held.parse(self.positions)
        if not (
            isinstance(self.reference_fraction, int | float) and 0 < self.reference_fraction <= 1
        ):
            raise InputError(
                "`str_reference_fraction` must be above 0 and at most 1, got "
                f"{self.reference_fraction}."
            )
        if self.cache_dtype not in cache.DTYPES:
            raise unknown_choice("`str_cache_dtype`", self.cache_dtype, cache.DTYPES)


class _Tally:
    """What was measured since the last log, kept on the device until someone asks."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.max_abs: Tensor | None = None
        self.num_batches = 0

    def add(self, max_abs: Tensor, **values: Tensor) -> None:
        for name, value in values.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.max_abs = max_abs if self.max_abs is None else torch.maximum(self.max_abs, max_abs)
        self.num_batches += 1


class STRMixin(_Host):
    """Safety token regularization for any trainer built on `transformers.Trainer`.

        class MyTrainer(STRMixin, Trainer): ...
        MyTrainer(model, args, train_dataset=..., safety_tokens=tokens).train()

    The loss becomes CE + weight * drift, where CE is whatever the host computes and both are
    divided by the same number of response tokens: over all micro-batches of the step and over all
    processes. Logged beside `loss` at each logging step, and with the prefix of the evaluation set
    there: `ce_loss` (the host's loss), `str/drift` (mean over positions), `str/weighted` (what was
    added to the loss) and `str/max_abs` (largest difference of one logit).

    What it cannot see: contexts that the training data does not contain. It holds the safety
    tokens where the model is trained, and relies on that to carry over to other prompts.

    Args:
        *args: For the host trainer.
        safety_tokens: The tokens to hold.
        constraint: Weight, form and reference; defaults apply if None.
        reference_model: The frozen aligned model, where it is neither the model without its
            adapter nor the model as it is now; or its path or hub id.
        **kwargs: For the host trainer.

    Raises:
        InputError: If tokens and model do not fit, an adapter cannot be held, or the architecture
            fails the probe. Nothing is trained then.

    Source:
        Bach and Tran 2026, arXiv:2604.17210, Eq. 2-3 and Algorithm 1.
    """

    def __init__(
        self,
        *args: Any,
        safety_tokens: SafetyTokens,
        constraint: Constraint | None = None,
        reference_model: nn.Module | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.safety_tokens = safety_tokens
        self.constraint = constraint or Constraint()
        self._form = penalty.form(self.constraint.form)
        self._held = Held.parse(self.constraint.positions)
        # How many held positions the present optimizer step has, where it is not what the host
        # counts; and how many batches of it were drawn from.
        self._num_held: Tensor | int | None = None
        self._drawn = (-1, 0)
        self._tally: dict[str, _Tally] = {"train": _Tally(), "eval": _Tally()}
        self._logged_step: int | None = None
        self._first_step_checked = False
        self._install(reference_model)

    def _install(self, reference_model: nn.Module | str | None) -> None:
        model: nn.Module = self.model  # pyright: ignore[reportAssignmentType]
        if self.args.n_gpu > 1:
            raise InputError(
                "Several GPUs are visible to one process, and `nn.DataParallel` cannot be held. "
                "Launch with `accelerate launch` or `torchrun`, or make one GPU visible."
            )
        head = capture.head_of(model)
        self.safety_tokens.check_fits(
            vocab_size=head.weight.shape[0],  # pyright: ignore
            tokenizer=_tokenizer_of(self.processing_class),
        )
        reference.check_head(model)
        if self._held.first is not None and self._splits_sequences():
            raise InputError(
                f"`str_positions` {self.constraint.positions!r} is not possible under context or "
                "sequence parallelism, where no process sees a whole response. Use 'all'."
            )
        ids = self.safety_tokens.tensor()
        kind = self.constraint.reference
        if kind in ("auto", "cached"):  # the others ask nothing of the data
            given = reference_model is not None
            kind = reference.decide(kind, model, self._work(), reference_given=given)
        live = reference.live(kind, model, reference_model)
        capture.install(model, ids, normalised=self._form.normalised)
        capture.check_capture(model, ids)
        if isinstance(live, reference.FrozenCopy):
            other = live.model
            self.safety_tokens.check_fits(vocab_size=capture.head_of(other).weight.shape[0])  # pyright: ignore
            capture.install(other, ids, normalised=self._form.normalised)
        self.reference: reference.Reference = live
        if kind == "cached":
            self.reference = self._cached(live)
        elif isinstance(live, reference.FrozenCopy):
            live.place(self.accelerator)

    def _work(self) -> reference.Work:
        """What is known of the training, to choose a reference by."""
        rows, args = self.train_dataset, self.args
        why = None
        if rows is None:
            why = "there is no train_dataset"
        elif self.constraint.reference_fraction < 1:
            why = (
                "`str_reference_fraction` saves the pass of a live reference, and a cache has none"
            )
        elif self.is_fsdp_enabled or self.is_deepspeed_enabled:
            why = "under FSDP and DeepSpeed the model is not whole before training"
        elif self._splits_sequences():
            why = "under context and sequence parallelism no process sees a whole row"
        elif importlib.util.find_spec("datasets") is None:
            why = "the package 'datasets' is not installed"
        else:
            found = [
                cache_job.why_not(*self._as_loaded(each)) for each in self._data_sets().values()
            ]
            why = next((each for each in found if each is not None), None)
        if why is not None or rows is None:
            return reference.Work(epochs=1.0, no_cache=why)
        epochs = float(args.num_train_epochs)
        if args.max_steps > 0:
            seen = args.max_steps * args.gradient_accumulation_steps
            seen *= args.train_batch_size * args.world_size
            epochs = seen / max(len(rows), 1)  # pyright: ignore[reportArgumentType]
        return reference.Work(epochs=epochs, no_cache=None)

    def _data_sets(self) -> dict[str, Any]:
        """The data sets that the trainer was given, by what they are for."""
        sets: dict[str, Any] = {"train": self.train_dataset}
        if isinstance(self.eval_dataset, Mapping):
            sets |= {f"eval-{name}": each for name, each in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            sets["eval"] = self.eval_dataset
        return sets

    def _splits_sequences(self) -> bool:
        return self.get_cp_size() * self.get_sp_size() > 1

    def _cached(self, live: reference.Reference) -> cache.Cached:
        """z0 of every data set that the trainer was given, computed now where it is not there."""
        model: nn.Module = self.model  # pyright: ignore[reportAssignmentType]
        source = model
        origin = None
        if isinstance(live, reference.FrozenCopy):
            origin = next(live.model.parameters()).device
            source = live.model.to(self.args.device)
        base = capture.base_of(source)
        template = getattr(_tokenizer_of(self.processing_class), "chat_template", None)
        parts = {
            "weights of the reference": reference.weights_fingerprint(source),
            "safety tokens": fingerprint(map(str, self.safety_tokens.ids)),
            "form": str(self._form.normalised),
            "positions": self.constraint.positions,
            "dtype of the model": f"{base.dtype}, {self.accelerator.mixed_precision}",
            "attention": str(base.config._attn_implementation),
            "configuration": _configuration(base.config),
            "chat template": fingerprint([str(template)]),
        }
        caches = []
        for role, rows in self._data_sets().items():
            rows, collate = self._as_loaded(rows)
            planned = cache_job.plan(rows, collate, self._held)
            known = parts | {"data": cache_job.data_fingerprint(planned)}
            dtype = self.constraint.cache_dtype
            folder = cache_job.folder_of(self.constraint.cache_dir, known, dtype, role)
            with tqdm(
                total=len(planned.keys), desc=f"Reference of {role}", unit=" rows",
                disable=self.args.disable_tqdm or not self.accelerator.is_main_process, delay=2,
            ) as bar:  # fmt: skip
                work = cache_job.Pass(
                    reference=live, model=model, dataset=rows, collate=collate,
                    held=self._held, num_safety=len(self.safety_tokens),
                    batch_size=self.args.per_device_eval_batch_size, device=self.args.device,
                    autocast=lambda: self.accelerator.autocast(), advance=bar.update,
                )  # fmt: skip
                caches.append(
                    cache_job.build(
                        folder, known, planned, work, dtype, process=self.args.process_index,
                        num_processes=self.args.world_size, wait=self.accelerator.wait_for_everyone,
                    )
                )  # fmt: skip
        if isinstance(live, reference.FrozenCopy):
            live.model.to(origin)  # whoever gave it may keep it, but not on the device
        self.data_collator = cache.WithReference(self.data_collator, caches)
        return cache.Cached(caches)

    def _as_loaded(self, rows: Any) -> tuple[Any, cache.Collate]:
        """A data set and its collator as the host's data loader has them."""
        if getattr(rows, "column_names", None) is not None:
            return self._remove_unused_columns(rows), self.data_collator
        return rows, self._get_collator_with_removed_columns(self.data_collator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The host's loss plus weight times the drift, divided as the host divides."""
        held = self._held(positions_of_batch(inputs))
        positions = self._drawn_from(inputs, held)
        # Before the model's own pass: its activations are not in memory yet, and the adapters are
        # on again when checkpointed layers are recomputed in the backward pass.
        reference_logits = self._reference_logits(model, inputs, positions)
        inputs = {name: value for name, value in inputs.items() if name != cache.COLUMN}

        with _recorded(model, positions) as recorded:
            result: Any = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        loss, outputs = result if return_outputs else (result, None)
        safety_logits = _safety_logits_of(recorded, needs_grad=loss.requires_grad)

        drift = self._form.drift(safety_logits, reference_logits)
        if positions is not held:
            drift = drift._replace(
                total=drift.total / self.constraint.reference_fraction, num_positions=held.sum()
            )
        divisor = num_items_in_batch if self._num_held is None else self._num_held
        divisor = drift.num_positions if num_items_in_batch is None else divisor
        divisor = torch.as_tensor(divisor, device=drift.total.device).clamp(min=1)
        weighted = self.constraint.weight * drift.total / divisor
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The divisor counts the tokens of every process, and DDP averages over processes.
            weighted = weighted * (self.accelerator.num_processes // self.get_tp_size())

        mode = "train" if self.model.training else "eval"  # pyright: ignore
        self._tally[mode].add(
            drift.max_abs,
            ce_loss=loss,
            weighted=weighted,
            drift=drift.total,
            positions=drift.num_positions,
        )
        if mode == "train" and not self._first_step_checked:
            self._warn_if_moved_at_start(drift)
        if self.constraint.weight > 0:
            loss = loss + weighted.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def _drawn_from(self, inputs: Any, held: Tensor) -> Tensor:
        """The positions to measure on: all that are held, or those of rows drawn at random."""
        if self.constraint.reference_fraction == 1 or not self.model.training:  # pyright: ignore
            return held
        step = self.state.global_step
        self._drawn = (step, self._drawn[1] + 1 if self._drawn[0] == step else 0)
        # Chance of our own, from what a resumed run knows too: the host's stays as it would be.
        parts = (self.args.seed, *self._drawn, self.args.process_index)
        seed = int(fingerprint(map(str, parts))[:15], 16)
        generator = torch.Generator().manual_seed(seed)
        return draw_rows(inputs, held, self.constraint.reference_fraction, generator)

    def _reference_logits(self, model: nn.Module, inputs: Any, positions: Tensor) -> Tensor:
        """z0 at `positions`, from no more of the batch than they need."""
        partial = self._held.first is not None or self.constraint.reference_fraction < 1
        if partial and not isinstance(self.reference, cache.Cached):
            inputs, positions = needed_part(inputs, positions)
        return self.reference.safety_logits(model, inputs, positions)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The host's count of response tokens; ours beside it, where not all of them are held."""
        self._num_held = None
        if self._held.first is not None and batch_samples and "labels" in batch_samples[0]:
            held = [self._held(positions_of_batch(batch)) for batch in batch_samples]
            marked = [torch.where(each, 0, IGNORED_LABEL) for each in held]
            # What the host counts in `shift_labels` it counts as it is, over all processes.
            self._num_held = super()._get_num_items_in_batch(
                [{"labels": each, "shift_labels": each} for each in marked], device
            )
        return super()._get_num_items_in_batch(batch_samples, device)

    def _warn_if_moved_at_start(self, drift: penalty.DriftSum) -> None:
        self._first_step_checked = True
        moved = drift.max_abs.item()
        if self.state.global_step == 0 and moved > 1e-2:
            _log.warning(
                "Before the first step a safety logit already differs from the reference by %.3g. "
                "That is right where training goes on from a tuned model, or where the base has "
                "dropout; with a fresh adapter it is not: check `str_reference`.",
                moved,
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The host's log, with the drift beside the loss."""
        if self.model.training and "loss" in logs:  # pyright: ignore
            steps = self.state.global_step - (self._logged_step or 0)
            scaled = self._loss_covers_whole_step()
            logs.update(self._measured("train", divisor=steps if scaled else None))
            self._logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The host's training."""
        self._tally["train"] = _Tally()
        self._logged_step = None
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's training step."""
        if self._logged_step is None:  # the first step, or the first after a resumed checkpoint
            self._logged_step = self.state.global_step
        return super().training_step(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The host's evaluation, with the drift among its metrics."""
        self._tally["eval"] = _Tally()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix") or (args[4] if len(args) > 4 else "eval")
        if output.metrics is not None:
            measured = self._measured("eval", divisor=None)
            output.metrics.update({f"{prefix}_{name}": each for name, each in measured.items()})
        return output

    def _loss_covers_whole_step(self) -> bool:
        """Whether the losses of a step's micro-batches add up to the step's, or are means."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        return bool(self.model_accepts_loss_kwargs or self.compute_loss_func)

    def _measured(self, mode: str, divisor: int | None) -> dict[str, float]:
        """The metrics since the last log, over all processes; empty if nothing was measured."""
        tally, self._tally[mode] = self._tally[mode], _Tally()
        if tally.max_abs is None:
            return {}
        names = sorted(tally.sums)
        local = torch.stack([tally.sums[name].float() for name in names])
        sums = dict(zip(names, self.accelerator.reduce(local, "sum").tolist(), strict=True))  # pyright: ignore
        max_abs = self.accelerator.gather(tally.max_abs.reshape(1)).max().item()  # pyright: ignore
        times = (divisor or tally.num_batches) * self.accelerator.num_processes
        return {
            "ce_loss": sums["ce_loss"] / times,
            "str/drift": sums["drift"] / max(sums["positions"], 1),
            "str/weighted": sums["weighted"] / times,
            "str/max_abs": max_abs,
        }


@contextlib.contextmanager
def _recorded(model: nn.Module, positions: Tensor) -> Iterator[dict[str, Any]]:
    """Ask the model's first call in this block for its safety logits, and keep what it returns.

    Hooks, and not a stand-in for the model: a host that inspects the model sees the model.
    """
    recorded: dict[str, Any] = {}

    def ask(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if "asked" in recorded:
            return None
        recorded["asked"] = True
        return args, {**kwargs, "safety_positions": positions}

    def keep(_module: nn.Module, _args: Any, _kwargs: Mapping[str, Any], output: Any) -> None:
        recorded.setdefault("output", output)

    hooks = [
        model.register_forward_pre_hook(ask, with_kwargs=True),
        model.register_forward_hook(keep, with_kwargs=True),
    ]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _safety_logits_of(recorded: Mapping[str, Any], *, needs_grad: bool) -> Tensor:
    safety_logits = getattr(recorded.get("output"), "safety_logits", None)
    if safety_logits is None:
        raise InputError(
            "The host's loss did not come from a call of the model that could be recorded, so the "
            "safety logits are missing and training would be unprotected. Something replaced the "
            "model's forward after the trainer was built (a fused-loss kernel?); switch that off."
        )
    if needs_grad and not safety_logits.requires_grad:
        raise InputError(
            "The host's loss has a gradient but the recorded safety logits have none, so the drift "
            "would train nothing. Call the model with gradients first in `compute_loss`."
        )
    return safety_logits


def _configuration(config: Any) -> str:
    """What a model computes beside its weights: positions, windows, scales, norms."""
    named = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")
    kept = {key: value for key, value in config.to_dict().items() if key not in named}
    return fingerprint([json.dumps(kept, sort_keys=True, default=str)])


def _tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer inside a processor, the tokenizer itself, or None."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if hasattr(tokenizer, "get_vocab") else None
