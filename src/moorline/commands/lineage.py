"""Several fine-tunings in a row: what came before a run, and which model stays the reference.

A run on top of an earlier one is still held to the aligned model at the head of the chain, or each
link would let go of a little more. Every `run.json` says which model that is and what was done
since; a run that does not fit its chain is refused.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..method.safety_tokens import SafetyTokens
from ..provenance import fingerprint, read_json
from .run_file import RUN, TOKENS, Link, Run

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Where a model comes from, and what it is held to."""

    model: str
    """Folder or hub id of the weights to load."""

    adapter: str | None
    """Folder of the adapter to train further."""

    base: str
    """Folder or hub id of the aligned model."""

    folder: Path | None = None
    """Where the run before left its files; None if there is none."""

    weights: str | None = None
    """Fingerprint of the aligned model's weights, where an earlier run recorded it."""

    tokens: str | None = None
    """Fingerprint of the safety tokens of the chain, where there is one."""

    links: tuple[Link, ...] = ()
    """The runs before, first to last."""

    def safety_tokens(self, path: str | None) -> SafetyTokens | None:
        """The tokens in a file, or those of the run before, refused if they differ."""
        if path is None and self.folder is None:
            return None
        path = str(self.folder / TOKENS) if path is None and self.folder else str(path)
        tokens = SafetyTokens.load(path)
        if self.tokens is not None and tokens_fingerprint(tokens) != self.tokens:
            raise InputError(
                f"`str_tokens` {path} are other tokens than those that the runs before were held "
                f"with ({self.folder}). Leave `str_tokens` out to use those."
            )
        return tokens

    def check_base(self, weights: str) -> None:
        """Refuse weights of `base`, by their fingerprint, that the chain did not begin with."""
        if self.weights is not None and weights != self.weights:
            raise InputError(
                f"{self.base}: its weights are not those that the runs before were held to "
                f"({self.folder}), or are loaded in another dtype or quantisation. Put the aligned "
                "model back, load it as before, or begin anew."
            )


def lineage_of(name: str) -> Lineage:
    """What stands behind `name`: a model, an adapter, or what an earlier run left.

    Args:
        name: Folder or hub id of a model; or the output folder of `moorline tune`; or the folder of
            a PEFT adapter.

    Raises:
        InputError: If it holds a run that is not finished, or a damaged one, or an adapter that
            names no base.
    """
    folder = Path(name).expanduser()
    base = _base_of_adapter(folder)
    adapter = None if base is None else name
    # A checkpoint belongs to the run that wrote it.
    of_checkpoint = folder.name.startswith("checkpoint-") and (folder.parent / RUN).is_file()
    home = folder.parent if of_checkpoint else folder
    if not (home / RUN).is_file():
        if base is not None:
            _log.warning(
                "%s holds an adapter without a run.json, so nothing says which model was aligned; "
                "taken for it is %s without the adapter. If the adapter is what aligned it, merge "
                "the two first, and give the merged model.",
                name, base,
            )  # fmt: skip
        model = base or name
        return Lineage(model=model, adapter=adapter, base=model)
    run = Run.read(home)
    if run.status != "finished" and not of_checkpoint:
        raise InputError(
            f"{name}: the run in this folder is not finished, so nothing can follow it. Resume it "
            "first with --resume_from_checkpoint true."
        )
    if base is not None and not Path(base).is_dir():
        base = run.weights_from  # the whole path, where PEFT kept one from another folder
    return Lineage(
        model=base or name,
        adapter=adapter,
        base=run.base.name,
        folder=home,
        weights=run.base.weights,
        tokens=run.chain[-1].tokens,
        links=run.chain,
    )


def _base_of_adapter(folder: Path) -> str | None:
    """The model that an adapter in a folder stands on; None if there is no adapter."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    base = read_json(path, "adapter").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{path} names no base model ('base_model_name_or_path' is {base!r}). Write the base's "
            "folder or hub id there."
        )
    return base


def tokens_fingerprint(tokens: SafetyTokens) -> str:
    """What a set of safety tokens is known by, whatever their order."""
    return fingerprint(map(str, sorted(tokens.ids)))
