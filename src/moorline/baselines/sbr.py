"""Safety Anchor (SBR): keep the last hidden state at the end of a few harmful prompts.

    loss = CE + lambda * mean over K prompts and d numbers of (h - h0)^2

h is what enters the output head at the last token of a prompt, h0 that of the aligned model.

Source:
    arXiv:2605.05995 (SBR), its loss with K = 8 and lambda = 50. The prompts are ours.

Where we differ: the term is added once in each optimizer step; published, once in each micro-batch,
so that its weight grew with the accumulation steps. The prompts are read without dropout.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .peer import Need, Peer, Strength, Training
from .refusals import harmful_prompts

NUM_PROMPTS = 8


class SBR(Peer):
    """Last hidden states at harmful prompts are held; zero at the untouched model."""

    name = "sbr"
    source = "Safety Anchor, arXiv:2605.05995"
    strength = Strength(
        symbol="lambda", meaning="weight of the squared distance of hidden states",
        default=50.0, grid=(5.0, 15.0, 50.0, 150.0, 500.0),
    )  # fmt: skip
    needs = (Need.HARMFUL_PROMPTS,)
    cost = "a forward and backward pass of 8 short prompts per step"
    file = "harmful prompts: 'prompt', or 'messages'"

    def begin(self, training: Training) -> None:
        """Read h0, once; a file's prompts are all used, of ours the first 8."""
        self._reader = training.reader
        chat = self.materials.chat
        prompts = harmful_prompts(self.materials)
        prompts = prompts if self.materials.file is not None else prompts[:NUM_PROMPTS]
        rows = [torch.tensor(chat.render(each)) for each in prompts]
        self._last = torch.tensor([len(each) - 1 for each in rows])
        device = training.reader.base.get_input_embeddings().weight.device
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=chat.padding)
        mask = torch.arange(ids.shape[1])[None] <= self._last[:, None]
        self._inputs: dict[str, Tensor] = {
            "input_ids": ids.to(device), "attention_mask": mask.long().to(device)
        }  # fmt: skip
        at_end = torch.arange(ids.shape[1])[None] == self._last[:, None]
        self._aligned = training.reader.aligned(self._inputs, at_end).hidden

    def of_step(self, step: int, num_steps: int) -> Float[Tensor, ""]:
        """The mean squared distance over prompts and numbers, in float32."""
        hidden = self._reader.hidden(self._inputs)
        now = hidden[torch.arange(len(self._last)), self._last.to(hidden.device)]
        dtype = torch.promote_types(now.dtype, torch.float32)
        return (now.to(dtype) - self._aligned.to(now.device, dtype)).square().mean()
