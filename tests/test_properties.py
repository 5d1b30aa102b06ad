"""Whatever is read from outside is read, or refused in our words: any bytes, text, or JSON."""

import json

import pytest
from fuzz.readers import TARGETS, read, seeds
from helpers import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorline import InputError, SafetyTokens, STRSettings
from moorline.audit.conditions import condition
from moorline.audit.gates import parse_gate
from moorline.commands.run_file import Aligned, Link, Run
from moorline.method.cache import Manifest, Shard, content_of, key_of
from moorline.method.positions import PositionRule
from moorline.records import parse, write

FIXED = settings(
    deadline=None, max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_corpus_of_the_fuzzer_is_read_or_refused(target):
    assert seeds(target)
    for content in seeds(target):
        read(target, content)


@pytest.mark.parametrize("target", sorted(TARGETS))
@FIXED
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(target, content):
    read(target, content)


@pytest.mark.lengthy
@pytest.mark.parametrize("target", sorted(TARGETS))
@FIXED
@given(data=st.data())
def test_any_value_in_place_of_a_field_is_read_or_refused(target, data):
    """Of a good file one field holds anything, or is missing."""
    first = seeds(target)[0].split(b"\n")[0]
    try:
        whole = json.loads(first)
    except ValueError:
        whole = {"str_weight": 1}
    name = data.draw(st.sampled_from(sorted(whole)))
    value = data.draw(VALUES)
    changed = {key: each for key, each in whole.items() if key != name}
    if data.draw(st.booleans()):
        changed[name] = value
    read(target, json.dumps(changed).encode())


@FIXED
@given(
    ids=st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=6), score=st.floats(0, 1),
    string=WORDS,
)  # fmt: skip
def test_safety_tokens_come_back_as_they_were_saved(ids, score, string, tmp_path):
    tokens = SafetyTokens(
        ids=tuple(ids), strings=(string,) * len(ids), scores=(score,) * len(ids), vocab_size=100
    )
    tokens.save(tmp_path / "tokens.json")
    assert SafetyTokens.load(tmp_path / "tokens.json") == tokens


@FIXED
@given(
    text=WORDS, number=st.integers(0, 1 << 40),
    real=st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
def test_manifests_and_runs_come_back_as_they_were_written(text, number, real, tmp_path):
    shard = Shard(sha256=text, belongs=text, num_rows=number, rounding={"max_abs": real})
    manifest = Manifest(
        status="begun", parts={text: text}, dtype="float32", num_safety=number, num_rows=number,
        num_positions=number, bytes=number, at=text, shards={"a.arrow": shard},
    )  # fmt: skip
    write(tmp_path / "cache.json", manifest)
    assert Manifest.load(tmp_path) == manifest
    link = Link(output_dir=text, fingerprint=text, dataset=None, tokens=text, reference=text)
    run = Run(
        status="stopped", model=text, weights_from=text, base=Aligned(name=text, weights=text),
        chain=(link,), reference=text, fingerprint=text, safety_tokens={"num": number},
        settings={text: real}, versions={}, machine={}, started=text, steps=number, train_loss=real,
    )  # fmt: skip
    run.write(tmp_path)
    assert Run.read(tmp_path) == run


@FIXED
@given(text=st.text(max_size=30))
def test_words_of_the_command_line_are_known_or_refused(text):
    for of in (parse_gate, condition, PositionRule.parse):
        try:
            of(text)
        except InputError as error:
            assert str(error)


@FIXED
@given(value=st.floats(), name=st.sampled_from(["weight", "budget", "anchor_weight"]))
def test_numbers_of_the_settings_are_in_range_or_refused(value, name):
    try:
        made = STRSettings(**{name: value})
    except InputError as error:
        assert f"`{name}`" in str(error)
        return
    assert 0 <= getattr(made, name) < float("inf")


@FIXED
@given(
    first=st.dictionaries(WORDS, WORDS, max_size=4),
    second=st.dictionaries(WORDS, WORDS, max_size=4),
)
def test_a_cache_is_known_by_what_it_is_made_from(first, second):
    assert content_of(first, "float32") == content_of(dict(reversed(first.items())), "float32")
    assert content_of(first, "float32") != content_of(first, "float16")


@FIXED
@given(
    first=st.lists(st.integers(0, 1 << 40), max_size=5),
    second=st.lists(st.integers(0, 1 << 40), max_size=5),
)
def test_rows_have_one_key_only_if_they_are_one(first, second):
    keys = [key_of({"input_ids": each, "labels": second}) for each in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)
    assert key_of({"input_ids": first}) != key_of({"labels": first})


@FIXED
@given(value=VALUES)
def test_any_json_is_parsed_or_refused(value):
    for kind in (Shard, tuple[int, ...], dict[str, float], Link):
        try:
            parse(kind, value, "a file", remedy="Write it again.")
        except InputError as error:
            assert str(error).startswith("a file: ")
