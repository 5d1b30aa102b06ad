"""Protection that protects nothing: each alarm rings, and is silent beside it where all is well."""

import logging

import pytest
import torch
from helpers import (
    conversations,
    labelled,
    lora,
    moved,
    paper,
    plain_trainer,
    settings,
    str_trainer,
)
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from moorline import (
    InputError,
    Regularizer,
    SafetyTokens,
    STRConfig,
    STRTrainer,
    embedded,
)
from moorline.method.inert import warn_of_little
from moorline.method.tally import warn_of_gradients


def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.fixture(scope="module")
def spelled():
    """The embedded tokenizer, and safety tokens that spell some words."""
    tokenizer = AutoTokenizer.from_pretrained(embedded.aligned_path())
    size = loaded(embedded.aligned_path()).get_output_embeddings().weight.shape[0]

    def tokens(text):
        ids = tuple(dict.fromkeys(tokenizer(text, add_special_tokens=False).input_ids))
        strings = tuple(tokenizer.decode([each]) for each in ids)
        return SafetyTokens(ids=ids, strings=strings, scores=(1.0,) * len(ids), vocab_size=size)

    return tokenizer, tokens


REFUSAL, PICNIC = "I'm sorry, but I cannot help with that", " picnic"


def test_tokens_that_no_refusal_says_are_refused(spelled):
    tokenizer, tokens = spelled
    model = loaded(embedded.aligned_path())
    with pytest.raises(InputError, match=r"in 18 refusals \(needed: 0.01\), so nothing"):
        Regularizer(model, tokens(PICNIC), paper(), tokenizer=tokenizer)
    Regularizer(loaded(embedded.aligned_path()), tokens(REFUSAL), paper(), tokenizer=tokenizer)
    # what is measured only is not refused
    Regularizer(
        loaded(embedded.aligned_path()),
        tokens(PICNIC),
        paper(weight=0.0),
        tokenizer=tokenizer,
    )


def test_a_reference_that_was_swapped_with_the_model_is_refused(spelled):
    tokenizer, tokens = spelled
    aligned, base = embedded.aligned_path(), embedded.base_path()
    with pytest.raises(InputError, match="Were the two swapped"):
        Regularizer(loaded(aligned), tokens(REFUSAL), paper(), base, tokenizer=tokenizer)
    Regularizer(loaded(base), tokens(REFUSAL), paper(), aligned, tokenizer=tokenizer)


def own_loop(model, tokens, batch, steps, *, spoil=lambda regularizer: None):
    """Steps on one batch in a loop of one's own."""
    regularizer = Regularizer(model, tokens, paper())
    spoil(regularizer)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        with regularizer.watch(model, batch) as drift:
            output = model(**batch)
        loss = output.loss  # the mean over no label is no number
        task = loss if torch.isfinite(loss) else 0.0 * output.logits.sum()
        (task + regularizer.weighted(drift)).backward()
        optimizer.step()
        optimizer.zero_grad()


def cannot_be_switched_off(regularizer):
    """The reference then runs with the adapter on, and moves along with the model."""
    regularizer.reference._layers.clear()


@pytest.fixture
def batch(tokenizer):
    return DataCollatorForSeq2Seq(tokenizer)(list(labelled(conversations(4), tokenizer)))


def test_a_reference_that_a_tuning_wrote_is_told_of(make_model, tokens, tmp_path, caplog):
    """A second training in Python was silently held to what the first had left."""
    folder = tmp_path / "out"
    make_model().save_pretrained(folder)
    tuned = type(make_model()).from_pretrained(folder)
    Regularizer(tuned, tokens, paper())
    assert "which a tuning wrote" not in caplog.text
    (folder / "run.json").write_text("{}")
    for each in (tuned, get_peft_model(tuned, lora())):
        Regularizer(each, tokens, paper())
        assert f"The reference is the model in {folder}, which a tuning wrote" in caplog.text
        caplog.clear()
        Regularizer(each, tokens, paper(), make_model())
        assert "which a tuning wrote" not in caplog.text


def test_a_drift_of_exactly_zero_while_the_task_is_learned_stops_a_loop_of_ones_own(
    make_model, tokens, batch
):
    def adapted():
        return get_peft_model(make_model(), lora(init_lora_weights=True))

    with pytest.raises(InputError, match="exactly 0 in 10 steps while the task loss fell"):
        own_loop(adapted(), tokens, dict(batch), 11, spoil=cannot_be_switched_off)
    own_loop(adapted(), tokens, dict(batch), 10, spoil=cannot_be_switched_off)  # not before
    own_loop(adapted(), tokens, dict(batch), 11)


@pytest.mark.lengthy
@pytest.mark.parametrize("rate", [1e-2, 0.0])
def test_a_drift_of_exactly_zero_while_the_task_is_learned_stops_the_trainer(
    rate, make_model, rows, tokenizer, tokens, tmp_path
):
    """Where nothing is learned, a drift of 0 is right."""
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, lora(), max_steps=41, learning_rate=rate,
        str_reference="adapter_off",
    )  # fmt: skip
    cannot_be_switched_off(trainer.regularizer)
    if rate:
        with pytest.raises(InputError, match="the reference moves along with the model"):
            trainer.train()
    else:
        trainer.train()


def test_labels_that_mark_no_response_stop_a_training(make_model, tokens, batch):
    masked = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(InputError, match="10 steps had no response position"):
        own_loop(make_model(), tokens, masked, 11)
    own_loop(make_model(), tokens, dict(batch), 11)


def test_labels_that_mark_no_response_stop_the_trainer(
    make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = plain_trainer(moved(make_model), rows, tokenizer, tokens, tmp_path)
    trainer.args.max_steps = 11
    trainer.train_dataset = trainer.train_dataset.map(
        lambda row: {"labels": [-100] * len(row["labels"])}
    )
    with pytest.raises(InputError, match=r"no response position|task loss is nan"):
        trainer.train()


@pytest.mark.parametrize(
    ("task", "drift", "step", "words"),
    [
        (1.0, 101.0, 1, "learn little of the task"),
        (1.0, 0.9e-6, 10, "the drift holds nothing"),
        (1.0, 0.9e-6, 9, None),
        (1.0, 99.0, 50, None),
        (1.0, 1.1e-6, 50, None),
    ],
)
def test_gradients_out_of_all_proportion_are_told_with_both_norms(task, drift, step, words, caplog):
    norms = {"ce_grad_norm": task, "str/grad_norm": drift}
    with caplog.at_level(logging.WARNING, logger="moorline"):
        assert warn_of_gradients(norms, step, holds=True) == (words is not None)
    assert (words or "") in caplog.text
    assert words is None or (f"{drift:.3g}" in caplog.text and f"{task:.3g}" in caplog.text)
    assert not warn_of_gradients(norms, step, holds=False)


@pytest.mark.lengthy
def test_a_weight_that_holds_nothing_is_told_in_training(
    make_model, rows, tokenizer, tokens, tmp_path, caplog
):
    for weight, told in ((1e-9, True), (1.0, False)):
        caplog.clear()
        trainer = str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, lora(), str_weight=weight,
            max_steps=10, str_reference="adapter_off",
        )  # fmt: skip
        with caplog.at_level(logging.WARNING, logger="moorline"):
            trainer.train()
        assert ("the drift holds nothing" in caplog.text) == told


def test_a_task_that_was_not_learned_is_told_in_python_too(
    make_model, rows, tokenizer, tokens, tmp_path, caplog
):
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, lora(), learning_rate=1e-7
    )
    with caplog.at_level(logging.WARNING, logger="moorline"):
        trainer.train()
    assert "hardly learned" in caplog.text
    assert "nothing had to be held" in caplog.text
    caplog.clear()
    log = [
        {"ce_loss": 4.0, "str/max_abs": 0.0},
        {"eval_loss": 9.0},
        {"ce_loss": 1.0, "str/max_abs": 1},
    ]
    with caplog.at_level(logging.WARNING, logger="moorline"):
        warn_of_little(log, 1e-3)
    assert not caplog.text


@pytest.mark.parametrize("of", ["model", "reference"])
def test_weights_that_are_no_numbers_are_refused_before_training(of, make_model, tokens):
    models = {"model": make_model(), "reference": make_model()}
    with torch.no_grad():
        models[of].lm_head.weight[3, 5] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite on a probe"):
        Regularizer(models["model"], tokens, paper(), models["reference"])


# A word that the probe at the door does not say.
WORD = 61


def rows_with_the_word(batch):
    return [row for row, ids in enumerate(batch["input_ids"].tolist(), 1) if WORD in ids]


@pytest.mark.parametrize("of", ["model in training", "reference (frozen_copy)"])
def test_a_drift_that_is_no_number_is_refused_by_step_and_row(of, make_model, tokens, batch):
    model = make_model()
    batch["input_ids"][2, 1] = WORD
    regularizer = Regularizer(model, tokens, paper(reference="frozen_copy"))
    spoilt = model if of.startswith("model") else regularizer.reference.model
    with torch.no_grad():
        spoilt.get_input_embeddings().weight[WORD] = torch.nan
    named = ", ".join(map(str, rows_with_the_word(batch)))
    assert named
    with (
        pytest.raises(InputError) as told,
        regularizer.watch(model, batch),
    ):
        model(**batch)
    assert f"Step 1: a safety logit of the {of} is NaN or infinite, in row {named} of" in str(
        told.value
    )


def test_a_cache_of_what_is_no_number_is_refused_by_row(
    make_model, rows, tokenizer, tokens, tmp_path
):
    reference = make_model()
    with torch.no_grad():
        reference.get_input_embeddings().weight[WORD] = torch.nan
    data = labelled(rows, tokenizer)
    rows_in = [row for row, ids in enumerate(data["input_ids"], 1) if WORD in ids]
    assert rows_in
    with pytest.raises(InputError, match=r"not finite as float32, in row ([\d, ]+) of") as told:
        str_trainer_with(reference, make_model(), rows, tokenizer, tokens, tmp_path)
    for each in rows_in:
        assert str(each) in str(told.value)


def str_trainer_with(reference, model, rows, tokenizer, tokens, tmp_path):
    return STRTrainer(
        model,
        settings(STRConfig, tmp_path, str_reference="cached", str_cache_dir=str(tmp_path / "kept")),
        safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
        reference_model=reference,
    )  # fmt: skip


def test_a_task_loss_that_is_no_number_is_refused(make_model, rows, tokenizer, tokens, tmp_path):
    trainer = plain_trainer(
        moved(make_model), rows, tokenizer, tokens, tmp_path,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: (
            outputs.logits.sum() * torch.nan
        ),
    )  # fmt: skip
    with pytest.raises(InputError, match="Step 1: the task loss is nan"):
        trainer.train()
