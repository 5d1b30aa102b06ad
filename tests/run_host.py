"""One optimizer step of `STRTrainer`, for tests that need processes of their own.

python run_host.py LOG.json --batch 4 [--compile] [--method NAME]
    [--reference cached --cache-dir DIR]
Under torchrun for several processes.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

from helpers import anchors_at, conversations, nudged, tiny_llama, word_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from moorline import SafetyTokens, STRConfig, STRTrainer
from moorline.baselines import BaselineMixin, Materials, method_named
from moorline.chat.chat_model import ChatModel
from moorline.method import cache_shards


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--method")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--reference", default="adapter_off")
    parser.add_argument("--cache-dir")
    parser.add_argument("--anchors", type=float)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--resume", action="store_true")
    words = parser.parse_args()
    cache_shards.MAX_ROWS = 2  # several shards, for several processes to share
    warnings.simplefilter("ignore")
    set_seed(0)
    tokenizer = word_tokenizer()
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = nudged(get_peft_model(tiny_llama(len(tokenizer)), adapter))
    ids = (10, 17, 24, 31, 38)
    held = {"str_form": "logit", "str_anchors": "off", "str_weight": 2.0}
    if words.anchors:
        ids = tuple(range(6, 66))  # most of what it can say, so that its answers are refusals
        held = {
            "str_form": "logit", "str_budget": 0.2, **anchors_at(words.log.parent, words.anchors),
        }  # fmt: skip
    kind, more = STRTrainer, {}
    if words.method is not None:
        kind = type("PeerTrainer", (BaselineMixin, STRTrainer), {})
        materials = Materials(chat=ChatModel(model, tokenizer))
        more = {"method": method_named(words.method)(materials, 2.0)}
    trainer = kind(
        model,
        STRConfig(
            str(words.log.parent / "out"), per_device_train_batch_size=words.batch,
            max_steps=words.steps,
            learning_rate=1e-2, bf16=False, gradient_checkpointing=False, logging_steps=1,
            save_strategy="steps" if words.save else "no", save_steps=1, report_to="none",
            use_cpu=True, max_length=64, optim="sgd", **held,
            train_sampling_strategy="sequential", torch_compile=words.compile,
            str_reference=words.reference, str_cache_dir=words.cache_dir,
            torch_compile_backend="aot_eager" if words.compile else None,
        ),
        safety_tokens=SafetyTokens(
            ids=ids, strings=tuple(tokenizer.convert_ids_to_tokens(list(ids))),
            scores=(1.0,) * len(ids), vocab_size=len(tokenizer),
        ),
        train_dataset=conversations(words.rows),
        processing_class=tokenizer,
        **more,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=words.resume or None)
    if trainer.accelerator.is_main_process:
        words.log.write_text(json.dumps(trainer.state.log_history[words.steps - 1]))
    # Gloo's threads now and then abort or hang as the interpreter takes them down, after all work
    # is done; the work is what is tested.
    trainer.accelerator.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
