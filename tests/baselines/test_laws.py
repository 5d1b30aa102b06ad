"""The laws of every method in TRL's trainer, on a tiny random model."""

import pytest
import torch
from helpers import (
    PeerTrainer,
    conversations,
    labelled,
    lora,
    moved,
    peer_trainer,
    refusals_file,
    run_script,
    settings,
    trained,
)
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from moorline import InputError
from moorline.baselines import METHODS, BaselineMixin, Materials
from moorline.chat.chat_model import ChatModel

PEERS = [name for name, each in METHODS.items() if not each.by_trainer]
AT_RESPONSES = [name for name in PEERS if METHODS[name].at_responses]


def materials_of(name, make_model, tokens, tmp_path):
    more = {}
    if name in ("safe_instr", "lisa"):
        more["file"] = refusals_file(tmp_path)
    if name == "safe_lora":
        more["base"] = make_model(seed=1)
    if name == "pact":
        more["tokens"] = tokens
    return more


def gradients(trainer):
    """The loss of one batch, and the gradient at each trained weight."""
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model = trainer.accelerator.prepare_model(trainer.model.train())
    trainer._starts_step = True
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, inputs)
    model.zero_grad()
    loss.backward()
    frozen = [each.grad for each in model.parameters() if not each.requires_grad]
    assert all(each is None for each in frozen)
    found = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    return loss.item(), torch.cat([each.flatten() for each in found.values() if each is not None])


@pytest.mark.lengthy
@pytest.mark.parametrize("name", PEERS)
def test_three_steps_in_trls_trainer(name, make_model, rows, tokenizer, tokens, tmp_path):
    more = materials_of(name, make_model, tokens, tmp_path)
    trainer = peer_trainer(
        name, make_model(), rows, tokenizer, tmp_path, peft_config=lora(), max_steps=3, **more
    )
    before = {key: each.detach().clone() for key, each in trainer.model.named_parameters()}
    weights, log = trained(trainer)
    assert len(log) == 3
    assert all(torch.isfinite(torch.tensor(each["loss"])) for each in log)
    assert any(not torch.equal(before[key], each) for key, each in weights.items())
    for key, each in trainer.model.named_parameters():
        assert each.requires_grad or torch.equal(before[key], each), key
    if METHODS[name].at_responses:
        assert log[2]["method/loss"] > 0
        added = log[2]["method/weighted"]
        task = 0.0 if METHODS[name].replaces_task else log[2]["ce_loss"]
        assert log[2]["loss"] == pytest.approx(task + added, rel=1e-4)
    assert ("method/loss" in log[2]) == (METHODS[name].at_responses or name in ("sbr", "lisa"))


@pytest.mark.lengthy
@pytest.mark.parametrize("adapter", ["lora", "full", "dropout", "bf16", "tied"])
@pytest.mark.parametrize("name", ["kl", "sbr"])
def test_the_term_and_its_gradient_are_zero_at_the_untouched_model(
    name, adapter, make_model, rows, tokenizer, tmp_path
):
    found = {}
    for strength in (0.0, 1000.0):
        trainer = peer_trainer(
            name, make_model(tied=adapter == "tied"), rows, tokenizer, tmp_path, strength,
            peft_config=None if adapter in ("full", "tied") else lora(
                lora_dropout=0.5 if adapter == "dropout" else 0.0
            ),
            bf16=adapter == "bf16", seed=7,
        )  # fmt: skip
        torch.manual_seed(3)
        found[strength] = gradients(trainer)
    (loss, plain), (held, gradient) = found.values()
    # The gradient of KL is p - p0 but for rounding, a thousandfold here; that of SBR is exactly 0.
    allowed = {"kl": 1e-2 if adapter == "bf16" else 1e-3, "sbr": 0.0}[name]
    assert abs(held - loss) <= allowed
    assert (gradient - plain).abs().max() <= allowed * plain.abs().max()


@pytest.mark.parametrize("name", ["kl", "sbr"])
def test_the_term_and_its_gradient_are_not_zero_at_a_moved_model(
    name, make_model, rows, tokenizer, tmp_path
):
    """The positive control of the test above."""
    found = [
        gradients(peer_trainer(name, moved(make_model), rows, tokenizer, tmp_path, strength))
        for strength in (0.0, 1000.0)
    ]
    (loss, plain), (held, gradient) = found
    assert held > loss + 1
    assert (gradient - plain).abs().max() > plain.abs().max()


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["kl", "pact", "sbr"])
def test_strength_zero_is_plain_fine_tuning(name, make_model, rows, tokenizer, tokens, tmp_path):
    plain = SFTTrainer(
        make_model(), settings(SFTConfig, tmp_path), train_dataset=rows,
        processing_class=tokenizer, peft_config=lora(),
    )  # fmt: skip
    more = materials_of(name, make_model, tokens, tmp_path)
    off = peer_trainer(
        name, make_model(), rows, tokenizer, tmp_path, 0.0, peft_config=lora(), **more
    )
    on = peer_trainer(
        name, make_model(), rows, tokenizer, tmp_path, 100.0, peft_config=lora(), **more
    )
    (weights, _), (same, _), (other, _) = trained(plain), trained(off), trained(on)
    assert all(torch.allclose(weights[key], same[key], atol=1e-6) for key in weights)
    assert any(not torch.allclose(weights[key], other[key], atol=1e-4) for key in weights)


def test_constrained_sft_begins_as_plain_fine_tuning(make_model, rows, tokenizer, tmp_path):
    """All weights are 1 at the untouched model; at a moved one they are not."""
    for model, same in ((lambda: make_model(), True), (lambda: moved(make_model), False)):
        losses, found = [], []
        for strength in (0.0, 1.0):
            trainer = peer_trainer(
                "constrained_sft", model(), rows, tokenizer, tmp_path, strength,
                peft_config=lora() if same else None, seed=7,
            )  # fmt: skip
            loss, gradient = gradients(trainer)
            losses.append(loss)
            found.append(gradient)
        assert (losses[0] == pytest.approx(losses[1], rel=1e-6)) == same
        assert torch.allclose(*found, atol=1e-6) == same


def test_pact_pulls_on_the_untouched_model(make_model, rows, tokenizer, tokens, tmp_path):
    """The exception to the law: published so, and kept."""
    found = [
        gradients(
            peer_trainer("pact", make_model(), rows, tokenizer, tmp_path, strength,
                         tokens=tokens, peft_config=lora(), seed=7)
        )
        for strength in (0.0, 10.0)
    ]  # fmt: skip
    assert found[1][0] > found[0][0] + 1e-3
    assert not torch.allclose(found[0][1], found[1][1], atol=1e-3)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", [*AT_RESPONSES, "sbr"])
def test_a_strength_means_the_same_at_any_layout(
    name, make_model, rows, tokenizer, tokens, tmp_path
):
    more = materials_of(name, make_model, tokens, tmp_path)
    found = {}
    for layout in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 8, "packing": True, "max_length": 128},
    ):
        trainer = peer_trainer(
            name, moved(make_model), rows, tokenizer, tmp_path, 2.0, max_steps=1, **layout, **more
        )
        found[str(layout)] = trained(trainer)[1][0]
    first, *others = found.values()
    for other in others:
        for key in ("loss", "grad_norm", "method/loss", "method/weighted"):
            assert other[key] == pytest.approx(first[key], rel=2e-5), key
    assert first["method/loss"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", pytest.param("sbr", marks=pytest.mark.long)])
def test_two_processes_equal_one_beside_str(name, tmp_path):
    """In the trainer that measures the drift and holds the safety logits as well."""
    alone = run_script(tmp_path, "--batch", "4", "--method", name)
    together = run_script(tmp_path, "--batch", "2", "--method", name, processes=2)
    assert alone["method/weighted"] > 1e-3
    assert alone["str/weighted"] > 0.01
    total = alone["ce_loss"] + alone["str/weighted"] + alone["method/weighted"]
    assert alone["loss"] == pytest.approx(total if name == "kl" else alone["loss"], rel=1e-4)
    for key in ("loss", "grad_norm", "method/loss", "method/weighted", "str/drift"):
        assert together[key] == pytest.approx(alone[key], rel=1e-5), key


@pytest.mark.lengthy
def test_a_local_mean_would_change_with_the_layout(make_model, rows, tokenizer, tmp_path):
    """The positive control of the test above."""
    found = []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer = peer_trainer(
            "kl", moved(make_model), rows, tokenizer, tmp_path, 2.0, max_steps=1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        inner = trainer.compute_loss

        def local(model, inputs, return_outputs=False, num_items_in_batch=None, f=inner):
            return f(model, inputs, return_outputs, num_items_in_batch=None)

        trainer.compute_loss = local
        found.append(trained(trainer)[1][0]["grad_norm"])
    assert found[0] != pytest.approx(found[1], rel=0.05)


class PlainPeerTrainer(BaselineMixin, Trainer):
    """What a user of plain `transformers.Trainer` writes."""


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["kl", "constrained_sft", "sbr"])
def test_a_plain_trainer_agrees_with_trls(name, make_model, rows, tokenizer, tmp_path):
    order = {"train_sampling_strategy": "sequential", "shuffle_dataset": False}
    model = moved(make_model)
    theirs = peer_trainer(
        name, model, rows, tokenizer, tmp_path, 2.0, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, **order,
    )  # fmt: skip
    expected = trained(theirs)[1]
    model = moved(make_model)
    method = METHODS[name](Materials(chat=ChatModel(model, tokenizer)), 2.0)
    arguments = TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=2, gradient_accumulation_steps=2,
        max_steps=2, learning_rate=1e-2, logging_steps=1, report_to="none", use_cpu=True,
        lr_scheduler_type="constant", save_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    ours = PlainPeerTrainer(
        model, arguments, train_dataset=labelled(rows, tokenizer), method=method,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip
    for mine, other in zip(trained(ours)[1], expected, strict=True):
        for key in ("loss", "method/loss", "method/weighted", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-4, abs=1e-7), key


def test_an_evaluation_reports_the_term(make_model, rows, tokenizer, tmp_path):
    model = moved(make_model)
    method = METHODS["kl"](Materials(chat=ChatModel(model, tokenizer)), 2.0)
    trainer = PeerTrainer(
        model, settings(SFTConfig, tmp_path), train_dataset=rows, processing_class=tokenizer,
        eval_dataset=conversations(seed=5), method=method,
    )  # fmt: skip
    found = trainer.evaluate()
    assert found["eval_method/loss"] > 0
    total = found["eval_ce_loss"] + found["eval_method/weighted"]
    assert found["eval_loss"] == pytest.approx(total, rel=1e-5)


def test_a_batch_without_responses_has_term_zero(make_model, rows, tokenizer, tokens, tmp_path):
    for name in AT_RESPONSES:
        more = materials_of(name, make_model, tokens, tmp_path)
        trainer = peer_trainer(name, moved(make_model), rows, tokenizer, tmp_path, **more)
        inputs = next(iter(trainer.get_train_dataloader()))
        inputs["labels"] = torch.full_like(inputs["labels"], -100)
        loss = trainer.compute_loss(trainer.model.train(), inputs)
        loss.backward()
        assert loss.item() == 0.0


@pytest.mark.lengthy
def test_a_given_reference_model_is_the_aligned_one(make_model, rows, tokenizer, tmp_path):
    """Full fine-tuning of a model that has moved already: its own copy is not the aligned model."""
    found = {}
    for given in (None, make_model()):
        method = METHODS["kl"](Materials(chat=ChatModel(make_model(), tokenizer)), 1.0)
        model = make_model()
        with torch.no_grad():
            model.lm_head.weight.mul_(1.5)
        trainer = PeerTrainer(
            model, settings(SFTConfig, tmp_path, max_steps=1), train_dataset=rows,
            processing_class=tokenizer, method=method, aligned_model=given,
        )  # fmt: skip
        found[given is None] = trained(trainer)[1][0]["method/loss"]
    assert found[True] == pytest.approx(0.0, abs=1e-6)
    assert found[False] > 0.01


@pytest.mark.lengthy
def test_a_host_that_leaves_the_term_out_is_refused(make_model, rows, tokenizer, tmp_path):
    trainer = peer_trainer("kl", make_model(), rows, tokenizer, tmp_path, peft_config=lora())
    trainer.compute_loss = lambda model, inputs, **_: SFTTrainer.compute_loss(
        trainer, model, inputs
    )
    with pytest.raises(InputError, match="without the term of 'kl'"):
        trainer.train()


@pytest.mark.lengthy
def test_lisa_trains_on_refusals_in_their_turn(make_model, rows, tokenizer, tmp_path):
    trainer = peer_trainer(
        "lisa", make_model(), rows, tokenizer, tmp_path, file=refusals_file(tmp_path),
        peft_config=lora(), max_steps=12, per_device_train_batch_size=2,
    )  # fmt: skip
    seen, inner = [], trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        seen.append(all(80 + 6 in row and 81 + 6 in row for row in inputs["input_ids"].tolist()))
        return inner(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    _, log = trained(trainer)
    assert seen == [step % 10 == 0 for step in range(12)]
    assert "method/loss" not in log[1]
    assert log[4]["method/loss"] > 0


def test_lisa_does_not_resume(make_model, rows, tokenizer, tmp_path):
    trainer = peer_trainer(
        "lisa", make_model(), rows, tokenizer, tmp_path, file=refusals_file(tmp_path)
    )
    with pytest.raises(InputError, match="cannot resume"):
        trainer.train(resume_from_checkpoint=True)
