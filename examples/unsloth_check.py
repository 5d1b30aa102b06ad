"""What `docs/how-to/unsloth.md` promises, checked on a GPU: python examples/unsloth_check.py MODEL.

MODEL is a chat model that refuses and that Unsloth knows. Prints a line for each check and ends
with 1 if one failed. Nothing is written but a scratch folder. `--stock FOLDER` is how it calls
itself without Unsloth, for a gradient to compare with.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

if "--stock" not in sys.argv:
    try:
        import unsloth  # first: it replaces trl's trainer, which ours inherits from
    except NotImplementedError as error:
        sys.exit(f"Unsloth does not run here: {error}")

import torch
from datasets import Dataset
from transformers import TrainerCallback

from moorline import SafetyTokens, STRConfig, STRTrainer, mine_safety_tokens

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
TOKENS = "safety_tokens.json"
NEAR_ZERO = 0.05  # logits: rounding of bfloat16, where padding or the attention kernel differs
PADDED = {"padding_free": False, "packing": False}
# One step over all of eight rows, so that no order of rows makes a difference.
ONE_STEP = {
    "max_steps": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "bf16": False, "str_weight": 10.0, **PADDED,
}  # fmt: skip


class Kept(TrainerCallback):
    """The gradients of the adapter, as the optimizer is given them."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {
            name: each.grad.detach().float().cpu().clone()
            for name, each in model.named_parameters()
            if "lora_" in name and each.grad is not None
        }


def loaded(name, dtype=None):
    """The model as Unsloth loads it, with its tokenizer."""
    return unsloth.FastLanguageModel.from_pretrained(
        name, max_seq_length=512, dtype=dtype, load_in_4bit=False
    )


def train(model, tokenizer, tokens, folder, rows=ROWS, resume=None, **changes):
    """A run of four steps: its log, and the gradients of its last one."""
    settings = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 4,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "learning_rate": 1e-4,
        "gradient_accumulation_steps": 2, "str_reference": "adapter_off", "seed": 0,
        "str_form": "logit", "str_anchors": "off", "max_grad_norm": 0.0, **changes,
    }  # fmt: skip
    kept = Kept()
    trainer = STRTrainer(
        model, STRConfig(**settings), safety_tokens=tokens, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[kept],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return [entry for entry in trainer.state.log_history if "loss" in entry], kept.gradients


def trained(name, folder, **changes):
    """A run of four steps on a fresh adapter: its log."""
    model, tokenizer = loaded(name)
    model = unsloth.FastLanguageModel.get_peft_model(model, **ADAPTER)
    tokens = SafetyTokens.load(folder / TOKENS)
    return train(model, tokenizer, tokens, folder, **changes)[0]


def gradients(name, folder):
    """Gradients in float32 at an adapter that has moved, by Unsloth and by the stock libraries."""
    model, tokenizer = loaded(name, torch.float32)
    model = unsloth.FastLanguageModel.get_peft_model(model, **ADAPTER)
    torch.manual_seed(0)
    for each, weight in model.named_parameters():
        if "lora_B" in each:  # begins at 0, where the drift has no gradient
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(str(folder / "adapter"))
    tokens = SafetyTokens.load(folder / TOKENS)
    _, own = train(model, tokenizer, tokens, folder / "own", ROWS[:8], **ONE_STEP)
    words = [sys.executable, __file__, name, "--stock", str(folder)]
    subprocess.run(words, check=True)
    return own, torch.load(folder / "stock.pt")


def stock(name, folder):
    """The same step without Unsloth."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    tokens = SafetyTokens.load(folder / TOKENS)
    tokenizer = AutoTokenizer.from_pretrained(name)
    _, found = train(model, tokenizer, tokens, folder / "stock", ROWS[:8], **ONE_STEP)
    torch.save(found, folder / "stock.pt")


def checks(name, folder):
    """Each check: what was promised, whether it held, what was found."""
    mine_safety_tokens(*loaded(name)).save(folder / TOKENS)
    free = trained(name, folder, str_weight=0.0)
    yield "weight 0: the loss is the task's", free[0]["loss"] == free[0]["ce_loss"], free[0]
    held = trained(name, folder, str_weight=10.0, save_strategy="steps", save_steps=2)
    gap = abs(free[0]["loss"] - held[0]["ce_loss"])
    yield "the first task loss does not depend on the weight", gap < 1e-3, gap
    drift = held[0]["str/max_abs"]
    yield "drift of the first step, packed or padding-free", drift < NEAR_ZERO, drift
    yield "held more than free", held[-1]["str/drift"] < free[-1]["str/drift"], held[-1]
    resume = str(folder / "checkpoint-2")
    again = trained(name, folder, str_weight=10.0, resume=resume)
    gap = abs(again[-1]["loss"] - held[-1]["loss"])
    yield "a resumed run ends where the whole one does", gap < 1e-2, gap
    padded = trained(name, folder, str_weight=10.0, **PADDED)
    drift = padded[0]["str/max_abs"]
    yield "drift of the first step, padded", drift < NEAR_ZERO, drift
    first = trained(name, folder, str_weight=10.0, str_positions="first:4")
    yield "first:K is trained on", first[-1]["str/drift"] > 0, first[-1]
    default = trained(name, folder, str_form="kl", str_weight=None, str_anchors="auto")
    drift = default[0].get("str/anchor_drift", float("nan"))
    yield "the default, with its anchors: their first drift", drift < NEAR_ZERO**2, default[0]
    own, others = gradients(name, folder)
    same = own.keys() == others.keys() and bool(own)
    yield "gradients in float32 are of the same matrices", same, len(own)
    if not same:
        return
    size = sum(float(each.square().sum()) for each in others.values()) ** 0.5
    apart = sum(float((own[each] - others[each]).square().sum()) for each in own) ** 0.5
    yield "and those of the stock libraries", apart < 1e-2 * size, apart / size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id of a chat model that Unsloth knows")
    parser.add_argument("--stock", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.stock is not None:
        stock(words.model, words.stock)
        return
    print("unsloth", unsloth.__version__, "torch", torch.__version__)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for what, held, found in checks(words.model, Path(folder)):
            print("ok    " if held else "FAILED", what, found, flush=True)
            failed = failed or not held
    sys.exit(failed)


if __name__ == "__main__":
    main()
