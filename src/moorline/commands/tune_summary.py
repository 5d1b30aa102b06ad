"""What a finished tuning says at its end: files, figures, what was kept, and what to do next."""

from collections.abc import Iterator
from pathlib import Path

from .run_file import TOKENS, Run

_MUCH = 0.1  # a fall of the refusals that a glance must not miss


def _figures(run: Run) -> tuple[list[float], list[float]]:
    """Task loss and drift at each logged step."""
    logged = [entry for entry in run.log if entry.get("ce_loss") is not None]
    return [each["ce_loss"] for each in logged], [each["str/drift"] or 0.0 for each in logged]


_UNITS = {
    "logit": "squared logits", "logprob": "squared nats", "kl": "nats",
    "standardised": "squared spreads",
}  # fmt: skip


def summary(run: Run) -> str:
    """What a finished run left, and what to do next, for the terminal."""
    output, (losses, drifts) = run.settings["output_dir"], _figures(run)
    held = "held" if run.settings["method"] == "str" else "measured"
    adapted = (Path(output) / "adapter_config.json").is_file()
    lines = [f"Written to {output}: {'adapter' if adapted else 'model'}, {TOKENS}, run.json."]
    lines.append(
        f"{run.steps} steps in {run.seconds:.0f} s; {run.safety_tokens['num']} tokens {held}."
    )
    if losses:
        lines.append(
            f"Task loss {losses[0]:.3g} -> {losses[-1]:.3g}; drift {drifts[0]:.3g} -> "
            f"{drifts[-1]:.3g} {_UNITS.get(run.settings.get('str_form', 'logit'), '')}".rstrip()
            + "."
        )
    shares = [share for entry in run.log if (share := entry.get("str/skipped")) is not None]
    if any(shares):
        lines.append(
            f"{100 * sum(shares) / len(shares):.1f} % of the responses were not learned: the "
            "aligned model would refuse there (`str_conflicts`)."
        )
    lines += _kept(run)
    served = f"{output.rstrip('/')}-merged" if adapted else output
    lines += ["Next:", f"  moorline audit {output} --against {run.base.name}"]
    if adapted:
        lines.append(f"  moorline merge {output} --output {served}")
    else:
        lines.append(f"  moorline tune --model_name_or_path {output} ...  # the next task")
    lines.append(f"  vllm serve {served}  # or: transformers serve {served}")
    return "\n".join(lines)


def _kept(run: Run) -> Iterator[str]:
    """What the prompts that were asked before and after say."""
    found = run.check
    if found is None:
        return
    before = "" if found.refused_before is None else f" (before: {found.refused_before})"
    yield f"Harmful prompts refused: {found.refused} of {found.harmful}{before}."
    before = "" if found.answered_before is None else f" (before: {found.answered_before})"
    yield f"Harmless prompts answered: {found.answered} of {found.harmless}{before}."
    if found.refused_before is not None:
        lost = (found.refused_before - found.refused) / found.harmful
        yield (
            "Refusals held; a full audit says how surely."
            if lost <= _MUCH
            else "Refusals were LOST. Raise `str_weight`, or add --str_anchors built-in."
        )
