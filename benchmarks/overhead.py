"""What a step costs beside plain SFT: time and memory of each reference, as ratios in one run.

    python benchmarks/overhead.py --preset cpu --json out.json          # under 5 minutes on 2 cores
    python benchmarks/overhead.py --preset cpu-sweeps --json out.json   # |S|, vocabulary, length
    python benchmarks/overhead.py --preset gpu-8b --json out.json

Llama-shaped models with random weights (cost does not depend on values), real trainers. Each method
is timed against plain SFT in one process, step about (A B, B A, ...); a row has medians and their
ratio. Peak memory is that of a process of its own for each method. `floor` is the ratio that the
arithmetic alone gives: FLOPs counted, nothing else.

On Linux the C allocator is told to keep large buffers while steps are timed, and to give them back
at once while memory is measured. Otherwise pages that the kernel hands out anew, some hundred
megabytes in every step of either method, are most of the noise in a CPU's time; and what the
allocator has not yet given back is most of the difference in its memory.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import torch
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers import models as token_models
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from moorline import SafetyTokens, STRConfig, STRTrainer
from moorline.method.adapters import adapter_layers, adapters_off
from moorline.provenance import machine, now, versions, write_json

# What the C allocator is told; `man mallopt`.
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_ARENA_MAX": "1"}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One point of measurement."""

    hidden: int = 256
    intermediate: int = 704
    layers: int = 10
    heads: int = 4
    vocabulary: int = 131072
    length: int = 80
    batch: int = 4
    num_safety: int = 100
    lora: int | None = 16
    checkpointing: bool = False
    dtype: str = "float32"
    rounds: int = 6

    def tag(self, base: "Shape") -> str:
        """What differs from the preset's shape."""
        mine, other = asdict(self), asdict(base)
        changed = [f"{name}={mine[name]}" for name in mine if mine[name] != other[name]]
        return ", ".join(changed)


CPU = Shape()
# Llama-3.1-8B: 32 layers, grouped-query attention with 8 key-value heads.
GPU_8B = Shape(
    hidden=4096, intermediate=14336, layers=32, heads=32, vocabulary=128256, length=2048, batch=2,
    dtype="bfloat16", rounds=7,
)  # fmt: skip
METHODS = (
    "str_cached", "str_adapter_off", "str_fraction_0.25", "str_first_16", "full_logits", "naive",
    "pact_like", "kl",
)  # fmt: skip
PRESETS = {
    "cpu": [
        *((CPU, method) for method in METHODS),
        *((replace(CPU, checkpointing=True), each) for each in ("str_cached", "str_adapter_off")),
    ],
    "cpu-sweeps": [
        *((replace(CPU, checkpointing=True), method) for method in METHODS),
        *((replace(CPU, lora=None), each)
          for each in ("str_cached", "str_frozen_copy", "naive", "kl")),
        *((replace(CPU, num_safety=size), "str_cached") for size in (10, 1000)),
        *((replace(CPU, vocabulary=size), each) for size in (32768, 262144)
          for each in ("str_adapter_off", "naive")),
        *((replace(CPU, length=size, batch=1, rounds=5), each) for size in (128, 512, 2048)
          for each in ("str_adapter_off", "str_first_16")),
        *((replace(CPU, layers=size), "str_adapter_off") for size in (2, 16)),
    ],
    "gpu-8b": [
        *((replace(GPU_8B, checkpointing=True), method) for method in METHODS),
        *((GPU_8B, each) for each in ("str_cached", "str_adapter_off")),
    ],
    "gpu-8b-small": [
        (replace(CPU, hidden=64, intermediate=128, layers=2, heads=4, vocabulary=512, rounds=2,
                 checkpointing=True), method)
        for method in METHODS
    ],
}  # fmt: skip


# A thousand safety tokens against ten, one directly beside the other.
DIRECT = {
    "cpu": (replace(CPU, num_safety=10, rounds=20), replace(CPU, num_safety=1000)),
    "gpu-8b": (
        replace(GPU_8B, checkpointing=True, num_safety=10),
        replace(GPU_8B, checkpointing=True, num_safety=1000),
    ),
}


def build(shape: Shape, method: str, scratch: str):
    """A trainer of one method, ready to step, and one batch for it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=max(1, shape.heads // 4), vocab_size=shape.vocabulary,
        max_position_embeddings=max(2048, shape.length), tie_word_embeddings=shape.hidden < 1024,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(getattr(torch, shape.dtype))
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(1)
    draw = torch.randint(2, shape.vocabulary, (shape.batch, shape.length), generator=generator)
    # A quarter is the prompt: of 80 tokens first:16 reads 36.
    labels = draw.clone()
    labels[:, : shape.length // 4] = -100
    rows = [
        {"input_ids": ids, "labels": each}
        for ids, each in zip(draw.tolist(), labels.tolist(), strict=True)
    ]
    plain = Tokenizer(token_models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<pad>"
    )
    common = {
        "output_dir": scratch, "per_device_train_batch_size": shape.batch, "report_to": "none",
        "max_length": None, "gradient_checkpointing": shape.checkpointing,
        "bf16": shape.dtype == "bfloat16", "disable_tqdm": True, "save_strategy": "no",
        "num_train_epochs": 1,
    }  # fmt: skip
    shared = {
        "train_dataset": datasets.Dataset.from_list(rows), "processing_class": tokenizer,
        "peft_config": None if shape.lora is None else LoraConfig(
            r=shape.lora, lora_alpha=2 * shape.lora, target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    }  # fmt: skip
    step = max(1, shape.vocabulary // shape.num_safety)
    ids = tuple(range(0, shape.vocabulary, step))[: shape.num_safety]
    if method.startswith("str_"):
        kind = method.removeprefix("str_")
        running = "adapter_off" if shape.lora else "frozen_copy"
        # the paper's form: a random model refuses nothing that anchors could be made from
        ours = {
            "str_reference": kind if kind in ("cached", "frozen_copy") else running,
            "str_form": "logit", "str_anchors": "off",
        }  # fmt: skip
        if kind.startswith("fraction_"):
            ours["str_reference_fraction"] = float(kind.removeprefix("fraction_"))
        if kind.startswith("first_"):
            ours["str_positions"] = f"first:{kind.removeprefix('first_')}"
        tokens = SafetyTokens(
            ids=ids, strings=("",) * len(ids), scores=(1.0,) * len(ids),
            vocab_size=shape.vocabulary,
        )  # fmt: skip
        trainer = STRTrainer(model, STRConfig(**common, **ours), safety_tokens=tokens, **shared)
    else:
        kind = {
            "sft": SFTTrainer, "full_logits": FullLogits, "naive": Naive, "pact_like": PactLike,
            "kl": FullKL,
        }[method]  # fmt: skip
        trainer = kind(model, SFTConfig(**common), **shared)
        if isinstance(trainer, Other):
            trainer.prepare(torch.tensor(ids, device=device))
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, wrapped, batch


def step(trainer, model, batch) -> None:
    """One optimizer step, as `Trainer` takes it."""
    _, count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
    trainer.training_step(model, dict(batch), count)
    trainer.optimizer.step()
    model.zero_grad()


class Other(SFTTrainer):
    """A method that keeps a second model in memory and reads whole logits."""

    def prepare(self, ids):
        """Take the reference: a second model with the same weights."""
        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        self.ids = ids
        config = base.config
        torch.set_default_dtype(base.dtype)
        with torch.device(base.device):
            self.other = LlamaForCausalLM._from_config(
                config, attn_implementation=config._attn_implementation
            )
        torch.set_default_dtype(torch.float32)
        self.other.requires_grad_(False).eval()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """CE from whole logits, and the method's own term."""
        labels = inputs["labels"][:, 1:]
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            theirs = self.reference(asked)
        logits = model(**asked, use_cache=False).logits
        ce = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels.flatten())
        return ce + self.term(logits[:, :-1], theirs, labels != -100)

    def reference(self, asked):
        """Logits of the second model."""
        return self.other(**asked, use_cache=False).logits[:, :-1]


class FullLogits(Other):
    """Cross-entropy from whole logits and no term: what the three below add theirs to.

    TRL's loss is another program: it never holds whole logits, computes the head's twice for that,
    and measures entropy and accuracy beside. On a CPU it is the slower one.
    """

    def prepare(self, ids):
        """No reference."""

    def reference(self, asked):
        """None."""

    def term(self, logits, theirs, mask):
        """None."""
        return 0.0


class Naive(Other):
    """STR as its algorithm reads: a second model, whole logits of both, then pick S."""

    def term(self, logits, theirs, mask):
        """Mean squared difference over S."""
        difference = logits[..., self.ids].float() - theirs[..., self.ids].float()
        return difference.square().mean(-1)[mask].mean()


class PactLike(Other):
    """The cost of PACT's reference: two passes of a second model, whole logits in float32.

    Its second context is the response alone; here the whole row, so that no padding is saved. The
    divergence over S is written with the same number of operations, not with its gates.
    """

    def reference(self, asked):
        """The mean of two passes."""
        first = self.other(**asked, use_cache=False).logits[:, :-1].float()
        second = self.other(**asked, use_cache=False).logits[:, :-1].float()
        return (first + second) / 2

    def term(self, logits, theirs, mask):
        """Divergence of the distributions over S."""
        mine = logits.float()[..., self.ids].log_softmax(-1)
        aim = theirs[..., self.ids].log_softmax(-1)
        return functional.kl_div(mine, aim, log_target=True, reduction="none").sum(-1)[mask].mean()


class FullKL(Other):
    """KL(p0 || p) over the whole vocabulary; the adapter switched off where there is one."""

    def prepare(self, ids):
        """A second model for full fine-tuning only."""
        self.layers = adapter_layers(self.model)
        if not self.layers:
            super().prepare(ids)

    def reference(self, asked):
        """Whole logits of the reference."""
        if not self.layers:
            return super().reference(asked)
        with adapters_off(self.layers):
            return self.model(**asked, use_cache=False).logits[:, :-1]

    def term(self, logits, theirs, mask):
        """Mean over response positions."""
        mine, aim = logits.float().log_softmax(-1), theirs.float().log_softmax(-1)
        return functional.kl_div(mine, aim, log_target=True, reduction="none").sum(-1)[mask].mean()


def flops(shape: Shape, method: str) -> float:
    """Multiply-adds of a step, counted twice each: projections and head, and attention's products.

    A forward pass costs F; the backward pass another F for the gradients of activations and, where
    weights are trained, a third for theirs; checkpointing repeats the layers' forward pass. TRL's
    fused head computes the head's forward pass again for its gradient.
    """
    tokens = shape.batch * shape.length
    key_value = max(1, shape.heads // 4) / shape.heads
    square = shape.hidden**2
    layer = (2 + 2 * key_value) * square + 3 * shape.hidden * shape.intermediate
    layers = 2 * tokens * shape.layers * (layer + 2 * shape.length / 2 * shape.hidden)
    head = 2 * tokens * shape.hidden * shape.vocabulary
    trained = 1 if shape.lora is None else 0
    total = layers * (2 + trained + shape.checkpointing)
    fused = method == "sft" or method.startswith("str_")
    total += head * (2 + trained + fused)
    kind = method.removeprefix("str_")
    passes = {"sft": 0, "cached": 0, "adapter_off": 1, "frozen_copy": 1, "fraction_0.25": 0.25}
    if kind.startswith("first_"):
        read = min(shape.length, shape.length // 4 + int(kind.removeprefix("first_")))
        return total + layers * read / shape.length
    if kind in passes:
        return total + layers * passes[kind]
    return total + (layers + head) * {"full_logits": 0, "pact_like": 2}.get(method, 1)


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work) -> float:
    """Seconds of one step."""
    synchronise()
    began = time.perf_counter()
    step(*work)
    synchronise()
    return time.perf_counter() - began


def in_turns(plain, other, rounds: int) -> dict:
    """Steps of two methods, one after the other again and again: A B, B A, A B, ..."""
    timed(plain)
    timed(other)
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = timed(other)
            pairs.append((timed(plain), second))
        else:
            pairs.append((timed(plain), timed(other)))
    mine, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    # The ratio within each pair first: what slows the machine slows both.
    ratios = sorted(second / first for first, second in pairs)
    return {
        "step_seconds": theirs,
        "sft_step_seconds": mine,
        "step_ratio": statistics.median(ratios),
        "step_ratio_range": [ratios[0], ratios[-1]],
        "num": len(pairs),
    }


def release() -> None:
    """Give back what the last trainer held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_bytes(shape: Shape, method: str) -> int:
    """Peak memory of three steps of one method, in a process of its own."""
    words = [sys.executable, __file__, "--memory-of", method, "--shape", json.dumps(asdict(shape))]
    told = {name: each for name, each in os.environ.items() if name not in KEEP} | GIVE_BACK
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=told)
    if done.returncode != 0:
        if "out of memory" in done.stderr:
            return 0
        raise RuntimeError(done.stderr[-2000:])
    return int(done.stdout.split()[-1])


def memory_of(shape: Shape, method: str) -> int:
    """Peak memory of this process, or of its device, over three steps."""
    with tempfile.TemporaryDirectory() as scratch:
        work = build(shape, method, scratch)
        release()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            step(*work)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Of this program alone: what `getrusage` says begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status[status.index("VmHWM:") :].split()[1]) * 1024


def cache_pass(shape: Shape, scratch: str) -> dict:
    """The pass that fills a cache, against a plain forward pass of the same rows."""
    trainer, _, batch = build(shape, "str_adapter_off", scratch)
    model = trainer.model.eval()
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    positions = batch["labels"].roll(-1, dims=1) != -100
    tokens = asked["input_ids"].numel()
    seconds = {"plain": [], "pass": []}
    for _ in range(shape.rounds + 1):
        with torch.no_grad():
            for name, run in (
                ("plain", lambda: model(**asked, use_cache=False)),
                (
                    "pass",
                    lambda: trainer.regularizer.reference.safety_logits(
                        model, asked, positions
                    ).cpu(),
                ),
            ):
                synchronise()
                began = time.perf_counter()
                run()
                synchronise()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    return {
        "name": "cache_pass",
        "tokens_per_second": tokens / medians["pass"],
        "plain_forward_tokens_per_second": tokens / medians["plain"],
        "time_ratio": medians["pass"] / medians["plain"],
        "bytes_per_response_token": {
            "float32": 4 * shape.num_safety,
            "float16": 2 * shape.num_safety,
        },
    }


def measure(preset: str, path: Path | None) -> None:
    """Every row of a preset; the file is written anew after each."""
    base = PRESETS[preset][0][0]
    rows, peaks = [], {}
    shapes = {}
    for shape, method in PRESETS[preset]:
        shapes.setdefault(shape, []).append(method)
    result = {
        "schema": 1,
        "preset": preset,
        "at": now(),
        "versions": versions(),
        "machine": where(),
    }
    result |= {"model": asdict(base), "rows": rows}
    for shape, methods in shapes.items():
        with tempfile.TemporaryDirectory() as scratch:
            plain = build(shape, "sft", scratch)
            plain_seconds = []
            for method in methods:
                other = build(shape, method, scratch)
                found = in_turns(plain, other, shape.rounds)
                del other
                release()
                plain_seconds.append(found["sft_step_seconds"])
                row = {"name": method, "changes": shape.tag(base), **found}
                row["floor"] = flops(shape, method) / flops(shape, "sft")
                row["tokens_per_second"] = shape.batch * shape.length / row["step_seconds"]
                rows.append(row)
                say(row, result, path)
            seconds = statistics.median(plain_seconds)
            rows.append({
                "name": "sft", "changes": shape.tag(base), "step_seconds": seconds,
                "step_ratio": 1.0, "floor": 1.0, "num": shape.rounds * len(methods),
                "tokens_per_second": shape.batch * shape.length / seconds,
            })  # fmt: skip
            say(rows[-1], result, path)
            whole = [row for row in rows if row["name"] == "full_logits"]
            for row in rows:
                if whole and row["name"] in ("naive", "pact_like", "kl"):
                    row["ratio_to_full_logits"] = row["step_ratio"] / whole[-1]["step_ratio"]
            del plain
            release()
    if preset in DIRECT:
        with tempfile.TemporaryDirectory() as scratch:
            few, many = (build(shape, "str_adapter_off", scratch) for shape in DIRECT[preset])
            found = in_turns(few, many, DIRECT[preset][0].rounds)
            found["ten_step_seconds"] = found.pop("sft_step_seconds")
            rows.append({"name": "safety_tokens_1000_against_10", "changes": "", **found})
            rows[-1]["floor"] = 1.0
            say(rows[-1], result, path)
            del few, many
            release()
    with tempfile.TemporaryDirectory() as scratch:
        rows.append(cache_pass(base, scratch))
        gc.collect()
        print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        known = [each for each in shapes if each.tag(base) == row.get("changes")]
        shape = known[0] if known and row["name"] in ("sft", *METHODS) else None
        # Under five minutes: memory of the first shape only, where there are many.
        if shape is None or (preset.startswith("cpu") and shape != base):
            continue
        for method in ("sft", row["name"]):
            if (shape, method) not in peaks:
                peaks[shape, method] = peak_bytes(shape, method)
        mine, plain = peaks[shape, row["name"]], peaks[shape, "sft"]
        row["peak_memory_bytes"] = mine or None
        row["peak_memory_ratio"] = mine / plain if mine and plain else None
        print(
            f"{row['name']:<20} {row['changes']:<28} memory x {row['peak_memory_ratio']}",
            flush=True,
        )
    if path is not None:
        write_json(path, result)


def say(row: dict, result: dict, path: Path | None) -> None:
    """One line a row, and the file so far."""
    low, high = row.get("step_ratio_range", (1.0, 1.0))
    print(
        f"{row['name']:<20} {row['changes']:<28} {row['step_seconds']:8.3f} s  x "
        f"{row['step_ratio']:.3f} [{low:.3f}, {high:.3f}]  floor {row['floor']:.3f}",
        flush=True,
    )
    if path is not None:
        write_json(path, result)


def where() -> dict:
    """The machine, with its accelerator."""
    found = {**machine(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name(0)
    return found


def main() -> None:
    """Read the words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=json.loads, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if sys.platform == "linux" and not words.memory_of and KEEP.items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if words.memory_of:
        print(memory_of(Shape(**words.shape), words.memory_of))
    else:
        measure(words.preset, words.json)


if __name__ == "__main__":
    main()
