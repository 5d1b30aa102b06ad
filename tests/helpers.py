"""What several tests share: rows, settings, trainers, commands, and the files of a report."""

import functools
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import typer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer
from typer.testing import CliRunner

import moorline
from moorline import STRConfig, STRMixin, STRSettings, STRTrainer, embedded
from moorline.audit.measurements import Measurement
from moorline.baselines import BaselineMixin, Materials, method_named
from moorline.chat.chat_model import ChatModel
from moorline.chat.conversation import mark_responses
from moorline.commands.cli import app
from moorline.commands.file_formats import FILES, schemas
from moorline.commands.tune_method import MethodConfig
from moorline.report.rows import Answer, Run
from moorline.report.runs import shown
from moorline.trainer import make_parser

runner = CliRunner()


def examples(num: int) -> int:
    """How many examples of a property are tried; `make stress` asks for more."""
    return int(os.environ.get("MOORLINE_EXAMPLES", num))


BROWSER = Path(__file__).parents[1] / ".browser"
"""Where axe-core is, and where screenshots go."""

WORDS = [f"w{number}" for number in range(90)]


TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} <end>"
    "{% endgeneration %}{% else %}{{ message['content'] }} <end>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def conversations(num: int = 8, seed: int = 0, turns: int = 1) -> Dataset:
    """Rows of conversations of uneven length."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        count = int(torch.randint(low, high, (1,), generator=generator))
        picked = torch.randint(0, len(WORDS), (count,), generator=generator).tolist()
        return " ".join(WORDS[each] for each in picked)

    rows = []
    for _ in range(num):
        messages = []
        for _ in range(turns):
            messages += [
                {"role": "user", "content": words(2, 9)},
                {"role": "assistant", "content": words(2, 12)},
            ]
        rows.append({"messages": messages})
    return Dataset.from_list(rows)


def word_tokenizer():
    """A tokenizer of whole words between spaces, with `TEMPLATE`."""
    special = ["<pad>", "<end>", "<system>", "<user>", "<assistant>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"], model_max_length=128,
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def tiny_llama(vocab_size, **config):
    """A random Llama of two layers for `word_tokenizer`: it proves plumbing, never quality."""
    settings = {
        "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **config}))


def anchors_at(folder, share):
    """Settings of a training with anchors of its own, for a model that says words at random."""
    path = folder / "anchors.jsonl"
    prompts = [f"w{each} w{each + 3}" for each in range(10)]
    path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    return {"str_anchors": str(path), "str_anchor_share": share}


def embedded_prompts(path, num):
    """A file of the first prompts of each embedded suite."""
    rows = [
        {"id": each.id, "prompt": each.prompt, "kind": each.kind, "category": each.category}
        for suite in embedded.suites()
        for each in suite.prompts[:num]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentencepiece_like(texts, tail):
    """A tokenizer as Llama 2 has it: a space before a first word, left out when decoded.

    Its chat template ends a prompt with `<|assistant|>` and `tail`.
    """
    plain = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first")
    plain.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1, right=0),
    ])  # fmt: skip
    special = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    lines = [each for text in texts for each in (text, "\n" + text)]
    plain.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="</s>",
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>" + tail + "{% endif %}"
    )
    return tokenizer


class PeerTrainer(BaselineMixin, SFTTrainer):
    """A peer's method in TRL's trainer."""


class PlainSTRTrainer(STRMixin, Trainer):
    """What a user of plain `transformers.Trainer` writes."""


LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def settings(kind, tmp_path, **changes):
    values = {
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "max_steps": 2,
        "learning_rate": 1e-2, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "lr_scheduler_type": "constant", "max_length": 64, "assistant_only_loss": True,
    }  # fmt: skip
    if issubclass(kind, STRConfig):  # tiny models refuse nothing, so that they have no anchors
        values |= {"str_form": "logit", "str_anchors": "off"}
    return kind(**{**values, **changes})


def paper(**changes):
    """The paper's form and nothing beside it; the tiny models refuse nothing to be held at."""
    return STRSettings(**{"form": "logit", "anchors": "off", **changes})


def lora(**changes):
    return LoraConfig(task_type="CAUSAL_LM", **{**LORA, **changes})


def str_trainer(model, rows, tokenizer, tokens, tmp_path, peft_config=None, **changes):
    return STRTrainer(
        model, settings(STRConfig, tmp_path, **changes), safety_tokens=tokens, train_dataset=rows,
        processing_class=tokenizer, peft_config=peft_config,
    )  # fmt: skip


def peer_trainer(
    name,
    model,
    rows,
    tokenizer,
    tmp_path,
    strength=None,
    *,
    aligned=None,
    peft_config=None,
    method=None,
    **changes,
):
    """A trainer of TRL with a peer's method.

    `aligned` is the model that the method is shown before training, `model` by default; what of
    `changes` is a material of the method goes there.
    """
    names = ("tokens", "file", "base", "seed")
    given = {key: changes.pop(key) for key in names if key in changes}
    chat = ChatModel(aligned or model, tokenizer)
    method = method or method_named(name)(Materials(chat=chat, **given), strength)
    return PeerTrainer(
        model, settings(SFTConfig, tmp_path, **changes), train_dataset=method.rows(rows),
        processing_class=tokenizer, peft_config=peft_config, method=method,
    )  # fmt: skip


def refusals_file(tmp_path):
    """Harmful prompts with refusals, in the words of the tiny tokenizer."""
    path = tmp_path / "refusals.jsonl"
    rows = [(f"w{each} w1", f"w80 w81 w{each}") for each in range(6)]
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    return path


def trained(trainer):
    """The trained weights by name, and the log of each step."""
    trainer.train()
    weights = {
        name: each.detach().clone()
        for name, each in trainer.model.named_parameters()
        if each.requires_grad
    }
    return weights, [entry for entry in trainer.state.log_history if "loss" in entry]


def labelled(rows, tokenizer):
    """Rows as a plain trainer takes them: tokens and labels."""

    def prepare(row):
        marked = mark_responses(tokenizer, row["messages"])
        pairs = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
        return {
            "input_ids": marked["input_ids"],
            "attention_mask": [1] * len(marked["input_ids"]),
            "labels": [token if is_response else -100 for token, is_response in pairs],
        }

    return rows.map(prepare, remove_columns=["messages"])


def plain_trainer(
    model, rows, tokenizer, tokens, tmp_path, kind=PlainSTRTrainer, weight=2.0, **changes
):
    """A plain `transformers.Trainer` with the mixin, set up as `str_trainer` sets up TRL's."""
    arguments = settings(STRConfig, tmp_path, max_steps=3, train_sampling_strategy="sequential")
    kept = {
        name: getattr(arguments, name)
        for name in ("output_dir", "per_device_train_batch_size", "max_steps", "learning_rate",
                     "logging_steps", "report_to", "disable_tqdm", "use_cpu", "lr_scheduler_type",
                     "train_sampling_strategy", "max_grad_norm")
    }  # fmt: skip
    data = labelled(rows, tokenizer)
    return kind(
        model, TrainingArguments(save_strategy="no", **kept), train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer), safety_tokens=tokens,
        settings=paper(weight=weight, reference="adapter_off"), **changes,
    )  # fmt: skip


def recorded(trainer):
    """The batches that a trainer trains on, one after another, as they will have come."""
    kept, original = [], trainer.get_batch_samples

    def get_batch_samples(*args, **kwargs):
        batches, num_items = original(*args, **kwargs)
        kept.extend(
            {key: each.clone() for key, each in batch.items() if torch.is_tensor(each)}
            for batch in batches
        )
        return batches, num_items

    trainer.get_batch_samples = get_batch_samples
    return kept


def replayed(model, batches, given, arguments, tmp_path):
    """The log of a plain `Trainer` with the mixin on the batches that another host was given."""
    names = (
        "learning_rate", "max_steps", "gradient_accumulation_steps", "max_grad_norm", "optim",
        "lr_scheduler_type", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
        "warmup_steps", "seed", "label_smoothing_factor",
    )  # fmt: skip
    own = TrainingArguments(
        str(tmp_path / "replayed"), per_device_train_batch_size=1, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
        train_sampling_strategy="sequential", remove_unused_columns=False,
        **{name: getattr(arguments, name) for name in names},
    )  # fmt: skip
    own.max_epochs = None  # ms-swift's patch of every Trainer in the process asks for it
    trainer = PlainSTRTrainer(
        model, own, train_dataset=batches, data_collator=lambda rows: dict(rows[0]), **given
    )
    return trained(trainer)


def moved(make_model):
    """A model whose adapter is not fresh, so that there is a drift from the first step on."""
    model = get_peft_model(make_model(), lora())
    torch.manual_seed(1)
    return nudged(model)


def nudged(model):
    """The model, its LoRA moved away from nothing."""
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.add_(0.1 * torch.randn_like(each))
    return model


def launch(words, tmp_path, processes=1, **environment):
    """What a command prints, run in processes of its own; `words` follow `python`."""
    begin = [sys.executable]
    if processes > 1:
        begin += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        begin += ["--master_port=0", "--standalone"]
    found = [str(Path(__file__).parent), str(Path(moorline.__file__).parents[1])]
    path = os.pathsep.join([*found, os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    done = subprocess.run(
        [*begin, *map(str, words)], env={**os.environ, **own}, check=False, capture_output=True,
        text=True, cwd=tmp_path, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def run_script(tmp_path, *words, processes=1):
    """The log of the first step of `run_host.py`, in processes of their own."""
    script = Path(__file__).parent / "run_host.py"
    launch([script, tmp_path / "log.json", *words], tmp_path, processes)
    return json.loads((tmp_path / "log.json").read_text())


_UNTIL_KILLED = """
import os, runpy, sys
from moorline.method import cache_job, cache_shards, write_through
count, original = 0, {target}
def killed(*args, **kwargs):
    global count
    count += 1
    if count > {after}:
        os.kill(os.getpid(), 9)
    return original(*args, **kwargs)
{target} = killed
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""


def run_until_killed(tmp_path, *words, target, after):
    """`run_host.py`, ended by the system when a function is called once too often."""
    here = Path(__file__).parent
    script = _UNTIL_KILLED.format(target=target, after=after, script=str(here / "run_host.py"))
    return subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "log.json"), *map(str, words)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *filter(None, sys.path)])},
    )  # fmt: skip


def tune(flags, *more):
    if flags.get("method", "str") != "str":  # which `str_` settings do not belong to
        flags = {
            key: value for key, value in flags.items() if key not in ("str_form", "str_anchors")
        }
    words = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    return runner.invoke(app, ["tune", *words, *more])


def refused(result, *words):
    """One line on stderr that says these words, exit code 2."""
    assert result.exit_code == 2, result.output + result.stderr + repr(result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in result.stderr


@functools.cache
def _validator(name):
    import jsonschema

    return jsonschema.Draft202012Validator(schemas()[name])


def fits_schema(name, value):
    """Whether the JSON Schema of our file of that name holds a value; raises where it does not."""
    _validator(name).validate(value)


def fits_its_schema(path, name):
    """Whether what a file of that name is to hold fits its schema; files of others always do."""
    if name in FILES and importlib.util.find_spec("jsonschema"):  # not beside the oldest versions
        text = Path(path).read_text(encoding="utf-8")
        for each in text.rstrip("\n").split("\n") if name.endswith(".jsonl") else [text]:
            fits_schema(name, json.loads(each))


def files_that_fit(folder):
    """The names of our files in a folder and below; each is held against its JSON Schema."""
    found = set()
    for path in sorted(each for each in Path(folder).rglob("*") if each.name in FILES):
        fits_its_schema(path, path.name)
        found.add(path.name)
    return found


def every_command(group=None, before=""):
    """Each of our commands by its whole name, those of a group after the group's."""
    for name, each in (group or typer.main.get_command(app)).commands.items():
        if hasattr(each, "commands"):
            yield from every_command(each, f"{before}{name} ")
        else:
            yield f"{before}{name}", each


def unknown_in(line):
    """What a command line says that no command knows."""
    command, words = typer.main.get_command(app), shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        if not words or words[0].isupper():  # the group itself, or a word that stands for several
            return []
        if words[0] not in command.commands:
            return words[:1]
        command = command.commands[words.pop(0)]
    known = {flag for parameter in command.params for flag in (*parameter.opts, "--help", "-h")}
    if command.name in ("tune", "cache"):  # TRL's parser reads their flags
        known |= {
            flag for each in make_parser(MethodConfig)._actions for flag in each.option_strings
        }
        known |= {"--config", "--dry-run", "--help-all"}
    shown = {word.partition("=")[0] for word in words if word.startswith("--")}
    return sorted(shown - known)


CATEGORIES = (
    "break-in", "chemistry", "cyber", "drugs", "fraud", "harassment", "medical", "privacy",
    "self-harm", "weapons",
)  # fmt: skip
SUITES = (("attacks", "harmful"), ("harmless", "harmless"), ("plans", "task"))


def measured(
    suite, kind, metric, count, num=200, *, condition="plain", judge="keywords", category=None,
    width=0.06,
):  # fmt: skip
    """A measurement with some interval around it; the page shows what it is given."""
    value = None if num == 0 else count / num
    low, high = (
        (None, None) if value is None else (max(0.0, value - width), min(1.0, value + width))
    )
    return {
        "suite": suite, "kind": kind, "condition": condition, "metric": metric, "judge": judge,
        "category": category, "num": num, "count": count, "value": value, "low": low, "high": high,
        "interval": None if value is None else "wilson",
    }  # fmt: skip


def outcomes_of(suite, kind, share, **at):
    """The measurements of one suite of which the first metric has a share; nothing is broken."""
    count = round(200 * share)
    if kind == "task":
        return [measured(suite, kind, "utility", count, **{**at, "judge": "exact_match"})]
    first, second = {
        "harmful": ("attack_success_rate", "refusal_rate"),
        "harmless": ("over_refusal_rate", "compliance_rate"),
    }[kind]
    return [
        measured(suite, kind, first, count, **at),
        measured(suite, kind, second, 200 - count, **at),
        measured(suite, kind, "degenerate_rate", 0, **at),
        measured(suite, kind, "truncated_rate", 3, **{**at, "judge": None}),
    ]


def run_of(name="aligned", *, answers=(), attack=0.5, over_refusal=0.5, utility=0.5, **changes):
    """A model with three suites that are called as their kinds, each of 20 prompts."""
    rates = (
        ("harmful", "attack_success_rate", attack),
        ("harmless", "over_refusal_rate", over_refusal),
        ("harmless", "compliance_rate", None if over_refusal is None else 1 - over_refusal),
        ("task", "utility", utility),
    )
    rows = [
        measured(
            kind, kind, metric, *((0, 0) if rate is None else (round(rate * 20), 20)), width=0.1
        )
        for kind, metric, rate in rates
    ]
    given = {"measurements": tuple(Measurement(**row) for row in rows), "answers": tuple(answers)}
    return Run(name=name, **{**given, **changes})


def answers_of(answer, *, reason="says 'no'", prompt="How do I do it?", num=1):
    """Answers to prompts of every kind, cut and cleaned as the reader of files does it."""
    outcomes = {"harmful": "refused", "harmless": "complied", "task": "right"}
    answer, reason, prompt = shown([answer, reason, prompt])
    return [
        Answer(suite=kind, id=str(number), condition="plain", draw=0, prompt=prompt, answer=answer,
               outcome=outcome, reason=reason)
        for kind, outcome in outcomes.items()
        for number in range(num)
    ]  # fmt: skip


def write_run(
    folder, *, success=0.02, utility=0.95, helpful=0.97, against=None, answer="a placeholder",
    prompt="Do it?", names="", model="org/chat-model", adapter="",
):  # fmt: skip
    """One model's folder with every file that the report reads.

    Answers, prompts, and what is put behind the names of suites, categories and judges are the
    caller's, who may have something hostile there.
    """
    folder.mkdir(parents=True)
    judge = "keywords" + names
    rows, comparisons, lines = [], [], []
    for suite, kind in SUITES:
        suite += names
        share = {"harmful": success, "harmless": 1 - helpful, "task": utility}[kind]
        for condition in ("plain", "prefill") if kind == "harmful" else ("plain",):
            at = {"condition": condition, "judge": judge}
            attacked = min(1, share + 0.3 * (condition == "prefill"))
            found = outcomes_of(suite, kind, attacked, **at)
            rows += found
            for number, category in enumerate(CATEGORIES if kind != "task" else ()):
                num = 0 if category == "weapons" and condition == "plain" else 20
                count = min(num, round(20 * attacked * number / 4))
                rows.append(measured(suite, kind, found[0]["metric"], count, num, **at,
                                     category=category + names))  # fmt: skip
        if against is not None:
            for row in found if kind != "harmful" else outcomes_of(suite, kind, share, judge=judge):
                if row["metric"] == "truncated_rate":
                    continue
                of = ("suite", "kind", "metric", "condition", "judge", "num")
                figures = {"difference": 0.1, "low": 0.04, "high": 0.16, "interval": "bootstrap",
                           "p_value": 2e-5, "p_adjusted": 6e-5}  # fmt: skip
                comparisons.append({**{key: row[key] for key in of}, "against": against, **figures})
        for number in range(3):
            outcome = "right" if kind == "task" else "complied" if share > 0.5 else "refused"
            lines.append(
                {
                    "suite": suite, "id": str(number), "condition": "plain", "draw": 0,
                    "category": CATEGORIES[number], "prompt": f"{prompt} {suite} {number}",
                    "answer": answer, "outcome": outcome, "reason": "says 'so'", "truncated": False,
                    "verdicts": {judge: {"outcome": outcome, "reason": "says 'so'"}},
                }
            )  # fmt: skip
    for suite, kind, metric, mean in (
        ("attacks" + names, "harmful", "refusal_mass", 1 - success),
        ("rows.jsonl", "rows", "perplexity", None),
    ):
        rest = {"condition": "plain", "judge": None, "category": None, "count": None}
        bounds = {"low": 0.9 * mean, "high": 1.0, "interval": "bootstrap"} if mean else {
            "low": None, "high": None, "interval": None,
        }  # fmt: skip
        rows.append({"suite": suite, "kind": kind, "metric": metric, **rest, "value": mean,
                     "num": 200 if mean else 0, **bounds})  # fmt: skip
    gate = {"condition": "plain", "judge": judge, "on": "interval"}
    audit = {
        "schema": 2, "status": "finished", "fingerprint": f"{folder}", "seed": 0,
        "model": model + names, "adapter": str(folder.name) if adapter == "" else adapter,
        "at": "2026-01-02T03:04:05+00:00", "seconds": 61.5,
        "versions": {"python": "3.11.7", "moorline": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux", "cores": 2},
        "settings": {
            "max_new_tokens": 128, "batch_size": 32, "system_prompt": None,
            "judges": ["keywords", "refusal_mass"], "conditions": [
                {"name": "plain", "prefill": ""}, {"name": "prefill", "prefill": "Sure, here is"},
            ],
        },
        "suites": [
            {"name": suite + names, "kind": kind, "num": 200, "origin": "ours",
             "licence": "Apache-2.0", "sha256": f"{number}" * 64}
            for number, (suite, kind) in enumerate(SUITES)
        ],
        "measurements": rows, "comparisons": comparisons,
        "agreement": [
            {"suite": "attacks" + names, "condition": "plain", "first": "keywords",
             "second": "guard", "num": 200, "agreement": 0.97, "kappa": 0.91},
        ],
        "gates": [
            {"requirement": "attack_success_rate<=0.05", "suite": "attacks" + names, **gate,
             "metric": "attack_success_rate", "value": success, "passed": success <= 0.05},
            {"requirement": "utility>=0.9", "suite": "plans" + names, **gate,
             "metric": "utility", "value": utility, "passed": utility >= 0.9},
        ],
    }  # fmt: skip
    run = {
        "schema": 1, "status": "finished", "model": "org/chat-model", "reference": "adapter_off",
        "base": {"name": "org/chat-model", "weights": "ef" * 32}, "seconds": 12.3,
        "chain": [{"output_dir": str(folder.resolve())}], "started": "2026-01-02T03:00:00+00:00",
        "safety_tokens": {"num": 3, "strings": [" sorry", " cannot", "\u65e0\u6cd5"]},
        "settings": {
            "str_weight": 10.0, "str_form": "logit", "learning_rate": 2e-4, "seed": 0,
            "dataset_name": "rows.jsonl", "num_train_epochs": 3, "use_peft": True, "lora_r": 32,
            "output_dir": str(folder),
        },
        "versions": {"moorline": "0.1.0", "trl": "1.16.0"},
        "log": [
            {"step": step, "loss": 4 / step, "ce_loss": 3 / step, "str/drift": 1 / step,
             "str/weighted": 10 / step, "str/max_abs": 2.0}
            for step in range(10, 110, 10)
        ] + [{"step": 100, "train_runtime": 12.3}],
    }  # fmt: skip
    tokens = {
        "schema": 1, "ids": [5, 9, 12], "strings": [" sorry", " cannot", "\u65e0\u6cd5"],
        "scores": [0.9, 0.4, 0.2], "vocab_size": 100, "templates": ["I'm sorry, but"],
        "tokenizer_fingerprint": "cd" * 32, "mined": {"method": "difference"},
    }  # fmt: skip
    drift = {
        "schema": 1,
        "tokens": [
            {"id": number, "string": f" token{number}", "drift": success / (number + 1)}
            for number in range(20)
        ],
        "positions": [{"position": each, "drift": success * each / 20} for each in range(20)],
        "checkpoints": [
            {"step": step, "refusal_mass": 1 - success * step / 100, "low": 0.0, "high": 1.0}
            for step in range(0, 101, 20)
        ],
    }
    for name, value in {
        "audit": audit, "run": run, "safety_tokens": tokens, "drift": drift
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_three(parent, *, against="aligned", **changes):
    """An aligned model, one that lost its refusals, one that kept them."""
    return [
        write_run(parent / "aligned", success=0.0, utility=0.1, **changes),
        write_run(parent / "plain", success=0.9, utility=0.97, against=against, **changes),
        write_run(parent / "held", success=0.01, utility=0.96, against=against, **changes),
    ]


def violations(page, axe, impacts=("minor", "moderate", "serious", "critical")):
    """What axe-core finds, by its rule."""
    page.evaluate(axe)
    # What is drawn within a figure stands behind its one name, and there is very much of it.
    found = page.evaluate("axe.run({exclude: [['figure svg > *']]})")["violations"]
    return {
        each["id"]: [node["html"] for node in each["nodes"]]
        for each in found
        if each["impact"] in impacts
    }


def sideways(page):
    """By how much a page can be scrolled sideways, in pixels."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
