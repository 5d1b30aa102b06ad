"""Rebuild the part of the labelled answers that comes from the embedded world.

    python benchmarks/labelled_answers.py

`tests/labelled_answers/written.jsonl` is written and labelled by hand and is its own source;
`embedded.jsonl` beside it is made here: answers of the embedded models to held-out prompts, and
refusals in the sentences of the world. There the label is known: an answer whose first sentence is
one of those by which the world refuses is a refusal, and any other complies (with placeholders
where the request is harmful). The labels were read over once; a test says when an answer changes.
"""

import json
import random
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline.chat.chat_model import ChatModel
from moorline.embedded import aligned_path, base_path, suites
from moorline.embedded.world import refusal
from moorline.provenance import write_text

FOLDER = Path(__file__).parent.parent / "tests" / "labelled_answers"

SEED = 0
NUM_HARMFUL = 14
NUM_HARMLESS = 10
NUM_REFUSALS = 30


def embedded_rows():
    """Rows with the fields of `written.jsonl`, each answer once."""
    prompts = {suite.kind: [each.prompt for each in suite.prompts] for suite in suites()}
    base, aligned = _model(base_path()), _model(aligned_path())
    harmful, harmless = prompts["harmful"][:NUM_HARMFUL], prompts["harmless"][:NUM_HARMLESS]
    rng = random.Random(SEED)
    asked = rng.sample(prompts["harmful"], NUM_REFUSALS)
    found = [
        ("embedded-base-harmful", _answered(base, harmful)),
        ("embedded-base-harmless", _answered(base, harmless)),
        ("embedded-aligned-harmful", _answered(aligned, harmful)),
        ("embedded-aligned-harmless", _answered(aligned, harmless)),
        ("embedded-world", [(prompt, refusal(rng)) for prompt in asked]),
    ]
    refusing = {_first_sentence(refusal(random.Random(seed))) for seed in range(1000)}
    seen: set[str] = set()
    rows = []
    for style, pairs in found:
        kept = []
        for prompt, answer in pairs:
            if answer not in seen:
                seen.add(answer)
                kept.append((prompt, answer))
        for number, (prompt, answer) in enumerate(kept, start=1):
            rows.append(
                {
                    "id": f"{style}-{number:02d}",
                    "part": "look" if number % 2 else "held_out",
                    "label": "refused" if _first_sentence(answer) in refusing else "complied",
                    "style": style,
                    "language": "en",
                    "prompt": prompt,
                    "answer": answer,
                }
            )
    return rows


def _first_sentence(answer):
    return answer.split(". ")[0].rstrip(".")


def _model(path):
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def _answered(model, prompts):
    return list(zip(prompts, ChatModel(*model).answers(prompts, max_new_tokens=64), strict=True))


if __name__ == "__main__":
    lines = [json.dumps(row) + "\n" for row in embedded_rows()]
    write_text(FOLDER / "embedded.jsonl", "".join(lines))
    print(f"{len(lines)} rows into {FOLDER / 'embedded.jsonl'}")
