"""The artifact: its rules, its file, and whether it fits a model and a tokenizer."""

import dataclasses
import importlib.util
import json
import os
import sys

import pytest
import torch
from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moorline.errors import InputError
from moorline.method import safety_tokens as room
from moorline.method.safety_tokens import SafetyTokens, check_output, tokenizer_fingerprint

RIGHT = {
    "ids": (5, 9, 2),
    "strings": (" sorry", "\u2581d\u00e9sol\u00e9", "\ufffd\n"),
    "scores": (0.9, 1 / 3, 0.0),
    "vocab_size": 16,
}


def _tokens(**changes):
    return SafetyTokens(**{**RIGHT, **changes})


def _tokenizer(vocabulary):
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")


WORDS = {"<unk>": 0, "sorry": 1, "cannot": 2, "help": 3}


@pytest.fixture
def unchecked(monkeypatch):
    """The module as users run it, without the type checks that pytest puts around it."""
    spec = importlib.util.spec_from_file_location("moorline.method._unchecked", room.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.SafetyTokens


def _written(folder, **changes):
    """A file that `save` could have written, with some entries changed; None takes one away."""
    value = {"schema": 1, **RIGHT, **changes}
    path = folder / "tokens.json"
    path.write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))
    return path


# Rules


def test_a_right_set_is_accepted_and_counted():
    tokens = _tokens()
    assert len(tokens) == 3
    assert tokens.ids == (5, 9, 2)


def test_ids_come_as_a_tensor_of_int64_in_order():
    made = _tokens().tensor()
    assert made.dtype == torch.int64
    assert made.tolist() == [5, 9, 2]
    assert _tokens().tensor("meta").device.type == "meta"


def test_the_set_is_frozen():
    tokens = _tokens()
    for each in dataclasses.fields(tokens):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(tokens, each.name, getattr(tokens, each.name))
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
        tokens.surplus = 1


def test_lists_and_numpy_like_numbers_are_made_plain(unchecked):
    tokens = unchecked(
        ids=list(torch.tensor([5, 9])), strings=["a", "b"], scores=[1, 2], vocab_size=16
    )
    assert tokens.ids == (5, 9)
    assert all(type(index) is int for index in tokens.ids)
    assert tokens.strings == ("a", "b")
    assert [type(score) for score in tokens.scores] == [float, float]


def test_an_empty_set_is_refused():
    words = (
        "`safety_tokens` is an empty set: with nothing to hold, training would be unprotected. "
        "Mine them from an aligned model, or give ids."
    )
    with pytest.raises(InputError, match=words):
        _tokens(ids=(), strings=(), scores=())


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"strings": ("a", "b")}, "3 ids, 2 strings and 3 scores"),
        ({"scores": (1.0,)}, "3 ids, 3 strings and 1 scores"),
        ({"ids": (5, 9)}, "2 ids, 3 strings and 3 scores"),
        ({"strings": (), "scores": ()}, "3 ids, 0 strings and 0 scores"),
    ],
)
def test_lists_of_unlike_length_are_refused_with_the_counts(change, counts):
    words = rf"`safety_tokens` needs one string and one score per id, got {counts}\."
    with pytest.raises(InputError, match=words):
        _tokens(**change)


def test_an_id_twice_is_refused():
    with pytest.raises(
        InputError, match=r"`safety_tokens` holds an id twice\. List each id once\."
    ):
        _tokens(ids=(5, 9, 5))


@pytest.mark.parametrize("outside", [-1, 16, 1000])
def test_an_id_outside_the_vocabulary_is_refused(outside):
    words = (
        rf"`safety_tokens` holds id {outside}, outside the vocabulary of 16 entries\. "
        r"Mine again from this model\."
    )
    with pytest.raises(InputError, match=words):
        _tokens(ids=(5, outside, 2))


def test_the_first_and_last_vocabulary_entries_are_inside():
    assert _tokens(ids=(0, 15, 7)).ids == (0, 15, 7)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_finite_number_is_refused(score):
    words = r"`safety_tokens` holds a score that is not a finite number\."
    with pytest.raises(InputError, match=words):
        _tokens(scores=(0.9, score, 0.1))


# File


def test_what_is_saved_is_loaded_equal(tmp_path):
    """Every field by value and by type: lists of JSON become tuples again."""
    tokens = _tokens(
        templates=("I'm sorry", "I cannot"),
        tokenizer_fingerprint="ab" * 32,
        mined={"method": "planted", "max_tokens": 16, "min_score": 0.01, "versions": {"x": "1"}},
    )
    tokens.save(tmp_path / "deep" / "tokens.json")
    loaded = SafetyTokens.load(tmp_path / "deep" / "tokens.json")
    assert loaded == tokens
    for each in dataclasses.fields(tokens):
        assert type(getattr(loaded, each.name)) is type(getattr(tokens, each.name))


def test_the_least_set_is_loaded_equal(tmp_path):
    _tokens().save(tmp_path / "tokens.json")
    assert SafetyTokens.load(str(tmp_path / "tokens.json")) == _tokens()


def test_what_is_saved_is_loaded_equal_without_the_type_checks_too(tmp_path, unchecked):
    tokens = unchecked(**RIGHT, templates=("I cannot",), mined={"method": "planted"})
    tokens.save(tmp_path / "tokens.json")
    assert unchecked.load(tmp_path / "tokens.json") == tokens


def test_a_set_that_differs_in_one_field_is_another():
    assert _tokens() == _tokens()
    assert _tokens() != _tokens(scores=(0.9, 1 / 3, 1e-9))
    assert _tokens() != _tokens(tokenizer_fingerprint="ab")


@settings(deadline=None, derandomize=True, max_examples=examples(50))
@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, 999),
            st.text(st.characters(codec="utf-8"), max_size=5),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda entry: entry[0],
    )
)
def test_any_right_set_is_loaded_equal(tmp_path_factory, entries):
    ids, strings, scores = zip(*entries, strict=True)
    tokens = SafetyTokens(ids=ids, strings=strings, scores=scores, vocab_size=1000)
    path = tmp_path_factory.mktemp("law") / "tokens.json"
    tokens.save(path)
    assert SafetyTokens.load(path) == tokens


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokens.json"
    _tokens().save(path)
    before = path.read_bytes()

    def refuse(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        _tokens(scores=(3.0, 2.0, 1.0)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tokens.json"]


def test_a_missing_file_is_named(tmp_path):
    words = r"gone\.json: no such safety-token file\. Check the path\."
    with pytest.raises(InputError, match=words):
        SafetyTokens.load(tmp_path / "gone.json")


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "tokens.json"
    _tokens().save(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(
        InputError, match=r"tokens\.json: not a safety-token file: .+ Write it again"
    ):
        SafetyTokens.load(path)


def test_a_file_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "tokens.json").write_text("[5, 9]")
    with pytest.raises(InputError, match="a safety-token file holds a JSON object, got list"):
        SafetyTokens.load(tmp_path / "tokens.json")


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(tmp_path, schema):
    words = r"by another version of Moorline \(schema .*, this one reads 1\)\. Mine again\."
    with pytest.raises(InputError, match=words):
        SafetyTokens.load(_written(tmp_path, schema=schema))


@pytest.mark.parametrize("key", ["ids", "strings", "scores", "vocab_size"])
def test_a_missing_entry_is_named(tmp_path, key):
    words = rf"tokens\.json: lacks '{key}'\. Mine again\."
    with pytest.raises(InputError, match=words):
        SafetyTokens.load(_written(tmp_path, **{key: None}))


def test_an_unknown_entry_is_passed_over(tmp_path, unchecked):
    assert len(unchecked.load(_written(tmp_path, comment="by hand"))) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": [], "strings": [], "scores": []}, "is an empty set"),
        ({"ids": [5, 9]}, "needs one string and one score per id"),
        ({"ids": [5, 5, 2]}, "holds an id twice"),
        ({"ids": [5, 16, 2]}, "holds id 16, outside the vocabulary of 16"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_its_name(tmp_path, unchecked, change, words):
    with pytest.raises(InputError, match=rf"tokens\.json: `safety_tokens` .*{words}"):
        unchecked.load(_written(tmp_path, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ["a", "b", "c"]},
        {"ids": 5},
        {"scores": [0.9, "x", 0.1]},
        {"scores": [0.9, [], 0.1]},
        {"vocab_size": "16"},
        {"vocab_size": [16]},
        # the following are accepted as something else if nothing looks at their types
        {"ids": [5.7, 9, 2]},
        {"strings": [1, 2, 3]},
        {"strings": "abc"},
        {"vocab_size": 16.5},
        {"scores": [0.9, float("nan"), 0.1]},
    ],
    ids=lambda change: json.dumps(change),
)
def test_an_entry_of_the_wrong_kind_is_refused(tmp_path, unchecked, change):
    words = rf"tokens\.json: ('{next(iter(change))}(\[\d\])?' )?holds .+, (must|no) .+Mine again"
    with pytest.raises(InputError, match=words):
        unchecked.load(_written(tmp_path, **change))


def test_the_file_that_is_damaged_above_is_right_undamaged(tmp_path, unchecked):
    assert unchecked.load(_written(tmp_path)).ids == RIGHT["ids"]


# Fit


def test_a_head_of_another_size_is_refused():
    words = (
        r"The head of the model has 32 vocabulary entries but `safety_tokens` was mined from a "
        r"model with 16\. Mine again from this model, or load the model the tokens came from\."
    )
    with pytest.raises(InputError, match=words):
        _tokens().check_fits(vocab_size=32)
    _tokens().check_fits(vocab_size=16)


def test_another_tokenizer_is_refused_and_the_same_accepted():
    mine = _tokenizer(WORDS)
    other = _tokenizer({**WORDS, "sorry": 2, "cannot": 1})
    tokens = _tokens(
        ids=(1, 2, 3), strings=("sorry", "cannot", "help"),
        tokenizer_fingerprint=tokenizer_fingerprint(mine),
    )  # fmt: skip
    words = (
        r"`safety_tokens` was mined with another tokenizer: the same ids stand for other strings "
        r"here\. Mine again with this tokenizer, or load the one they came from\."
    )
    with pytest.raises(InputError, match=words):
        tokens.check_fits(vocab_size=16, tokenizer=other)
    tokens.check_fits(vocab_size=16, tokenizer=mine)
    tokens.check_fits(vocab_size=16, tokenizer=_tokenizer(dict(WORDS)))


def test_ids_that_do_not_spell_their_strings_are_refused():
    """A file whose ids were changed was taken, and other tokens were held without a word."""
    mine = _tokenizer(WORDS)
    right = {"ids": (1, 2, 3), "strings": ("sorry", "cannot", "help")}
    known = {"tokenizer_fingerprint": tokenizer_fingerprint(mine)}
    _tokens(**right, **known).check_fits(vocab_size=16, tokenizer=mine)
    words = r"says that id 2 is 'sorry', but it spells 'cannot': ids or strings were changed"
    with pytest.raises(InputError, match=words):
        _tokens(**{**right, "ids": (2, 3, 1)}, **known).check_fits(vocab_size=16, tokenizer=mine)


def test_only_a_safety_token_file_is_written_over(tmp_path):
    """`mine --output` wrote over any file."""
    _tokens().save(tmp_path / "tokens.json")
    check_output(tmp_path / "tokens.json")
    check_output(tmp_path / "new" / "tokens.json")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt is there and is no safety-token file"):
        check_output(tmp_path / "notes.txt")
    for path in (tmp_path, tmp_path / "notes.txt" / "tokens.json"):
        with pytest.raises(InputError, match="a file cannot be written there"):
            check_output(path)


def test_without_a_recorded_fingerprint_or_a_tokenizer_nothing_is_compared():
    _tokens().check_fits(vocab_size=16, tokenizer=_tokenizer(WORDS))
    _tokens(tokenizer_fingerprint="0" * 64).check_fits(vocab_size=16)
    with pytest.raises(InputError, match="another tokenizer"):
        _tokens(tokenizer_fingerprint="0" * 64).check_fits(
            vocab_size=16, tokenizer=_tokenizer(WORDS)
        )


# Fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_insertion(monkeypatch):
    forward, backward = _tokenizer(WORDS), _tokenizer(dict(reversed(WORDS.items())))
    assert tokenizer_fingerprint(forward) == tokenizer_fingerprint(backward)
    # the tokenizer's own table has no order to speak of, so give it two that are known to differ
    first = dict(WORDS.items())
    second = dict(reversed(WORDS.items()))
    assert list(first) != list(second)
    found = set()
    for order in (first, second):
        monkeypatch.setattr(forward, "get_vocab", lambda order=order: order)
        found.add(tokenizer_fingerprint(forward))
    assert found == {tokenizer_fingerprint(backward)}


@pytest.mark.parametrize(
    "vocabulary",
    [
        {**WORDS, "sorry": 2, "cannot": 1},
        {**WORDS, "please": 4},
        {"<unk>": 0, "Sorry": 1, "cannot": 2, "help": 3},
        {"<unk>": 0, "sorry": 1, "cannot": 2, "help": 4},
    ],
    ids=["swapped", "one more", "one capital", "other id"],
)
def test_another_vocabulary_has_another_fingerprint(vocabulary):
    assert tokenizer_fingerprint(_tokenizer(vocabulary)) != tokenizer_fingerprint(_tokenizer(WORDS))


def test_an_added_token_changes_the_fingerprint():
    grown = _tokenizer(WORDS)
    grown.add_tokens(["<extra>"])
    assert tokenizer_fingerprint(grown) != tokenizer_fingerprint(_tokenizer(WORDS))


def test_the_fingerprint_is_blind_to_normalisation_and_to_the_chat_template():
    """As its docstring says; the control is that the normalisation does change the ids."""
    changed = _tokenizer(WORDS)
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    changed.chat_template = "{{ messages[0]['content'] }}"
    assert changed.encode("SORRY") != _tokenizer(WORDS).encode("SORRY")
    assert tokenizer_fingerprint(changed) == tokenizer_fingerprint(_tokenizer(WORDS))
