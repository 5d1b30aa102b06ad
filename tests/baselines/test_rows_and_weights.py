"""What methods do to rows before training, and to weights after it."""

import json

import pytest
import torch
from datasets import Dataset
from helpers import lora, moved, peer_trainer, refusals_file, trained
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from moorline import InputError
from moorline.baselines import METHODS, Materials
from moorline.baselines.lookahead import LookAhead
from moorline.baselines.peer import Training
from moorline.baselines.refusals import harmful_prompts, refusals
from moorline.baselines.safe_lora import projected
from moorline.baselines.states import Reader
from moorline.chat.chat_model import ChatModel
from moorline.chat.loading import load_chat_model
from moorline.embedded import aligned_path, base_path
from moorline.method.templates import MINING_PROMPTS

SHAPES = {
    "messages": lambda p, c: {"messages": [{"role": "user", "content": p},
                                           {"role": "assistant", "content": c}]},
    "texts": lambda p, c: {"prompt": p, "completion": c},
    "lists": lambda p, c: {"prompt": [{"role": "user", "content": p}],
                           "completion": [{"role": "assistant", "content": c}]},
}  # fmt: skip


def materials(tokenizer, **more):
    return Materials(chat=ChatModel(None, tokenizer), **more)


@pytest.mark.parametrize("shape", SHAPES)
def test_safe_instr_puts_refusals_in_the_place_of_rows(shape, tokenizer, tmp_path):
    task = [SHAPES[shape](f"w{each}", f"w{each + 1} w3") for each in range(40)]
    rows = Dataset.from_list(task)
    given = materials(tokenizer, file=refusals_file(tmp_path), seed=5)
    found = METHODS["safe_instr"](given, 0.25).rows(rows)
    wanted = [SHAPES[shape](f"w{each} w1", f"w80 w81 w{each}") for each in range(6)]
    mixed = [row for row in found if row in wanted]
    assert len(found) == 40
    assert len(mixed) == 10
    assert {json.dumps(row) for row in mixed} == {json.dumps(row) for row in wanted}
    kept = [(at, row) for at, row in enumerate(found) if row not in wanted]
    assert all(row == task[at] for at, row in kept), "the others stand where they stood"
    again = METHODS["safe_instr"](given, 0.25).rows(rows)
    other = METHODS["safe_instr"](
        materials(tokenizer, file=refusals_file(tmp_path), seed=6), 0.25
    ).rows(rows)
    assert list(again) == list(found) != list(other)
    assert list(METHODS["safe_instr"](given, 0.0).rows(rows)) == task


def test_safe_instr_refuses_rows_that_it_cannot_mix_into(tokenizer, tmp_path):
    method = METHODS["safe_instr"](materials(tokenizer, file=refusals_file(tmp_path)))
    with pytest.raises(InputError, match=r"the data has the columns text\."):
        method.rows(Dataset.from_list([{"text": "w1"}] * 10))
    with pytest.raises(InputError, match="cannot mix into streamed data"):
        method.rows(Dataset.from_list([{"text": "w1"}] * 10).to_iterable_dataset())


@pytest.mark.parametrize("shape", SHAPES)
def test_lookahead_shows_the_first_tokens(shape, tokenizer):
    rows = Dataset.from_list([SHAPES[shape]("w1 w2", "w3 w4 w5 w6"), SHAPES[shape]("w7", "w8")])
    found = LookAhead(materials(tokenizer), 2).rows(rows)
    assert list(found) == [
        SHAPES[shape]("w1 w2 The answer begins with: w3 w4", "w3 w4 w5 w6"),
        SHAPES[shape]("w7 The answer begins with: w8", "w8"),
    ]


def test_lookahead_shows_a_phrase(tokenizer, tmp_path):
    file = tmp_path / "phrase.txt"
    file.write_text("Let us see. \n")
    rows = Dataset.from_list([SHAPES["messages"]("w1 w2", "w3")])
    found = LookAhead(materials(tokenizer, file=file)).rows(rows)
    wanted = SHAPES["messages"]("w1 w2 The answer begins with: Let us see. ", "Let us see. w3")
    assert list(found) == [wanted]
    with pytest.raises(InputError, match="Leave one of them out"):
        LookAhead(materials(tokenizer, file=file), 3)
    file.write_text("two\nlines")
    with pytest.raises(InputError, match="one phrase, on one line"):
        LookAhead(materials(tokenizer, file=file))


def test_lookahead_shows_each_turn_its_own_answer_and_no_half_character(tokenizer):
    real = AutoTokenizer.from_pretrained(aligned_path())
    turns = [("user", "One?"), ("assistant", "\U0001f600 yes"), ("user", "Two?"),
             ("assistant", "no")]  # fmt: skip
    rows = Dataset.from_list(
        [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    )
    (row,) = LookAhead(materials(real), 1).rows(rows)
    asked = [each["content"] for each in row["messages"] if each["role"] == "user"]
    assert "\ufffd" not in asked[0]
    assert asked[1].startswith("Two? The answer begins with: n")
    with pytest.raises(InputError, match="needs conversations"):
        LookAhead(materials(tokenizer)).rows(Dataset.from_list([{"text": "w1"}]))


def test_refusals_are_the_aligned_models_own():
    chat = load_chat_model(aligned_path())
    found = refusals(Materials(chat=chat))
    assert len(found) == len(MINING_PROMPTS)
    assert found[0].prompt == MINING_PROMPTS[0]
    assert found[0].answer == chat.answers([MINING_PROMPTS[0]])[0].strip()
    with pytest.raises(InputError, match="refuses none of our 12 harmful prompts"):
        refusals(Materials(chat=load_chat_model(base_path())))


def test_files_of_prompts_and_refusals_are_read_or_refused(tokenizer, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "How?"}\n')
    given = materials(tokenizer, file=file)
    assert harmful_prompts(given) == ("How?",)
    with pytest.raises(InputError, match="line 1: no field 'messages'.* holds refusals"):
        refusals(given)
    file.write_text('{"text": "How?"}\n')
    with pytest.raises(InputError, match="line 1: no field 'prompt'.* harmful prompts"):
        harmful_prompts(given)
    assert harmful_prompts(materials(tokenizer)) == MINING_PROMPTS


def logits(model):
    ids = torch.arange(6, 26)[None]
    with torch.no_grad():
        return model.double().eval()(ids).logits


def merged(model):
    return logits(model.merge_and_unload() if hasattr(model, "merge_and_unload") else model)


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["lora", "full", "modules_to_save"])
def test_wise_ft_is_on_the_line_between_the_models(kind, make_model, rows, tokenizer, tmp_path):
    """Merged weights are interpolated exactly; at 1 it is the tuned model, at 0 the aligned one."""
    adapter = {"full": None, "lora": lora(), "modules_to_save": lora(modules_to_save=["lm_head"])}
    found = {}
    for alpha in (0.0, 0.25, 1.0):
        model = make_model()
        trainer = peer_trainer(
            "wise_ft", model, rows, tokenizer, tmp_path, alpha, peft_config=adapter[kind],
            max_steps=3,
        )  # fmt: skip
        trained(trainer)
        whole = trainer.model
        if kind != "full":
            whole = whole.double().merge_and_unload()
        found[alpha] = {name: each.double() for name, each in whole.named_parameters()}
    aligned = dict(make_model().named_parameters())
    moved_by = 0.0
    for name, each in found[0.25].items():
        start, end = found[0.0][name], found[1.0][name]
        assert torch.allclose(start, aligned[name].double(), atol=1e-7)
        # float32 weights of order 1: their products differ in the last of 7 digits
        assert torch.allclose(each, 0.75 * start + 0.25 * end, atol=2e-7)
        moved_by = max(moved_by, (end - start).abs().max().item())
    assert moved_by > 1e-3


def test_wise_ft_refuses_what_is_not_linear(make_model, rows, tokenizer, tmp_path):
    with pytest.raises(InputError, match="only LoRA .* can be interpolated"):
        peer_trainer(
            "wise_ft", make_model(), rows, tokenizer, tmp_path, peft_config=lora(use_dora=True)
        )


@pytest.mark.parametrize("name", ["wise_ft", "safe_lora"])
def test_an_adapter_on_another_model_than_the_aligned_one_is_refused(name, make_model, tokenizer):
    model = get_peft_model(make_model(seed=2), lora())
    base = {"base": make_model(seed=1)} if name == "safe_lora" else {}
    method = METHODS[name](Materials(chat=ChatModel(model, tokenizer), **base))
    with pytest.raises(InputError, match="the aligned model is another one"):
        method.begin(Training(Reader(model, make_model(), keep=False)))


def test_safe_lora_projects_the_layers_below_its_threshold(make_model, tokenizer):
    """By the definition with the whole matrix C, in float64."""
    base = make_model(seed=1)
    cosines = {}
    for threshold in (-1.0, 0.05, 1.0):
        model = moved(make_model)
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        method = METHODS["safe_lora"](Materials(chat=ChatModel(model, tokenizer), base=base),
                                      threshold)  # fmt: skip
        method.begin(Training(Reader(model, keep=False)))
        method.end(model)
        num = 0
        for name, layer in model.get_base_model().named_modules():
            if not hasattr(layer, "lora_B"):
                continue
            path = f"base_model.model.{name}"
            b = before[f"{path}.lora_B.default.weight"].double()
            a = before[f"{path}.lora_A.default.weight"].double()
            v = (layer.base_layer.weight - base.get_submodule(name).weight).double()
            c = v @ v.T / v.norm()
            inside = c @ b
            cosine = ((inside @ a) * (b @ a)).sum() / ((inside @ a).norm() * (b @ a).norm())
            cosines[name] = cosine.item()
            expected = inside if cosine <= threshold else b
            num += bool(cosine <= threshold)
            assert torch.allclose(layer.lora_B["default"].weight.double(), expected, atol=1e-5)
            assert torch.equal(
                layer.lora_A["default"].weight, before[f"{path}.lora_A.default.weight"]
            )
        assert num == {-1.0: 0, 1.0: len(cosines)}.get(threshold, num)
    assert max(cosines.values()) > min(cosines.values()) > 0


def test_safe_lora_leaves_what_alignment_did_not_move(make_model, tokenizer):
    model = moved(make_model)
    before = logits(moved(make_model))
    method = METHODS["safe_lora"](
        Materials(chat=ChatModel(model, tokenizer), base=make_model()), 1.0
    )
    method.begin(Training(Reader(model, keep=False)))
    method.end(model)
    assert torch.equal(logits(model), before)


def test_safe_lora_refuses_what_has_no_lora_or_another_base(make_model, tokenizer):
    chat = ChatModel(make_model(), tokenizer)
    method = METHODS["safe_lora"](Materials(chat=chat, base=make_model(seed=1)))
    with pytest.raises(InputError, match="Add --use_peft"):
        method.begin(Training(Reader(make_model(), keep=False)))
    other = METHODS["safe_lora"](Materials(chat=chat, base=make_model(intermediate_size=40)))
    with pytest.raises(InputError, match="`method_base` has no layer .*mlp"):
        other.begin(Training(Reader(get_peft_model(make_model(), lora()), keep=False)))
    with pytest.raises(InputError, match="does not fit DoRA"):
        method.begin(
            Training(Reader(get_peft_model(make_model(), lora(use_dora=True)), keep=False))
        )


def test_the_projection_is_v_vt_over_its_norm():
    v, b = torch.randn(5, 7), torch.randn(5, 2)
    assert torch.allclose(projected(b, v), (v @ v.T / v.norm()) @ b, atol=1e-5)


def test_safe_lora_runs_on_the_shipped_pair():
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(aligned_path()), lora())
    chat = ChatModel(model, AutoTokenizer.from_pretrained(aligned_path()))
    method = METHODS["safe_lora"](Materials(chat=chat, base=base_path()), 1.0)
    method.begin(Training(Reader(model, keep=False)))
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.add_(0.1 * torch.randn_like(each))
    ids = torch.arange(20)[None]
    before = model(ids).logits
    method.end(model)
    assert not torch.allclose(before, model(ids).logits, atol=1e-3)
