"""An audit against a bare `model.generate` loop at the same batch size, and its memory.

    python benchmarks/audit_speed.py --json out.json

1,000 prompts of the embedded model. The loop takes the prompts as they come, renders, pads and
answers; the audit does that and judges, keeps and counts. They run in turns in one process (A B A
B); the ratio is taken within each pair. Memory: the peak of a process that audits n prompts, for
n of 250, 1,000 and 4,000.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline import embedded
from moorline.audit import AuditSettings, audit
from moorline.chat.chat_model import ChatModel
from moorline.provenance import machine, now, versions, write_json

BATCH, LONGEST = 32, 48
SETTINGS = AuditSettings(max_new_tokens=LONGEST, batch_size=BATCH)


def load():
    """The embedded aligned model."""
    path = embedded.aligned_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path, padding_side="left")


def suite_of(num):
    """As many prompts as asked for: the harmful and harmless ones, again and again."""
    suites = embedded.suites()
    prompts = [each for pair in zip(*(one.prompts for one in suites), strict=True) for each in pair]
    chosen = [
        replace(prompts[place % len(prompts)], id=str(place), kind="harmful")
        for place in range(num)
    ]
    return replace(suites[0], prompts=tuple(chosen))


def loop(model, tokenizer, prompts):
    """What anybody would write."""
    for start in range(0, len(prompts), BATCH):
        chats = [[{"role": "user", "content": each}] for each in prompts[start : start + BATCH]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            written = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                max_new_tokens=LONGEST, do_sample=False,
            )  # fmt: skip
        tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def timed(work):
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run(num):
    """One audit that goes to disk, as the command does it."""
    model, tokenizer = load()
    with tempfile.TemporaryDirectory() as folder:
        found = audit(
            ChatModel(model, tokenizer), [suite_of(num)], SETTINGS, folder=folder
        )  # fmt: skip
        found.save(folder)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status[status.index("VmHWM:") :].split()[1]) * 1024)


def main():
    """Read the words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.memory_of:
        run(words.memory_of)
        return
    model, tokenizer = load()
    suite = suite_of(1000)
    prompts = [each.prompt for each in suite.prompts]

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            audit(
                ChatModel(model, tokenizer),
                [suite],
                SETTINGS,
                folder=folder,
            ).save(folder)

    loop(model, tokenizer, prompts[:BATCH])
    pairs = [
        (timed(lambda: loop(model, tokenizer, prompts)), timed(ours)) for _ in range(words.rounds)
    ]
    ratios = sorted(first / second for first, second in pairs)
    peaks = {}
    for num in (250, 1000, 4000):
        command = [sys.executable, __file__, "--memory-of", str(num)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[num] = int(done.stdout.split()[-1])
    result = {
        "schema": 1,
        "at": now(),
        "versions": versions(),
        "machine": {**machine(), "threads": torch.get_num_threads()},
        "num_prompts": len(prompts),
        "batch_size": BATCH,
        "max_new_tokens": LONGEST,
        "loop_seconds": statistics.median(first for first, _ in pairs),
        "audit_seconds": statistics.median(second for _, second in pairs),
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_range": [ratios[0], ratios[-1]],
        "num": len(pairs),
        "peak_memory_bytes": peaks,
    }
    print(json.dumps(result, indent=2))
    if words.json is not None:
        write_json(words.json, result)


if __name__ == "__main__":
    main()
