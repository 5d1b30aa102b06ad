"""Inference engines that answer in place of the model itself."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from ..chat.chat_model import Completion
from ..errors import PrerequisiteError
from ..provenance import read_json


class VLLM:
    """The inference engine vLLM, where it is installed; many times faster on a GPU.

    Over as many of the visible GPUs as the model's attention heads can be dealt out to, each layer
    is shared (tensor parallelism): `CUDA_VISIBLE_DEVICES` says which there are.

    Its kernels round otherwise than those of transformers: compare audits of one backend only.

    Args:
        model: Folder or hub id.
        adapter: Folder of a LoRA adapter.

    Raises:
        PrerequisiteError: If vLLM is not installed.
    """

    def __init__(self, model: str, adapter: str | None = None) -> None:
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise PrerequisiteError(
                "backend 'vllm' needs the package vllm, which is not installed. Run `pip install "
                "vllm`, or use backend 'transformers'."
            ) from error
        self._vllm = vllm
        self._lora = None
        if adapter is None:
            self._engine = vllm.LLM(model=model, tensor_parallel_size=_num_gpus(model))
            return
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        rank = read_json(Path(adapter) / "adapter_config.json", "adapter").get("r") or 16
        self._engine = vllm.LLM(
            model=model, tensor_parallel_size=_num_gpus(model), enable_lora=True,
            max_lora_rank=max(16, rank),
        )  # fmt: skip
        self._lora = LoRARequest("adapter", 1, adapter)

    def generate(
        self,
        rows: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Completion]:
        """One completion for each row of a batch, in order; see `Generator`."""
        # A seed for each row: several draws of one prompt stand in one batch.
        settings = [
            self._vllm.SamplingParams(
                max_tokens=max_new_tokens, temperature=temperature, seed=(seed + index) % 2**63
            )
            for index in range(len(rows))
        ]
        found = self._engine.generate(
            [{"prompt_token_ids": list(row)} for row in rows],
            settings,
            lora_request=self._lora,
            use_tqdm=False,
        )
        return [
            Completion(each.text, each.finish_reason == "length", tuple(each.token_ids))
            for each in (one.outputs[0] for one in found)
        ]


def _num_gpus(model: str) -> int:
    """Over how many of the visible GPUs a model is shared."""
    there = torch.cuda.device_count()
    if there < 2:
        return 1
    heads = AutoConfig.from_pretrained(model).get_text_config().num_attention_heads
    return max(num for num in range(1, there + 1) if heads % num == 0)
