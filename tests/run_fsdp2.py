"""Some steps of `STRTrainer` in each of several cases, for tests that need processes of their own.

python run_fsdp2.py OUT.json CASE...
Under torchrun the model is sharded by accelerate's FSDP2, which it does not do on CPUs by itself.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from helpers import anchors_at, conversations, nudged, tiny_llama, word_tokenizer
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import set_seed

from moorline import InputError, SafetyTokens, STRConfig, STRTrainer

CASES = {
    "full": {},
    "tied": {"tied": True},
    "copy": {"reference": "frozen_copy"},
    "lora": {"lora": {}},
    "head": {"lora": {"modules_to_save": ["lm_head"]}},
    "logprob": {"lora": {"modules_to_save": ["lm_head"]}, "str_form": "logprob"},
    "anchors": {"lora": {}, "anchors": True},
    "checkpointing": {"lora": {}, "gradient_checkpointing": True},
    "cached": {"lora": {}, "reference": "cached", "cache": "ahead"},
    "first": {"lora": {}, "anchors": True, "only_first": True},
}
STEPS = 3


def as_on_gpus() -> None:
    """Let accelerate take these CPU processes for GPUs, so that it shards on them."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }  # fmt: skip
    plain = PartialState.__init__

    def __init__(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = __init__


def trainer_of(
    folder,
    tokenizer,
    world,
    *,
    tied=False,
    lora=None,
    anchors=False,
    only_first=False,
    cache=None,
    **changes,
):
    set_seed(0)
    model = tiny_llama(len(tokenizer), tie_word_embeddings=tied)
    if only_first and int(os.environ.get("RANK", "0")) > 0:
        with torch.no_grad():
            for each in model.parameters():
                each.zero_()
    if lora is not None:
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM",
                              exclude_modules=["lm_head"], **lora),
        )  # fmt: skip
        nudged(model)
    ids = (10, 17, 24, 31, 38)
    held = {"str_form": "logit", "str_anchors": "off", "str_weight": 2.0}
    if anchors:
        ids = tuple(range(6, 66))  # most of what it can say, so that its answers are refusals
        held |= anchors_at(folder, 0.5)
    if cache is not None:  # beside the folders of both launches, so that one reads the other's
        held |= {"str_cache_dir": str(folder.parent / cache)}
    reference = changes.pop("reference", "frozen_copy" if lora is None else "adapter_off")
    return STRTrainer(
        model,
        STRConfig(
            str(folder / "out"), per_device_train_batch_size=4 // world, max_steps=STEPS,
            learning_rate=1e-2, logging_steps=1, save_strategy="no", report_to="none",
            use_cpu=True, max_length=64, optim="sgd", train_sampling_strategy="sequential",
            str_reference=reference, disable_tqdm=True,
            **{"gradient_checkpointing": False, "bf16": False, **held, **changes},
        ),
        safety_tokens=SafetyTokens(
            ids=ids, strings=("",) * len(ids), scores=(1.0,) * len(ids), vocab_size=96
        ),
        train_dataset=conversations(8),
        processing_class=tokenizer,
    )  # fmt: skip


def gathered(copy):
    """Notes how many numbers of a model are whole in this process as each of its layers runs."""
    found = {"peak": 0}

    def look(module, args):
        found["peak"] = max(
            found["peak"],
            sum(each.numel() for each in copy.parameters() if not isinstance(each, DTensor)),
        )

    for layer in copy.model.layers:
        layer.register_forward_pre_hook(look)  # after FSDP's own, which gathers the layer
    return found


def refused(folder, tokenizer, world):
    """What is said where no job computed the cache before."""
    try:
        trainer_of(folder, tokenizer, world, lora={}, reference="cached", cache=f"none-{world}")
    except InputError as error:
        return str(error)
    return ""


def main():
    out, cases = Path(sys.argv[1]), sys.argv[2:]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    warnings.simplefilter("ignore")
    if world > 1:
        as_on_gpus()
    found, tokenizer = {}, word_tokenizer()
    for case in cases:
        first = CASES[case].get("only_first", False)
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = str(first).lower()
        trainer = trainer_of(out.parent, tokenizer, world, **CASES[case])
        assert trainer.is_fsdp_enabled == (world > 1)
        copy = trainer.regularizer.reference.model if case == "copy" else None
        seen = None if copy is None else gathered(copy)
        trainer.train()
        if case == "lora":
            trainer.save_model(str(out.parent / "saved"))
        found[case] = [entry for entry in trainer.state.log_history if "loss" in entry]
        if copy is not None:
            layer = sum(each.numel() for each in copy.model.layers[0].parameters())
            whole = sum(each.numel() for each in copy.parameters())
            rest = whole - layer * len(copy.model.layers)
            found[case][-1] |= {"gathered": (whole, layer, rest), "peak": seen["peak"]}
        AcceleratorState._reset_state()
    found["refused"] = refused(out.parent, tokenizer, world)
    if world == 1 or torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))
    if world > 1:
        torch.distributed.barrier()
    # Gloo's threads now and then abort as the interpreter takes them down, after all is done.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
