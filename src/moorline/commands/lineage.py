"""Several fine-tunings in a row: what came before a run, and which model stays the reference.

A run that goes on from an earlier one is still held to the aligned model at the head of the chain,
or each link would let go of a little more. Every `run.json` says which model that is and what was
done since; a run that does not fit its chain is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..method.safety_tokens import SafetyTokens
from ..provenance import fingerprint, read_json

RUN = "run.json"
TOKENS = "safety_tokens.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a run starts from."""

    model: str
    """Folder or hub id of the weights to load."""

    adapter: str | None
    """Folder of the adapter to go on with."""

    base: str
    """Folder or hub id of the aligned model."""

    folder: Path | None
    """Where the run before left its files; None if there is none."""

    weights: str | None
    """Fingerprint of its weights, where an earlier run recorded it."""

    tokens: str | None
    """Fingerprint of the safety tokens of the chain, where there is one."""

    links: tuple[dict[str, Any], ...]
    """The runs before, first to last."""

    def safety_tokens(self, path: str | None) -> SafetyTokens | None:
        """The tokens in a file, or those of the run before; None if there is neither.

        Raises:
            InputError: If the chain was held with other tokens.
        """
        if path is None and self.folder is None:
            return None
        path = str(self.folder / TOKENS) if path is None and self.folder else str(path)
        tokens = SafetyTokens.load(path)
        if self.tokens is not None and tokens_fingerprint(tokens) != self.tokens:
            raise InputError(
                f"`str_tokens` {path} are other tokens than those that the runs before were held "
                f"with ({self.folder}). Leave `str_tokens` out to go on with them."
            )
        return tokens

    def check_base(self, weights: str) -> None:
        """Refuse an aligned model that is not the one that the chain began with.

        Args:
            weights: Fingerprint of the weights of what is now called `base`.

        Raises:
            InputError: If it differs from the recorded one.
        """
        if self.weights is not None and weights != self.weights:
            raise InputError(
                f"{self.base}: its weights are not those that the runs before were held to "
                f"({self.folder}), or are loaded in another dtype or quantisation. Put the aligned "
                "model back, load it as before, or start anew."
            )


def start_of(name: str) -> Start:
    """What a run of `name` starts from: a model, an adapter, or what an earlier run left.

    Args:
        name: Folder or hub id of a model; or the output folder of `moorline tune`; or the folder of
            a PEFT adapter.

    Raises:
        InputError: If it holds a run that is not finished, or one that says nothing of its base.
    """
    folder = Path(name).expanduser()
    adapter = folder / "adapter_config.json"
    base = (
        read_json(adapter, "adapter").get("base_model_name_or_path") if adapter.is_file() else None
    )
    # A checkpoint belongs to the run that wrote it.
    of_checkpoint = folder.name.startswith("checkpoint-") and (folder.parent / RUN).is_file()
    home = folder.parent if of_checkpoint else folder
    if not (home / RUN).is_file():
        model = base or name
        held = {"base": model, "folder": None, "weights": None, "tokens": None, "links": ()}
        return Start(model=model, adapter=name if base else None, **held)
    run = read_json(home / RUN, "run file")
    if run.get("status") != "finished" and not of_checkpoint:
        raise InputError(
            f"{name}: the run in this folder is not finished, so nothing can go on from it. Resume "
            "it first with --resume_from_checkpoint true."
        )
    if not isinstance(run.get("base"), dict) or not isinstance(run.get("chain"), list):
        raise InputError(
            f"{home / RUN} does not say which aligned model the run was held to. Give "
            "`model_name_or_path` a model, and this folder's model as `str_reference_model`."
        )
    return Start(
        model=base or name,
        adapter=name if base else None,
        base=run["base"]["name"],
        folder=home,
        weights=run["base"]["weights"],
        tokens=run["chain"][-1]["tokens"],
        links=tuple(run["chain"]),
    )


def tokens_fingerprint(tokens: SafetyTokens) -> str:
    """What a set of safety tokens is known by, whatever their order."""
    return fingerprint(map(str, sorted(tokens.ids)))
