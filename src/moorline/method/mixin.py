"""The method in a trainer: what only a `transformers.Trainer` knows, around a `Regularizer`.

How the host divides its loss, when it logs and evaluates, and which data sets it was given.
"""

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from . import capture, host
from .checkpoint import Settling, WholeCheckpoints, load_state, resumed
from .inert import WITHOUT_DRIFT, check_loss, warn_of_little
from .regularizer import Regularizer
from .safety_tokens import SafetyTokens
from .settings import STRSettings
from .strength import StepCounter
from .tally import Tally, warn_if_moved, warn_of_gradients
from .write_through import WriteThrough


class STRMixin(WholeCheckpoints):
    """Safety token regularization for any trainer built on `transformers.Trainer`.

        class MyTrainer(STRMixin, Trainer): ...
        MyTrainer(
            model, args, train_dataset=..., processing_class=tokenizer, safety_tokens=tokens,
        ).train()

    The loss becomes CE + weight * drift, with anchors + anchor weight * anchor drift. CE is what
    the host computes, less the rows in conflict (`conflicts.py`), and the drift is divided as CE
    is: by the response tokens, those rows' too, of all micro-batches of the step and processes.

    Logged beside `loss`, and with the prefix of the evaluation set there: `ce_loss` (the host's
    loss), `str/drift` (mean over positions), `str/weighted` (what was added) and `str/max_abs`
    (largest move of one logit). In training also `ce_grad_norm` and `str/grad_norm`, norms of the
    gradients of loss and weighted drift at the last hidden states; `str/skipped`, the share of
    response tokens in conflict; with anchors `str/anchor_drift`; with a budget `str/weight` and
    `str/anchor_weight`, which it found.

    Args:
        *args: For the host trainer.
        safety_tokens: The safety tokens.
        settings: Weight, form and reference; defaults apply if None.
        reference_model: As for `Regularizer`, which says too what the method cannot see.
        aligned: As for `Regularizer`.
        **kwargs: For the host trainer.

    Raises:
        InputError: For what `Regularizer` refuses, and for what the host would do beside.
    """

    def __init__(
        self,
        *args: Any,
        safety_tokens: SafetyTokens,
        settings: STRSettings | None = None,
        reference_model: nn.Module | str | None = None,
        aligned: capture.Probe | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        settings = host.fitted(self, STRSettings() if settings is None else settings)
        self.regularizer = Regularizer(
            self.model,  # pyright: ignore[reportArgumentType]
            safety_tokens, settings, reference_model, aligned=aligned,
            tokenizer=host.tokenizer_of(self.processing_class),
            plan=lambda: host.training_plan(self, settings),
        )  # fmt: skip
        self._filling: WriteThrough | None = None
        if self.regularizer.kind in ("cached", "write_through"):
            self._filling = host.keep_reference(self, self.regularizer)
        else:
            self.regularizer.reference.place(self.accelerator)
        self._tally = {"train": Tally(), "eval": Tally()}
        self._num_positions: Tensor | int | None = None  # of the step, where the host has others
        self._steps = StepCounter()
        self._logged_step: int | None = None
        self._is_checked = self._is_warned = False
        self.add_callback(Settling(self.regularizer, self.accelerator))
        if self._filling is not None:
            self.add_callback(self._filling)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The host's loss plus weight times the drift, divided as the host divides."""
        training = bool(self.model.training)  # pyright: ignore
        own = host.own_batch(self, self.regularizer, inputs, num_items_in_batch)
        if self._filling is not None:
            inputs = self._filling.read(inputs)
        part = self._steps.part(self.state.global_step, self) if training else None
        with self.regularizer.watch(
            model, inputs, part=part, gradients=training and host.is_logged_next(self), editable=own
        ) as drift:
            result: Any = super().compute_loss(
                model, own, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if drift.sum is None:
            return result
        if self._filling is not None and training:
            self._filling.keep(inputs)
        loss, outputs = result if return_outputs else (result, None)
        loss = drift.of_task(loss, counted=own.is_counted)
        if training and part is not None:
            if self.accelerator.scaler is None:  # float16's scaler skips a step that overflows
                check_loss(loss, part.step + 1)
            self.regularizer.vigil.see(part.step, drift.sum, drift.num_measured, loss)
        divisor = num_items_in_batch
        if self.regularizer.rule.first is not None and divisor is not None:
            divisor = self._num_positions if training else None
        times, beside = host.divided_by_host(self, self._steps.num_batches, divisor)
        weighted = self.regularizer.weighted(drift, divisor, anchor_times=beside) * times
        tally = self._tally["train" if training else "eval"]
        share = 1 / part.num if part is not None and self.regularizer.anchors else None
        tally.add(loss, weighted, drift.sum, drift.anchors, share, drift.conflicts)
        tally.add_gradients(self.state.global_step, drift.gradients)
        if training and not self._is_checked:
            self._is_checked = True
            warn_if_moved(self.state.global_step, drift.sum)
        if self.regularizer.settings.holds:
            loss = loss + weighted.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step as the host gets them; counts the positions of all of them."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._steps.begin(len(batches))
        self._num_positions = host.positions_of_step(self, self.regularizer, batches)
        return batches, num_items

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's training step, in which the drift must have been computed."""
        if self._logged_step is None:  # the first step, or the first after a resumed checkpoint
            self._logged_step = self.state.global_step
        before = self._tally["train"].num_batches
        loss = super().training_step(*args, **kwargs)
        if self._tally["train"].num_batches == before:
            raise InputError(WITHOUT_DRIFT)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The host's log, with the drift beside the loss."""
        if self.model.training and "loss" in logs:  # pyright: ignore
            steps = self.state.global_step - (self._logged_step or 0)
            divisor = steps if host.adds_up_losses(self) else None
            measured = self._taken("train").metrics(self.accelerator, divisor)
            self._is_warned = self._is_warned or warn_of_gradients(
                measured, self.state.global_step, holds=self.regularizer.settings.holds
            )
            self._logged_step = self.state.global_step
            logs.update(measured | self.regularizer.strength.logged())
        super().log(logs, *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The host's training."""
        self._tally["train"], self._logged_step = Tally(), None
        given, own = kwargs.pop("resume_from_checkpoint", None), self.regularizer.strength.is_found
        checkpoint = resumed(args[0] if args else given, self.args.output_dir, with_state=own)
        load_state(self.regularizer, checkpoint)
        try:
            result = super().train(checkpoint, *args[1:], **kwargs)
        finally:
            if self._filling is not None:
                self._filling.release()
        if self.is_world_process_zero():
            warn_of_little(self.state.log_history, self.args.learning_rate)
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The host's evaluation, with the drift among its metrics."""
        self._tally["eval"] = Tally()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix") or (args[4] if len(args) > 4 else "eval")
        if output.metrics is not None:
            measured = self._taken("eval").metrics(self.accelerator, divisor=None)
            output.metrics.update({f"{prefix}_{name}": each for name, each in measured.items()})
        return output

    def _taken(self, mode: str) -> Tally:
        """What was measured so far; from here on anew."""
        tally, self._tally[mode] = self._tally[mode], Tally()
        return tally

    def _wrap_model(self, *args: Any, **kwargs: Any) -> Any:
        """The host's wrapping, after kernels were put in (Liger), which may replace the forward."""
        capture.check_replaceable(self.regularizer.model)
        self.regularizer.install()
        return super()._wrap_model(*args, **kwargs)
