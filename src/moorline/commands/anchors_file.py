"""`anchors.jsonl`: the prompts that a model was held at, which no audit of it may ask."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..audit.suites import Suite
from ..errors import InputError
from ..method.anchors import AnchorPrompt, Anchors, overlapping
from ..provenance import as_json, write_text
from ..tables import rows_of

ANCHORS = "anchors.jsonl"
"""Beside the weights: one prompt a line, with its kind."""


def read_anchors(folder: str | Path) -> list[AnchorPrompt]:
    """The prompts that a model in a folder was held at, in all its tunings; none if unknown."""
    path = Path(folder) / ANCHORS
    if not path.is_file() and path.parent.name.startswith("checkpoint-"):
        path = path.parent.parent / ANCHORS
    found = []
    for row in rows_of(path) if path.is_file() else ():
        if "prompt" not in row.values:
            raise row.lacks("prompt", "`moorline tune` writes one in every row: tune again.")
        kind = "harmless" if row.values.get("kind") == "harmless" else "harmful"
        found.append(AnchorPrompt(str(row.values["prompt"]), kind))
    return found


def write_anchors(folder: Path, anchors: Anchors | None, earlier: str) -> None:
    """Write the anchors of a tuning, and of the tunings before it, where there are any.

    Args:
        folder: The output folder.
        anchors: Those of this tuning.
        earlier: Folder of the model that was tuned.
    """
    held = anchors.prompts if anchors else ()
    prompts = dict.fromkeys([*read_anchors(earlier), *read_anchors(folder), *held])
    if prompts:
        write_text(folder / ANCHORS, "".join(as_json(each._asdict()) for each in prompts))


def check_apart(folder: str | Path, suites: Sequence[Suite]) -> None:
    """Refuse to ask what a model was held at: what it does there shows nothing.

    Raises:
        InputError: If a harmful or harmless prompt is an anchor, or nearly one; names both.
    """
    held = read_anchors(folder)
    for suite in suites:
        anchors = [each.prompt for each in held if each.kind == suite.kind]
        pairs = overlapping(anchors, [each.prompt for each in suite.prompts])
        if pairs:
            anchor, asked = pairs[0]
            raise InputError(
                f"{len(pairs)} prompts of suite {suite.name!r} are anchors that this model was "
                f"trained on ({Path(folder) / ANCHORS}), or nearly: {json.dumps(asked)} against "
                f"{json.dumps(anchor)}. What it does there shows nothing: leave them out of the "
                "suite, or tune with other `str_anchors`."
            )
