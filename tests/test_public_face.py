"""What a user meets first: the public names, their help, the version, completion, types."""

import importlib
import inspect
import pydoc
from importlib.resources import files

import pytest
from typer.testing import CliRunner

import moorline
from moorline.commands.cli import app

PUBLIC = ("moorline", "moorline.audit", "moorline.report", "moorline.embedded")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_once_and_documented(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert module.__doc__
    for each in module.__all__:
        value = getattr(module, each)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name}.{each}"


def test_dir_and_help_show_the_public_names_and_no_others():
    """`dir(moorline)` showed none of its names, since they are loaded when first asked for."""
    assert dir(moorline) == sorted(moorline.__all__)
    text = pydoc.plain(pydoc.render_doc(moorline))
    for name in moorline.__all__:
        assert name in text, name
    with pytest.raises(AttributeError, match="has no attribute 'penalty'"):
        moorline.penalty  # noqa: B018


def test_the_version_is_that_of_the_package():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"moorline {moorline.__version__}\n")


@pytest.mark.parametrize("words", [["-h"], ["audit", "-h"], ["export", "hub", "-h"]])
def test_help_has_its_short_flag(words):
    short, whole = (CliRunner().invoke(app, [*words[:-1], each]) for each in (words[-1], "--help"))
    assert short.exit_code == 0
    assert short.stdout == whole.stdout


def test_a_shell_can_complete_our_words():
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "--install-completion" in shown


def test_types_are_shipped():
    assert files("moorline").joinpath("py.typed").is_file()
