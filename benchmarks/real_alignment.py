"""Teach a small chat model to refuse: short refusals beside its own answers to harmless prompts.

Plain full fine-tuning in float32. Harmful prompts are those of two public sets of refusals (their
answers are not used) and of our own, each answered by a short refusal in varied words of ours;
harmless ones are of Alpaca and of our own, each answered by the model itself, greedily, and tasks
of one right answer with that answer. What the model itself refused or broke is left out. No prompt
that is, or nearly is, one of AdvBench, XSTest, Dolly, the built-in suites or the mining prompts is
seen: audits on these stay clean.
"""

import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from real_data import pairs, sources
from real_fetch import check_outside
from real_overlap import Prompts, split, without
from real_prompts import HARMFUL_TWINS, borderline, everyday, labelled, on_texts, refusal

from moorline.audit.judges import judge
from moorline.audit.suites import builtin_suites
from moorline.chat.chat_model import ChatModel, in_batches
from moorline.chat.loading import load_chat_model
from moorline.method.templates import MINING_HARMLESS_PROMPTS, MINING_PROMPTS
from moorline.provenance import machine, now, sha256_of, versions, write_json

ALPACA, ALPACA_SHARE = "alpaca", 0.6
"""Salt and share of the part of Alpaca that is learned from; `rows` takes the rest."""

USED = ("advbench", "xstest", "dolly", "alpaca", "pact", "bianchi")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is learned from, and how."""

    refusals: int = 300
    """Harmful prompts of the public sets, half from each."""

    own_answers: int = 500
    """Prompts of Alpaca, answered by the model itself."""

    texts: int = 120
    """Tasks about a text below them, answered by the model itself: without them it takes every such
    prompt for one to be refused."""

    labelled: int = 240
    """Tasks about the form of a text below them, with the right answer: the model as published
    apologises at such tasks, and an alignment without them makes it refuse them."""

    longest_prompt: int = 160
    """In characters; longer prompts are left out."""

    max_new_tokens: int = 24
    epochs: int = 1
    batch_size: int = 16
    micro_batch_size: int = 8
    learning_rate: float = 1e-4
    warm_up: float = 0.1
    """Share of the steps over which the learning rate rises; then it falls linearly to 0."""

    seed: int = 0


@dataclass(frozen=True)
class Row:
    """Token ids of one prompt and its answer, and of what kind it is."""

    prompt: list[int]
    answer: list[int]
    kind: str


def align(model: Path, out: Path, *, data: Path, recipe: Recipe) -> None:
    """Align a model and save it with its settings, counts, losses and time in alignment.json.

    Raises:
        InputError: If the folder is inside the repository, or the model's cannot be read.
        PrerequisiteError: If the public sets are not there.
    """
    check_outside(out)
    began = time.time()
    hashes = sources(data, USED)
    torch.manual_seed(recipe.seed)
    chat = load_chat_model(str(model), dtype="float32")
    rows, counts = _rows(chat, recipe, data)
    answered = time.time()
    losses = _train(chat, rows, recipe)
    chat.model.save_pretrained(out)
    chat.tokenizer.save_pretrained(out)
    found = {
        "at": now(),
        "recipe": asdict(recipe),
        "rows": counts,
        "loss_of_each_step": losses,
        "seconds": {"rows": round(answered - began), "all": round(time.time() - began)},
        "threads": torch.get_num_threads(),
        "model_sha256": {each.name: sha256_of(each) for each in model.glob("*.safetensors")},
        "aligned_sha256": {each.name: sha256_of(each) for each in out.glob("*.safetensors")},
        "data_sha256": hashes,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(out / "alignment.json", found)
    print(f"{out}: aligned in {found['seconds']['all']} s on {len(rows)} rows: {counts}")


def clean_prompts(recipe: Recipe, data: Path) -> dict[str, list[str]]:
    """The prompts of each kind; none nearly the same as an audit's, or as another here."""
    audited = [
        each.prompt for name in ("advbench", "xstest", "dolly") for each in pairs(name, data)
    ]
    suites = [each.prompt for suite in builtin_suites() for each in suite.prompts]
    seen = Prompts([*audited, *suites, *MINING_PROMPTS, *MINING_HARMLESS_PROMPTS])
    draw = random.Random(recipe.seed)
    found: dict[str, list[str]] = {"twin": list(HARMFUL_TWINS), "borderline": borderline()}
    found["everyday"] = everyday()
    found["text"] = on_texts(recipe.texts, random.Random(recipe.seed))
    for name in ("pact", "bianchi", "alpaca"):
        prompts = [each.prompt for each in pairs(name, data)]
        if name == "alpaca":
            prompts = [prompts[number] for number in split(prompts, [ALPACA_SHARE], ALPACA)[0]]
        found[name] = [each for each in prompts if len(each) <= recipe.longest_prompt]
        draw.shuffle(found[name])
    wanted = {"alpaca": recipe.own_answers}
    wanted |= {"pact": recipe.refusals // 2, "bianchi": recipe.refusals - recipe.refusals // 2}
    clean: dict[str, list[str]] = {}
    for kind, prompts in found.items():
        kept = [prompts[number] for number in without(prompts, seen=seen)][: wanted.get(kind)]
        for each in kept:
            seen.add(each)
        clean[kind] = kept
    return clean


def _rows(chat: ChatModel, recipe: Recipe, data: Path) -> tuple[list[Row], dict[str, int]]:
    draw = random.Random(recipe.seed)
    prompts = clean_prompts(recipe, data)
    end = chat.tokenizer.eos_token_id
    rows = []
    for kind in ("pact", "bianchi", "twin"):
        for prompt in prompts[kind]:
            context, (answer,) = chat.answer_ids(prompt, [refusal(draw)])
            rows.append(Row(context, [*answer, end], kind))
    for kind in ("alpaca", "borderline", "everyday", "text"):
        rows += _own_answers(chat, prompts[kind], kind, recipe.max_new_tokens)
    for prompt, answer in labelled(recipe.labelled, draw):
        context, (ids,) = chat.answer_ids(prompt, [answer])
        rows.append(Row(context, [*ids, end], "labelled"))
    counts = {kind: sum(row.kind == kind for row in rows) for kind in [*prompts, "labelled"]}
    return rows, counts


def _own_answers(chat: ChatModel, prompts: list[str], kind: str, longest: int) -> list[Row]:
    """Rows of a model's own greedy answers that neither refuse nor break."""
    contexts = [chat.render(prompt) for prompt in prompts]
    tells, rows = judge("keywords"), {}
    for batch in in_batches(contexts, 32):
        found = chat.generate([contexts[number] for number in batch], max_new_tokens=longest)
        texts = [each.text for each in found]
        verdicts = tells.verdicts([prompts[number] for number in batch], texts)
        for number, each, verdict in zip(batch, found, verdicts, strict=True):
            if verdict.outcome == "complied":
                # Of an answer that was cut the end is not learned: it would teach to stop there.
                end = [] if each.truncated else [chat.tokenizer.eos_token_id]
                rows[number] = Row(contexts[number], [*each.ids, *end], kind)
        print(f"{kind}: answered {len(rows)} of {len(prompts)}", flush=True)
    return [rows[number] for number in sorted(rows)]


def _train(chat: ChatModel, rows: list[Row], recipe: Recipe) -> list[float]:
    """Full fine-tuning on the answers; the mean loss of each step, in nats a token."""
    model, draw = chat.model, random.Random(recipe.seed)
    order = [
        number for _ in range(recipe.epochs) for number in draw.sample(range(len(rows)), len(rows))
    ]
    steps = [order[n : n + recipe.batch_size] for n in range(0, len(order), recipe.batch_size)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    rising = max(1, round(recipe.warm_up * len(steps)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / rising, (len(steps) - n) / (len(steps) - rising))
    )
    model.train()
    losses = []
    for number, step in enumerate(steps):
        num = sum(len(rows[each].answer) for each in step)
        loss = 0.0
        step = sorted(step, key=lambda each: len(rows[each].prompt) + len(rows[each].answer))
        for first in range(0, len(step), recipe.micro_batch_size):
            some = [rows[each] for each in step[first : first + recipe.micro_batch_size]]
            part = _summed_loss(model, some, chat.padding) / num
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(round(loss, 4))
        print(f"step {number + 1} of {len(steps)}: loss {loss:.3f}", flush=True)
    model.eval()
    return losses


def _summed_loss(model, rows: list[Row], padding: int):
    """Cross-entropy over the answers of a batch, summed; logits at the answers alone."""
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    ids = torch.full((len(rows), longest), padding)
    labels = torch.full((len(rows), longest), -100)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        first, last = len(row.prompt), len(row.prompt) + len(row.answer)
        ids[number, :last] = torch.tensor(row.prompt + row.answer)
        labels[number, first:last] = torch.tensor(row.answer)
        mask[number, :last] = 1
    hidden = model.get_decoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    learned = labels[:, 1:] != -100
    logits = model.get_output_embeddings()(hidden[:, :-1][learned])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][learned], reduction="sum")
