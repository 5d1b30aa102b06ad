"""Where the drift is: against a plain loop, and along the checkpoints of a real run."""

import json

import pytest
import torch
from helpers import conversations, lora, moved, refused, tune
from peft import get_peft_model
from typer.testing import CliRunner

from moorline import InputError
from moorline.audit.drift import drift_of
from moorline.chat.chat_model import ChatModel
from moorline.chat.conversation import mark_responses
from moorline.commands.cli import app
from moorline.method.adapters import adapter_layers, adapters_off
from moorline.method.reference import AdapterOff

runner = CliRunner()


@pytest.mark.lengthy
def test_the_drift_by_token_and_place_is_that_of_a_plain_loop(make_model, tokenizer, tokens):
    model = moved(make_model)
    rows = list(conversations(5, turns=2))
    found = drift_of(ChatModel(model, tokenizer), AdapterOff(model), tokens, rows, batch_size=2)
    by_token, by_place = {}, {}
    for row in rows:
        marked = mark_responses(tokenizer, row["messages"])
        ids = torch.tensor([marked["input_ids"]])
        with torch.no_grad():
            now = model(ids).logits[0]
            with adapters_off(adapter_layers(model)):
                before = model(ids).logits[0]
        count = 0
        for place, said in enumerate(marked["assistant_masks"][1:]):
            count = count + 1 if said else 0
            if said:
                squared = (now[place] - before[place])[list(tokens.ids)].square()
                by_place.setdefault(count, []).append(squared.mean().item())
                for token, each in zip(tokens.ids, squared.tolist(), strict=True):
                    by_token.setdefault(token, []).append(each)
    for row in found["tokens"]:
        values = by_token[row["id"]]
        assert row["drift"] == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert [row["position"] for row in found["positions"]] == sorted(by_place)
    for row in found["positions"]:
        values = by_place[row["position"]]
        assert row["drift"] == pytest.approx(sum(values) / len(values), rel=1e-4)
    drifts = [row["drift"] for row in found["tokens"]]
    assert drifts == sorted(drifts, reverse=True)
    fresh = get_peft_model(make_model(), lora())
    still = drift_of(ChatModel(fresh, tokenizer), AdapterOff(fresh), tokens, rows)
    assert {row["drift"] for row in still["tokens"]} == {0.0}, "an untouched model has none"


def test_rows_without_a_response_are_refused(make_model, tokenizer, tokens):
    model = moved(make_model)
    with pytest.raises(InputError, match="No held-out row has a response"):
        drift_of(
            ChatModel(model, tokenizer), AdapterOff(model), tokens,
            [{"prompt": "w1", "completion": ""}], max_length=1,
        )  # fmt: skip


@pytest.mark.lengthy
@pytest.mark.parametrize("full", [False, True])
def test_the_audit_of_a_tuned_model_draws_where_safety_is_lost(full, flags, data_file, tmp_path):
    made = {**flags, "use_peft": not full, "save_strategy": "steps", "save_steps": 1,
            "str_weight": 0.0, "max_steps": 3}  # fmt: skip
    assert tune(made).exit_code == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"prompt": "w1 w2", "kind": "harmful"}\n{"prompt": "w3", "kind": "harmful"}\n'
    )
    words = ["audit", str(tmp_path / "run"), "--suite", str(prompts), "--output",
             str(tmp_path / "audit"), "--max-new-tokens", "4"]  # fmt: skip
    result = runner.invoke(app, [*words, "--held-out", str(data_file), "--drift"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = json.loads((tmp_path / "audit" / "drift.json").read_text())
    assert found["schema"] == 1
    assert found["tokens"][0]["drift"] > 0
    if not full:
        assert [row["step"] for row in found["checkpoints"]] == [0, 1, 2, 3]
        masses = [row["refusal_mass"] for row in found["checkpoints"]]
        assert len(set(masses)) == 4, "each checkpoint is another model"
        assert all(0 <= each <= 1 for each in masses)
    missing = runner.invoke(app, [*words[:-3], str(tmp_path / "b"), "--drift"])
    refused(missing, "`drift` needs `held_out` rows")
