"""What mining costs beside the way of the first release: every template read whole after a prompt.

    python benchmarks/mining.py --json out.json                          # about 10 minutes
    python benchmarks/mining.py --preset half-billion --json out.json    # about an hour

Llama-shaped models with random weights (cost does not depend on values; but no answer ends before
its 64 tokens, which is the dearest case) and a byte-level tokenizer made here. The two ways are
timed in one process and one thread, in turns (A B, B A, ...), and a row has the ratio of each pair.
Seconds are the processor's own: what else the machine does does not count. `reading` is the reading
of the templates, `answering` the answers to harmless prompts, `mine` the whole of
`mine_safety_tokens`. Both ways must find the same tokens, with scores that differ by less than
1e-5. The first way is that of commit 054ba70, to its rendering and its call of `generate`.
"""

import argparse
import json
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from moorline.chat.chat_model import in_batches, left_padded
from moorline.method import mining
from moorline.method.reading import Answered, Reader
from moorline.method.templates import MINING_HARMLESS_PROMPTS, MINING_PROMPTS, REJECTION_TEMPLATES
from moorline.provenance import machine, now, versions, write_json

SYSTEM = "You are a helpful assistant. Answer in plain words, and say so where you do not know."
TEMPLATE = (
    "<|im_start|>system\n" + SYSTEM + "<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    pairs: int


PRESETS = {
    "tiny": Shape(
        hidden=64, intermediate=128, layers=2, heads=4, key_value_heads=2, vocabulary=2048, pairs=2
    ),
    "small": Shape(
        hidden=512, intermediate=1408, layers=12, heads=8, key_value_heads=8, vocabulary=32000,
        pairs=3,
    ),
    # Qwen2.5-0.5B
    "half-billion": Shape(
        hidden=896, intermediate=4864, layers=24, heads=14, key_value_heads=2, vocabulary=151936,
        pairs=2,
    ),
}  # fmt: skip


def build(shape: Shape):
    """A random model and a tokenizer that spells our English in words and parts of words."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    texts = [SYSTEM, *REJECTION_TEMPLATES, *MINING_PROMPTS, *MINING_HARMLESS_PROMPTS]
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        texts * 3,
        trainers.BpeTrainer(
            vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden,
        intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=None, pad_token_id=None, initializer_range=0.05,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


class First:
    """The first way to read and to answer: whole rows through the whole head, one cache regrown."""

    batch_size = 32

    def __init__(self, chat, prompts):
        self.chat, self.prompts = chat, prompts

    def nats(self, *, batch_size, progress):
        """Each template after each prompt as a row of its own."""
        prompts = self.prompts
        rows = [
            (number, index, [*asked.context, *answer], len(asked.context))
            for index in range(len(prompts[0].answers))
            for number, asked in enumerate(prompts)
            for answer in [asked.answers[index]]
        ]
        found = [[[] for _ in asked.answers] for asked in prompts]
        for first in range(0, len(rows), self.batch_size):
            batch = rows[first : first + self.batch_size]
            longest = max(len(ids) for _, _, ids, _ in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, (_, _, tokens, _) in enumerate(batch):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
            with torch.no_grad():
                logits = self.chat.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, (number, index, tokens, begin) in enumerate(batch):
                nats = logits[row, begin - 1 : len(tokens) - 1].float().log_softmax(dim=-1)
                answer = torch.tensor(tokens[begin:])
                found[number][index] = nats.gather(1, answer[:, None])[:, 0].tolist()
        progress(len(prompts))
        return found

    def greedy(self, rows, *, max_new_tokens, batch_size, progress):
        """`generate` as it is, on rows padded on the left."""
        answers = [[] for _ in rows]
        for batch in in_batches(rows, self.batch_size):
            ids, mask = left_padded([rows[index] for index in batch], self.chat.padding)
            with torch.inference_mode():
                written = self.chat.model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens,
                    do_sample=False, temperature=None, repetition_penalty=1.0, min_p=None,
                    top_p=None, top_k=None, pad_token_id=self.chat.padding,
                )  # fmt: skip
            for index, tokens in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                answers[index] = tokens
            progress(len(batch))
        return answers


def asked_first(chat, prompts, templates, *, own=False):
    """The first way to render: each prompt once for each template, and nothing left out."""
    assert not own  # it had none of its own
    begun = [(Answered(chat.render(prompt), []), []) for prompt in prompts]
    for template in templates:
        answer = chat.tokenizer(template, add_special_tokens=False).input_ids
        for prompt, (asked, openings) in zip(prompts, begun, strict=True):
            assert chat.render(prompt) == asked.context
            asked.answers.append(answer)
            openings.append(mining.opening_length(chat.tokenizer, template, answer))
    return [asked for asked, _ in begun], [openings for _, openings in begun], templates


def spreads_first(chat, reading, helped, kept):
    """The first way measured no spreads of logits."""
    return []


WAYS = {
    "new": (Reader, mining._asked, mining._spreads),
    "old": (First, asked_first, spreads_first),
}


def timed(call, seconds, name):
    """A call that adds the time it takes to what is named."""

    def measured(*words, **settings):
        begun = time.process_time()
        found = call(*words, **settings)
        seconds[name] += time.process_time() - begun
        return found

    return measured


def mined(model, tokenizer, way):
    """What is mined by a way, and the seconds of its parts and of the whole."""
    reader, mining._asked, mining._spreads = WAYS[way]
    seconds = {"reading": 0.0, "answering": 0.0}

    def read(chat, asked):
        made = timed(reader, seconds, "reading")(chat, asked)
        made.nats = timed(made.nats, seconds, "reading")
        made.greedy = timed(made.greedy, seconds, "answering")
        return made

    mining.Reader = read
    begun = time.process_time()
    # A random model refuses nothing: what is measured is the cost.
    tokens = mining.mine_safety_tokens(model, tokenizer, min_mass=0.0, min_score=0.0)
    return tokens, {**seconds, "mine": time.process_time() - begun}


def check_same(new, old) -> float:
    """The greatest difference of scores, in total and relative terms; both ways must agree."""
    assert set(new.ids) == set(old.ids), set(new.ids) ^ set(old.ids)
    by_id = dict(zip(old.ids, old.scores, strict=True))
    pairs = [(score, by_id[token]) for token, score in zip(new.ids, new.scores, strict=True)]
    assert all(abs(a - b) < 1e-5 for a, b in pairs)
    return max(abs(a - b) / max(a, b, 1e-300) for a, b in pairs)


def measure(preset: str, path: Path | None) -> None:
    """Time both ways in pairs and write the ratios."""
    shape = PRESETS[preset]
    model, tokenizer = build(shape)
    pairs, difference = [], 0.0
    for number in range(shape.pairs):
        order = ("new", "old") if number % 2 == 0 else ("old", "new")
        done = {name: mined(model, tokenizer, name) for name in order}
        difference = max(difference, check_same(done["new"][0], done["old"][0]))
        pairs.append({name: done[name][1] for name in WAYS})
        print(json.dumps(pairs[-1]), flush=True)
    rows = []
    for what in ("reading", "answering", "mine"):
        ratios = sorted(pair["old"][what] / pair["new"][what] for pair in pairs)
        rows.append({
            "name": what, "times_faster": statistics.median(ratios),
            "times_faster_range": [ratios[0], ratios[-1]], "num": len(pairs),
            "processor_seconds": statistics.median(pair["new"][what] for pair in pairs),
            "processor_seconds_before": statistics.median(pair["old"][what] for pair in pairs),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    lengths = [len(tokenizer(each).input_ids) for each in REJECTION_TEMPLATES]
    found = {
        "schema": 1, "preset": preset, "at": now(), "versions": versions(),
        "machine": {**machine(), "threads": torch.get_num_threads()}, "model": asdict(shape),
        "parameters": sum(each.numel() for each in model.parameters()),
        "num_prompts": len(MINING_PROMPTS), "num_templates": len(REJECTION_TEMPLATES),
        "tokens_of_prompt": len(mining_context(tokenizer)), "tokens_of_templates": sum(lengths),
        "greatest_relative_difference_of_scores": difference, "rows": rows,
    }  # fmt: skip
    if path is not None:
        write_json(path, found)


def mining_context(tokenizer) -> list[int]:
    """The first mining prompt as the model reads it."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": MINING_PROMPTS[0]}], add_generation_prompt=True,
        return_dict=False,
    )  # fmt: skip


def main() -> None:
    """Read the words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    measure(words.preset, words.json)


if __name__ == "__main__":
    main()
