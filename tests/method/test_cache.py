"""z0 on disk: the same training as live, whatever the layout; and files that cannot lie."""

import gc
import json
import logging
import os
import re
import resource
import shutil
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_from_disk
from filelock import FileLock
from helpers import (
    PlainSTRTrainer,
    conversations,
    labelled,
    lora,
    moved,
    paper,
    run_script,
    run_until_killed,
    settings,
    str_trainer,
    trained,
)
from transformers import DataCollatorForSeq2Seq, LlamaForCausalLM, TrainingArguments

from moorline import InputError, PrerequisiteError, STRConfig, STRTrainer
from moorline.method import cache_job, cache_shards
from moorline.method.cache import COLUMN, Cache, Cached, key_of
from moorline.method.cache_plan import why_not
from moorline.method.positions import PositionRule
from moorline.method.reference import AdapterOff

KEYS = ("loss", "grad_norm", "ce_loss", "str/drift", "str/weighted", "str/max_abs")

LAYOUTS = {
    "padding": {},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "packing": {"packing": True, "max_length": 48},
    "padding-free": {"padding_free": True, "max_length": None},
    "several turns": {},
    "logprob": {"str_form": "logprob"},
    "first 2": {"str_positions": "first:2"},
}


@pytest.fixture
def run(make_model, tokenizer, tokens, tmp_path):
    """A function that trains a moved model, and gives the trainer and its log."""

    def go(data, reference, **changes):
        made = {"str_weight": 2.0, "max_steps": 4, "str_cache_dir": str(tmp_path / "cache")}
        trainer = str_trainer(
            moved(make_model), data, tokenizer, tokens, tmp_path,
            str_reference=reference, **{**made, **changes},
        )  # fmt: skip
        return trainer, trained(trainer)[1]

    return go


@pytest.mark.lengthy
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_float32_cache_trains_as_the_running_reference_does(name, run):
    data = conversations(num=10, turns=3 if name == "several turns" else 1)
    _, live = run(data, "adapter_off", **LAYOUTS[name])
    trainer, cached = run(data, "cached", **LAYOUTS[name])
    assert trainer.regularizer.reference.name == "cached"
    assert cached[-1]["str/weighted"] > 0.01, "there is something to hold"
    for mine, other in zip(cached, live, strict=True):
        for key in KEYS:
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), key


@pytest.mark.lengthy
def test_a_cache_of_another_model_would_be_seen(run, rows, make_model, tokenizer, tokens, tmp_path):
    """The positive control: z0 of another model gives another loss."""
    _, live = run(rows, "adapter_off")
    given = STRTrainer(
        moved(make_model),
        settings(STRConfig, tmp_path, str_weight=2.0, max_steps=4, str_reference="cached"),
        safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
        reference_model=make_model(seed=3),
    )  # fmt: skip
    assert given.regularizer.reference.name == "cached"
    _, other = trained(given)
    assert other[0]["loss"] != pytest.approx(live[0]["loss"], rel=1e-2)


@pytest.mark.lengthy
@pytest.mark.parametrize("adapter", [None, {}])
def test_full_and_adapter_training_start_at_the_noise_floor(
    adapter, make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, None if adapter is None else lora(),
        str_reference="cached",
    )  # fmt: skip
    _, log = trained(trainer)
    # float32 in other batches than those of the pass: not 0, but nothing
    assert log[0]["str/drift"] < 1e-10
    assert log[1]["str/drift"] > 1e-6


@pytest.mark.lengthy
@pytest.mark.parametrize(("kind", "left"), [("cached", 1), ("frozen_copy", 2)])
def test_a_reference_that_was_read_into_a_cache_is_not_kept(
    kind, left, make_model, model_folder, rows, tokenizer, tokens, tmp_path
):
    def alive():
        gc.collect()
        return {id(each) for each in gc.get_objects() if type(each) is LlamaForCausalLM}

    before = alive()
    trainer = STRTrainer(
        make_model(), settings(STRConfig, tmp_path, str_reference=kind), safety_tokens=tokens,
        train_dataset=rows, processing_class=tokenizer, reference_model=str(model_folder),
    )  # fmt: skip
    assert len(alive() - before) == left
    assert trainer.regularizer.reference.name == kind


@pytest.mark.lengthy
@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_a_small_cache_differs_by_its_stated_rounding(dtype, bits, run, rows, tmp_path):
    _, exact = run(rows, "cached", str_cache_dir=str(tmp_path / "exact"))
    trainer, small = run(rows, "cached", str_cache_dtype=dtype, str_cache_dir=str(tmp_path / dtype))
    folder = trainer.regularizer.reference.caches[0].folder
    manifest = json.loads((folder / "cache.json").read_text())
    largest = max(
        each.abs().max().item()
        for each in (batch[COLUMN].float() for batch in trainer.get_train_dataloader())
    )
    # Half a unit in the last place of the largest logit bounds every rounding.
    assert 0 < manifest["rounding"]["max_abs"] <= largest * 2.0**-bits
    assert manifest["bytes"] == manifest["num_positions"] * manifest["num_safety"] * 2
    # A shift of z0 by e moves a squared difference d^2 by 2 d e + e^2 at most.
    worst, moved_by = manifest["rounding"]["max_abs"], exact[0]["str/max_abs"]
    assert abs(small[0]["str/drift"] - exact[0]["str/drift"]) <= 2 * moved_by * worst + worst**2
    assert small[0]["loss"] != exact[0]["loss"], "and it does differ"


def test_evaluation_sets_are_cached_too(make_model, rows, tokenizer, tokens, tmp_path):
    found = {}
    for reference in ("adapter_off", "cached"):
        trainer = STRTrainer(
            moved(make_model), settings(STRConfig, tmp_path, str_reference=reference),
            safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
            eval_dataset={"one": conversations(seed=4), "two": conversations(seed=5)},
        )  # fmt: skip
        found[reference] = trainer.evaluate()
    for name in ("one", "two"):
        for key in ("loss", "str/drift", "str/weighted"):
            place = f"eval_{name}_{key}"
            assert found["cached"][place] == pytest.approx(found["adapter_off"][place], rel=1e-5)


def test_rows_that_a_cache_lacks_are_evaluated_by_the_adapter_switched_off(
    make_model, rows, tokenizer, tokens, tmp_path
):
    """`trainer.evaluate(other rows)` works with a cache, which `auto` takes by itself."""
    found = {}
    for reference in ("adapter_off", "auto"):
        trainer = str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path, str_reference=reference,
            max_steps=-1, num_train_epochs=3,
        )  # fmt: skip
        found[reference] = trainer.evaluate(conversations(seed=6))
    assert trainer.regularizer.reference.name == "cached"
    for key in ("eval_loss", "eval_str/drift"):
        assert found["auto"][key] == pytest.approx(found["adapter_off"][key], rel=1e-6)
    assert found["auto"]["eval_str/drift"] > 0.01


def test_rows_that_a_cache_lacks_are_evaluated_without_drift_where_nothing_can_run(
    make_model, rows, tokenizer, tokens, tmp_path, caplog
):
    """Full fine-tuning: the aligned model is gone, so the task's loss alone is given, and said."""
    other = conversations(seed=6)
    free = str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, str_reference="frozen_copy")
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, max_steps=-1, num_train_epochs=3
    )
    assert trainer.regularizer.reference.name == "cached"
    found, expected = trainer.evaluate(other), free.evaluate(other)
    assert found["eval_loss"] == pytest.approx(expected["eval_ce_loss"], rel=1e-6)
    assert "eval_str/drift" not in found
    assert "their drift is not measured" in caplog.text
    assert "eval_str/drift" in trainer.evaluate(trainer.train_dataset), (
        "and known rows are measured"
    )


@pytest.mark.lengthy
def test_a_resumed_run_ends_as_an_unbroken_one(make_model, rows, tokenizer, tokens, tmp_path):
    changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "str_reference": "cached"}
    whole = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path / "whole", lora(), **changes
    )
    weights, log = trained(whole)
    broken = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path / "broken", lora(), **changes
    )
    broken.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-2"))
    for name, each in broken.model.named_parameters():
        if each.requires_grad:
            assert torch.equal(each, weights[name]), name
    last = [entry for entry in broken.state.log_history if "loss" in entry][-1]
    assert last["loss"] == log[-1]["loss"]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_share_one_cache_and_equal_one_process(tmp_path):
    """Of seven rows, in four shards: of two processes one has a row less, and none waits for it."""
    folder, seven = ["--reference", "cached", "--cache-dir"], ["--rows", "7", "--batch"]
    live = run_script(tmp_path, *seven, "4")
    alone = run_script(tmp_path, *seven, "4", *folder, str(tmp_path / "one"))
    together = run_script(tmp_path, *seven, "2", *folder, str(tmp_path / "two"), processes=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    for key in KEYS:
        assert alone[key] == pytest.approx(live[key], rel=1e-5), key
        assert together[key] == pytest.approx(live[key], rel=1e-5), key


def digests(folder):
    manifest = json.loads((Path(folder) / "train" / "cache.json").read_text())
    assert manifest["status"] == "finished"
    return {name: shard["sha256"] for name, shard in manifest["shards"].items()}


@pytest.mark.lengthy
def test_another_seed_epoch_weight_and_batch_use_the_same_cache(
    run, rows, tmp_path, caplog, monkeypatch
):
    run(rows, "cached")
    before = digests(tmp_path / "cache")

    def never(*args):
        raise AssertionError("the pass ran again")

    monkeypatch.setattr("moorline.method.cache_job._compute", never)
    run(rows, "cached", seed=9, data_seed=9, str_weight=7.0, per_device_train_batch_size=2)
    run(rows, "cached", max_steps=-1, num_train_epochs=3)
    run(rows.shuffle(seed=4), "cached")
    assert digests(tmp_path / "cache") == before
    with pytest.raises(AssertionError, match="ran again"):
        run(rows, "cached", str_cache_dir=str(tmp_path / "fresh"))


@pytest.mark.lengthy
def test_without_a_folder_the_cache_lies_beside_the_prepared_data(run, rows, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    trainer, _ = run(rows, "cached", str_cache_dir=None)
    folder = trainer.regularizer.reference.caches[0].folder
    assert folder.parent == tmp_path / "hub" / "moorline"
    run(conversations(seed=5), "cached", str_cache_dir=None)
    assert len(list(folder.parent.iterdir())) == 2, "another content has another folder"


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": 1}, "data"),
        ({"model": 1}, "weights of the reference"),
        ({"str_form": "logprob"}, "form"),
        ({"str_positions": "first:1"}, "positions"),
        ({"str_cache_dtype": "float16"}, "dtype"),
        ({"bf16": True}, "dtype of the model"),
        ({"config": 1}, "configuration"),
        ({"tokens": 1}, "safety tokens"),
        ({"template": 1}, "chat template"),
    ],
)
def test_whatever_differs_is_refused_by_name(
    changes, named, make_model, rows, tokenizer, tokens, tmp_path
):
    def build(data=0, model=0, tokens=tokens, template=None, config=None, **rest):
        words = tokenizer.chat_template
        made = make_model(seed=model)
        made.config.rms_norm_eps = 1e-4 if config else made.config.rms_norm_eps
        if template:
            tokenizer.chat_template = words + " "
        try:
            where = {"str_reference": "cached", "str_cache_dir": str(tmp_path / "cache"), **rest}
            return str_trainer(
                made, conversations(seed=data), tokenizer, tokens, tmp_path, lora(), **where
            )
        finally:
            tokenizer.chat_template = words

    build()
    changes = dict(changes)
    if changes.pop("tokens", None):
        changes["tokens"] = type(tokens)(
            ids=tokens.ids[1:], strings=tokens.strings[1:], scores=tokens.scores[1:],
            vocab_size=tokens.vocab_size,
        )  # fmt: skip
    with pytest.raises(InputError, match=rf"`str_cache_dir` .*different: (.*, )?{named}"):
        build(**changes)
    build()


@pytest.mark.parametrize("reference", ["cached", "write_through"])
def test_arrow_files_of_somebody_else_are_refused_and_stay(
    reference, make_model, rows, tokenizer, tokens, tmp_path
):
    """After a stopped run they counted as torn shards, and were removed."""
    Dataset.from_list([{"text": "mine"}]).save_to_disk(folder := tmp_path / "own" / "train")
    (folder / "film.mkv.part").write_text("mine too")
    where = {"str_reference": reference, "str_cache_dir": str(folder.parent)}
    with pytest.raises(InputError, match=r"`str_cache_dir` .* holds data-.*no part of a cache"):
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora(), **where)
    assert load_from_disk(folder)[0] == {"text": "mine"}
    assert (folder / "film.mkv.part").is_file()


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    left = ["shard-00000-of-00001.arrow", f"shard-00000-of-00001.arrow.{2**22 + 1}.part"]
    kept = ["film.mkv.part", f"rest-8-00000-of-00001.arrow.{os.getpid()}.part", "cache.json"]
    for name in left + kept:
        (tmp_path / name).touch()
    cache_shards.remove_torn(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == set(kept)


@pytest.mark.lengthy
@pytest.mark.parametrize("damage", ["cut", "edit", "remove", "manifest"])
def test_a_damaged_file_is_refused_by_name(damage, run, rows, tmp_path):
    run(rows, "cached")
    folder = tmp_path / "cache" / "train"
    shard = next(folder.glob("*.arrow"))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "edit":
        raw = bytearray(shard.read_bytes())
        raw[len(raw) // 2] ^= 1
        shard.write_bytes(bytes(raw))
    elif damage == "remove":
        shard.unlink()
    else:
        shard = folder / "cache.json"
        shard.write_text(shard.read_text()[:-50])
    with pytest.raises(InputError, match=shard.name):
        run(rows, "cached")


def test_shards_of_another_model_are_refused_without_their_manifest_too(
    make_model, rows, tokenizer, tokens, tmp_path
):
    """A folder whose `cache.json` was removed is not taken for that of the next model."""

    def build(seed):
        return str_trainer(
            make_model(seed=seed), rows, tokenizer, tokens, tmp_path, lora(),
            str_reference="cached", str_cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip

    build(0)
    (tmp_path / "cache" / "train" / "cache.json").unlink()
    with pytest.raises(InputError, match=r"a shard of another cache \(`str_cache_dir`\)"):
        build(1)
    (tmp_path / "cache" / "train" / "cache.json").unlink()
    build(0)  # the control: its own are taken


def start(folder, target="cache_job._compute", after=10**6):
    """A run whose cache pass is killed after so many calls of a function."""
    words = ["--batch", "4", "--reference", "cached", "--cache-dir", folder]
    return run_until_killed(folder.parent, *words, target=target, after=after)


@pytest.mark.long
@pytest.mark.slow
def test_a_pass_that_was_killed_goes_on_and_ends_with_the_same_cache(tmp_path):
    assert start(tmp_path / "whole").returncode == 0
    # Within a shard, before a shard has its name, before its record is written.
    for target, after in (
        ("cache_job._compute", 3),
        ("cache_shards.os.replace", 1),
        ("cache_shards.records.write", 2),
    ):
        folder = tmp_path / f"{target}-{after}"
        assert start(folder, target, after).returncode == -9
        again = start(folder)
        assert again.returncode == 0, again.stderr[-2000:]
        assert digests(folder) == digests(tmp_path / "whole"), (target, after)
        assert not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_the_old_cache_usable(run, rows, tmp_path):
    run(rows, "cached")
    before = digests(tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to write more than this into a file, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(PrerequisiteError, match=r"cannot be written.*free room"):
            run(conversations(num=40, seed=8), "cached", str_cache_dir=str(tmp_path / "other"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "other").rglob("*.part"))
    run(conversations(num=40, seed=8), "cached", str_cache_dir=str(tmp_path / "other"))
    run(rows, "cached")
    assert digests(tmp_path / "cache") == before


def test_too_little_room_is_told_before_anything_is_computed(run, rows, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr("moorline.method.cache_job.shutil.disk_usage", lambda path: usage)
    with pytest.raises(PrerequisiteError, match=r"needs \d+ kB in .* and 1 kB are free"):
        run(rows, "cached")


def test_rows_and_bytes_are_told_before_they_are_spent(run, rows, caplog):
    with caplog.at_level(logging.WARNING, logger="moorline"):
        run(rows, "cached")
    # As "0.00023 GB" and "about 0 s" it said nothing.
    said = r"Reference cache: 8 rows with \d+ response tokens, \d+ kB in .*; this process has 8"
    assert re.search(said + r" rows to do, about [1-9]\d* s\.", caplog.text)


def test_what_cannot_be_cached_is_refused(make_model, rows, tokenizer, tokens, tmp_path):
    def build(data=rows, **changes):
        return str_trainer(
            make_model(), data, tokenizer, tokens, tmp_path, str_reference="cached", **changes
        )

    with pytest.raises(InputError, match="a data set is a stream"):
        build(rows.to_iterable_dataset())
    with pytest.raises(InputError, match="a data set is a stream"):
        STRTrainer(
            make_model(), settings(STRConfig, tmp_path, str_reference="cached"),
            safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
            eval_dataset=rows.to_iterable_dataset(),
        )  # fmt: skip
    with pytest.raises(InputError, match="`str_reference_fraction` saves the pass"):
        build(str_reference_fraction=0.5)


def test_sequences_split_over_processes_are_refused(
    make_model, rows, tokenizer, tokens, tmp_path, monkeypatch
):
    monkeypatch.setattr(STRTrainer, "get_cp_size", lambda self: 2)
    made = (make_model(), rows, tokenizer, tokens, tmp_path)
    for reference in ("cached", "frozen_copy"):
        with pytest.raises(InputError, match=r"Context and sequence parallelism .* Set `cp_size`"):
            str_trainer(*made, str_reference=reference)


def test_a_replaced_collator_is_refused_and_not_silently_unprotected(
    make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, str_reference="cached")
    trainer.data_collator = trainer.data_collator.inner
    with pytest.raises(InputError, match="`data_collator` was replaced"):
        trainer.train()
    caches = trainer.regularizer.reference.caches
    positions = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(InputError, match="the data collator changes rows"):
        Cached(caches).safety_logits(
            trainer.model, {COLUMN: torch.zeros(2, len(tokens))}, positions
        )


def test_rows_that_a_cache_cannot_tell_apart_are_not_cached():
    def collate(examples):
        return {
            "input_ids": torch.tensor([examples[0]["input_ids"]]),
            "pixel_values": torch.ones(1),
        }

    assert why_not([{"input_ids": [1]}], lambda examples: {"input_ids": torch.ones(1, 1)}) is None
    assert "'pixel_values'" in why_not([{"input_ids": [1]}], collate)
    assert "tokenized only as they are loaded" in why_not([{"text": "w1"}], collate)
    assert "empty" in why_not([], collate)


def test_a_key_knows_tokens_labels_and_borders():
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    keys = {
        key_of(row), key_of({**row, "labels": [-100, -100, 3]}), key_of({"input_ids": [1, 2, 3]}),
        key_of({**row, "seq_lengths": [3]}), key_of({**row, "seq_lengths": [1, 2]}),
        key_of({"input_ids": [1, 2], "labels": [3, -100, 2, 3]}),
        key_of({**row, "attention_mask": [1, 1, 1]}), key_of({**row, "attention_mask": [0, 1, 1]}),
    }  # fmt: skip
    assert len(keys) == 8
    assert key_of({**row, "text": "more"}) == key_of(row)


def test_rows_that_differ_by_their_mask_alone_have_each_their_own_reference(
    make_model, rows, tokenizer, tokens, tmp_path
):
    row = labelled(rows, tokenizer)[0]
    half = len(row["input_ids"]) // 2
    masked = {**row, "attention_mask": [0] * half + [1] * (len(row["input_ids"]) - half)}
    trainer = PlainSTRTrainer(
        make_model(), TrainingArguments(
            str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, report_to="none",
            use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True,
        ), train_dataset=Dataset.from_list([row, masked]), safety_tokens=tokens,
        data_collator=DataCollatorForSeq2Seq(tokenizer), settings=paper(reference="cached"),
    )  # fmt: skip
    _, log = trained(trainer)
    assert log[0]["str/drift"] < 1e-10, "the model is untouched"


def test_a_batch_of_packed_lists_has_the_reference_of_its_rows_in_order(run, rows):
    trainer, _ = run(rows, "cached")
    data = [trainer.train_dataset[each] for each in range(3)]
    adding = trainer.data_collator
    flat = adding(data)[COLUMN]
    nested = type(adding)(
        lambda lists: adding.inner([row for rows in lists for row in rows]), adding.caches
    )
    assert torch.equal(nested([data[:2], data[2:]])[COLUMN], flat)


def test_an_unfinished_cache_is_not_opened(run, rows, tmp_path):
    run(rows, "cached")
    path = tmp_path / "cache" / "train" / "cache.json"
    path.write_text(path.read_text().replace('"finished"', '"begun"'))
    with pytest.raises(InputError, match="not finished"):
        Cache(path.parent)


def test_a_second_run_waits_for_the_first_to_build_their_cache(run, rows, tmp_path, caplog):
    folder = tmp_path / "cache" / "train"
    folder.mkdir(parents=True)
    path, is_held = folder / ".cache.lock", threading.Event()

    def hold():
        with FileLock(path):
            is_held.set()
            until = time.monotonic() + 60  # a second was too short on a busy machine
            while "another run is building" not in caplog.text and time.monotonic() < until:
                time.sleep(0.05)

    threading.Thread(target=hold).start()
    is_held.wait()
    run(rows, "cached")
    assert "another run is building" in caplog.text
    caplog.clear()
    with FileLock(path):  # of a finished cache nothing is locked
        run(rows, "cached")
    assert "another run is building" not in caplog.text


def test_several_processes_do_not_wait_for_another_run(rows, make_model, tmp_path):
    model = make_model()
    job = cache_job.CacheJob(
        reference=AdapterOff(model), model=model, dataset=rows, collate=list, rule=PositionRule(),
        num_safety=1, batch_size=1, device=torch.device("cpu"), autocast=nullcontext,
        advance=lambda _: None, num_processes=2,
    )  # fmt: skip
    with (
        cache_job._alone(tmp_path, job),
        pytest.raises(InputError, match="Another run is building"),
    ):
        cache_job._alone(tmp_path, job).__enter__()
