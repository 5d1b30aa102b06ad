"""A peer's method in a trainer: its stages where a `transformers.Trainer` has them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..chat.conversation import response_positions
from ..errors import InputError
from ..method.host import adds_up_losses, fitted, splits_sequences
from ..method.penalty import DriftSum
from ..method.positions import indices_in_response
from ..method.settings import STRSettings
from ..method.tally import Tally
from .peer import Peer, Responses, Training
from .states import Reader

if TYPE_CHECKING:
    from transformers import Trainer

    _Host = Trainer
else:
    _Host = object


class BaselineMixin(_Host):
    """A peer's method for any trainer built on `transformers.Trainer`.

        class MyTrainer(BaselineMixin, Trainer): ...
        rows = method.rows(rows)
        MyTrainer(model, args, train_dataset=rows, method=method).train()

    A term at response positions is divided as the host divides its loss: by the response tokens of
    the whole step, over micro-batches and processes. A term of the step is added once per step.
    Logged beside `loss`: `ce_loss` (the host's), `method/loss` (the term as its mean, not
    multiplied), `method/weighted` (what was added) and `method/max_abs` (its largest value).

    For a comparison on one machine: several processes are fine, FSDP, DeepSpeed and compiled
    models are refused.

    Args:
        *args: For the host trainer.
        method: The method, which has seen its materials.
        aligned_model: The aligned model, where it is neither the model without its adapter nor
            the model as it is now; or its path or hub id.
        **kwargs: For the host trainer.

    Raises:
        InputError: For what the method needs and does not find, and for hosts as above.
    """

    def __init__(
        self,
        *args: Any,
        method: Peer,
        aligned_model: nn.Module | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        fitted(self, STRSettings(anchors="off"))
        _check_alone(self, method)
        self.method = method
        second = self._aligned_model(aligned_model)
        reader = Reader(
            self.model, second, lambda: self.accelerator.autocast(),  # pyright: ignore
            keep=method.at_responses,
        )  # fmt: skip
        if reader.reference is not None and second is aligned_model:
            reader.reference.place(self.accelerator)
        self._reader, self._starts_step = reader, True
        self._of_method = {"train": Tally(), "eval": Tally()}
        self._method_logged: int | None = None
        method.begin(
            Training(
                reader, self.args.train_batch_size, getattr(self.args, "max_length", None),
                self.args.seed, self.args.process_index,
            )
        )  # fmt: skip

    def _aligned_model(self, given: nn.Module | str | None) -> nn.Module | str | None:
        """The aligned model, where it is a second one in memory already."""
        return given

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step: the host's, or the method's own in their place."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        own = self.method.batches(self.state.global_step, self.state.max_steps, len(batches))
        if own is not None:
            batches, num_items = super().get_batch_samples(iter(own), len(own), self.args.device)
        self._starts_step = True
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The host's loss with the method's term beside it, or in its place."""
        training, method = bool(self.model.training), self.method  # pyright: ignore
        asked = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if method.at_responses:
            with self._reader.recorded(model) as record:
                result: Any = super().compute_loss(model, inputs, **asked)
            term, divisor = self._at_responses(record, inputs), num_items_in_batch
        else:
            result = super().compute_loss(model, inputs, **asked)
            term, divisor = self._of_step() if training else None, None
        if term is None:
            return result
        times = 1
        if self.args.average_tokens_across_devices and divisor is not None:
            # The divisor counts the tokens of every process, and DDP averages over processes.
            times = self.accelerator.num_processes // self.get_tp_size()
        count = term.num_positions if divisor is None else torch.as_tensor(divisor)
        weighted = method.factor * times * term.total / count.to(term.total.device).clamp(min=1)
        loss, outputs = result if return_outputs else (result, None)
        self._of_method["train" if training else "eval"].add(loss, weighted, term)
        weighted = weighted.to(loss.device)
        if not method.at_responses and not adds_up_losses(self):
            weighted = weighted * self.current_gradient_accumulation_steps  # the host divides by it
        loss = weighted if method.replaces_task else loss + weighted
        return (loss, outputs) if return_outputs else loss

    def _at_responses(self, record: Mapping[str, Any], inputs: Any) -> DriftSum:
        mask = response_positions(inputs["labels"])
        labels = inputs["labels"].roll(-1, dims=1)[mask]
        trained = self._reader.states(record["hidden"], mask)
        aligned = self._reader.aligned(record["inputs"], mask)
        device = trained.hidden.device
        index = indices_in_response(mask)[mask]
        values = self.method.of_responses(
            Responses(
                trained, aligned, labels.to(device), index.to(device), self._reader.aligned
            )
        )  # fmt: skip
        if torch.is_grad_enabled() and not values.requires_grad:
            raise InputError(
                f"The term of {self.method.name!r} has no gradient, so it would train nothing: the "
                "host called the model without one."
            )
        return _summed(values)

    def _of_step(self) -> DriftSum | None:
        """The term of the step, in its first micro-batch only."""
        starts, self._starts_step = self._starts_step, False
        if not starts:
            return None
        with self.accelerator.autocast():
            value = self.method.of_step(self.state.global_step, self.state.max_steps)
        return None if value is None else _summed(value[None])

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's training step, in which a term at responses must have been computed."""
        if self._method_logged is None:
            self._method_logged = self.state.global_step
        before = self._of_method["train"].num_batches
        loss = super().training_step(*args, **kwargs)
        if self.method.at_responses and self._of_method["train"].num_batches == before:
            raise InputError(
                f"A training step was taken without the term of {self.method.name!r}: something "
                "overrides `compute_loss` without calling the one above it."
            )
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The host's log, with the method's term beside the loss."""
        if self.model.training and "loss" in logs:  # pyright: ignore
            steps = self.state.global_step - (self._method_logged or 0)
            adds_up = adds_up_losses(self) and self.method.at_responses
            logs.update(self._measured("train", steps if adds_up else None))
            self._method_logged = self.state.global_step
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The host's evaluation, with the method's term among its metrics."""
        self._of_method["eval"] = Tally()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix") or (args[4] if len(args) > 4 else "eval")
        if output.metrics is not None:
            measured = self._measured("eval", None)
            output.metrics.update({f"{prefix}_{name}": each for name, each in measured.items()})
        return output

    def _measured(self, mode: str, divisor: int | None) -> dict[str, float]:
        tally, self._of_method[mode] = self._of_method[mode], Tally()
        found = tally.metrics(self.accelerator, divisor)
        names = {"ce_loss": "ce_loss", "str/drift": "method/loss",
                 "str/weighted": "method/weighted", "str/max_abs": "method/max_abs"}  # fmt: skip
        if not self.method.at_responses:
            del names["ce_loss"]  # counted in the first micro-batch of a step only
        return {new: found[old] for old, new in names.items() if old in found}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The host's training, and what the method does to the weights after it."""
        resumes = args[0] if args else kwargs.get("resume_from_checkpoint")
        if resumes and not self.method.can_resume:
            raise InputError(
                f"`method` {self.method.name!r} keeps weights that no checkpoint has, so it cannot "
                "resume. Begin anew, without `resume_from_checkpoint`."
            )
        self._of_method["train"], self._method_logged = Tally(), None
        result = super().train(*args, **kwargs)
        self.method.end(self.model)  # pyright: ignore[reportArgumentType]
        return result


def _summed(values: Tensor) -> DriftSum:
    held = values.detach()
    return DriftSum(
        total=values.sum(),
        num_positions=torch.tensor(len(values), device=values.device),
        max_abs=held.abs().amax() if held.numel() else held.new_zeros(()),
    )


def _check_alone(trainer: "Trainer", method: Peer) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or splits_sequences(trainer):
        raise InputError(
            f"`method` {method.name!r} is here to compare with, and does not run under FSDP, "
            "DeepSpeed or sequence parallelism. Use one device, or several with plain DDP."
        )
    if getattr(trainer.args, "torch_compile", False):
        raise InputError(f"`method` {method.name!r} does not run compiled. Leave it out.")
