"""Precisions, and sizes at the edge: one token, one row, thousands of tiny rows, other heads."""

import copy

import pytest
import torch
from helpers import conversations, lora, moved, paper, settings, str_trainer, trained
from peft import get_peft_model
from torch.amp import GradScaler
from transformers import MixtralConfig, MixtralForCausalLM
from trl import SFTConfig, SFTTrainer

from moorline import InputError, Regularizer, SafetyTokens, STRConfig, STRTrainer

WEIGHT = 2.0


def batch_of(model, rows=4, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 90, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(model, tokens, batch, dtype=None, scale=None):
    """Drift and adapter gradients of one step in a loop of one's own."""
    regularizer = Regularizer(model, tokens, paper(weight=WEIGHT, reference="adapter_off"))
    model.train()
    with (
        torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        regularizer.watch(model, batch) as drift,
    ):
        loss = model(**batch).loss
    loss = loss.float() + regularizer.weighted(drift)
    (loss if scale is None else scale.scale(loss)).backward()
    gradients = [each.grad for each in model.parameters() if each.requires_grad]
    return (drift.sum.total / drift.sum.num_positions).item(), gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_has_drift_zero_untouched_and_nearly_the_drift_of_float32(
    dtype, make_model, tokens
):
    untouched = get_peft_model(make_model(dtype=dtype), lora())
    batch = batch_of(untouched)
    assert step(untouched, tokens, batch)[0] == 0.0
    exact, _ = step(moved(make_model), tokens, batch)
    found, _ = step(moved(lambda: make_model(dtype=dtype)), tokens, batch)
    assert exact > 0.01, "and there is a drift"
    # logits of one are kept to 2^-8 in bfloat16, and differ by about one
    assert found == pytest.approx(exact, rel=0.05)


def test_a_scaled_float16_step_has_the_gradients_of_float32(make_model, tokens):
    model, other = moved(make_model), moved(make_model)
    batch = batch_of(model)
    _, exact = step(other, tokens, batch)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    drift, scaled = step(model, tokens, batch, torch.float16, scaler)
    assert drift > 0.01
    size = torch.cat([each.flatten() for each in exact]).norm()
    apart = torch.cat([(s / 2.0**10 - e).flatten() for s, e in zip(scaled, exact, strict=True)])
    assert apart.norm() < 0.01 * size
    # the control: without the drift's part they are others
    with torch.no_grad():
        bare = moved(make_model)
    bare(**batch).loss.backward()
    without = [each.grad for each in bare.parameters() if each.requires_grad]
    apart = torch.cat([(s - e).flatten() for s, e in zip(without, exact, strict=True)])
    assert apart.norm() > 0.05 * size


def test_a_float16_step_that_overflows_is_left_out_and_the_next_is_taken(make_model, tokens):
    """An endless scale, as a scaler begins with one that is too large."""
    model = moved(make_model)
    batch, before = batch_of(model), [each.detach().clone() for each in model.parameters()]
    trains = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trains, lr=0.01)
    scaler = GradScaler("cpu", init_scale=2.0**127)
    for taken in (False, True):
        optimizer.zero_grad()
        drift, _ = step(model, tokens, batch, torch.float16, scaler)
        assert drift < float("inf")
        scaler.step(optimizer)
        scaler.update(2.0**8)
        same = all(
            torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True)
        )
        assert same != taken


@pytest.mark.parametrize("shape", [(1, 12), (1, 2), (3000, 2)])
def test_one_row_one_position_and_thousands_of_tiny_rows_are_measured_by_the_definition(
    shape, make_model, tokens
):
    model = moved(make_model)
    batch = batch_of(model, *shape)
    found, gradients = step(model, tokens, batch)
    with torch.no_grad():
        z = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
        with model.disable_adapter():
            z0 = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    counted = batch["labels"][:, 1:] != -100
    apart = (z - z0)[:, :-1][counted][:, list(tokens.ids)].double()
    assert found == pytest.approx(apart.square().mean().item(), rel=1e-5)
    assert all(torch.isfinite(each).all() for each in gradients)


@pytest.mark.lengthy
def test_a_single_safety_token_is_held(make_model, rows, tokenizer, tokens, tmp_path):
    one = SafetyTokens(
        ids=tokens.ids[:1], strings=tokens.strings[:1], scores=(1.0,), vocab_size=tokens.vocab_size
    )
    found = {}
    for weight in (0.0, 20.0):
        trainer = str_trainer(
            make_model(),
            rows,
            tokenizer,
            one,
            tmp_path,
            lora(),
            str_weight=weight,
            max_steps=8,
            str_reference="adapter_off",
        )
        found[weight] = trained(trainer)[1]
    assert found[0.0][0]["str/drift"] == found[20.0][0]["str/drift"] == 0.0
    assert found[20.0][-1]["str/drift"] < 0.5 * found[0.0][-1]["str/drift"]


def test_a_vocabulary_that_was_padded_before_mining_is_held(rows, make_model, tokenizer, tmp_path):
    """A head of more rows than the tokenizer has tokens."""
    model = make_model(vocab_size=128)
    tokens = SafetyTokens(ids=(10, 17), strings=("", ""), scores=(1.0, 1.0), vocab_size=128)
    _, log = trained(str_trainer(model, rows, tokenizer, tokens, tmp_path, lora()))
    assert log[0]["str/drift"] == 0.0
    assert log[1]["str/drift"] > 0.0


def test_a_vocabulary_that_changed_since_mining_is_refused(make_model, tokenizer, tokens_file):
    tokens = SafetyTokens.load(tokens_file)
    model = make_model()
    Regularizer(model, tokens, paper(), tokenizer=tokenizer)  # the control
    resized = make_model()
    resized.resize_token_embeddings(len(tokenizer) + 8)
    with pytest.raises(InputError, match=r"head of the model has \d+ .* Mine again"):
        Regularizer(resized, tokens, paper(), tokenizer=tokenizer)
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<tool>"])
    with pytest.raises(InputError, match=r"mined with another tokenizer"):
        Regularizer(make_model(), tokens, paper(), tokenizer=more)


def experts():
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
            eos_token_id=1, bos_token_id=None, output_router_logits=True,
            router_aux_loss_coef=0.5, initializer_range=0.2,
        )
    )  # fmt: skip


@pytest.mark.lengthy
def test_experts_keep_the_loss_of_their_router(rows, tokenizer, tokens, tmp_path):
    """It belongs to the host's loss: STR leaves it there, and reads the reference without it."""
    kept = {"max_steps": 2}
    plain = SFTTrainer(
        experts(), settings(SFTConfig, tmp_path / "plain", **kept), train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    held = STRTrainer(
        experts(), settings(STRConfig, tmp_path / "held", str_weight=WEIGHT, **kept),
        safety_tokens=tokens, train_dataset=rows, processing_class=tokenizer,
    )  # fmt: skip
    logs = [trained(each)[1] for each in (plain, held)]
    assert logs[1][0]["str/drift"] == 0.0
    assert logs[1][0]["ce_loss"] == pytest.approx(logs[0][0]["loss"], rel=1e-6)
    assert logs[1][0]["grad_norm"] == pytest.approx(logs[0][0]["grad_norm"], rel=1e-5)
    assert logs[1][1]["str/drift"] > 1e-6
    assert "aux_loss" in logs[0][0], "and there is such a loss"


def test_conversations_of_one_row_are_trained_on(make_model, tokenizer, tokens, tmp_path):
    data = conversations(num=1)
    _, log = trained(
        str_trainer(
            make_model(), data, tokenizer, tokens, tmp_path, lora(), per_device_train_batch_size=1
        )
    )
    assert log[0]["str/drift"] == 0.0
    assert log[1]["str/drift"] > 0.0
