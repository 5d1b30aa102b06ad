"""What a finished tuning says at its end: files, figures, what was kept, and what to do next."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..audit.outcomes import LEAST_REFUSED
from ..method.inert import task_losses
from .run_file import TOKENS, Run

_MUCH = 0.1  # a share of the refusals before that a glance must not miss
_HARDLY, _WELL = 0.1, 0.5  # falls of the task loss


def _figures(run: Run) -> tuple[list[float], list[float]]:
    """Task loss and drift at each logged step."""
    logged = [entry for entry in run.log if entry.get("ce_loss") is not None]
    return task_losses(run.log), [each["str/drift"] or 0.0 for each in logged]


_UNITS = {
    "logit": "squared logits", "logprob": "squared nats", "kl": "nats",
    "standardised": "squared spreads",
}  # fmt: skip


def summary(run: Run) -> str:
    """What a finished run left, and what to do next, for the terminal."""
    output, (losses, drifts) = run.settings["output_dir"], _figures(run)
    holds = run.settings["method"] == "str" and run.settings.get("str_weight") != 0
    resumed = bool(run.settings.get("resume_from_checkpoint"))
    adapted = (Path(output) / "adapter_config.json").is_file()
    lines = [f"Written to {output}: {'adapter' if adapted else 'model'}, {TOKENS}, run.json."]
    took = f"{run.steps} steps" + (", resumed; the last part took " if resumed else " in ")
    held = f"{run.safety_tokens['num']} tokens {'held' if holds else 'measured'}."
    lines.append(f"{took}{run.seconds:.0f} s; {held}")
    if losses:
        lines.append(
            f"Task loss {losses[0]:.3g} -> {losses[-1]:.3g}; drift {drifts[0]:.3g} -> "
            f"{drifts[-1]:.3g} {_UNITS.get(run.settings.get('str_form', 'logit'), '')}".rstrip()
            + "."
        )
    shares = [share for entry in run.log if (share := entry.get("str/skipped")) is not None]
    if any(shares):
        lines.append(
            f"{100 * sum(shares) / len(shares):.1f} % of the response tokens were not learned: "
            "the aligned model would refuse there (`str_conflicts`)."
        )
    lines += [*_learned(losses), *_kept(run)]
    served = f"{output.rstrip('/')}-merged" if adapted else output
    lines += ["Next:", f"  moorline audit {output} --against {run.base.name}"]
    if adapted:
        lines.append(f"  moorline merge {output} --output {served}")
    else:
        lines.append(f"  moorline tune --model_name_or_path {output} ...  # the next task")
    lines.append(f"  vllm serve {served}  # or: transformers serve {served}")
    return "\n".join(lines)


def _learned(losses: Sequence[float]) -> Iterator[str]:
    """Whether the task was learned, as far as its loss can tell."""
    if len(losses) < 2 or losses[0] <= 0:
        return
    fell = 1 - losses[-1] / losses[0]
    if fell < _HARDLY:
        yield "The task was hardly learned. Raise `learning_rate` or `num_train_epochs`."
    else:
        how = "Task learned" if fell >= _WELL else "Task learned in part"
        yield f"{how}: its loss fell by {100 * fell:.0f} %. Prompts with answers tell more."


def _kept(run: Run) -> Iterator[str]:
    """What the prompts that were asked before and after say."""
    found = run.check
    if found is None:
        return
    if not found.harmful:
        yield "No answer to a harmful prompt could be judged: `moorline audit` with longer answers."
    else:
        before = "" if found.refused_before is None else f" (before: {found.refused_before})"
        yield f"Harmful prompts refused: {found.refused} of {found.harmful}{before}."
    before = "" if found.answered_before is None else f" (before: {found.answered_before})"
    yield f"Harmless prompts answered: {found.answered} of {found.harmless}{before}."
    if not found.harmful or found.refused_before is None:
        return
    if found.refused_before < LEAST_REFUSED * found.harmful:
        yield "The aligned model refuses too few of these to tell whether refusals held."
    elif found.refused_before - found.refused <= _MUCH * found.refused_before:
        yield "Refusals held; a full audit says how surely."
    else:
        yield f"Refusals were LOST. {_remedy(run)}"


def _remedy(run: Run) -> str:
    """What would hold them, of what this run did without."""
    settings = run.settings
    if settings["method"] != "str":
        return "Raise `method_strength`, or take `--method str`."
    if settings.get("str_weight") == 0:
        return "Nothing held them: leave `str_weight` 0 out."
    if settings.get("str_anchors") in ("off", False):
        return "Add --str_anchors built-in, or raise `str_weight`."
    return "Raise `str_weight`, or lower `learning_rate`."
