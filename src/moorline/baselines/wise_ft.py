"""WiSE-FT: after plain fine-tuning, go back a part of the way to the aligned model.

    theta = alpha * theta_tuned + (1 - alpha) * theta_aligned

With LoRA the matrices B are multiplied by alpha, which is the same in the merged weights. All other
trained weights are interpolated.

Source:
    Wortsman et al. 2022, arXiv:2109.01903; for safety, arXiv:2412.19512.

Some papers call alpha what is 1 - alpha here; this is the first paper's.
"""

import re

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..method import adapters
from ..method.head import base_of
from .peer import Peer, Strength, Training

# PEFT's names for the second matrix of LoRA: the update is linear in it.
_SECOND, _FIRST = ("lora_B", "lora_embedding_B"), ("lora_A", "lora_embedding_A")


class WiSEFT(Peer):
    """Weights between the aligned model and the plainly tuned one."""

    name = "wise_ft"
    source = "Wortsman et al. 2022, arXiv:2109.01903"
    strength = Strength(
        symbol="alpha", meaning="share of the way from the aligned model to the tuned one",
        default=0.5, grid=(1.0, 0.9, 0.7, 0.5, 0.3, 0.1), more_protects=False, high=1.0,
    )  # fmt: skip
    cost = "a copy of the trained weights that are not LoRA's, on the CPU"

    def begin(self, training: Training) -> None:
        """Note the aligned weights.

        Raises:
            InputError: If an adapter is not linear in one of its matrices.
        """
        reader = training.reader
        reader.check_beneath(self.name)
        adapted = adapters.is_adapted(reader.model)
        given = None if reader.reference is None else reader.reference.model
        source = dict((reader.base if given is None else given).named_parameters())
        self._aligned: dict[str, Tensor] = {}
        for name, each in reader.base.named_parameters():
            parts = name.split(".")
            if not each.requires_grad or set(parts) & {*_SECOND, *_FIRST}:
                continue
            if adapted and "modules_to_save" not in parts:
                raise InputError(
                    f"`method` 'wise_ft' cannot go back a part of the way in {name}: only LoRA "
                    "(without DoRA) and full fine-tuning can be interpolated."
                )
            # Of a module that is trained whole, PEFT keeps the original beside it.
            original = re.sub(r"modules_to_save\.[^.]+", "original_module", name)
            self._aligned[name] = source[original].detach().cpu().clone()

    def end(self, model: nn.Module) -> None:
        """Interpolate in place."""
        base = base_of(model)
        with torch.no_grad():
            for name, each in base.named_parameters():
                if each.requires_grad and set(name.split(".")) & set(_SECOND):
                    each.mul_(self.value)
                elif name in self._aligned:
                    each.lerp_(self._aligned[name].to(each), 1 - self.value)
