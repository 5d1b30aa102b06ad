"""What `STRTrainer` trains and holds, for every shape of row, and what it refuses or says."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from helpers import TEMPLATE, conversations, lora, settings, str_trainer
from trl import SFTConfig, SFTTrainer

from moorline import InputError, STRConfig, STRTrainer

PLAIN = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Markers of a user that are wrong: the header and what the user says.
WRONG = "{% generation %}" + PLAIN.replace("{% if add", "{% endgeneration %}{% if add")
STYLED = "{% if tools %}w{{ tools|length }} {% endif %}{% if style %}{{ style }} {% endif %}"


def learned(trainer, at=0):
    """The tokens of a prepared row that carry a label, as text; and the whole row."""
    row, tokenizer = trainer.train_dataset[at], trainer.processing_class
    said = [token for token in row["labels"] if token != -100]
    return tokenizer.decode(said), tokenizer.decode(row["input_ids"])


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def build(make_model, tokenizer, tokens, tmp_path, rows, **changes):
    rows = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    changes = {"assistant_only_loss": None, **changes}
    return str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora(), **changes)


TURN = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}]
SHAPES = {
    "messages": {"messages": TURN},
    "prompt and completion": {"prompt": TURN[:1], "completion": TURN[1:]},
    "texts": {"prompt": "w1 w2", "completion": "w3 w4"},
    "ShareGPT": {"conversations": [{"from": "human", "value": "w1 w2"},
                                   {"from": "gpt", "value": "w3 w4"}]},
}  # fmt: skip


@pytest.mark.lengthy
@pytest.mark.parametrize("template", [TEMPLATE, PLAIN, WRONG], ids=["marked", "plain", "wrong"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_trained_is_what_the_model_says(
    shape, template, make_model, tokenizer, tokens, tmp_path
):
    """ShareGPT rows and wrong markers used to train and hold headers and the user's words."""
    other = with_template(tokenizer, template)
    trainer = build(make_model, other, tokens, tmp_path, [SHAPES[shape]])
    assert learned(trainer) == ("w3 w4 <end>", "<user> w1 w2 <end> <assistant> w3 w4 <end>")
    assert trainer.args.assistant_only_loss
    assert trainer.processing_class.chat_template == template


def test_the_template_that_is_saved_is_the_users(make_model, tokenizer, tokens, tmp_path):
    trainer = build(make_model, with_template(tokenizer, PLAIN), tokens, tmp_path, conversations())
    trainer.save_model()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == PLAIN


def test_texts_are_trained_on_as_they_are_where_that_is_said(
    make_model, tokenizer, tokens, tmp_path, caplog
):
    rows = [SHAPES["texts"]]
    trainer = build(make_model, tokenizer, tokens, tmp_path, rows, str_plain_text=True)
    assert learned(trainer)[1] == "w1 <unk> w4 <end>"  # "w2w3" is one word of this tokenizer
    assert "as plain text" in caplog.text


def test_a_template_given_by_path_is_the_one_trained_on(make_model, tokenizer, tokens, tmp_path):
    """`chat_template_path` used to be saved with the model, but not trained on."""
    path = tmp_path / "new.jinja"
    path.write_text(PLAIN.replace("<user>", "<system>").replace("<{{ message['role'] }}>", "<unk>"))
    other = with_template(tokenizer, PLAIN)
    trainer = build(make_model, other, tokens, tmp_path, [SHAPES["messages"]],
                    chat_template_path=str(path))  # fmt: skip
    assert learned(trainer)[1].startswith("<unk>")
    assert trainer.processing_class.chat_template == path.read_text()


@pytest.mark.lengthy
@pytest.mark.parametrize("template", [TEMPLATE, PLAIN], ids=["marked", "plain"])
def test_tools_as_json_and_variables_of_a_row_reach_the_template(
    template, make_model, tokenizer, tokens, tmp_path
):
    """Without markers they were dropped, or ended in a traceback."""
    tools = json.dumps([{"type": "function", "function": {"name": "w9", "parameters": {}}}])
    row = {**SHAPES["messages"], "tools": tools, "chat_template_kwargs": {"style": "w5"}}
    other = with_template(tokenizer, STYLED + template)
    found = learned(build(make_model, other, tokens, tmp_path, [row]))
    assert found == ("w3 w4 <end>", "w1 w5 <user> w1 w2 <end> <assistant> w3 w4 <end>")
    plain = SFTTrainer(
        make_model(), settings(SFTConfig, tmp_path, assistant_only_loss=False),
        train_dataset=Dataset.from_list([row]), processing_class=other,
    )  # fmt: skip
    assert learned(plain)[1] == found[1], "the control: TRL reads the same row"


@pytest.mark.lengthy
def test_rows_given_to_evaluate_count_the_same_positions_with_and_without_markers(
    make_model, tokenizer, tokens, tmp_path
):
    """Without markers the user's words used to count there."""
    found = []
    for template in (TEMPLATE, PLAIN):
        other = with_template(tokenizer, template)
        trainer = build(make_model, other, tokens, tmp_path, conversations(), max_steps=1)
        trainer.train()
        metrics = trainer.evaluate(conversations(6, seed=3))
        found.append([metrics["eval_ce_loss"], metrics["eval_str/drift"]])
    assert found[0] == found[1]
    trainer.args.assistant_only_loss = trainer._marks_responses = False
    whole = trainer.evaluate(conversations(6, seed=3))
    assert whole["eval_ce_loss"] != found[0][0], "the control: all tokens are another number"


def test_told_so_every_token_counts(make_model, tokenizer, tokens, tmp_path):
    rows = [SHAPES["messages"]]
    trainer = build(make_model, tokenizer, tokens, tmp_path, rows, assistant_only_loss=False)
    assert learned(trainer)[0] == learned(trainer)[1]
    with pytest.raises(InputError, match="`assistant_only_loss` needs conversations"):
        build(make_model, tokenizer, tokens, tmp_path, [{"text": "w1"}], assistant_only_loss=True)


def test_rows_that_are_cut_are_said_and_a_cut_of_every_response_is_refused(
    make_model, tokenizer, tokens, tmp_path, caplog
):
    """A row of any length used to be cut without a word; a cut of all ended in a traceback."""
    long = {"messages": [{"role": "user", "content": "w1 " * 70}, TURN[1]]}
    rows = [SHAPES["messages"], long, {"messages": [TURN[0], {**TURN[1], "content": "w3 " * 90}]}]
    trainer = build(make_model, tokenizer, tokens, tmp_path, rows)
    assert len(trainer.train_dataset) == 2
    assert "2 of 3 rows of the train data are longer than `max_length` 64" in caplog.text
    assert "1 of them lose their whole response" in caplog.text
    with pytest.raises(InputError, match="cuts off every response of the train data"):
        build(make_model, tokenizer, tokens, tmp_path, [long])
    caplog.clear()
    build(make_model, tokenizer, tokens, tmp_path, rows, max_length=None)
    assert "are cut" not in caplog.text


def test_the_precision_is_one_that_the_machine_has(monkeypatch, tmp_path):
    """TRL's default of bf16 ends in an error on a machine that has none."""
    monkeypatch.setattr("moorline.trainer.is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = STRConfig(output_dir=str(tmp_path))
    assert (config.bf16, config.fp16) == (False, False)
    assert STRConfig(output_dir=str(tmp_path), use_cpu=True, bf16=True).bf16, "told so, it stays"


@pytest.mark.parametrize(("adapter", "given", "expected"), [
    (True, None, 2e-4), (False, None, 2e-5), (True, 1e-3, 1e-3),
])  # fmt: skip
def test_the_learning_rate_fits_what_is_trained(
    adapter, given, expected, make_model, tokenizer, tokens, tmp_path
):
    """An adapter with the rate of full fine-tuning learns next to nothing."""
    trainer = str_trainer(
        make_model(), conversations(), tokenizer, tokens, tmp_path, lora() if adapter else None,
        learning_rate=given,
    )  # fmt: skip
    assert trainer.args.learning_rate == expected


def test_settings_of_trl_alone_are_refused(make_model, tokenizer, tokens, tmp_path):
    with pytest.raises(InputError, match="`args` must be an STRConfig, got SFTConfig"):
        STRTrainer(make_model(), settings(SFTConfig, tmp_path), safety_tokens=tokens,
                   train_dataset=conversations(), processing_class=tokenizer)  # fmt: skip


def test_the_card_names_the_model_that_was_tuned(make_model, tokenizer, tokens, tmp_path):
    """TRL says "fine-tuned version of None" for a local folder."""
    folder = tmp_path / "aligned"
    make_model().save_pretrained(folder)
    model = type(make_model()).from_pretrained(folder)
    trainer = str_trainer(model, conversations(), tokenizer, tokens, tmp_path, lora())
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"fine-tuned version of `{folder}`" in card
    assert "None" not in card.split("## Quick")[0].split("# Model Card")[1].split("\n", 2)[2]


def test_a_trainer_that_was_put_into_trl_afterwards_is_refused(
    make_model, rows, tokenizer, tokens, tmp_path, monkeypatch
):
    """As `import unsloth` does, which has to come first."""
    str_trainer(make_model(), rows, tokenizer, tokens, tmp_path)  # the control
    monkeypatch.setattr("trl.SFTTrainer", type("Replaced", (SFTTrainer,), {}))
    with pytest.raises(InputError, match=r"Import that library first \(`import unsloth`\)"):
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path)
