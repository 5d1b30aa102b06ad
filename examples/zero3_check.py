"""What docs/distributed.md says of ZeRO-3, checked on GPUs: tied and trained heads, recomputation.

    python examples/zero3_check.py one.json
    accelerate launch --config_file docs/launch/zero3.yaml --num_processes 2 --mixed_precision no \
        examples/zero3_check.py two.json --against one.json

The first line trains a tiny model for three steps in each case, in one process without DeepSpeed;
the second shards it over two GPUs, compares, prints a line for each figure, and ends with 1 if one
differs. With `--cpu`, under `torchrun`, the script itself can be tried: that shards nothing.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from moorline import SafetyTokens, STRConfig, STRTrainer

CASES = {
    # a head that is the embedding: in use already where the safety tokens are read
    "tied head, fully trained": {"tied": True},
    "tied head, adapter": {"tied": True, "lora": {}},
    "head trained beside an adapter": {"lora": {"modules_to_save": ["lm_head"]}},
    # the normaliser is computed again in the backward pass, where a shard would be empty
    "logprob, recomputed": {"tied": True, "lora": {}, "str_form": "logprob"},
    "logprob, head trained": {
        "lora": {"modules_to_save": ["lm_head"]}, "str_form": "logprob",
        "gradient_checkpointing": True,
    },
}  # fmt: skip
ALLOWED = 1e-3  # float32 sums in another order, through three steps of AdamW
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} <end>"
    "{% endgeneration %}{% else %}{{ message['content'] }} <end>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer_of_words():
    names = ["<pad>", "<end>", "<system>", "<user>", "<assistant>", "<unk>"]
    words = {name: index for index, name in enumerate([*names, *(f"w{n}" for n in range(90))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    made.chat_template = TEMPLATE
    return made


def rows():
    def said(number, length):
        return " ".join(f"w{(7 * number + 3 * each) % 90}" for each in range(length))

    return Dataset.from_list([
        {"messages": [{"role": "user", "content": said(n, 3 + n % 4)},
                      {"role": "assistant", "content": said(n + 40, 4 + n % 5)}]}
        for n in range(16)
    ])  # fmt: skip


def trained(folder, world, use_cpu, *, tied=False, lora=None, **changes):
    """The log of three steps."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, pad_token_id=0,
        eos_token_id=1, bos_token_id=None, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if lora is not None:
        adapter = LoraConfig(
            r=4, target_modules="all-linear", exclude_modules=["lm_head"],
            task_type="CAUSAL_LM", **lora,
        )  # fmt: skip
        model = get_peft_model(model, adapter)
        with torch.no_grad():  # away from the reference, or there is nothing to hold at first
            for name, each in model.named_parameters():
                if "lora_B" in name:
                    each.add_(0.1 * torch.randn_like(each))
    settings = {
        "output_dir": folder, "max_steps": 3, "per_device_train_batch_size": 4 // world,
        "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "train_sampling_strategy": "sequential", "disable_tqdm": True, "max_length": 64,
        "bf16": False, "gradient_checkpointing": False, "use_cpu": use_cpu, "str_form": "logit",
        "str_anchors": "off", "str_weight": 2.0,
        "str_reference": "frozen_copy" if lora is None else "adapter_off", **changes,
    }  # fmt: skip
    ids = (10, 17, 24, 31, 38)
    tokens = SafetyTokens(ids=ids, strings=("",) * 5, scores=(1.0,) * 5, vocab_size=96)
    trainer = STRTrainer(
        model, STRConfig(**settings), safety_tokens=tokens, train_dataset=rows(),
        processing_class=tokenizer_of_words(),
    )  # fmt: skip
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def differ(one, two):
    """Prints each figure of the last step beside that of one process; how many differ."""
    failed = 0
    for case, wanted in one.items():
        for key in ("loss", "ce_loss", "str/drift", "grad_norm"):
            found = [each[key] for each in two[case]]
            gap = max(
                abs(mine - other[key]) / max(abs(other[key]), 1e-6)
                for mine, other in zip(found, wanted, strict=True)
            )
            failed += gap > ALLOWED
            says = "FAILED" if gap > ALLOWED else "ok    "
            print(f"{says} {case}: {key} {found[-1]:.6g}, apart by {gap:.1e}", flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path, help="what one process wrote")
    parser.add_argument("--cpu", action="store_true")
    words = parser.parse_args()
    world, is_first = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    if not torch.cuda.is_available() and not words.cpu:
        sys.exit("ZeRO-3 needs GPUs, and none is visible. --cpu tries the script alone.")
    with tempfile.TemporaryDirectory() as folder:
        found = {
            case: trained(folder, world, words.cpu, **CASES[case]) for case in CASES
        }  # fmt: skip
    assert all(log[-1]["str/drift"] > 1e-4 for log in found.values()), "there is something to hold"
    failed = 0
    if is_first:
        words.output.write_text(json.dumps(found, indent=2))
        if words.against is not None:
            failed = differ(json.loads(words.against.read_text()), found)
    if world > 1:
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # gloo's threads now and then abort as they are taken down


if __name__ == "__main__":
    main()
