"""Rebuild the embedded models, prompts and their manifest: `python -m moorline.embedded.recipe`.

In order: sentences, tokenizer, base model, aligned model, prompts, manifest. About 20 minutes on
two cores; the manifest says how long it took, with what, and the hash of each file. Two runs on one
machine and one set of versions give the same files; across machines the last bits of the weights
may differ, and the tests then check behaviour.
"""

import argparse
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..chat.conversation import IGNORED_LABEL
from ..provenance import as_json, machine, now, sha256_of, versions, write_json, write_text
from . import as_messages, files_path, world

_log = logging.getLogger(__name__)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Not tuned: enough that held-out requests are told apart (tests/embedded says how well).
NUM_BASE, NUM_ALIGNED = 110_000, 80_000
LEARNING_RATE_BASE, LEARNING_RATE_ALIGNED = 2.5e-3, 1e-3
BATCH = 64
SEED = 0


def build(folder: Path, *, num_base: int = NUM_BASE, num_aligned: int = NUM_ALIGNED) -> None:
    """Make every file of the embedded world anew and put them into a folder.

    Args:
        folder: Where to; what it holds is replaced once all is done.
        num_base: Dialogues that the base model is trained on.
        num_aligned: Dialogues that the aligned model is trained on further.
    """
    began = time.monotonic()
    set_seed(SEED)
    base_rows = list(world.dialogues("base", num_base, SEED))
    aligned_rows = list(world.dialogues("aligned", num_aligned, SEED))
    tokenizer = make_tokenizer(
        text
        for rows in (base_rows[:20_000], aligned_rows[:20_000])
        for row in rows
        for each in row
        for text in each
    )
    model = make_model(tokenizer)
    with TemporaryDirectory() as scratch:
        made = Path(scratch) / "files"
        _train(model, tokenizer, base_rows, LEARNING_RATE_BASE, responses_only=False)
        _save(model, tokenizer, made / "base")
        _log.info("Base model after %.0f s.", time.monotonic() - began)
        _train(model, tokenizer, aligned_rows, LEARNING_RATE_ALIGNED, responses_only=True)
        _save(model, tokenizer, made / "aligned")
        _log.info("Aligned model after %.0f s.", time.monotonic() - began)
        write_text(made / "prompts.jsonl", "".join(prompt_lines()))
        paths = [path for path in sorted(made.rglob("*")) if path.is_file()]
        write_json(made / "manifest.json", {
            "schema": 1, "at": now(), "seconds": round(time.monotonic() - began),
            "num_base": num_base, "num_aligned": num_aligned, "parameters": model.num_parameters(),
            "versions": versions(), "machine": machine(),
            "sha256": {str(path.relative_to(made)): sha256_of(path) for path in paths},
        })  # fmt: skip
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(made, folder)


def make_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on `texts`."""
    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    plain.decoder = decoders.ByteLevel()
    plain.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|begin|>", "<|end|>", "<|pad|>", *roles],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=roles,
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about a million parameters."""
    tokens = {name: getattr(tokenizer, name)
              for name in ("bos_token_id", "eos_token_id", "pad_token_id")}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        tie_word_embeddings=True, **tokens,
    ))  # fmt: skip


def prompt_lines() -> list[str]:
    """The held-out prompts as lines of JSON."""
    lines, counts = [], Counter[str]()
    for action, text in world.held_out_requests():
        kind, category = "harmful", action.category
        if action.kind != "harmful":
            kind, category = "harmless", f"{action.kind}/{category}"
        counts[kind] += 1
        of = {"id": f"{kind}-{counts[kind]:03}", "prompt": text, "kind": kind, "category": category}
        lines.append(as_json(of))
    return lines


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Sequence[world.Exchange]],
    learning_rate: float,
    *,
    responses_only: bool,
) -> None:
    def tokenized(row: Mapping[str, Any]) -> dict[str, list[int]]:
        found: Any = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = found["input_ids"], found["assistant_masks"]
        pairs = zip(ids, mask, strict=True)
        wanted = [token if is_response else IGNORED_LABEL for token, is_response in pairs]
        return {"input_ids": ids, "labels": wanted if responses_only else ids}

    data = Dataset.from_list([{"messages": as_messages(*row)} for row in rows])
    data = data.map(tokenized, remove_columns=["messages"])
    with TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, per_device_train_batch_size=BATCH, max_steps=math.ceil(len(rows) / BATCH),
            learning_rate=learning_rate, lr_scheduler_type="cosine", warmup_steps=100,
            weight_decay=0.01, logging_steps=100, save_strategy="no", report_to="none", seed=SEED,
            train_sampling_strategy="group_by_length", use_cpu=True,
        )  # fmt: skip
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        Trainer(model, arguments, train_dataset=data, data_collator=collator).train()


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Rounded for good: the aligned model starts from the base as it is shipped.
    model.float()


def main() -> None:
    """Rebuild into the package, or into a folder that is named."""
    parser = argparse.ArgumentParser(prog="python -m moorline.embedded.recipe", description=__doc__)
    parser.add_argument("--output", type=Path, default=files_path(), help="folder to put them into")
    logging.basicConfig(level=logging.INFO)
    build(parser.parse_args().output)


if __name__ == "__main__":
    main()
