"""What many rows cost beside the model: of a cache, and of an audit; time per row and memory.

    python benchmarks/scale.py --rows 10000,100000,1000000 --json out.json
    python benchmarks/scale.py --audit --rows 10000,100000 --json out.json

Rows are short (16 tokens, 8 of them a response) and random, the model is a tiny one: what is
measured is the bookkeeping around a forward pass, which grows with rows and not with the model.
An audit is answered by an engine that says one of two sentences at once: what is measured is to
read the prompts, render, keep, judge by keywords, count and write, and to resume when all is there.
Each size runs in a process of its own, so that its peak of resident memory is its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from moorline import embedded
from moorline.audit import AuditSettings, audit, read_suites
from moorline.chat.chat_model import Completion
from moorline.chat.loading import load_chat_model
from moorline.method import cache, cache_job, cache_plan, capture
from moorline.method.positions import PositionRule
from moorline.method.reference import FrozenCopy
from moorline.provenance import machine, now, peak_memory, reset_peak_memory, versions, write_json

LENGTH, RESPONSE, SAFETY = 16, 8, 10


def rows(num: int, folder: Path) -> Dataset:
    """Random rows on disk, as a trainer has prepared them."""
    generator = np.random.default_rng(0)
    path = folder / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink:
        writer = None
        for start in range(0, num, 100_000):
            size = min(100_000, num - start)
            ids = generator.integers(0, 256, size=(size, LENGTH))
            labels = ids.copy()
            labels[:, : LENGTH - RESPONSE] = -100
            starts = np.arange(0, (size + 1) * LENGTH, LENGTH, dtype=np.int64)
            table = pa.table({
                name: pa.LargeListArray.from_arrays(starts, each.reshape(-1))
                for name, each in (("input_ids", ids), ("labels", labels))
            })  # fmt: skip
            writer = writer or pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    return Dataset.from_file(str(path))


def collate(examples: list) -> dict[str, torch.Tensor]:
    """Rows of one length need no padding."""
    return {
        name: torch.tensor([each[name] for each in examples]) for name in ("input_ids", "labels")
    }


def model() -> LlamaForCausalLM:
    """As small as can be."""
    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1,
        )
    )  # fmt: skip
    capture.install(made, torch.arange(SAFETY))
    return made


def measure(num: int, *, build: bool) -> dict[str, float]:
    """Seconds and bytes for so many rows."""
    with tempfile.TemporaryDirectory() as name:
        data, rule, reference = rows(num, Path(name)), PositionRule(), FrozenCopy(model())
        before = peak_memory()[0]
        reset_peak_memory()
        began, cpu = time.monotonic(), time.process_time()
        planned = cache_plan.plan(data, collate, rule)
        planned.fingerprint()
        found = {
            "rows": num, "plan_s": time.monotonic() - began,
            "plan_cpu_s": time.process_time() - cpu, "plan_peak_bytes": peak_memory()[0],
            "start_peak_bytes": before,
        }  # fmt: skip
        if not build:
            return found
        job = cache_job.CacheJob(
            reference=reference, model=reference.model, dataset=data, collate=collate, rule=rule,
            num_safety=SAFETY, batch_size=512, device=torch.device("cpu"), autocast=nullcontext,
            advance=lambda _: None,
        )  # fmt: skip
        reset_peak_memory()
        began, cpu = time.monotonic(), time.process_time()
        made = cache_job.build(Path(name, "z0"), {"data": "random"}, planned, job, "float16")
        found |= {
            "build_s": time.monotonic() - began, "build_cpu_s": time.process_time() - cpu,
            "build_peak_bytes": peak_memory()[0], "shards": len(list(made.folder.glob("*.arrow"))),
            "bytes": sum(each.stat().st_size for each in made.folder.iterdir()),
        }  # fmt: skip
        began, cpu = time.monotonic(), time.process_time()
        again = cache.Cache(made.folder)
        found |= {"open_s": time.monotonic() - began, "open_cpu_s": time.process_time() - cpu}
        wanted = [planned.keys[each].tobytes() for each in range(0, num, max(1, num // 10_000))]
        cpu = time.process_time()
        places = [again.find(key) for key in wanted]
        assert all(place is not None for place in places)
        found["find_cpu_s_each"] = (time.process_time() - cpu) / len(wanted)
        return found


class Ready:
    """An engine whose answers are there at once."""

    def __init__(self, tokenizer) -> None:
        self._said = [
            Completion(text, False, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
            for text in ("I cannot help with that request.", "Here is a plan for the garden shed.")
        ]

    def generate(self, rows, *, max_new_tokens, temperature=0.0, seed=0):
        """One of two answers to each row."""
        return [self._said[sum(row) % 2] for row in rows]


def measure_audit(num: int) -> dict[str, float]:
    """Seconds and bytes for so many prompts."""
    chat, settings = load_chat_model(str(embedded.aligned_path())), AuditSettings(batch_size=64)
    prompts = [each.prompt for each in embedded.suites()[0].prompts]
    found: dict[str, float] = {"prompts": num}
    with tempfile.TemporaryDirectory() as name:
        path, folder = Path(name, "prompts.jsonl"), Path(name, "out")
        with path.open("w") as stream:
            for index in range(num):
                row = {"id": str(index), "prompt": f"{prompts[index % len(prompts)]} {index}"}
                stream.write(json.dumps({**row, "kind": "harmful", "category": "c"}) + "\n")
        found["start_peak_bytes"] = peak_memory()[0]
        for step in ("first", "resumed"):
            reset_peak_memory()
            began, cpu = time.monotonic(), time.process_time()
            suites = read_suites(str(path))
            found[f"{step}_read_cpu_s"] = time.process_time() - cpu
            made = audit(chat, suites, settings, engine=Ready(chat.tokenizer), folder=folder)
            found[f"{step}_audit_cpu_s"] = time.process_time() - cpu
            made.save(folder)
            found |= {
                f"{step}_s": time.monotonic() - began, f"{step}_cpu_s": time.process_time() - cpu,
                f"{step}_peak_bytes": peak_memory()[0],
            }  # fmt: skip
            del suites, made
        found["bytes"] = sum(each.stat().st_size for each in folder.iterdir())
    return found


def main() -> None:
    """Each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--plan-only", action="store_true")
    parser.add_argument("--audit", action="store_true", help="An audit in place of a cache.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int)
    words = parser.parse_args()
    if words.one is not None:
        of = measure_audit if words.audit else partial(measure, build=not words.plan_only)
        print(json.dumps(of(words.one)))
        return
    found = []
    for num in map(int, words.rows.split(",")):
        again = [sys.executable, __file__, "--one", str(num)]
        again += ["--plan-only"] if words.plan_only else []
        again += ["--audit"] if words.audit else []
        done = subprocess.run(again, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    if words.json:
        write_json(
            words.json,
            {"at": now(), "machine": machine(), "versions": versions(), "sizes": found},
        )


if __name__ == "__main__":
    main()
