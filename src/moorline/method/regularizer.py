"""The method without a host: z0 first, then the model's own call is recorded, then their drift."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..chat.conversation import positions_of_batch
from ..errors import InputError
from . import adapters, capture, penalty
from .anchors import BUILT_IN, Anchors, anchors_for
from .cache import COLUMN, KEYS, Cached
from .conflicts import LABELS, Conflicts, HostBatch, Told
from .gradients import GradientNorms
from .inert import OwnSteps, Vigil, check_anchors, check_finite, check_refusals
from .positions import PositionRule, draw_rows, needed_part
from .record import Record
from .reference import Reference, TrainingPlan, build_reference, choose_reference
from .safety_tokens import SafetyTokens
from .settings import AUTO_ANCHORS, STRSettings
from .spread import spreads_of
from .strength import Part, Strength

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_WEAK = 1e-3
"""An anchor weight of less than this share of the default says nothing beside a task loss."""


def _own_loop() -> TrainingPlan:
    return TrainingPlan(no_cache="in a loop of one's own nobody knows the data sets beforehand")


class Drift:
    """The drift of one batch, there once the model was called inside `Regularizer.watch`."""

    sum: penalty.DriftSum | None = None
    """None before, and where the reference is a cache that lacks a row of the batch."""

    anchors: penalty.DriftSum | None = None
    """The same of the anchors that were read beside the batch; None without anchors. Its count is
    that of the whole step."""

    is_own_step: bool = False
    """Whether the anchors were drawn for this batch alone, and not for the step of a host."""

    conflicts: Conflicts | None = None
    """The responses that carry no task loss, since the aligned model would refuse there; None where
    all are learned. Labels that the model was called with are masked already; a loss of one's own
    has to leave out `conflicts.positions`."""

    num_measured: int = 0
    """At how many positions it was measured; fewer than count where rows are drawn."""

    gradients: GradientNorms | None = None
    """Where asked for: norms of the gradients, there after the backward pass."""

    is_counted: bool = False
    """Whether the model's loss is divided by the tokens in conflict too; it is made so where the
    model takes a mean. A loss of one's own is not."""

    def of_task(self, loss: Tensor, *, counted: bool) -> Tensor:
        """The host's loss as `Conflicts.of_task` has it; `counted` if its divisor was given."""
        if self.conflicts is None:
            return loss
        return self.conflicts.of_task(loss, counted=counted or self.is_counted)


class Regularizer:
    """Safety token regularization for a training loop of one's own.

        regularizer = Regularizer(model, tokens, tokenizer=tokenizer)
        for batch in batches:
            with regularizer.watch(model, batch) as drift:
                loss = model(**batch).loss
            loss = loss + regularizer.weighted(drift, regularizer.num_positions(batch))
            loss.backward()

    Build it once adapters are on the model and the optimizer is not made yet, before the model is
    wrapped for several devices. With several batches to a step, divide both losses by the response
    tokens of the whole step: `sum(regularizer.num_positions(batch) for batch in batches)`. With a
    budget, call `regularizer.next_step()` after each `optimizer.step()`.

    Rows in conflict (`conflicts.py`) carry no task loss: the labels that the model is called with
    are masked. A loss taken elsewhere has to leave out `drift.conflicts.positions`.

    What it cannot see: contexts that the training data does not contain. It compares the safety
    logits where the model is trained, and relies on that to carry over to other prompts.

    Args:
        model: A causal language model of transformers, with or without adapters.
        tokens: The safety tokens.
        settings: Weight, form and reference; defaults apply if None.
        reference_model: The frozen aligned model, where it is neither the model without its
            adapter nor the model as it is now; or its path or hub id.
        tokenizer: Checked against the tokens, and needed for anchors, which the default has.
        plan: What is known of the training, for hosts that know it.
        aligned: What `capture.probe` said of the model before its adapters; None if not known.

    Raises:
        InputError: If tokens and model do not fit, an adapter cannot be trained this way, or the
            architecture fails the probe. Nothing is trained then.

    Source:
        Bach and Tran 2026, arXiv:2604.17210, Eq. 2-3 and Algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: SafetyTokens,
        settings: STRSettings | None = None,
        reference_model: nn.Module | str | None = None,
        *,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        plan: Callable[[], TrainingPlan] = _own_loop,
        aligned: capture.Probe | None = None,
    ) -> None:
        if getattr(capture.base_of(model), "is_distributed_loading_by_transformers", False):
            raise InputError(
                "The model was loaded in shards (`distributed_config`), so that there is no whole "
                "model to compare with. Load it without, and shard it in training "
                "(`accelerate launch` with FSDP2)."
            )
        self.model, self.tokens = model, tokens
        self.settings = STRSettings() if settings is None else settings
        self.form = penalty.form(self.settings.form)
        self.rule = PositionRule.parse(self.settings.positions)
        self._spreads = spreads_of(tokens) if self.form.scaled else None
        self._num_watched, self._own_steps = 0, OwnSteps(model)
        self.told = Told()
        """What was said of rows in conflict, once."""
        self.vigil = Vigil()
        """Watches the first steps of a training."""
        self._check(model, tokenizer)
        given = reference_model is not None
        kind = choose_reference(self.settings.reference, model, plan, reference_given=given)
        running = build_reference(kind, model, reference_model)
        self.kind = kind
        """adapter_off, frozen_copy, cached or write_through."""
        self.reference: Reference = running
        """What gives z0."""
        self.running: Reference | None = running
        """What gives z0 of rows that a cache lacks; None if nothing can."""
        if not given and not adapters.is_adapted(model):
            capture.warn_if_trained(model)
        self.install()
        if running.model is not None:
            self._check(running.model, None)
            capture.install(running.model, tokens.tensor(), normalised=self.form.normalised)
            capture.check_capture(running.model, tokens.tensor())
        else:
            adapters.check_same_base(model, tokens.tensor(), aligned)
        if self.settings.holds:
            check_refusals(model, tokenizer, tokens, running)
        self.anchors: Anchors | None = None
        """What is read beside the batches; None without."""
        if self.settings.reads_anchors:
            asked = self.settings.anchors
            if asked == AUTO_ANCHORS and self.form.wants_anchors:
                asked = BUILT_IN  # without any, next to nothing would be held
            self.anchors = anchors_for(asked, model, tokenizer, tokens, running, self.rule)
        self._tell_of_weak_anchors()
        if self.settings.learns_conflicts_unsaid:
            _log.warning(
                "With `reference_fraction` %g rows in conflict are learned: which they are is "
                "known of the drawn rows only. To say so yourself set `conflicts` to 'learn'.",
                self.settings.reference_fraction,
            )
        self.strength = Strength(self.settings, anchored=self.anchors is not None)
        """The weights of the present step."""

    def _tell_of_weak_anchors(self) -> None:
        """A warning where the form needs anchors, and there are none or they weigh nothing."""
        if not (self.settings.holds and self.form.wants_anchors):
            return
        if self.anchors is None:
            _log.warning(
                "`form` %r without anchors holds next to nothing on rows that the aligned model "
                "would not refuse. Set `anchors` to 'built-in', or take another form.",
                self.settings.form,
            )
            return
        weight, usual = self.settings.anchor_weight, self.form.anchor_weight
        if weight is not None and weight < usual * _WEAK:
            _log.warning(
                "`anchor_weight` %g is so small beside the default, %g, that the anchors hold "
                "next to nothing. Leave it out, or give a larger one.", weight, usual,
            )  # fmt: skip

    def _check(self, model: nn.Module, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        size = capture.head_of(model).weight.shape[0]
        self.tokens.check_fits(vocab_size=size, tokenizer=tokenizer)
        adapters.check_head(model)

    def install(self) -> None:
        """Teach the model to return its safety logits, again if something replaced its forward."""
        ids = self.tokens.tensor()
        if capture.install(self.model, ids, normalised=self.form.normalised):
            capture.check_capture(self.model, ids)

    def read_from(self, cached: Cached) -> None:
        """Take z0 from a cache that this reference filled; let go of a second model."""
        still_runs = adapters.is_adapted(self.model) and self.reference.model is None
        if not still_runs or adapters.trained_base_weight(self.model) is not None:
            self.running = None  # once trained, the model without its adapters is another one
        self.reference = cached

    def positions(self, batch: Mapping[str, Any]) -> Bool[Tensor, "batch time"]:
        """The response positions of a batch that count, found in its labels."""
        return self.rule(positions_of_batch(batch))

    def num_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """How many response positions of a batch count."""
        return self.positions(batch).sum()

    @contextlib.contextmanager
    def watch(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        *,
        gradients: bool = False,
        part: Part | None = None,
        editable: HostBatch | None = None,
    ) -> Iterator[Drift]:
        """Record the model's first call in this block, and before it compute z0 for the same.

        z0 is computed on exactly the arguments that the model is called with, since hosts edit a
        batch before. A cached z0 is read from the batch.

        Args:
            model: The model as it is called, wrapped for several devices or not.
            batch: Its labels say where the responses are.
            gradients: Whether to measure norms of the gradients in the backward pass. They are
                with a budget.
            part: Which part of a step the batch is, for what is drawn at random; by default the
                whole of a step of its own.
            editable: The host's own copy of the batch, if it takes the loss from there: its labels
                are masked where a row is in conflict. Those of `batch` stay as they are.

        Yields:
            The drift, there once the block is left.

        Raises:
            InputError: If the model was not called, or in a way that trains nothing.
        """
        drift, all_positions = Drift(), self.positions(batch)
        reference = self._reference_for(batch)
        if reference is None:
            yield drift
            return
        drift.is_own_step = part is None
        if part is None:
            part = Part(step=self._num_watched, rows=len(all_positions))
        self._num_watched += 1
        positions = self._drawn(batch, all_positions, part)
        trains = torch.is_grad_enabled()
        gradients = gradients or (trains and self.strength.is_found)
        drift.gradients = GradientNorms() if gradients else None
        record = Record(self, reference, batch, positions, drift.gradients, editable)
        with record.hooks(model), capture.explaining_replaced_forward(self.model):
            yield drift
        if record.difference is None:
            raise InputError(capture.REPLACED)
        if torch.is_grad_enabled() and not record.difference.requires_grad:
            raise InputError(
                "The model was called without a gradient, so the drift would train nothing. Call "
                "the model with gradients first."
            )
        assert record.z0 is not None
        difference = record.difference
        if self._spreads is not None:
            difference = difference / self._spreads.to(difference.device)
        found = self.form.drift(difference, record.z0)
        self._check_finite(found, record, part, training=trains and self.model.training)
        if positions is not all_positions:
            scaled = found.total / self.settings.reference_fraction
            found = found._replace(total=scaled, num_positions=all_positions.sum())
        drift.sum, drift.num_measured = found, len(record.difference)
        drift.conflicts, drift.is_counted = record.conflicts, record.is_counted
        if trains:
            if drift.is_own_step and self.model.training:
                step = self._own_steps.number()
                self.vigil.see(step, found, drift.num_measured, record.loss)
            capture.mark_trained(self.model)
            if self.anchors is not None:
                drift.anchors = self.anchors.drift(model, self.settings.anchor_share, part)
                check_anchors(drift.anchors, part.step + 1)
            self.strength.observe(drift)

    def skips_now(self) -> bool:
        """Whether a call of the model now is without the labels of rows in conflict."""
        return self.settings.skips and torch.is_grad_enabled()

    def editable(self, batch: Mapping[str, Any]) -> HostBatch:
        """A batch as the model is called with it, for `watch` to edit: its labels may be masked."""
        names = LABELS.keys() if self.skips_now() else ()
        own = {name: each for name, each in batch.items() if name not in (COLUMN, KEYS)}
        return HostBatch({n: each.clone() if n in names else each for n, each in own.items()})

    def weighted(
        self, drift: Drift, num_items: Tensor | int | None = None, *, anchor_times: int = 1
    ) -> Float[Tensor, ""]:
        """What is added to the loss: weight * drift, per response token, and that of the anchors.

        Args:
            drift: What `watch` yielded.
            num_items: Response tokens of the whole step, over all its batches; those of this batch
                if None. With `positions` 'first:K' the positions that count (`num_positions`).
            anchor_times: What the host divides by beside, for the anchors: they are counted over
                the whole step and all processes already.

        Raises:
            InputError: If the model was not called inside `watch`.
        """
        if drift.sum is None:
            raise InputError("There is no drift yet: call the model inside `watch` first.")
        total = drift.sum.total
        num_items = drift.sum.num_positions if num_items is None else num_items
        divisor = torch.as_tensor(num_items, device=total.device).clamp(min=1)
        weighted = self.strength.weight_of("drift") * total / divisor
        if drift.anchors is None:
            return weighted
        anchors = drift.anchors.total / drift.anchors.num_positions.clamp(min=1)
        anchors = anchor_times * self.strength.weight_of("anchors") * anchors.to(weighted.device)
        if drift.is_own_step:  # one of several batches counts by its share of the step
            anchors = anchors * drift.sum.num_positions / divisor
        return weighted + anchors

    def next_step(self) -> None:
        """With a budget: settle the weight of the next step; call it after `optimizer.step()`.

        With several processes call `strength.next_step(reduce)`, so that all find the same weight.

        Raises:
            InputError: If what was measured is not finite.
        """
        self.strength.next_step()

    def _check_finite(
        self, found: penalty.DriftSum, record: Record, part: Part, *, training: bool
    ) -> None:
        """Refuse a drift that is no number, by the step and whose fault it is."""
        assert record.difference is not None
        assert record.z0 is not None
        check_finite(
            found, record.difference, record.z0, record.positions, step=part.step + 1,
            origin=record.reference.name, training=training,
        )  # fmt: skip

    def _reference_for(self, batch: Mapping[str, Any]) -> Reference | None:
        """What gives z0 of a batch; None where nothing can, which training refuses."""
        if not self.reference.reads_batch or COLUMN in batch:
            return self.reference
        if self.running is None and self.model.training:
            return self.reference  # which says what is missing
        if self.running is None:
            _log.warning(
                "Rows of this evaluation are not in the reference cache, so their drift is not "
                "measured and their loss is the task's alone. Give them to the trainer as "
                "`eval_dataset`, or use another `reference`."
            )
        return self.running

    def _drawn(self, batch: Mapping[str, Any], positions: Tensor, part: Part) -> Tensor:
        """The positions to measure on: all that count, or those of rows drawn at random."""
        fraction = self.settings.reference_fraction
        if fraction == 1 or not self.model.training:
            return positions
        generator = torch.Generator().manual_seed(part.chance("rows"))
        return draw_rows(batch, positions, fraction, generator)

    def reference_values(
        self, reference: Reference, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor
    ) -> Tensor:
        """z0 at `positions`, from no more of the batch than they need."""
        partial = self.rule.first is not None or self.settings.reference_fraction < 1
        if not reference.reads_batch:
            inputs = capture.backbone_arguments(inputs)
            if partial:
                inputs, positions = needed_part(inputs, positions)
        return reference.safety_logits(model, inputs, positions)
