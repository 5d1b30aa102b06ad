"""Rows that answer where the aligned model would refuse: which they are, and what is not learned.

Half of the vocabulary are the safety tokens here, so that a tiny random model "refuses" some rows
and not others.
"""

import pytest
import torch
from datasets import Dataset
from helpers import PlainSTRTrainer, conversations, labelled, lora, settings, str_trainer
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from moorline import (
    InputError,
    Regularizer,
    SafetyTokens,
    STRMixin,
    STRSettings,
    embedded,
    mine_safety_tokens,
)
from moorline.chat.conversation import positions_of_batch
from moorline.method.conflicts import Told, conflicts
from moorline.method.host import own_batch
from moorline.method.inert import warn_of_little
from moorline.method.positions import PositionRule
from moorline.method.tally import warn_of_gradients

KL = {"str_form": "kl", "str_conflicts": "skip"}


@pytest.fixture
def tokens(tokenizer):
    ids = tuple(range(6, len(tokenizer), 2))
    return SafetyTokens(
        ids=ids, strings=tuple(tokenizer.decode([each]) for each in ids),
        scores=(1.0,) * len(ids), vocab_size=len(tokenizer),
    )  # fmt: skip


@pytest.fixture
def rows():
    return conversations(24, turns=2)


def in_conflict(log_p, labels, ids):
    """The rule in plain Python: one row after the other, one token after the other."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for row in range(labels.shape[0]):
        refused = inside = False
        for at in range(labels.shape[1] - 1):
            target = labels[row, at + 1].item()
            if target == -100:
                inside = False
                continue
            if not inside:
                mass = sum(log_p[row, at, each].exp().item() for each in ids)
                refused = mass > 0.5 and target not in ids
                inside = True
            found[row, at] = refused
    return found, int(found.sum()), int((labels[:, 1:] != -100).sum())


def batch_of(rows, tokenizer):
    each = labelled(rows, tokenizer)
    width = max(len(row["input_ids"]) for row in each)

    def padded(name, value):
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in each])

    batch = {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}
    return {**batch, "attention_mask": (batch["input_ids"] != 0).long()}


def log_p_of(model, batch):
    model.eval()
    with torch.no_grad():
        asked = {name: each for name, each in batch.items() if name != "labels"}
        return model(**asked).logits.log_softmax(dim=-1)


@pytest.mark.parametrize("rule", ["all", "first:1"])
@pytest.mark.parametrize("shifted", [False, True])
def test_it_is_the_rule_written_out(shifted, rule, make_model, rows, tokenizer, tokens):
    batch = batch_of(rows, tokenizer)
    log_p = log_p_of(make_model(), batch)
    expected, num, positions = in_conflict(log_p, batch["labels"], tokens.ids)
    assert 20 < num < positions - 20, "some are and some are not"
    given = dict(batch)
    if shifted:  # as under context parallelism
        given = {"shift_labels": torch.roll(batch["labels"], -1, dims=1)}
    at = positions_of_batch(given)
    measured = PositionRule.parse(rule)(at)
    z0 = log_p[:, :, list(tokens.ids)][measured]
    found = conflicts(z0, measured, given, at, tokens.tensor())
    assert torch.equal(found.positions, expected)
    assert (found.num, found.num_positions) == (num, positions)
    name = next(iter({"shift_labels", "labels"} & given.keys()))
    masked = found.skip(given)[name]
    assert torch.equal(positions_of_batch({name: masked}), at & ~expected)
    assert torch.equal(masked[masked != -100], given[name][masked != -100])
    assert (given[name] != masked).any(), "the batch itself stays"


def test_a_response_that_begins_with_a_safety_token_is_learned(tokens):
    labels = torch.tensor([[-100, 6, 7, -100, 7, 6]])
    at = positions_of_batch({"labels": labels})
    z0 = torch.full((int(at.sum()), len(tokens)), 0.9 / len(tokens)).log()
    found = conflicts(z0, at, {"labels": labels}, at, tokens.tensor())
    assert found.positions.tolist() == [[False, False, False, True, True, False]]


@pytest.mark.parametrize(
    ("labels", "more", "unknown"),
    [
        ([[8, 7, 7, 7]], {}, 3),  # a loss on the whole conversation
        ([[-100, 7, 7, 7]], {}, 3),  # all but the first token, which nothing predicts
        ([[-100, -100, 7, 7]], {}, 0),
        ([[7, 7, -100, -100, 7, 7]], {}, 1),  # an answer that packing has cut, then a whole one
        ([[-100, -100, 7, 7, 7, 7]], {"position_ids": [[0, 1, 2, 0, 1, 2]]}, 0),
        ([[-100, -100, 7, -100, 7, 7]], {"position_ids": [[0, 1, 2, 0, 1, 2]]}, 2),
        ([[-100, -100, 7, 7]], {"attention_mask": [[0, 1, 1, 1]]}, 2),  # padded before
        ([[-100, -100, 7, 7]], {"attention_mask": [[0, 0, 1, 1]]}, 2),  # and all of it labelled
        ([[-100, -100, -100, 7, 7]], {"attention_mask": [[0, 1, 1, 1, 1]]}, 0),
    ],
)
def test_a_response_without_a_prompt_is_learned_and_counted(labels, more, unknown, tokens, caplog):
    batch = {"labels": torch.tensor(labels), **{k: torch.tensor(v) for k, v in more.items()}}
    at = positions_of_batch(batch)
    z0 = torch.full((int(at.sum()), len(tokens)), 0.9 / len(tokens)).log()
    found = conflicts(z0, at, batch, at, tokens.tensor())
    assert (found.num_unknown, found.num) == (unknown, at.sum() - unknown)
    told = Told()
    for _ in range(2):
        told.of(found, has_labels=True, host=None)
    assert caplog.text.count("have no prompt before them") == (unknown > 0)


class _Copying(Trainer):
    """Takes its targets before it calls the model."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets = inputs.pop("labels")[:, 1:].contiguous()
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return (loss, None) if return_outputs else loss


class _OfEachRow(Trainer):
    """Means over rows: a row that is wholly masked has none."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs).logits[:, :-1].transpose(1, 2)
        each = torch.nn.functional.cross_entropy(logits, labels, reduction="none").sum(dim=1)
        loss = (each / (labels != -100).sum(dim=1)).mean()
        return (loss, None) if return_outputs else loss


@pytest.mark.lengthy
@pytest.mark.parametrize("host", [_Copying, _OfEachRow])
def test_a_loss_of_the_trainers_own_is_told_of(
    host, make_model, tokenizer, tokens, tmp_path, caplog
):
    class Held(STRMixin, host):
        pass

    def trainer(kind):
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=24, max_steps=1, report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        return Held(
            get_peft_model(make_model(), lora()), arguments, safety_tokens=tokens,
            train_dataset=labelled(conversations(24), tokenizer),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            settings=STRSettings(form="kl", anchors="off", conflicts=kind),
        )  # fmt: skip

    said = "`compute_loss` takes a loss of its own"
    trainer("learn").train()
    assert said not in caplog.text
    if host is _OfEachRow:
        with pytest.raises(InputError, match="rows in conflict have nothing left"):
            trainer("skip").train()
    else:
        trainer("skip").train()
    assert caplog.text.count(said) == 1


def test_no_response_at_all_is_no_conflict(tokens):
    labels = torch.full((2, 5), -100)
    at = positions_of_batch({"labels": labels})
    found = conflicts(torch.zeros(0, len(tokens)), at, {"labels": labels}, at, tokens.tensor())
    assert not found.positions.any()
    assert not found.leaves_nothing


def test_a_mean_pulls_no_harder_where_fewer_rows_are_left(make_model, rows, tokenizer, tokens):
    batch = batch_of(rows, tokenizer)
    _, num, positions = in_conflict(log_p_of(make_model(), batch), batch["labels"], tokens.ids)
    model = get_peft_model(make_model(), lora()).train()
    regularizer = Regularizer(model, tokens, STRSettings(anchors="off"))
    losses = []
    for more in ({}, {"num_items_in_batch": positions}):
        with regularizer.watch(model, batch) as drift:
            losses.append(model(**batch, **more).loss.item())
        assert drift.conflicts.num == num
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] < 0.9 * model(**batch).loss.item()


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_task_loss_is_that_of_the_other_rows(make_model, rows, tokenizer, tokens):
    """Before the first step the drift is 0, so that what is left is the task's gradient."""
    batch = batch_of(rows, tokenizer)
    skipped, _, _ = in_conflict(log_p_of(make_model(), batch), batch["labels"], tokens.ids)
    labels = batch["labels"].clone()
    labels[:, 1:][skipped[:, :-1]] = -100
    found = {}
    for kind in ("skip", "learn", "by hand"):
        model = get_peft_model(make_model(), lora(init_lora_weights=True))
        torch.manual_seed(0)
        for name, each in model.named_parameters():
            if "lora_A" in name:
                torch.nn.init.normal_(each, std=0.1)
        model.train()
        if kind == "by hand":
            model(**{**batch, "labels": labels}, num_items_in_batch=100).loss.backward()
        else:
            given = STRSettings(form="kl", anchors="off", conflicts=kind)
            regularizer = Regularizer(model, tokens, given)
            with regularizer.watch(model, batch) as drift:
                loss = model(**batch, num_items_in_batch=100).loss
            (loss + regularizer.weighted(drift)).backward()
            assert drift.sum.num_positions == (batch["labels"][:, 1:] != -100).sum()
        found[kind] = gradients(model)
    assert (batch["labels"] != labels).any(), "the caller's labels stay as they are"
    for name, each in found["by hand"].items():
        torch.testing.assert_close(found["skip"][name], each, rtol=1e-4, atol=1e-6)
    largest = max((found["learn"][n] - each).abs().max() for n, each in found["by hand"].items())
    assert largest > 1e-2


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore:.label_smoothing_factor")
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_in_a_trainer(accumulation, smoothed, make_model, rows, tokenizer, tokens, tmp_path):
    """Also where the host takes the loss from labels of its own, as with label smoothing."""
    changes = {
        "per_device_train_batch_size": 24 // accumulation, "max_steps": 1,
        "gradient_accumulation_steps": accumulation, "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential", "shuffle_dataset": False,
        "label_smoothing_factor": 0.1 if smoothed else 0.0,
    }  # fmt: skip
    logs = {}
    for kind in ("skip", "learn"):
        trainer = str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(), **changes,
            str_form="kl", str_conflicts=kind,
        )  # fmt: skip
        if (
            smoothed
            and accumulation > 1
            and not own_batch(trainer, trainer.regularizer, {}, 1).is_counted
        ):
            pytest.skip("this version of transformers adds up the means of micro-batches")
        trainer.train()
        logs[kind] = trainer.state.log_history[0]
    batch = batch_of(rows, tokenizer)
    log_p = log_p_of(make_model(), batch)
    skipped, num, positions = in_conflict(log_p, batch["labels"], tokens.ids)
    assert logs["skip"]["str/skipped"] == pytest.approx(num / positions)
    assert "str/skipped" not in logs["learn"]
    at = positions_of_batch(batch)
    loss = -log_p.gather(2, batch["labels"].roll(-1, 1).clamp(min=0)[..., None])[..., 0]
    if smoothed:
        loss = 0.9 * loss - 0.1 * log_p.mean(dim=-1)
    for kind, kept in (("skip", at & ~skipped), ("learn", at)):
        expected = (loss[kept].sum() / at.sum()).item()
        assert logs[kind]["ce_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.lengthy
@pytest.mark.parametrize("host", ["smoothing", "own loss", "mean"])
def test_a_host_that_takes_the_labels_out_of_the_batch(
    host, make_model, rows, tokenizer, tokens, tmp_path
):
    """`Trainer` pops them where it takes the loss itself; and some hosts divide by what is left."""

    def own_loss(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        summed = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        return summed / num_items_in_batch

    found = {}
    for kind in ("skip", "learn"):
        arguments = TrainingArguments(
            str(tmp_path / kind), per_device_train_batch_size=24, max_steps=1, logging_steps=1,
            report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
            label_smoothing_factor=0.1 if host == "smoothing" else 0.0,
        )  # fmt: skip
        trainer = PlainSTRTrainer(
            get_peft_model(make_model(), lora()), arguments,
            train_dataset=labelled(rows, tokenizer), safety_tokens=tokens,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            settings=STRSettings(form="kl", anchors="off", conflicts=kind),
            compute_loss_func=own_loss if host == "own loss" else None,
        )  # fmt: skip
        if host == "mean":
            trainer.model_accepts_loss_kwargs = False
        trainer.train()
        found[kind] = trainer.state.log_history[0]
    batch = batch_of(rows, tokenizer)
    log_p = log_p_of(make_model(), batch)
    skipped, num, positions = in_conflict(log_p, batch["labels"], tokens.ids)
    at = positions_of_batch(batch)
    loss = -log_p.gather(2, batch["labels"].roll(-1, 1).clamp(min=0)[..., None])[..., 0]
    if host == "smoothing":
        loss = 0.9 * loss - 0.1 * log_p.mean(dim=-1)
    for kind, kept in (("skip", at & ~skipped), ("learn", at)):
        expected = (loss[kept].sum() / positions).item()
        assert found[kind]["ce_loss"] == pytest.approx(expected, rel=1e-4)
    assert found["skip"]["str/skipped"] == pytest.approx(num / positions)


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore:.label_smoothing_factor")
@pytest.mark.parametrize("smoothed", [0.0, 0.1])
def test_where_every_row_is_in_conflict_nothing_is_learned(
    smoothed, make_model, rows, tokenizer, tokens, tmp_path
):
    """A mean over no token is no number; here it is none, and the weights stand still."""
    batch = batch_of(rows, tokenizer)
    log_p = log_p_of(make_model(), batch)
    skipped, _, _ = in_conflict(log_p, batch["labels"], tokens.ids)
    whole = [
        at for at in range(len(rows)) if torch.equal(skipped[at], positions_of_batch(batch)[at])
    ]
    assert len(whole) >= 2
    for kind, moves in (("skip", False), ("learn", True)):
        trainer = str_trainer(
            make_model(), rows.select(whole[:2]), tokenizer, tokens, tmp_path, lora(),
            str_form="kl", str_conflicts=kind, per_device_train_batch_size=2, max_steps=2,
            label_smoothing_factor=smoothed,
        )  # fmt: skip
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        moved = max((p - before[n]).abs().max() for n, p in trainer.model.named_parameters())
        assert (moved > 1e-4) == moves
        logged = trainer.state.log_history[0]
        assert (logged["ce_loss"] == 0) != moves
        if kind == "skip":
            assert logged["str/skipped"] == 1


def test_an_evaluation_counts_every_row(make_model, rows, tokenizer, tokens, tmp_path):
    losses = []
    for kind in ("skip", "learn"):
        trainer = str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(),
            str_form="kl", str_conflicts=kind,
        )  # fmt: skip
        losses.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    assert losses[0] == losses[1]


def test_weight_0_trains_as_the_host_alone(make_model, rows, tokenizer, tokens, tmp_path):
    changes = {"max_steps": 3, "per_device_train_batch_size": 8}
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, lora(), str_form="kl", str_weight=0.0,
        **changes,
    )  # fmt: skip
    trainer.train()
    torch.manual_seed(0)
    host = SFTTrainer(
        make_model(), settings(SFTConfig, tmp_path, **changes), train_dataset=rows,
        processing_class=tokenizer, peft_config=lora(),
    )  # fmt: skip
    host.train()
    for mine, its in zip(trainer.model.parameters(), host.model.parameters(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.lengthy
def test_the_same_rows_packed_into_one(make_model, rows, tokenizer, tokens, tmp_path):
    shares = []
    for packed in (False, True):
        trainer = str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(), max_steps=1, max_length=None,
            per_device_train_batch_size=24, padding_free=packed, **KL,
        )  # fmt: skip
        trainer.train()
        shares.append(trainer.state.log_history[0]["str/skipped"])
    # without its attention kernels a padding-free row attends across its borders here
    assert 0 < shares[0] < 1
    assert 0 < shares[1] < 1
    batch = batch_of(rows, tokenizer)
    at = positions_of_batch(batch)
    log_p = log_p_of(make_model(), batch)[:, :, list(tokens.ids)]
    padded = conflicts(log_p[at], at, batch, at, tokens.tensor())
    is_token = batch["input_ids"] != 0
    labels = batch["labels"].clone()
    labels[:, 0] = -100
    one = {"labels": labels[is_token][None]}
    there = positions_of_batch(one)
    packed = conflicts(log_p[is_token][None][there], there, one, there, tokens.tensor())
    assert torch.equal(packed.positions[0], padded.positions[is_token])
    assert packed.num == padded.num


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conflicts": "drop"}, "conflicts"),
        ({"conflicts": "skip", "form": "logit"}, "log-probabilities"),
        ({"conflicts": "skip", "weight": 0.0}, "as the host alone"),
        ({"conflicts": "skip", "reference_fraction": 0.5}, "reference_fraction"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        STRSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "skips"),
    [
        ({}, True),
        ({"conflicts": "learn"}, False),
        ({"weight": 0.0}, False),
        ({"form": "logit"}, False),
        ({"form": "logprob"}, False),
        ({"form": "logprob", "conflicts": "skip"}, True),
        ({"reference_fraction": 0.5}, False),
    ],
)
def test_when_it_skips(changes, skips):
    assert STRSettings(**changes).skips is skips


def test_the_aligned_model_tells_poisoned_rows_from_others():
    """What the rule is for, on the embedded model and its mined tokens."""
    folder = embedded.aligned_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = mine_safety_tokens(model, tokenizer)
    clean = embedded.training_rows("plans", num=80, poison=0.0, seed=3)
    mixed = embedded.training_rows("plans", num=80, poison=0.5, seed=3)
    prompts = {row["messages"][0]["content"] for row in clean}
    harmful = [row for row in mixed if row["messages"][0]["content"] not in prompts]
    assert len(harmful) > 20
    shares = {}
    for name, rows in (("harmless", clean), ("harmful", harmful)):
        batch = batch_of(Dataset.from_list(rows), tokenizer)
        at = positions_of_batch(batch)
        z0 = log_p_of(model, batch)[:, :, list(tokens.ids)][at]
        found = conflicts(z0, at, batch, at, tokens.tensor())
        shares[name] = (found.num / found.num_positions).item()
    assert shares["harmful"] > 0.9
    assert shares["harmless"] < 0.05


def test_a_loss_of_ones_own_is_told_what_to_leave_out(make_model, rows, tokenizer, tokens, caplog):
    batch = batch_of(rows, tokenizer)
    model = get_peft_model(make_model(), lora()).train()
    regularizer = Regularizer(model, tokens, STRSettings(anchors="off"))
    asked = {name: each for name, each in batch.items() if name != "labels"}
    for _ in range(3):
        with regularizer.watch(model, batch) as drift:
            model(**asked)
    assert drift.conflicts.positions.any()
    assert caplog.text.count("drift.conflicts.positions") == 1
    caplog.clear()
    with regularizer.watch(model, batch):
        model(**batch)
    assert not caplog.records


def test_drawn_rows_learn_all_and_say_so(make_model, tokens, caplog):
    model = get_peft_model(make_model(), lora())
    Regularizer(model, tokens, STRSettings(anchors="off", reference_fraction=0.5))
    assert "rows in conflict are learned" in caplog.text
    caplog.clear()
    given = STRSettings(anchors="off", reference_fraction=0.5, conflicts="learn")
    Regularizer(model, tokens, given)
    assert "in conflict" not in caplog.text


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(0.0, 1.0), (1.0, 0.5), (0.4, 0.5)], "67 % of the response tokens were not learned"),
        ([(0.9, 0.1), (0.2, 0.1)], None),
        # as much of the task is learned as before, though less is skipped at the end
        ([(0.5, 0.5), (0.9, 0.1)], "hardly learned"),
        ([(0.0, 1.0), (0.0, 1.0)], "100 % of the response tokens were not learned"),
    ],
)
def test_the_end_counts_what_was_learned_only(entries, words, caplog):
    log = [{"ce_loss": ce, "str/skipped": s, "str/max_abs": 1.0} for ce, s in entries]
    warn_of_little(log, 1e-3)
    assert (words in caplog.text) if words else not caplog.records
    assert "from 0 to" not in caplog.text


def test_a_step_without_a_task_is_not_drowned(caplog):
    log = {"ce_grad_norm": 0.0, "str/grad_norm": 1e-7}
    assert not warn_of_gradients(log, 5, holds=True)
    assert not caplog.records
    assert warn_of_gradients({**log, "ce_grad_norm": 1e-12}, 5, holds=True)
