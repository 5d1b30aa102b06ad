"""The laws of a right implementation, run through the real hosts on tiny random models."""

import functools
import logging
import types

import pytest
import torch
from helpers import (
    PlainSTRTrainer,
    conversations,
    lora,
    moved,
    paper,
    plain_trainer,
    run_script,
    settings,
    str_trainer,
    trained,
)
from peft import get_peft_model
from transformers import TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from moorline import InputError, STRConfig, STRTrainer
from moorline.method.penalty import FORMS
from moorline.method.strength import Part


def gradient_of_drift(trainer):
    """The drift of one batch, and the largest entry of its gradient alone."""
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    # As training does: this is what switches autocast on.
    model = trainer.accelerator.prepare_model(trainer.model.train())
    captured = {}
    form = trainer.regularizer.form

    def spy(*values):
        captured["drift"] = form.drift(*values)
        return captured["drift"]

    trainer.regularizer.form = form._replace(drift=spy)
    with trainer.compute_loss_context_manager():
        trainer.compute_loss(model, inputs)
    total = captured["drift"].total
    parameters = [each for each in model.parameters() if each.requires_grad]
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    # The head's is sparse where nothing else of the graph reads the head.
    dense = [each.to_dense() for each in found if each is not None]
    return captured["drift"], max(each.abs().max().item() for each in dense)


UNTOUCHED = {
    "full": ({}, None, {}),
    "full tied": ({"tied": True}, None, {}),
    "lora": ({}, {}, {}),
    "lora tied": ({"tied": True}, {}, {}),
    "dora": ({}, {"use_dora": True}, {}),
    "lora with a trained head": ({}, {"modules_to_save": ["lm_head"]}, {}),
    "packing": ({}, {}, {"packing": True}),
    "checkpointing": ({}, {}, {"gradient_checkpointing": True}),
    "full with checkpointing": ({}, None, {"gradient_checkpointing": True}),
    "bf16 autocast": ({}, {}, {"bf16": True}),
    "full in bf16 autocast": ({}, None, {"bf16": True}),
    "dft": ({}, {}, {"loss_type": "dft"}),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", UNTOUCHED)
def test_drift_and_gradient_of_the_untouched_model_are_exactly_zero(
    case, form, make_model, rows, tokenizer, tokens, tmp_path
):
    model, adapter, changes = UNTOUCHED[case]
    peft_config = None if adapter is None else lora(**adapter)
    live = "frozen_copy" if adapter is None else "adapter_off"
    trainer = str_trainer(
        make_model(**model), rows, tokenizer, tokens, tmp_path, peft_config, str_form=form,
        str_reference=live, **changes,
    )  # fmt: skip
    drift, gradient = gradient_of_drift(trainer)
    assert drift.num_positions > 0
    assert drift.total.item() == 0.0
    assert drift.max_abs.item() == 0.0
    # KL's gradient is the difference of two probabilities that round differently
    assert gradient <= (1e-6 if form == "kl" else 0.0)


@pytest.mark.lengthy
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("adapter", [None, {}])
def test_drift_and_gradient_of_a_moved_model_are_not_zero(
    adapter, form, make_model, rows, tokenizer, tokens, tmp_path
):
    """The positive control of the test above."""
    peft_config = None if adapter is None else lora(**adapter)
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, peft_config, str_form=form
    )
    with torch.no_grad():
        for each in trainer.model.parameters():
            if each.requires_grad:
                each.add_(0.05 * torch.randn_like(each))
    drift, gradient = gradient_of_drift(trainer)
    assert drift.total.item() > 1e-3
    assert gradient > 1e-4


@pytest.mark.lengthy
@pytest.mark.parametrize("adapter", [None, {}])
def test_weight_zero_is_plain_sft_bit_for_bit_and_a_weight_is_not(
    adapter, make_model, rows, tokenizer, tokens, tmp_path
):
    def peft_config():
        return None if adapter is None else lora(**adapter)

    plain, plain_log = trained(
        SFTTrainer(
            make_model(), settings(SFTConfig, tmp_path), train_dataset=rows,
            processing_class=tokenizer, peft_config=peft_config(),
        )
    )  # fmt: skip
    off, off_log = trained(
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, peft_config(), str_weight=0.0)
    )
    on, on_log = trained(
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, peft_config(), str_weight=1.0)
    )
    assert plain.keys() == off.keys()
    assert all(torch.equal(plain[name], off[name]) for name in plain)
    assert [each["loss"] for each in plain_log] == [each["loss"] for each in off_log]
    assert off_log[1]["str/drift"] > 0, "the drift is measured at weight 0 too"
    assert any(not torch.equal(plain[name], on[name]) for name in plain)
    assert on_log[0]["loss"] == plain_log[0]["loss"], "at the first step there is nothing to hold"


@pytest.mark.lengthy
def test_a_large_weight_holds_the_logits(make_model, rows, tokenizer, tokens, tmp_path):
    _, free = trained(
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, str_weight=0.0, max_steps=12)
    )
    _, held = trained(
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, str_weight=30.0, max_steps=12)
    )
    assert held[-1]["str/drift"] < 0.2 * free[-1]["str/drift"]


LAYOUTS = {
    "4 x 1": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    "1 x 4": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "2 x 2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "padding-free": {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "padding_free": True,
        "max_length": None,
    },
    "padding-free 2 x 2": {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "padding_free": True,
        "max_length": None,
    },
}  # fmt: skip


@pytest.mark.lengthy
@pytest.mark.parametrize("form", FORMS)
def test_the_weight_means_the_same_in_every_layout_of_a_batch(
    form, make_model, rows, tokenizer, tokens, tmp_path
):
    found = {}
    for name, layout in LAYOUTS.items():
        trainer = str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path, str_form=form, str_weight=2.0,
            max_steps=1, shuffle_dataset=False, train_sampling_strategy="sequential", **layout,
        )  # fmt: skip
        _, log = trained(trainer)
        found[name] = log[0]
    first = found["4 x 1"]
    assert first["str/weighted"] > 0.01, "there is something to hold"
    for name, entry in found.items():
        for key in ("loss", "grad_norm", "ce_loss", "str/drift", "str/weighted"):
            # 1e-5: what float32 sums in another order differ by here
            assert entry[key] == pytest.approx(first[key], rel=1e-5), (name, key)


@pytest.mark.lengthy
def test_first_k_is_held_the_same_in_every_layout_of_a_batch(
    make_model, tokenizer, tokens, tmp_path
):
    data = conversations(turns=2)
    found = {}
    for name, layout in LAYOUTS.items():
        trainer = str_trainer(
            moved(make_model), data, tokenizer, tokens, tmp_path, str_positions="first:2",
            str_weight=2.0, max_steps=1, shuffle_dataset=False,
            train_sampling_strategy="sequential", **layout,
        )  # fmt: skip
        _, log = trained(trainer)
        found[name] = log[0]
    first = found["4 x 1"]
    for name, entry in found.items():
        for key in ("loss", "grad_norm", "ce_loss", "str/drift", "str/weighted"):
            # 1e-5: what float32 sums in another order differ by here
            assert entry[key] == pytest.approx(first[key], rel=1e-5), (name, key)
    # The mean over what is held, and not over all that has a label.
    assert first["str/weighted"] == pytest.approx(2 * first["str/drift"], rel=1e-5)
    assert first["loss"] == pytest.approx(first["ce_loss"] + first["str/weighted"], rel=1e-5)


@pytest.mark.parametrize("layout", [{}, {"padding_free": True, "max_length": None}])
@pytest.mark.parametrize("changes", [{"str_positions": "first:2"}, {"str_reference_fraction": 0.5}])
def test_the_part_that_the_reference_reads_gives_what_the_whole_batch_gives(
    changes, layout, make_model, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(
        moved(make_model), conversations(turns=2), tokenizer, tokens, tmp_path, **changes, **layout
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    lengths = []
    trainer.model.train()
    trainer.model.get_base_model().model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    regularizer = trainer.regularizer
    positions = regularizer._drawn(inputs, regularizer.positions(inputs), Part(step=3, rows=4))
    reference = regularizer.reference
    part = regularizer.reference_values(reference, trainer.model, inputs, positions)
    whole = reference.safety_logits(trainer.model, inputs, positions)
    assert 0 < len(part) < (inputs["labels"] != -100).sum()
    assert torch.allclose(part, whole, atol=1e-5)
    assert lengths[0] < lengths[1], "and it is a part"


@pytest.mark.lengthy
def test_a_random_part_of_the_rows_gives_the_drift_without_bias(
    make_model, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(
        moved(make_model), conversations(), tokenizer, tokens, tmp_path, str_weight=1.0,
        str_reference_fraction=0.25, per_device_train_batch_size=8,
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()
    divisor = torch.tensor(10)

    def weighted(data, mode="train"):
        with torch.no_grad():
            trainer.compute_loss(model, data, num_items_in_batch=divisor)
        return trainer._taken(mode).sums["weighted"].item()

    model.eval()
    trainer._is_checked = True
    rows = [{name: each[row : row + 1] for name, each in inputs.items()} for row in range(8)]
    exact = [weighted(one, "eval") for one in rows]
    model.train()
    exact = torch.tensor(exact)
    drawn = torch.tensor([weighted(inputs) for _ in range(600)])
    # Two of eight rows without replacement: the textbook variance of an estimated total.
    variance = 8**2 * (1 - 2 / 8) * exact.var() / 2
    assert drawn.mean().item() == pytest.approx(
        exact.sum().item(), abs=4 * (variance / 600).sqrt().item()
    )
    assert drawn.var().item() == pytest.approx(variance.item(), rel=0.25)
    assert drawn.var() > 0, "and it is a draw"


@pytest.mark.lengthy
def test_the_draw_is_the_runs_own_and_repeats_after_a_resume(
    make_model, rows, tokenizer, tokens, tmp_path
):
    changes = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "str_reference_fraction": 0.5,
        "str_weight": 5.0,
    }  # fmt: skip
    whole = str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora(), **changes)
    weights, _ = trained(whole)
    again = str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora(), **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, each in again.model.named_parameters():
        if each.requires_grad:
            assert torch.equal(each, weights[name]), name
    other = str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora(), **changes, seed=1)
    assert other.args.seed != whole.args.seed
    inputs = next(iter(other.get_train_dataloader()))
    positions = inputs["labels"].roll(-1, dims=1) != -100
    other.model.train()
    whole.model.train()
    whole.state.global_step = other.state.global_step = 0
    draws = [
        [
            each.regularizer._drawn(inputs, positions, each._steps.part(0, each)).any(1).tolist()
            for _ in range(8)
        ]
        for each in (whole, other)
    ]
    assert draws[0] != draws[1]


def test_settings_of_the_reference_out_of_range_are_refused(tmp_path):
    for value in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(InputError, match="`str_reference_fraction` must be above 0"):
            STRConfig(str(tmp_path), bf16=False, str_reference_fraction=value)
    with pytest.raises(InputError, match="`str_positions` must be 'all' or 'first:K'"):
        STRConfig(str(tmp_path), bf16=False, str_positions="first")
    with pytest.raises(InputError, match="Unknown `str_cache_dtype` 'float8'"):
        STRConfig(str(tmp_path), bf16=False, str_cache_dtype="float8")


@pytest.mark.lengthy
def test_a_packed_batch_has_the_loss_and_gradient_of_its_padded_rows(
    make_model, rows, tokenizer, tokens, tmp_path
):
    found = {}
    for name, layout in {
        "padded": {"per_device_train_batch_size": 8},
        "packed": {"per_device_train_batch_size": 8, "packing": True, "max_length": 128},
        "packed 1 x n": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8,
                         "packing": True, "max_length": 128},
    }.items():  # fmt: skip
        trainer = str_trainer(
            moved(make_model),
            rows,
            tokenizer,
            tokens,
            tmp_path,
            str_weight=2.0,
            max_steps=1,
            **layout,
        )
        _, log = trained(trainer)
        found[name] = log[0]
    for name in ("packed", "packed 1 x n"):
        for key in ("loss", "grad_norm", "str/drift"):
            assert found[name][key] == pytest.approx(found["padded"][key], rel=1e-5), (name, key)


@pytest.mark.lengthy
def test_a_local_mean_would_change_with_accumulation(make_model, rows, tokenizer, tokens, tmp_path):
    """The positive control of the two tests above: what dividing by the local count would do."""
    found = []
    for batch, accumulation in ((4, 1), (1, 4)):
        trainer = str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path, str_weight=2.0, max_steps=1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            shuffle_dataset=False, train_sampling_strategy="sequential",
        )  # fmt: skip
        original = trainer.compute_loss

        def local(model, inputs, return_outputs=False, num_items_in_batch=None, f=original):
            return f(model, inputs, return_outputs, num_items_in_batch=None)

        trainer.compute_loss = local
        _, log = trained(trainer)
        found.append(log[0]["grad_norm"])
    assert found[0] != pytest.approx(found[1], rel=0.05)


@pytest.mark.lengthy
def test_plain_trainer_with_the_mixin_equals_the_trl_trainer(
    make_model, rows, tokenizer, tokens, tmp_path
):
    _, ours = trained(
        str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path, str_weight=2.0, max_steps=3,
            shuffle_dataset=False, train_sampling_strategy="sequential",
        )
    )  # fmt: skip
    _, theirs = trained(plain_trainer(moved(make_model), rows, tokenizer, tokens, tmp_path))
    names = ("ce_loss", "str/drift", "str/weighted", "str/max_abs", "ce_grad_norm", "str/grad_norm")
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm", *names):
            assert mine[key] == pytest.approx(other[key], rel=1e-5, abs=1e-7), key


@pytest.mark.lengthy
def test_loss_is_ce_plus_weighted_at_every_logged_step(
    make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, str_weight=3.0, max_steps=6,
        logging_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    _, log = trained(trainer)
    assert len(log) == 2
    for entry in log:
        assert entry["loss"] == pytest.approx(entry["ce_loss"] + entry["str/weighted"], abs=1e-4)
        assert entry["str/max_abs"] > 0


def test_evaluation_reports_the_drift_and_the_loss(make_model, rows, tokenizer, tokens, tmp_path):
    trainer = STRTrainer(
        moved(make_model), settings(STRConfig, tmp_path, str_weight=2.0), safety_tokens=tokens,
        train_dataset=rows, eval_dataset={"one": rows, "two": conversations(seed=5)},
        processing_class=tokenizer,
    )  # fmt: skip
    found = trainer.evaluate()
    for name in ("one", "two"):
        total = found[f"eval_{name}_ce_loss"] + found[f"eval_{name}_str/weighted"]
        assert found[f"eval_{name}_loss"] == pytest.approx(total, rel=1e-5)
        assert found[f"eval_{name}_str/drift"] > 0
        assert found[f"eval_{name}_str/max_abs"] > 0


def test_a_batch_without_response_tokens_has_drift_zero_never_nan(
    make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(moved(make_model), rows, tokenizer, tokens, tmp_path, str_weight=2.0)
    inputs = next(iter(trainer.get_train_dataloader()))
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    assert loss.item() == 0.0
    loss.backward()
    gradients = [each.grad for each in trainer.model.parameters() if each.grad is not None]
    assert all(torch.isfinite(each).all() for each in gradients)
    assert trainer._taken("train").metrics(trainer.accelerator, 1)["str/drift"] == 0.0


def test_gradients_come_from_response_positions_only(make_model, rows, tokenizer, tokens, tmp_path):
    """The input embedding of a token that only a response's last place holds gets no gradient."""
    trainer = str_trainer(make_model(), rows, tokenizer, tokens, tmp_path)
    model = trainer.model.train()
    with torch.no_grad():
        model.model.norm.weight.mul_(1.1)
    ids = torch.tensor([[3, 20, 21, 1, 4, 30, 31, 32]])
    labels = torch.tensor([[-100, -100, -100, -100, -100, 30, 31, -100]])
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, 4:6] = True
    out = model(
        inputs_embeds=embedded, labels=labels, fused_lm_head=True, safety_positions=positions
    )
    out.safety_logits.square().sum().backward()
    touched = embedded.grad[0].abs().sum(-1) > 0
    assert touched.tolist() == [True] * 6 + [False] * 2


def test_requires_grad_and_modes_are_as_before_after_a_reference_pass(
    make_model, rows, tokenizer, tokens, tmp_path
):
    model = get_peft_model(make_model(), lora())
    for name, each in model.named_parameters():
        if "lora_A" in name:
            each.requires_grad_(False)  # as LoRA-FA does
    model.model.model.layers[0].mlp.eval()
    trainer = str_trainer(model, rows, tokenizer, tokens, tmp_path)
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    modes = {name: each.training for name, each in model.named_modules()}
    assert any(before.values())
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(model, inputs)
    assert before == {name: each.requires_grad for name, each in model.named_parameters()}
    assert modes == {name: each.training for name, each in model.named_modules()}
    with model.disable_adapter():
        pass
    after = {name: each.requires_grad for name, each in model.named_parameters()}
    assert before != after, "PEFT's own context manager does not leave them as they were"


@pytest.mark.lengthy
def test_adapters_off_is_the_base_after_training(make_model, rows, tokenizer, tokens, tmp_path):
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, lora(), str_form="logit", max_steps=3
    )
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    positions = inputs["labels"].roll(-1, dims=1) != -100
    before = trainer.regularizer.reference.safety_logits(trainer.model, inputs, positions)
    trainer.train()
    after = trainer.regularizer.reference.safety_logits(trainer.model, inputs, positions)
    assert torch.equal(before, after)
    now = trainer.model(**inputs, safety_positions=positions).safety_logits
    assert not torch.equal(before, now)


def test_native_adapters_of_transformers_are_switched_off_too(
    make_model, rows, tokenizer, tokens, tmp_path
):
    model = make_model()
    model.add_adapter(lora())
    trainer = PlainSTRTrainer(
        model, TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True),
        safety_tokens=tokens, settings=paper(),
    )  # fmt: skip
    assert trainer.regularizer.reference.name == "adapter_off"
    ids = torch.randint(6, 90, (2, 9))
    positions = torch.ones_like(ids, dtype=torch.bool)
    z0 = trainer.regularizer.reference.safety_logits(model, {"input_ids": ids}, positions)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.add_(1.0)
    assert torch.equal(
        z0, trainer.regularizer.reference.safety_logits(model, {"input_ids": ids}, positions)
    )
    moved_logits = model(input_ids=ids, safety_positions=positions).safety_logits
    assert not torch.equal(z0, moved_logits)


def test_a_reference_that_differs_at_the_first_step_is_told(
    make_model, rows, tokenizer, tokens, tmp_path, caplog
):
    trainer = str_trainer(moved(make_model), rows, tokenizer, tokens, tmp_path, max_steps=1)
    with caplog.at_level(logging.WARNING, logger="moorline"):
        trainer.train()
    assert "already differs from the reference" in caplog.text


@pytest.mark.lengthy
@pytest.mark.parametrize("when", ["before training", "in training"])
@pytest.mark.parametrize("swallows", [True, False])
def test_a_replaced_forward_is_refused_in_our_own_words(
    when, swallows, make_model, rows, tokenizer, tokens, tmp_path
):
    """Whether the kernel swallows arguments that it does not know, or stumbles over them."""
    trainer = str_trainer(
        make_model(), rows, tokenizer, tokens, tmp_path, lora(), str_reference="adapter_off"
    )
    base = trainer.model.get_base_model()
    inner = type(base).forward

    def swallowing(input_ids, attention_mask=None, labels=None, **kwargs):
        return inner(base, input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    def strict(
        input_ids, attention_mask=None, labels=None, inputs_embeds=None, output_attentions=None,
        output_hidden_states=None, return_dict=None,
    ):  # fmt: skip
        return inner(base, input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    def replace(*args, **kwargs):
        base.forward = swallowing if swallows else strict

    if when == "before training":
        replace()
    else:
        callback = TrainerCallback()
        callback.on_step_begin = replace
        trainer.add_callback(callback)
    with pytest.raises(InputError, match="replaced the model's forward"):
        trainer.train()


@pytest.mark.lengthy
def test_a_kernel_that_a_plain_trainer_puts_in_is_captured_again(
    make_model, rows, tokenizer, tokens, tmp_path
):
    """As `use_liger_kernel` does at the beginning of `train()`."""
    found = {}
    for kernel in (False, True):
        trainer = plain_trainer(moved(make_model), rows, tokenizer, tokens, tmp_path)
        if kernel:
            base = trainer.model.get_base_model()

            @functools.wraps(type(base).forward)
            def kernels_forward(self, *args, **kwargs):
                return type(self).forward(self, *args, **kwargs)

            base.forward = types.MethodType(kernels_forward, base)
        found[kernel] = trained(trainer)[1][0]
    assert found[True]["str/drift"] > 0.01
    assert found[True]["loss"] == found[False]["loss"]


def test_autocast_is_really_on_in_the_cases_above(make_model, rows, tokenizer, tokens, tmp_path):
    """The positive control of 'bf16 autocast': the hidden states there are bfloat16."""
    trainer = str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora(), bf16=True)
    seen = []
    layer = trainer.model.get_base_model().model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    gradient_of_drift(trainer)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    alone = run_script(tmp_path, "--batch", "4")
    together = run_script(tmp_path, "--batch", "2", processes=2)
    assert alone["str/weighted"] > 0.01, "there is something to hold"
    for key in ("loss", "grad_norm", "ce_loss", "str/drift", "str/weighted", "str/max_abs"):
        # 1e-5: what float32 sums in another order differ by here
        assert together[key] == pytest.approx(alone[key], rel=1e-5), key


@pytest.mark.long
@pytest.mark.slow
def test_compiled_models_are_held_too(tmp_path):
    plain = run_script(tmp_path, "--batch", "4")
    compiled = run_script(tmp_path, "--batch", "4", "--compile")
    for key in ("loss", "grad_norm", "str/drift"):
        assert compiled[key] == pytest.approx(plain[key], rel=1e-4), key
