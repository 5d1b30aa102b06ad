"""Safe LoRA: after training, project updates that lean away from the direction of alignment.

    V = W_aligned - W_base, C = V V^T / ||V||_F, for each LoRA layer with the update B A:
    B <- C B where cos(C B A, B A) <= tau

Source:
    Hsu et al. 2024, arXiv:2405.16833 (IBM/SafeLoRA, Apache-2.0), by threshold. Its other choice,
    the 10 layers of smallest cosine, means something else in every model and is left out.

Kept as published: C is no projection, it scales the update by a number that grows with ||V||_F; the
cosine is rounded to 5 digits. Where we differ: layers are paired by name, not in order; one that
alignment did not move (V = 0) is left as it is, for C is not defined there.
"""

import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..chat.loading import load
from ..errors import InputError
from ..method.head import base_of
from .peer import Need, Peer, Strength, Training

_log = logging.getLogger(__name__)


def projected(
    second: Float[Tensor, "out rank"], direction: Float[Tensor, "out in"]
) -> Float[Tensor, "out rank"]:
    """C B = V (V^T B) / ||V||_F, for B and V.

    Example:
        >>> projected(torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([[2.],
                [0.]])
    """
    return direction @ (direction.T @ second) / direction.norm()


class SafeLoRA(Peer):
    """LoRA updates projected onto the direction of alignment."""

    name = "safe_lora"
    source = "Hsu et al. 2024, arXiv:2405.16833"
    strength = Strength(
        symbol="tau", meaning="cosine up to which a layer is projected",
        default=0.5, grid=(0.2, 0.35, 0.5, 0.7, 1.0), low=-1.0, high=1.0,
    )  # fmt: skip
    needs = (Need.UNALIGNED_BASE,)
    cost = "the unaligned base in memory after training"
    takes_base = True

    def begin(self, training: Training) -> None:
        """Refuse what has no LoRA, and find the base.

        Raises:
            InputError: If there is no LoRA layer, DoRA is in use, or the base is no such model.
        """
        training.reader.check_beneath(self.name)
        layers = _lora_layers(training.reader.base)
        if not layers:
            raise InputError("`method` 'safe_lora' projects LoRA updates. Add --use_peft.")
        if any(len(getattr(each, "lora_magnitude_vector", ())) for each in layers.values()):
            raise InputError("`method` 'safe_lora' does not fit DoRA. Leave `use_dora` out.")
        modules = dict(_loaded(self.materials.base).named_modules())
        self._base: dict[str, Tensor] = {}
        for name, layer in layers.items():
            found: Any = modules.get(name)
            weight = getattr(found, "weight", None)
            if weight is None or weight.shape != layer.base_layer.weight.shape:
                raise InputError(
                    f"`method_base` has no layer {name} of the model's shape, so it is not its "
                    "unaligned base. Give the model that the aligned one was made from."
                )
            self._base[name] = weight.detach().cpu()

    def end(self, model: nn.Module) -> None:
        """Project in place; tells how many layers were."""
        layers = _lora_layers(base_of(model))
        num = 0
        with torch.no_grad():
            for name, layer in layers.items():
                weight = layer.base_layer.weight.detach().float()
                direction = weight - self._base[name].to(weight.device, torch.float32)
                if type(layer.base_layer).__name__ == "Conv1D":  # GPT-2 keeps them transposed
                    direction = direction.T
                for adapter in layer.active_adapters:
                    if adapter in layer.lora_B and layer.lora_B[adapter].weight.requires_grad:
                        num += _project(layer, adapter, direction, self.value)
        _log.info("Safe LoRA: %d of %d layers projected.", num, len(layers))


def _project(layer: Any, adapter: str, direction: Tensor, threshold: float) -> bool:
    """Project one layer where its cosine is low; whether it was."""
    if not direction.any():
        return False
    second = layer.lora_B[adapter].weight
    first = layer.lora_A[adapter].weight.float()
    inside = projected(second.float(), direction)
    pair = ((inside @ first).reshape(1, -1), (second.float() @ first).reshape(1, -1))
    cosine = round(nn.functional.cosine_similarity(*pair).item(), 5)
    if cosine > threshold:
        return False
    second.copy_(inside)
    return True


def _lora_layers(base: nn.Module) -> dict[str, Any]:
    """The linear layers of a model that have LoRA, by name."""
    return {
        name: module
        for name, module in base.named_modules()
        if len(getattr(module, "lora_B", ())) and hasattr(module, "base_layer")
    }


def _loaded(base: Any) -> nn.Module:
    if isinstance(base, nn.Module):
        return base
    from transformers import AutoModelForCausalLM

    return load(AutoModelForCausalLM, str(base))
