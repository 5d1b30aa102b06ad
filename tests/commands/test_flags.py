"""The flags of every command, frozen: scripts and configurations of users stand on them.

A flag that comes, goes or changes its default shows here. To accept that, write the list anew:
`python tests/commands/test_flags.py`, and say so in CHANGELOG.md.
"""

import dataclasses
import json
from pathlib import Path

import typer

from moorline.commands.cli import app

FROZEN = Path(__file__).parent / "flags.json"


def flags():
    """Each command's arguments and flags with their defaults; of `tune` those that are ours."""
    from moorline.commands.tune_method import MethodConfig
    from moorline.trainer import STRConfig

    found = {}
    for name, command in _commands(typer.main.get_command(app)):
        found[name] = {
            " ".join([*parameter.opts, *parameter.secondary_opts]): _plain(parameter.default)
            for parameter in command.params
        }
    found["tune"] |= {
        f"--{each.name}": _plain(each.default)
        for each in dataclasses.fields(STRConfig)
        if each.name.startswith("str_")
    }
    found["tune"] |= {
        f"--{each.name}": _plain(each.default) for each in dataclasses.fields(MethodConfig)
    }
    return found


def _commands(group, before=""):
    """Every command by its name; those of a group after the group's."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _plain(value):
    if callable(value) or value is dataclasses.MISSING:
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def test_no_flag_comes_goes_or_changes_unnoticed():
    assert flags() == json.loads(FROZEN.read_text(encoding="utf-8"))


def test_the_list_is_not_empty():
    assert {"demo", "mine", "tune", "audit", "report"} <= flags().keys()
    assert "--str_weight" in flags()["tune"]


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(flags(), indent=2) + "\n", encoding="utf-8")
