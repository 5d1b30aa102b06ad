"""Answers of a chat model: batched, left-padded, greedy unless told otherwise, in order."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch

from .errors import InputError, PrerequisiteError
from .next_token import generate, padding_of
from .provenance import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completion(NamedTuple):
    """What a model said after some tokens."""

    text: str
    """Without special tokens."""

    truncated: bool
    """Whether it was cut at the longest length allowed, before the model came to an end."""


@runtime_checkable
class Backend(Protocol):
    """Anything that goes on from token sequences."""

    def complete(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """One completion for each row of a batch, in order.

        Args:
            rows: Token ids.
            max_new_tokens: Longest completion in tokens.
            temperature: 0 is greedy.
            seed: What is drawn is drawn from this; the same batch with the same seed says the same.
        """
        ...


class Transformers:
    """`model.generate` of transformers.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._model, self._tokenizer = model, tokenizer
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def complete(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """One completion for each row of a batch, in order."""
        device = self._model.get_input_embeddings().weight.device
        cuda = [device] if device.type == "cuda" else []
        # The chance of whoever calls stays as it would be.
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            written = generate(
                self._model, rows, padding=padding_of(self._tokenizer),
                max_new_tokens=max_new_tokens, temperature=temperature,
            )  # fmt: skip
        said = written[:, max(map(len, rows)) :]
        texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            Completion(text, truncated=not self._ends & set(ids))
            for text, ids in zip(texts, said.tolist(), strict=True)
        ]


class VLLM:
    """The inference engine vLLM, where it is installed; many times faster on a GPU.

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
        settings: dict[str, Any] = {}
        if adapter is not None:
            rank = read_json(Path(adapter) / "adapter_config.json", "adapter").get("r") or 16
            settings = {"enable_lora": True, "max_lora_rank": max(16, rank)}
        self._engine = vllm.LLM(model=model, **settings)
        if adapter is not None:
            from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

            self._lora = LoRARequest("adapter", 1, adapter)

    def complete(
        self, rows: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Completion]:
        """One completion for each row of a batch, in order."""
        # A seed for each row: several draws of one prompt stand in one batch.
        settings = [
            self._vllm.SamplingParams(
                max_tokens=max_new_tokens, temperature=temperature, seed=(seed + place) % 2**63
            )
            for place in range(len(rows))
        ]
        found = self._engine.generate(
            [{"prompt_token_ids": list(row)} for row in rows],
            settings,
            lora_request=self._lora,
            use_tqdm=False,
        )
        said = [each.outputs[0] for each in found]
        return [Completion(each.text, each.finish_reason == "length") for each in said]


def rendered(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, system_prompt: str | None = None
) -> list[int]:
    """A prompt as the model reads it: its chat template, up to where the answer begins.

    Args:
        tokenizer: A tokenizer with a chat template.
        prompt: One user turn.
        system_prompt: Put before it if given.
    """
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    ids: Any = tokenizer.apply_chat_template(
        [*system, {"role": "user", "content": prompt}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    return list(ids)


def batches_of(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """The places of rows, in batches of like length, so that little is padded.

    Example:
        >>> batches_of([[1, 2, 3], [4], [5, 6]], 2)
        [[1, 2], [0]]
    """
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def check_arguments(
    tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int, batch_size: int
) -> None:
    """Refuse what cannot be generated with.

    Raises:
        InputError: If the tokenizer has no chat template or an argument is out of range.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(
            "`max_new_tokens` and `batch_size` must be 1 or more, got "
            f"{max_new_tokens} and {batch_size}."
        )
    if not tokenizer.chat_template:
        raise InputError(
            "The tokenizer has no chat template, so a prompt cannot be put to the model. Load the "
            "tokenizer of a chat model."
        )


def generate_answers(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    system_prompt: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers to prompts, in the model's own chat template.

    Prompts of like length are answered together; the answers come back in the order of the prompts.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        tokenizer: Its tokenizer, with a chat template.
        prompts: One user turn each.
        max_new_tokens: Longest answer in tokens, 1 or more.
        batch_size: Prompts per batch, 1 or more.
        system_prompt: Put before each prompt if given.
        progress: Called with the number of answers done since the last call.

    Returns:
        One answer per prompt, without special tokens.

    Raises:
        InputError: If the tokenizer has no chat template or an argument is out of range.
    """
    check_arguments(tokenizer, max_new_tokens, batch_size)
    backend = Transformers(model, tokenizer)
    rows = [rendered(tokenizer, prompt, system_prompt) for prompt in prompts]
    answers = [""] * len(prompts)
    for batch in batches_of(rows, batch_size):
        found = backend.complete(
            [rows[index] for index in batch], max_new_tokens=max_new_tokens, temperature=0.0, seed=0
        )
        for index, each in zip(batch, found, strict=True):
            answers[index] = each.text
        if progress is not None:
            progress(len(batch))
    return answers
