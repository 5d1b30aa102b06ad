"""The spread of a logit, and the form that measures in it."""

from dataclasses import replace

import pytest
import torch
from helpers import paper, str_trainer

from moorline import InputError, Regularizer
from moorline.chat.chat_model import ChatModel
from moorline.method.spread import spreads, spreads_of

ROWS = [([3, 5, 9], [12, 14, 40, 7]), ([3, 8], [21, 22]), ([6, 7, 8, 9], [11, 30, 31])]
IDS = (10, 17, 24)


def _values(model, ids):
    """The logits that say each answer's tokens, one answer after another."""
    found = []
    for context, answer in ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*context, *answer]])).logits[0]
        found.append(logits[len(context) - 1 : -1][:, list(ids)])
    return torch.cat(found)


def test_a_spread_is_the_standard_deviation_where_the_answers_are_said(make_model, tokenizer):
    model = make_model().eval()
    values = _values(model, IDS)
    assert len(values) == sum(len(answer) for _, answer in ROWS)
    found = spreads(ChatModel(model, tokenizer), ROWS, IDS)
    assert found == pytest.approx(values.std(dim=0, correction=0).tolist(), rel=1e-5)
    assert len({round(each, 4) for each in found}) == len(IDS), "each has its own"


def test_a_logit_that_hardly_varies_counts_no_more_than_ten_others(make_model, tokenizer):
    model = make_model(tie_word_embeddings=False).eval()
    with torch.no_grad():
        model.lm_head.weight[IDS[0]] = 0.0
    found = spreads(ChatModel(model, tokenizer), ROWS, IDS)
    assert found[0] == pytest.approx(0.1 * sorted(found)[1])


def _drift(model, tokens, form, batch, moved):
    """The drift where the head's input has moved."""
    settings = paper(form=form, reference="frozen_copy", weight=1.0)
    regularizer = Regularizer(model, tokens, settings)
    with torch.no_grad():
        model.model.norm.weight.mul_(moved)
    with regularizer.watch(model, batch) as drift:
        model(**batch)
    with torch.no_grad():
        model.model.norm.weight.div_(moved)
    return drift.sum.total.item()


def test_a_model_of_larger_logits_has_the_same_drift_in_spreads(make_model, tokenizer, tokens):
    """The law that the form is for; the control is `logit`, which grows with the square."""
    ids = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    found = {}
    for times in (1.0, 3.0):
        model = make_model(tie_word_embeddings=False).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(times)
        own = replace(tokens, spreads=tuple(spreads(ChatModel(model, tokenizer), ROWS, tokens.ids)))
        for form in ("logit", "standardised"):
            found[form, times] = _drift(model, own, form, batch, moved=1.5)
    assert found["standardised", 1.0] > 1e-3
    assert found["standardised", 3.0] == pytest.approx(found["standardised", 1.0], rel=1e-3)
    assert found["logit", 3.0] == pytest.approx(9 * found["logit", 1.0], rel=1e-3)


def test_in_spreads_a_move_is_divided_by_them(make_model, tokens):
    ids = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    halves = replace(tokens, spreads=(0.5,) * len(tokens))
    as_logits = _drift(make_model().eval(), halves, "logit", batch, moved=1.5)
    in_halves = _drift(make_model().eval(), halves, "standardised", batch, moved=1.5)
    assert in_halves == pytest.approx(4 * as_logits, rel=1e-4)


def test_it_is_blind_to_all_other_logits_rising_as_logit_is(make_model, tokens):
    """What the form cannot see: it is `logit` in another unit."""
    model = make_model(tie_word_embeddings=False).eval()
    ids = torch.randint(5, 90, (1, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    regularizer = Regularizer(model, tokens, paper(form="standardised"))
    before = model(**batch).logits.detach().softmax(-1)[..., list(tokens.ids)].sum(-1)
    others = [each for each in range(model.config.vocab_size) if each not in tokens.ids]
    with torch.no_grad():
        model.lm_head.weight[others] *= 4.0
    with regularizer.watch(model, batch) as drift:
        after = model(**batch).logits.detach().softmax(-1)[..., list(tokens.ids)].sum(-1)
    assert drift.sum.total.item() == 0.0
    assert float((after - before).abs().max()) > 1e-3


def test_without_spreads_it_is_refused_before_training(
    make_model, rows, tokenizer, tokens, tmp_path
):
    bare = replace(tokens, spreads=())
    with pytest.raises(InputError, match=r"have none: .*Mine again \(`moorline mine MODEL`\)"):
        str_trainer(make_model(), rows, tokenizer, bare, tmp_path, str_form="standardised")
    str_trainer(make_model(), rows, tokenizer, bare, tmp_path, str_form="logit")
    assert spreads_of(tokens).tolist() == list(tokens.spreads)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((1.0,), "needs one spread per id or none, got 1 for 5 ids"),
        ((1.0, 1.0, 0.0, 1.0, 1.0), "a spread that is no number above 0"),
        ((1.0, 1.0, float("nan"), 1.0, 1.0), "a spread that is no number above 0"),
    ],
)
def test_spreads_that_do_not_fit_are_refused(wrong, words, tokens):
    with pytest.raises(InputError, match=words):
        replace(tokens, spreads=wrong)


def test_spreads_are_kept_in_the_file(tokens, tmp_path):
    tokens.save(tmp_path / "tokens.json")
    assert type(tokens).load(tmp_path / "tokens.json").spreads == tokens.spreads
