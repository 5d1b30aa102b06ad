"""What hosts are given by name, without any host."""

import json
from dataclasses import fields

import pytest

from moorline import InputError, STRConfig, STRSettings
from moorline.hosts import given


def test_the_names_are_those_of_tune_but_for_what_trl_alone_has():
    of_tune = {each.name for each in fields(STRConfig) if each.name.startswith("str_")}
    assert of_tune - set(given.NAMES) == {"str_plain_text"}
    assert set(given.NAMES) <= of_tune


def test_what_is_given_is_read_and_what_is_not_keeps_its_default(tokens_file):
    found = given.read({
        "str_tokens": str(tokens_file), "str_form": "logprob", "str_weight": None,
        "str_reference_model": "org/aligned", "learning_rate": 1.0,
    })  # fmt: skip
    assert found.settings == STRSettings(form="logprob")
    assert found.reference_model == "org/aligned"
    assert found.safety_tokens.ids == (10, 17, 24, 31, 38)


def test_a_bare_off_in_yaml_is_off(tokens_file):
    """YAML reads it as false."""
    found = given.read({"str_tokens": str(tokens_file), "str_form": "logit", "str_anchors": False})
    assert found.settings.anchors == "off"


def test_nothing_given_is_off_and_tokens_are_on():
    assert not given.is_on({"learning_rate": 1e-4, "str_weight": None})
    assert given.is_on({"str_tokens": "safety_tokens.json"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"str_wieght": 1, "str_tokens": "x"}, r"'str_wieght'.*Did you mean 'str_weight'"),
        ({"str_weight": 1}, r"`str_weight` is given without `str_tokens`.*moorline mine MODEL"),
        ({}, r"`str_tokens` is missing"),
        ({"str_weight": -1.0, "str_tokens": "x"}, r"`str_weight` must be a number of 0 or more"),
        ({"str_tokens": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_that_was_written(values, words):
    with pytest.raises(InputError, match=words):
        given.read(values)


def test_a_damaged_file_of_tokens_is_refused(tokens_file):
    values = json.loads(tokens_file.read_text())
    tokens_file.write_text(json.dumps({**values, "ids": [1, 1, 2, 3, 4]}))
    with pytest.raises(InputError, match="tokens"):
        given.read({"str_tokens": str(tokens_file)})
