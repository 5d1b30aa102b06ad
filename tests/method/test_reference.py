"""Which reference fits which model, and every adapter that cannot be held refused in words."""

import pytest
import torch
from helpers import PlainSTRTrainer, settings
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from moorline import InputError, STRConfig, STRTrainer
from moorline.method.adapters import check_adapter, weights_fingerprint
from moorline.method.reference import FrozenCopy, TrainingPlan, build_reference, choose_reference


def lora(**changes):
    values = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**values, **changes})


def first_drift(trainer):
    """The drift of the first batch."""
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model.train(), inputs)
    return trainer._taken("train").metrics(trainer.accelerator, 1)["str/drift"]


def test_auto_chooses_by_adapter_epochs_memory_and_data(make_model, monkeypatch, caplog):
    caplog.set_level("INFO", logger="moorline")
    adapted, whole = get_peft_model(make_model(), lora()), make_model()
    once, twice = TrainingPlan(epochs=1.0), TrainingPlan(epochs=2.0)
    stream = TrainingPlan(epochs=3.0, no_cache="the data set is a stream")

    def chosen(model, plan, **given):
        return choose_reference("auto", model, lambda: plan, **given)

    assert chosen(adapted, once) == "adapter_off"
    assert "the adapter can be switched off" in caplog.messages[-1]
    assert chosen(whole, once) == "frozen_copy"
    assert "memory for a copy" in caplog.messages[-1]
    assert chosen(adapted, twice) == chosen(whole, twice) == "cached"
    assert "instead of one in 2 epochs" in caplog.messages[-1]
    assert chosen(adapted, stream) == "adapter_off"
    assert "no cache: the data set is a stream" in caplog.messages[-1]
    assert chosen(adapted, once, reference_given=True) == "frozen_copy"
    monkeypatch.setattr("moorline.method.reference._free_bytes", lambda model: 1000)
    assert chosen(whole, once) == "cached"
    assert "a frozen copy would take" in caplog.messages[-1]
    assert len(caplog.messages) == 7, "one line each"


def test_weights_have_one_fingerprint_with_and_without_adapters(make_model):
    bare = weights_fingerprint(make_model())
    for config in (lora(), lora(modules_to_save=["lm_head"]), lora(use_dora=True)):
        model = get_peft_model(make_model(), config)
        with torch.no_grad():
            for each in model.parameters():
                if each.requires_grad:
                    each.add_(1.0)
        assert weights_fingerprint(model) == bare
    native = make_model()
    native.add_adapter(lora())
    assert weights_fingerprint(native) == bare
    moved = make_model()
    with torch.no_grad():
        moved.model.norm.weight[0] += 1e-3
    assert weights_fingerprint(moved) != bare


def test_a_copy_is_frozen_and_stays_while_the_model_moves(make_model):
    model = make_model()
    copy = FrozenCopy.of(model)
    ids = torch.arange(6, 12)[None]
    before = copy.model(ids).logits
    with torch.no_grad():
        for each in model.parameters():
            each.add_(1.0)
    assert torch.equal(before, copy.model(ids).logits)
    assert not torch.equal(before, model(ids).logits)
    assert not any(each.requires_grad for each in copy.model.parameters())
    assert all(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_initialisations_that_rewrite_the_base_are_refused(init):
    config = lora()
    config.init_lora_weights = init
    with pytest.raises(InputError, match=f"init_lora_weights='{init}' rewrites the base weights"):
        check_adapter(config, reference_given=False)
    check_adapter(config, reference_given=True)


def test_a_usual_adapter_is_not_refused():
    """The positive control."""
    check_adapter(lora(), reference_given=False)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_refused(bias):
    with pytest.raises(InputError, match=f"bias='{bias}' trains biases of the base"):
        check_adapter(lora(bias=bias), reference_given=False)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_prompt_learning_is_refused_whatever_the_reference(kind):
    config = kind(num_virtual_tokens=4, task_type="CAUSAL_LM")
    for given in (False, True):
        with pytest.raises(InputError, match=f"{kind.__name__}: it learns virtual tokens"):
            check_adapter(config, reference_given=given)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lora(init_lora_weights="olora"), "rewrites the base weights"),
        (lora(bias="all"), "trains biases"),
        (PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "virtual tokens"),
    ],
)
def test_the_trainer_refuses_them_before_it_touches_the_model(
    config, words, make_model, rows, tokenizer, tokens, tmp_path
):
    model = make_model()
    before = [each.clone() for each in model.parameters()]
    with pytest.raises(InputError, match=words):
        STRTrainer(
            model, STRConfig(str(tmp_path), bf16=False), safety_tokens=tokens, train_dataset=rows,
            processing_class=tokenizer, peft_config=config,
        )  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_lora_on_the_head_is_refused_for_a_plain_trainer_too(make_model, tokens, tmp_path):
    from transformers import TrainingArguments

    model = get_peft_model(make_model(), lora(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(InputError, match="adapter on the output head"):
        PlainSTRTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True), safety_tokens=tokens)


def test_references_that_do_not_fit_are_refused(make_model):
    with pytest.raises(InputError, match="needs a PEFT adapter, but this is full fine-tuning"):
        build_reference("adapter_off", make_model())
    with pytest.raises(InputError, match="give `reference_model`, or use 'adapter_off'"):
        build_reference("frozen_copy", get_peft_model(make_model(), lora()))
    with pytest.raises(InputError, match="a reference model was given too"):
        build_reference("adapter_off", get_peft_model(make_model(), lora()), make_model())
    with pytest.raises(InputError, match="Unknown `reference` 'frozen'.*'frozen_copy'"):
        choose_reference("frozen", make_model(), TrainingPlan)


def test_a_base_that_is_trained_beside_its_adapter_is_refused(make_model):
    model = get_peft_model(make_model(), lora())
    build_reference("adapter_off", model)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"model.norm.weight is trained beside the adapter"):
        build_reference("adapter_off", model)


@pytest.mark.parametrize("kind", ["frozen_copy", "cached"])
def test_a_given_reference_is_held_to(
    kind, make_model, model_folder, rows, tokenizer, tokens, tmp_path
):
    """A model tuned before, held to the aligned one: the drift starts above zero."""
    other = make_model(seed=3)
    for given in (make_model(), str(model_folder)):
        trainer = STRTrainer(
            other,
            settings(STRConfig, tmp_path, str_reference=kind),
            safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
            reference_model=given,
        )  # fmt: skip
        assert trainer.regularizer.reference.name == kind
        assert first_drift(trainer) > 1.0


def test_pissa_with_a_given_reference_is_held_to_the_aligned_model(
    make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = STRTrainer(
        make_model(), settings(STRConfig, tmp_path),
        safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
        peft_config=lora(init_lora_weights="pissa"), reference_model=make_model(),
    )  # fmt: skip
    # PiSSA splits the weights anew, so the sum is equal but for float32 rounding.
    assert first_drift(trainer) < 1e-6
