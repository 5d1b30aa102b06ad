"""The method without a host: what it sees, what it leaves alone, and what it refuses."""

import copy
import logging

import peft.tuners.lora.config
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
    trained,
)
from peft import AdaptionPromptConfig, LoraConfig, PolyConfig, get_peft_model
from torch import nn
from transformers import BertGenerationConfig, BertGenerationDecoder, LlamaForCausalLM

from moorline import InputError, Regularizer, STRConfig, STRSettings, STRTrainer
from moorline.method import capture
from moorline.method.adapters import weights_fingerprint


def own_loop(model, batches, tokens, *, accumulation, settings, optimizer):
    """A training loop of one's own, as the README has it; the loss of each step."""
    regularizer = Regularizer(model, tokens, settings)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = optimizer(trained)
    losses = []
    for start in range(0, len(batches), accumulation):
        step, total = batches[start : start + accumulation], 0.0
        num_items = sum((batch["labels"][:, 1:] != -100).sum() for batch in step)
        num_positions = sum(regularizer.num_positions(batch) for batch in step)
        for batch in step:
            with regularizer.watch(model, batch) as drift:
                loss = model(**batch, num_items_in_batch=num_items).loss
            loss = loss + regularizer.weighted(drift, num_positions)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.lengthy
@pytest.mark.parametrize("positions", ["all", "first:2"])
@pytest.mark.parametrize("adapter", [True, False])
def test_a_loop_of_ones_own_takes_the_steps_of_the_trainer(
    adapter, positions, make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(
        moved(make_model) if adapter else make_model(), rows, tokenizer, tokens, tmp_path,
        str_weight=2.0, str_positions=positions, max_steps=4, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, max_grad_norm=0.0, weight_decay=0.0,
        optim="adamw_torch" if adapter else "sgd",
        str_reference="adapter_off" if adapter else "frozen_copy",
        train_sampling_strategy="sequential", shuffle_dataset=False,
    )  # fmt: skip
    batches = [dict(each) for each in trainer.get_train_dataloader()] * 2
    weights, log = trained(trainer)
    model = (moved(make_model) if adapter else make_model()).train()
    given = paper(weight=2.0, positions=positions)
    kind = torch.optim.AdamW if adapter else torch.optim.SGD
    losses = own_loop(
        model, batches, tokens, accumulation=2, settings=given,
        optimizer=lambda each: kind(each, lr=1e-2, weight_decay=0.0),
    )  # fmt: skip
    assert log[-1]["str/weighted"] > 1e-3, "there is something to compare"
    for mine, theirs in zip(losses, log, strict=True):
        assert mine == pytest.approx(theirs["loss"], abs=1e-6, rel=1e-6)
    for name, each in model.named_parameters():
        if each.requires_grad:
            torch.testing.assert_close(each, weights[name], rtol=1e-5, atol=1e-6)


def a_batch(num=3, length=12):
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(6, 90, (num, length), generator=generator)
    labels = ids.clone()
    labels[:, :5] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_the_reference_sees_what_the_host_passes_and_not_the_batch(make_model, tokens):
    """A host that edits the batch, here the positions of its tokens: nothing moved, drift 0."""
    model, batch = get_peft_model(make_model(), lora()).train(), a_batch()
    regularizer = Regularizer(model, tokens, paper())
    with regularizer.watch(model, batch) as drift:
        places = torch.arange(12).flip(0).expand(3, 12)
        model(
            input_ids=batch["input_ids"],
            labels=batch["labels"],
            position_ids=places,
            use_cache=False,
        )
    assert drift.sum.max_abs.item() == 0.0
    # the control: the reference on the batch as it was
    positions = regularizer.positions(batch)
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    other = regularizer.reference.safety_logits(model, asked, positions)
    mine = capture.safety_logits(model, {**asked, "position_ids": places}, positions)
    assert (mine - other).abs().max() > 0.1


def test_the_host_gets_back_its_own_output(make_model, tokens):
    model, batch = get_peft_model(make_model(), lora()), a_batch()
    plain = model(**batch)
    regularizer = Regularizer(model, tokens, paper())
    with regularizer.watch(model, batch) as drift:
        output = model(**batch)
    assert type(output) is type(plain)
    assert output.keys() == plain.keys()
    assert torch.equal(output.logits, plain.logits)
    assert drift.sum.num_positions == (batch["labels"][:, 1:] != -100).sum()


@pytest.mark.lengthy
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_compute_metrics_gets_the_logits_of_a_plain_trainer(
    weight, make_model, rows, tokenizer, tokens, tmp_path
):
    found = []

    def metrics(evaluated):
        found.append(evaluated.predictions)
        return {}

    data = labelled(rows, tokenizer)
    trainer = plain_trainer(
        moved(make_model), rows, tokenizer, tokens, tmp_path, weight=weight,
        compute_metrics=metrics, eval_dataset=data,
    )  # fmt: skip
    trainer.evaluate()
    assert found[0].shape[0] == len(data)
    assert found[0].shape[2] == len(tokenizer)


def test_only_the_first_call_is_recorded(make_model, tokens):
    model, batch = get_peft_model(make_model(), lora()), a_batch()
    regularizer = Regularizer(model, tokens, paper())
    with regularizer.watch(model, batch) as drift:
        model(**batch)
        model(input_ids=batch["input_ids"][:1])
    assert drift.sum.num_positions == regularizer.num_positions(batch)


def test_calls_that_would_train_nothing_are_refused(make_model, tokens):
    model, batch = get_peft_model(make_model(), lora()).train(), a_batch()
    regularizer = Regularizer(model, tokens, paper())
    with (
        pytest.raises(InputError, match="does not call the model"),
        regularizer.watch(model, batch),
    ):
        pass
    with (
        pytest.raises(InputError, match="called without a gradient"),
        regularizer.watch(model, batch),
        torch.no_grad(),
    ):
        model(**batch)
    with (
        pytest.raises(InputError, match="positional arguments"),
        regularizer.watch(model, batch),
    ):
        model(batch["input_ids"])
    with pytest.raises(InputError, match="`logits_to_keep`"), regularizer.watch(model, batch):
        model(**batch, logits_to_keep=3)
    with (
        pytest.raises(InputError, match="call the model inside `watch`"),
        regularizer.watch(model, batch) as drift,
    ):
        regularizer.weighted(drift)
    with regularizer.watch(model, batch) as drift:
        model(**batch, logits_to_keep=0)
    assert regularizer.weighted(drift).requires_grad, "the control"


def test_a_cache_needs_a_trainer(make_model, tokens):
    with pytest.raises(InputError, match="`reference` 'cached' is not possible here: in a loop"):
        Regularizer(make_model(), tokens, paper(reference="cached"))


class Scaled(nn.Linear):
    """A head that does more than its weight says."""

    def forward(self, hidden):
        """Half of it."""
        return super().forward(hidden) * 0.5


def test_a_given_reference_is_probed(make_model, tokens):
    """Its safety logits too are read from its head's weight, so they must be its own logits."""
    adapted = get_peft_model(make_model(), lora(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(InputError, match="adapter on the output head"):
        Regularizer(make_model(), tokens, paper(), reference_model=adapted)
    scaled = make_model()
    head = Scaled(32, scaled.lm_head.out_features, bias=False)
    head.weight = scaled.lm_head.weight
    scaled.lm_head = head
    with pytest.raises(InputError, match="differ from the model's own"):
        Regularizer(make_model(), tokens, paper(), reference_model=scaled)
    Regularizer(make_model(), tokens, paper(), reference_model=make_model(seed=2))  # the control


def test_a_reference_that_is_the_model_in_training_is_refused(make_model, tokens):
    whole, base = make_model(), make_model()
    adapted = get_peft_model(base, lora())
    for model, given in ((whole, whole), (adapted, base), (adapted, adapted)):
        with pytest.raises(InputError, match="`reference_model` is the model in training"):
            Regularizer(model, tokens, paper(), reference_model=given)
    assert all(each.requires_grad for each in whole.parameters()), "and nothing was frozen"


def rebuilding():
    """Settings of LoRA that rebuild the base, as far as this version of PEFT has them."""
    found = [{"layer_replication": [[0, 2], [1, 2]]}]
    if hasattr(peft.tuners.lora.config, "KasaConfig"):
        found.append({"kasa_config": peft.tuners.lora.config.KasaConfig()})
    return found


@pytest.mark.parametrize("changes", rebuilding())
def test_adapters_that_rebuild_the_base_are_refused_by_name(
    changes, make_model, rows, tokenizer, tokens, tmp_path
):
    (name,) = changes
    with pytest.raises(InputError, match=rf"`{name}` .*Give `str_reference_model`"):
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora(**changes))
    with pytest.raises(InputError, match=f"`{name}` "):
        Regularizer(get_peft_model(make_model(), lora(**changes)), tokens, paper())


def test_an_adapter_of_any_name_that_changes_the_base_is_refused(
    make_model, rows, tokenizer, tokens, tmp_path, monkeypatch
):
    """What the model said before the adapter is compared with what it says with it off."""
    made = (make_model(), rows, tokenizer, tokens, tmp_path)
    str_trainer(*made, lora())  # the control
    monkeypatch.setattr("moorline.method.adapters._REBUILDS_BASE", {})
    if "kasa_config" not in (changes := rebuilding()[-1]):
        pytest.skip("this PEFT has no KaSA")
    with pytest.raises(InputError, match="`peft_config` changes the base weights themselves"):
        str_trainer(make_model(), *made[1:], lora(**changes))


@pytest.mark.parametrize("reference", ["adapter_off", "cached"])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"), "swaps"),
        (PolyConfig(r=2, n_tasks=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), "task_ids"),
    ],
)
def test_adapters_that_cannot_be_switched_off_are_refused_by_their_name(
    config, words, reference, make_model, rows, tokenizer, tokens, tmp_path
):
    with pytest.raises(InputError, match=f"{type(config).__name__}: it .*{words}"):
        str_trainer(
            make_model(), rows, tokenizer, tokens, tmp_path, config, str_reference=reference
        )


def with_a_frozen_adapter(make_model):
    """A base with an alignment adapter that stays, and a task adapter that trains."""
    model = moved(make_model)
    model.add_adapter("task", LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    model.base_model.set_adapter(["default", "task"])
    for name, each in model.named_parameters():
        each.requires_grad_(".task." in name)
    return model


@pytest.mark.lengthy
@pytest.mark.parametrize("reference", ["adapter_off", "cached"])
def test_a_frozen_adapter_beneath_the_trained_one_is_part_of_the_aligned_model(
    reference, make_model, rows, tokenizer, tokens, tmp_path
):
    model = with_a_frozen_adapter(make_model)
    trainer = str_trainer(
        model, rows, tokenizer, tokens, tmp_path, str_reference=reference, max_steps=2
    )
    active = [layer.active_adapters for layer in trainer.regularizer.running._layers]
    _, log = trained(trainer)
    assert log[0]["str/drift"] < 1e-10, "the task adapter is fresh"
    assert log[1]["str/drift"] > 1e-6, "and then it is not"
    assert [layer.active_adapters for layer in trainer.regularizer.running._layers] == active
    # the control: with one adapter, that trains, z0 is the base
    alone = str_trainer(
        moved(make_model), rows, tokenizer, tokens, tmp_path, str_reference=reference
    )
    assert trained(alone)[1][0]["str/drift"] > 0.1


def test_the_fingerprint_of_the_aligned_model_knows_its_frozen_adapter(make_model):
    first, second = with_a_frozen_adapter(make_model), with_a_frozen_adapter(make_model)
    with torch.no_grad():
        for name, each in second.named_parameters():
            if "lora_B.task" in name:
                each.add_(1.0)
    kept = ("default",)
    assert weights_fingerprint(first, kept) == weights_fingerprint(second, kept)
    assert weights_fingerprint(first, kept) != weights_fingerprint(first)
    second.peft_config["default"].lora_alpha = 99
    assert weights_fingerprint(first, kept) != weights_fingerprint(second, kept)


def test_noise_on_the_embeddings_is_refused(make_model, rows, tokenizer, tokens, tmp_path):
    with pytest.raises(InputError, match="`neftune_noise_alpha` puts noise"):
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, neftune_noise_alpha=5.0)


def test_a_model_that_looks_ahead_is_refused(tokens):
    config = BertGenerationConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, is_decoder=False, initializer_range=0.3,
    )  # fmt: skip
    with pytest.raises(InputError, match="depend on tokens that come later"):
        Regularizer(BertGenerationDecoder(config), tokens, paper())
    config.is_decoder = True  # the control
    Regularizer(BertGenerationDecoder(config), tokens, paper())


@pytest.mark.lengthy
def test_a_model_that_was_fully_trained_is_not_taken_for_the_aligned_one_in_silence(
    make_model, rows, tokenizer, tokens, tmp_path, caplog
):
    model = make_model()
    str_trainer(model, rows, tokenizer, tokens, tmp_path).evaluate(conversations(seed=3))
    str_trainer(model, rows, tokenizer, tokens, tmp_path).train()
    assert "fully trained under the method before" not in caplog.text, "it was not, so far"
    str_trainer(model, rows, tokenizer, tokens, tmp_path)
    assert "fully trained under the method before" in caplog.text
    caplog.clear()
    STRTrainer(
        model, settings(STRConfig, tmp_path), safety_tokens=tokens, train_dataset=rows,
        processing_class=tokenizer, reference_model=make_model(),
    )  # fmt: skip
    assert "fully trained" not in caplog.text


def test_a_model_that_was_loaded_in_shards_is_refused(make_model, tokens, monkeypatch):
    model = make_model()
    Regularizer(model, tokens, paper())  # the control
    name = "is_distributed_loading_by_transformers"  # absent in transformers 5.10
    monkeypatch.setattr(LlamaForCausalLM, name, True, raising=False)
    with pytest.raises(InputError, match=r"loaded in shards \(`distributed_config`\)"):
        Regularizer(model, tokens, paper())


class OwnLoss(STRTrainer):
    """The usual way to change a loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own, and no call of what is above."""
        return model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss


class OwnLossAbove(OwnLoss):
    """The control: it adds to what is above."""

    def compute_loss(self, *args, **kwargs):
        """Twice the loss above."""
        return 2 * STRTrainer.compute_loss(self, *args, **kwargs)


@pytest.mark.lengthy
def test_a_loss_of_ones_own_that_leaves_the_drift_out_is_refused(
    make_model, rows, tokenizer, tokens, tmp_path
):
    made = {"safety_tokens": tokens, "train_dataset": rows, "processing_class": tokenizer}
    with pytest.raises(InputError, match="overrides `compute_loss`"):
        OwnLoss(make_model(), settings(STRConfig, tmp_path), **made).train()
    OwnLossAbove(make_model(), settings(STRConfig, tmp_path), **made).train()


@pytest.mark.lengthy
@pytest.mark.parametrize("form", ["logit", "logprob"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_both_gradient_norms_are_those_at_the_last_hidden_states(
    accumulation, form, make_model, rows, tokenizer, tokens, tmp_path
):
    trainer = str_trainer(
        moved(make_model), rows, tokenizer, tokens, tmp_path, str_weight=3.0, str_form=form,
        max_steps=1, per_device_train_batch_size=8 // accumulation, str_reference="adapter_off",
        gradient_accumulation_steps=accumulation, shuffle_dataset=False,
    )  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[each] for each in range(8)])
    _, log = trained(trainer)
    # By hand: whole logits of a second model, both terms by autograd.
    model = moved(make_model)
    head, ids = model.get_base_model().lm_head, tokens.tensor()
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hidden = model.get_base_model().model(**asked).last_hidden_state.detach().requires_grad_()
    positions = batch["labels"].roll(-1, dims=1) != -100
    positions[:, -1] = False
    with torch.no_grad(), model.disable_adapter():
        z0 = model(**asked).logits
    z = head(hidden)
    ce = nn.functional.cross_entropy(z[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    if form == "logprob":
        z, z0 = z.log_softmax(-1), z0.log_softmax(-1)
    drift = 3.0 * (z - z0)[positions][:, ids].square().mean(-1).mean()
    for name, term in (("ce_grad_norm", ce), ("str/grad_norm", drift)):
        (gradient,) = torch.autograd.grad(term, hidden, retain_graph=True)
        assert log[0][name] == pytest.approx(gradient.norm().item(), rel=1e-4), name


@pytest.mark.lengthy
def test_a_drift_that_drowns_the_task_is_told_once(
    make_model, rows, tokenizer, tokens, tmp_path, caplog
):
    for weight, num in ((1.0, 0), (1e4, 1)):
        caplog.clear()
        trainer = str_trainer(
            moved(make_model), rows, tokenizer, tokens, tmp_path, str_weight=weight, max_steps=3,
            learning_rate=1e-5,
        )  # fmt: skip
        with caplog.at_level(logging.WARNING, logger="moorline"):
            trainer.train()
        assert caplog.text.count("learn little of the task") == num


def test_messages_name_what_the_user_wrote(tmp_path, make_model, tokens):
    with pytest.raises(InputError, match="^`str_weight` must be a number of 0 or more"):
        STRConfig(str(tmp_path), bf16=False, str_weight=-1.0)
    with pytest.raises(InputError, match="^`weight` must be a number of 0 or more"):
        paper(weight=-1.0)
    with pytest.raises(InputError, match="Unknown `str_form` 'logits'"):
        STRConfig(str(tmp_path), bf16=False, str_form="logits")
    with pytest.raises(InputError, match="^`reference` 'adapter_off' needs"):
        Regularizer(make_model(), tokens, paper(reference="adapter_off"))


def test_every_setting_of_the_config_reaches_the_method(tmp_path):
    values = {
        "weight": 3.0, "form": "logprob", "reference": "cached", "reference_fraction": 0.5,
        "positions": "first:4", "cache_dtype": "float16", "cache_dir": "somewhere",
    }  # fmt: skip
    written = {f"str_{name}": value for name, value in values.items()}
    config = STRConfig(str(tmp_path), bf16=False, **written)
    assert config.settings() == STRSettings(**values)


def test_copies_of_a_watched_model_are_apart(make_model, tokens):
    """A frozen copy is taken although the model was taught to return its safety logits before."""
    model, batch = make_model(), a_batch()
    Regularizer(model, tokens, paper())
    regularizer = Regularizer(model, tokens, paper())
    assert isinstance(regularizer.reference.model, LlamaForCausalLM)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    with regularizer.watch(model.train(), batch) as drift:
        model(**batch)
    assert drift.sum.max_abs > 0.1
    model.load_state_dict(state)
    with regularizer.watch(model, batch) as drift:
        model(**batch)
    assert drift.sum.max_abs == 0.0
