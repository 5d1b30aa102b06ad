"""What `docs/how-to/unsloth.md` promises, checked on a GPU: python examples/unsloth_check.py MODEL.

Prints a line for each check and ends with 1 if one failed. Nothing is written but a scratch folder.
"""

import argparse
import sys
import tempfile

import unsloth  # first: it replaces trl's trainer, which ours inherits from

import torch
from datasets import Dataset
from unsloth import FastLanguageModel

from moorline import STRConfig, STRTrainer, mine_safety_tokens

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Say number {number} in words, please."},
            {
                "role": "assistant",
                "content": " ".join(["That is number", str(number)] * (number % 5 + 1)),
            },
        ]
    }
    for number in range(64)
]
ADAPTER = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "random_state": 0}
NEAR_ZERO = 0.05  # logits: rounding of bfloat16, where padding or the attention kernel differs


def trained(name, folder, **changes):
    """A run of four steps: its log, and the model."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        name, max_seq_length=512, dtype=changes.pop("dtype", None), load_in_4bit=False
    )
    tokens = mine_safety_tokens(model, tokenizer)
    model = FastLanguageModel.get_peft_model(model, **ADAPTER)
    resume = changes.pop("resume", None)
    settings = {
        "output_dir": folder, "max_steps": 4, "per_device_train_batch_size": 4,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "learning_rate": 1e-4,
        "gradient_accumulation_steps": 2, "str_reference": "adapter_off", "seed": 0,
        "str_form": "logit", "str_anchors": "off", **changes,
    }  # fmt: skip
    trainer = STRTrainer(
        model, STRConfig(**settings), safety_tokens=tokens, train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or hub id of a chat model that Unsloth knows")
    name = parser.parse_args().model
    if not torch.cuda.is_available():
        sys.exit("Unsloth needs a GPU, and none is visible.")
    print("unsloth", unsloth.__version__, "torch", torch.__version__)
    failed = []

    def check(what, held, found):
        print("ok    " if held else "FAILED", what, found)
        if not held:
            failed.append(what)

    with tempfile.TemporaryDirectory() as folder:
        free = trained(name, folder, str_weight=0.0)
        held = trained(name, folder, str_weight=10.0)
        check("weight 0: the loss is the task's", free[0]["loss"] == free[0]["ce_loss"], free[0])
        gap = abs(free[0]["loss"] - held[0]["ce_loss"])
        check("the first task loss does not depend on the weight", gap < 1e-3, gap)
        drift = held[0]["str/max_abs"]
        check("drift of the first step, packed or padding-free", drift < NEAR_ZERO, drift)
        padded = trained(name, folder, str_weight=10.0, padding_free=False, packing=False)
        drift = padded[0]["str/max_abs"]
        check("drift of the first step, padded", drift < NEAR_ZERO, drift)
        check("held more than free", held[-1]["str/drift"] < free[-1]["str/drift"], held[-1])
        first = trained(name, folder, str_weight=10.0, str_positions="first:4")
        check("first:K is trained on", first[-1]["str/drift"] > 0, first[-1])
        exact = trained(name, folder, str_weight=10.0, dtype=torch.float32, bf16=False)
        check("gradient in float32 is finite", exact[0]["grad_norm"] > 0, exact[0]["grad_norm"])
        trained(name, folder, str_weight=10.0, max_steps=2, save_strategy="steps", save_steps=2)
        again = trained(name, folder, str_weight=10.0, resume=f"{folder}/checkpoint-2")
        gap = abs(again[-1]["loss"] - held[-1]["loss"])
        check("a resumed run ends where the whole one does", gap < 1e-2, gap)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
