"""`moorline merge`: an adapter put into the weights of its model, and checked to say the same."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..audit.suites import builtin_suites
from ..chat.chat_model import ChatModel
from ..chat.loading import load, with_adapter
from ..errors import InputError
from .library_messages import quiet
from .lineage import lineage_of
from .run_file import RUN, TOKENS

_BESIDE = (TOKENS, "anchors.jsonl", RUN)
_SCRATCH = ".merging"
"""Folder in the output while files are written; the last thing of a merge to go."""

_NUM_PROMPTS = 16

# Largest difference, as a share of the largest logit. Rounding of one weight is 2^-24 and 2^-8; the
# merged product and the two separate ones round differently in every layer.
_ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Merged(NamedTuple):
    """What came of a merge."""

    output: str
    prompts: int
    """How many prompts both were asked."""

    largest_difference: float
    """Between the logits before and after, as a share of the largest logit."""

    same_next_token: float
    """Share of the prompts at which both would say the same token next."""


def merge(folder: str | Path, output: str | Path) -> Merged:
    """Put an adapter into the weights of the model that it was trained on.

    The merged model and the one with its adapter are asked the same prompts; a merge that says
    something else is not written. The safety tokens, the anchors and the record of the tuning go
    beside it, so that it can be audited, and tuned further, as the adapter could.

    What it does not do: a base that was trained in 4 bits (QLoRA) is loaded whole, so that the
    merged model stands on other weights than the training had. Audit it.

    Args:
        folder: What `moorline tune --use_peft` wrote, or any PEFT adapter.
        output: Folder for the model; made, and empty or not there yet.

    Raises:
        InputError: If there is no adapter, `output` holds something, or the merge says something
            else than the adapter.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder. Give that of an adapter.")
    output, start = Path(output).resolve(), lineage_of(str(folder))
    if start.adapter is None:
        raise InputError(
            f"{folder}: no adapter_config.json, so there is nothing to merge. Give the folder of "
            "an adapter; a model that was tuned whole is ready as it is."
        )
    scratch = output / _SCRATCH  # there: an earlier merge was killed, and goes on
    in_use = output.is_dir() and any(output.iterdir()) and not scratch.is_dir()
    if in_use or (output.exists() and not output.is_dir()):
        raise InputError(f"`output` {output} is there and not empty. Give another folder.")
    with quiet():
        tokenizer = load(AutoTokenizer, str(folder if _has_tokenizer(folder) else start.model))
        base = load(AutoModelForCausalLM, start.model, dtype="auto")
        adapted = with_adapter(base, start.adapter)
        rows = _rows(ChatModel(adapted, tokenizer))
        before = _logits(ChatModel(adapted, tokenizer), rows)
        model = adapted.merge_and_unload(safe_merge=True)
        found = checked(before, _logits(ChatModel(model, tokenizer), rows), model.dtype, output)
        is_new = not output.exists()
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            for name in _BESIDE:
                if (Path(folder) / name).is_file():
                    shutil.copyfile(Path(folder) / name, scratch / name)
            for each in scratch.iterdir():
                each.replace(output / each.name)
        except BaseException:
            shutil.rmtree(output if is_new else scratch, ignore_errors=True)
            raise
        scratch.rmdir()
    return found


def checked(
    before: Float[Tensor, "batch vocab"],
    after: Float[Tensor, "batch vocab"],
    dtype: torch.dtype,
    output: Path,
) -> Merged:
    """How far apart two models' next-token logits are; refused if further than by rounding.

    Raises:
        InputError: If they are.
    """
    largest = float((after - before).abs().max() / before.abs().max())
    if not largest <= _ROUNDING.get(dtype, 5e-2):
        raise InputError(
            f"The merged model's logits differ by {largest:.2g} of the largest, more than rounding "
            f"in {str(dtype).removeprefix('torch.')} does, so {output} was not written. Serve the "
            "adapter as it is."
        )
    same = (after.argmax(dim=-1) == before.argmax(dim=-1)).float().mean()
    return Merged(str(output), len(before), largest, float(same))


def _has_tokenizer(folder: str | Path) -> bool:
    return (Path(folder) / "tokenizer_config.json").is_file()


def _rows(chat: ChatModel) -> list[list[int]]:
    """Prompts of ours of every kind, as the model reads them."""
    prompts = [each.prompt for of in builtin_suites() for each in of.prompts[: _NUM_PROMPTS // 2]]
    if chat.tokenizer.chat_template:
        return [chat.render(each) for each in prompts]
    return [list(chat.tokenizer(each).input_ids) for each in prompts]


def _logits(chat: ChatModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "batch vocab"]:
    """Logits of the next token, one row per prompt, in float32; each alone, so without padding."""
    found = []
    with chat.evaluating() as model:
        for row in rows:
            ids = torch.tensor([list(row)], device=chat.device)
            found.append(model(input_ids=ids).logits[0, -1].float().cpu())
    return torch.stack(found)
