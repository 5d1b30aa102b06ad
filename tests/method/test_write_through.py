"""A cache that the first epoch fills: trains as live, then as the cache; whole or not there."""

import gc
import json
import resource
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import (
    conversations,
    lora,
    moved,
    run_script,
    run_until_killed,
    settings,
    str_trainer,
    trained,
)
from transformers import LlamaForCausalLM, TrainerCallback

from moorline import InputError, PrerequisiteError, STRConfig, STRTrainer
from moorline.method import cache_job
from moorline.method.cache import MANIFEST, Cache
from moorline.method.reference import AdapterOff, TrainingPlan, choose_reference

KEYS = ("loss", "grad_norm", "ce_loss", "str/drift", "str/weighted", "str/max_abs")

LAYOUTS = {
    "padding": {},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "packing": {"packing": True, "max_length": 48},
    "padding-free": {"padding_free": True, "max_length": None},
    "several turns": {},
    "logprob": {"str_form": "logprob"},
    "first 2": {"str_positions": "first:2"},
    "a worker that stays": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    "the last batch dropped": {"dataloader_drop_last": True},
}


@pytest.fixture
def run(make_model, tokenizer, tokens, tmp_path):
    """A function that trains a moved model, and gives the trainer and its log."""

    def go(data, reference="write_through", *, callbacks=(), **changes):
        made = {
            "str_weight": 2.0, "max_steps": -1, "num_train_epochs": 3,
            "str_cache_dir": str(tmp_path / "cache"),
        }  # fmt: skip
        trainer = str_trainer(
            moved(make_model), data, tokenizer, tokens, tmp_path,
            str_reference=reference, **{**made, **changes},
        )  # fmt: skip
        for each in callbacks:
            trainer.add_callback(each)
        trainer.train()
        return trainer, [each for each in trainer.state.log_history if "loss" in each]

    return go


@pytest.fixture
def calls(monkeypatch):
    """How many batches the running reference was given, so far."""
    counted, original = [], AdapterOff.safety_logits

    def counting(self, model, inputs, positions):
        counted.append(len(positions))
        return original(self, model, inputs, positions)

    monkeypatch.setattr(AdapterOff, "safety_logits", counting)
    return counted


@pytest.fixture
def never(monkeypatch):
    """From its call on, a pass of the cache fails."""

    def begin():
        def fail(*args):
            raise AssertionError("a pass ran")

        monkeypatch.setattr(cache_job, "_compute", fail)

    return begin


@pytest.mark.lengthy
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_epoch_is_live_and_the_later_ones_read(name, run, calls):
    data = conversations(num=10, turns=3 if name == "several turns" else 1)
    _, live = run(data, "adapter_off", **LAYOUTS[name])
    of_live = len(calls)
    calls.clear()
    trainer, filled = run(data, **LAYOUTS[name])
    assert filled[-1]["str/weighted"] > 0.01, "there is something to hold"
    an_epoch = len(filled) // 3
    assert len(filled) == len(live) == 3 * an_epoch
    for number, (mine, other) in enumerate(zip(filled, live, strict=True)):
        for key in KEYS:
            if number < an_epoch:
                assert mine[key] == other[key], "the very same computation"
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), key
    rest = 2 if name == "the last batch dropped" else 0  # one batch timed, one computed
    assert len(calls) < of_live, "it ran less often than the live one"
    assert len(calls) == pytest.approx(of_live / 3 + rest, abs=1.5), "once an epoch, and a probe"
    (cache,) = trainer.regularizer.reference.caches
    assert len(cache) == len(trainer.train_dataset)


@pytest.mark.lengthy
def test_what_an_epoch_filled_serves_other_runs_without_a_pass(run, rows, never, calls, tmp_path):
    run(rows, num_train_epochs=1)
    never()
    calls.clear()
    _, filled = run(rows, "cached", seed=9, data_seed=9)
    run(rows, seed=4, data_seed=4)
    probes = len(calls)
    assert probes < 6, "no batch of the two runs, of six steps each"
    with pytest.raises(AssertionError, match="a pass ran"):  # the control
        run(conversations(seed=5), "cached", str_cache_dir=str(tmp_path / "other"))
    _, live = run(rows, "adapter_off", seed=9, data_seed=9)
    for number, (mine, other) in enumerate(zip(filled, live, strict=True)):
        for key in KEYS:
            # the batches were others when z0 was kept, and Adam carries their rounding on
            assert mine[key] == pytest.approx(other[key], rel=1e-5 * (1 + number), abs=1e-6), key


@pytest.mark.lengthy
def test_full_fine_tuning_lets_go_of_its_frozen_copy_after_the_epoch(
    make_model, rows, tokenizer, tokens, tmp_path
):
    def alive():
        gc.collect()
        return {id(each) for each in gc.get_objects() if type(each) is LlamaForCausalLM}

    class Counting(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            counted.append(len(alive() - before))

    logs = {}
    for reference in ("frozen_copy", "write_through", "cached"):
        counted, before = [], alive()
        trainer = str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, str_reference=reference, max_steps=4,
            str_cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        trainer.add_callback(Counting())
        _, logs[reference] = trained(trainer)
        expected = {"frozen_copy": [2] * 4, "write_through": [2, 2, 1, 1], "cached": [1] * 4}
        assert counted == expected[reference], reference
        del trainer
    for other in ("write_through", "cached"):
        for mine, live in zip(logs[other], logs["frozen_copy"], strict=True):
            for key in KEYS:
                assert mine[key] == pytest.approx(live[key], rel=1e-5, abs=1e-6), key
    assert logs["cached"][-1]["str/drift"] > 1e-6


@pytest.mark.lengthy
@pytest.mark.parametrize("then", ["write_through", "cached"])
def test_an_epoch_that_was_not_ended_leaves_no_cache_and_is_filled_up(
    then, run, rows, tmp_path, calls, caplog
):
    run(rows, max_steps=1)
    folder = tmp_path / "cache" / "train"
    assert "4 of 8 rows" in caplog.text
    with pytest.raises(InputError, match="not finished"):
        Cache(folder)
    calls.clear()
    log = run(rows, then)[1]
    assert len(Cache(folder)) == 8
    assert json.loads((folder / MANIFEST).read_text())["num_rows"] == 8
    if then == "cached":
        assert calls[-1] == 4, "of the four rows that were missing"
        assert 8 not in calls, "and not of all"
    _, live = run(rows, "adapter_off")
    for mine, other in zip(log, live, strict=True):
        for key in KEYS:
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), key


@pytest.mark.lengthy
def test_a_damaged_shard_of_a_run_that_was_broken_off_is_refused_by_name(run, rows, tmp_path):
    run(rows, max_steps=1)
    (shard,) = (tmp_path / "cache" / "train").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{shard.name}: .*cut short or edited"):
        run(rows)


@pytest.mark.lengthy
def test_a_cache_of_something_else_is_refused_before_training_begins(run, rows):
    run(rows, max_steps=1)
    with pytest.raises(InputError, match=r"`str_cache_dir` .*different: data, positions"):
        run(rows, str_positions="first:1")
    run(rows)


def start(folder, *words, target="write_through.WriteThrough.keep", after=10**6):
    """Six steps, three epochs, each with a checkpoint; killed after so many calls."""
    folder.mkdir(exist_ok=True)
    given = ["--batch", "4", "--steps", "6", "--save", "--reference", "write_through"]
    given += ["--cache-dir", folder / "z0", *words]
    return run_until_killed(folder, *given, target=target, after=after)


KILLS = {
    "before a row is written": ("write_through.WriteThrough.keep", 0),
    "in the epoch, with a checkpoint": ("write_through.WriteThrough.keep", 1),
    "before a shard has its name": ("cache_shards.os.replace", 4),
    "before its record": ("cache_shards.records.write", 2),
    "before the cache is finished": ("cache_job._finish", 0),
    "in the second epoch": ("write_through.WriteThrough.read", 3),
}


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_an_unbroken_one(tmp_path):
    """To the bit: what the epoch had met is with each checkpoint."""
    whole = start(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    expected = json.loads((tmp_path / "whole" / "log.json").read_text())
    assert expected["str/drift"] > 0.01
    for name, (target, after) in KILLS.items():
        folder = tmp_path / name.replace(" ", "-")
        killed = start(folder, target=target, after=after)
        assert killed.returncode == -9, (name, killed.stderr[-2000:])
        manifest = folder / "z0" / "train" / MANIFEST
        if name != "in the second epoch" and manifest.is_file():
            with pytest.raises(InputError, match="not finished"):
                Cache(manifest.parent)
        resume = ["--resume"] if list(folder.glob("out/checkpoint-*")) else []
        again = start(folder, *resume)
        assert again.returncode == 0, (name, again.stderr[-2000:])
        found = json.loads((folder / "log.json").read_text())
        for key in KEYS:
            assert found[key] == expected[key], (name, key)
        assert len(Cache(manifest.parent)) == 8
        assert not list(folder.rglob("*.part")), name


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_fill_one_cache_and_equal_one_live_process(tmp_path):
    three = ["--steps", "6", "--reference"]
    live = run_script(tmp_path, "--batch", "4", *three, "adapter_off")
    filled = [*three, "write_through", "--cache-dir", str(tmp_path / "z0")]
    together = run_script(tmp_path, "--batch", "2", *filled, processes=2)
    assert live["str/drift"] > 0.01
    for key in KEYS:
        assert together[key] == pytest.approx(live[key], rel=1e-5), key
    folder = tmp_path / "z0" / "train"
    assert len(Cache(folder)) == 8
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    assert {each.split("-")[1] for each in shards} == {"00000", "00001"}, "each wrote its own"


@pytest.mark.lengthy
def test_a_second_run_that_would_fill_the_same_cache_is_refused(run, rows, tmp_path):
    folder = tmp_path / "cache" / "train"
    folder.mkdir(parents=True)
    is_held, is_done = threading.Event(), threading.Event()

    def hold():
        with FileLock(folder / ".cache.lock"):
            is_held.set()
            is_done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    try:
        with pytest.raises(InputError, match="Another run is building the reference cache"):
            run(rows)
    finally:
        is_done.set()
        thread.join()
    run(rows, max_steps=1)
    run(rows)  # the control: a run that ended has let go


@pytest.mark.lengthy
def test_a_run_that_is_broken_off_lets_go_of_the_folder(run, rows, tmp_path):
    class Failing(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(rows, callbacks=[Failing()])
    assert not list((tmp_path / "cache").rglob("*.part"))
    run(rows)


@pytest.mark.slow
def test_a_full_disk_is_told_and_what_is_there_stays(run, tmp_path):
    data = conversations(num=40, seed=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to write more than this into a file, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(PrerequisiteError, match=r"cannot be written.*free room"):
            run(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache").rglob("*.part"))
    run(data)


@pytest.mark.lengthy
def test_evaluations_are_those_of_the_live_reference(make_model, rows, tokenizer, tokens, tmp_path):
    """Of sets the trainer was given, of its own rows, and of others; in each epoch."""
    found = {}
    for reference in ("adapter_off", "write_through"):
        trainer = STRTrainer(
            moved(make_model), settings(
                STRConfig, tmp_path, str_reference=reference, str_weight=2.0, max_steps=4,
                str_cache_dir=str(tmp_path / "cache"), eval_strategy="steps", eval_steps=1,
            ), safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
            eval_dataset={"own": rows, "other": conversations(seed=4)},
        )  # fmt: skip
        trainer.train()
        log = [each for each in trainer.state.log_history if "eval_other_loss" in each]
        found[reference] = [*log, trainer.evaluate(conversations(seed=6))]
    assert len(found["adapter_off"]) == 5
    for mine, live in zip(found["write_through"], found["adapter_off"], strict=True):
        names = [key for key in live if key.endswith(("loss", "str/drift"))]
        assert names
        for key in names:
            assert mine[key] == pytest.approx(live[key], rel=1e-5), key
    assert live["eval_str/drift"] > 0.01


@pytest.mark.lengthy
def test_rows_that_change_are_refused_in_the_first_step(
    rows, make_model, tokenizer, tokens, tmp_path
):
    def build():
        return str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path, str_reference="write_through",
            str_cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip

    trainer = build()
    trainer.data_collator = trainer.data_collator.inner
    with pytest.raises(InputError, match="`data_collator` was replaced after"):
        trainer.train()
    trainer = build()
    adding = trainer.data_collator

    def cutting(examples):
        batch = adding.inner(examples)
        return {name: each[:, :-1] for name, each in batch.items()}

    trainer.data_collator = type(adding)(cutting, adding.caches, with_keys=True)
    with pytest.raises(InputError, match="changes rows at random or cuts them"):
        trainer.train()
    build().train()


def test_where_it_cannot_work_it_is_refused_by_name(make_model):
    sharded = TrainingPlan(no_cache="under FSDP one is read only", reads_cache=True)
    with pytest.raises(InputError, match="`reference` 'write_through' is not possible here: under"):
        choose_reference("write_through", make_model(), lambda: sharded)
    assert choose_reference("cached", make_model(), lambda: sharded) == "cached"
    plain = TrainingPlan()
    assert choose_reference("write_through", make_model(), lambda: plain) == "write_through"


def test_a_base_that_trains_beside_its_adapter_is_refused(make_model, rows, tokenizer, tokens, run):
    model = moved(make_model)
    next(each for name, each in model.named_parameters() if "norm" in name).requires_grad_(True)
    with pytest.raises(InputError, match="'write_through' takes the model without its adapter"):
        str_trainer(model, rows, tokenizer, tokens, Path("unused"), str_reference="write_through")


@pytest.mark.lengthy
def test_nothing_beside_is_touched(make_model, rows, tokenizer, tokens, tmp_path):
    """Weights of a training with LoRA from the start: those of the live reference, to the bit."""
    found = {}
    for reference in ("adapter_off", "write_through"):
        trainer = str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(), str_reference=reference,
            str_cache_dir=str(tmp_path / "cache"), max_steps=2,
        )  # fmt: skip
        found[reference] = trained(trainer)[0]
    for name, each in found["adapter_off"].items():
        assert torch.equal(found["write_through"][name], each), name
    assert any(
        each.abs().max() > 1e-3 for name, each in found["adapter_off"].items() if "_B" in name
    )
