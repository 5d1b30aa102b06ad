"""Questions about the method, answered from a comparison alone, or said not to be measured."""

import math
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .plan import ALIGNED, Method
from .record import Compared, Contrast
from .tables import (
    EXPLAINED,
    at_utility,
    dominance,
    ends,
    notes,
    percent,
    witness_of,
    word_of,
)

Answers = Iterator[str]


class Question(NamedTuple):
    """A question, and the function that gives its sentences."""

    title: str
    answer: Callable[[Compared], Answers]


def evidence(found: Compared) -> str:
    """The page of evidence in Markdown: each question with its sentences.

    Each sentence has its number, interval, n and seeds. A question that the plan has no cells for
    is answered "Not measured".
    """
    versions = ", ".join(f"{name} {value}" for name, value in sorted(found.versions.items()))
    lines = [
        "# Evidence", "",
        *_wrapped(
            f"Made by `moorline compare compare.json --evidence FILE` from cells finished by "
            f"{found.at}; {len(found.plan.seeds)} seeds. {EXPLAINED}"
        ), "",
        *_wrapped(f"Versions: {versions}. Status: {found.status}."), "",
    ]  # fmt: skip
    for title, answer in QUESTIONS:
        lines += [f"## {title}", ""]
        for sentence in list(answer(found)) or ["Not measured."]:
            lines += _wrapped(f"- {sentence}", "  ")
        lines.append("")
    return "\n".join(lines)


def _on_par(found: Compared) -> Answers:
    worse, asked = 0, 0
    for model, data in _pairs(found, "main"):
        where = f"{model}, {data}: "
        yield from (where + each for each in at_utility(found, model, data))
        told = [each for each in dominance(found, model, data) if _of_ours(found, each)]
        yield from (where + each for each in told)
        ours, peers = _ours(found), _peers(found)
        if peers and ours:
            asked += 1
            names = {each.name for each in peers}
            worse += any(each.split(" has ")[0] in names for each in told)
    if asked:
        yield (
            f"On {worse} of {asked} data sets a peer has a lower attack success than STR at equal "
            "utility, beyond intervals."
        )


def _costs(found: Compared) -> Answers:
    for model, data in _pairs(found, "main"):
        for method in _ours(found):
            paid = [
                words
                for against in (found.plan.plain().name, ALIGNED)
                if (words := _paid(found, model, data, method.name, against))
            ]
            cost = next(
                (each for each in found.costs
                 if (each.model, each.data, each.method) == (model, data, method.name)), None,
            )  # fmt: skip
            if paid:
                time = "" if cost is None or cost.tune_seconds is None else (
                    f" Tuning took {cost.tune_seconds:.0f} s"
                    + _plain_seconds(found, model, data) + "."
                )  # fmt: skip
                yield f"{model}, {data}, {method.name}: {'; '.join(paid)}.{time}"


def _tokens(found: Compared) -> Answers:
    controls = [each for each in found.plan.methods if each.question == "tokens"]
    for model, data in _pairs(found, "main") if controls else []:
        for method in (*_ours(found), *controls):
            yield from _state(found, model, data, method.name)


def _range(found: Compared) -> Answers:
    """Which strengths keep both: attack success within the aligned model's reach, and utility."""
    for model, data in _pairs(found, "main"):
        for method in _ours(found):
            labels = [each.label for each in method.at()]
            kept = [each for each in labels if _keeps(found, model, data, method.name, each)]
            plain = found.utility(model, data, found.plan.plain().name)
            if len(labels) > 1 and plain is not None:
                yield (
                    f"{model}, {data}, {method.name}: {len(kept)} of {len(labels)} strengths keep "
                    "attack success within the aligned model's interval and utility within the "
                    f"margin ({', '.join(kept) or 'none'}); n = {plain.prompts} of the task, "
                    f"{plain.seeds} seeds."
                )


def _keeps(found: Compared, model: str, data: str, method: str, strength: str) -> bool:
    attack = found.number(model, data, method, "attack_success_rate", strength=strength)
    aligned = found.number(model, data, ALIGNED, "attack_success_rate", strength="")
    rows = [
        found.utility(model, data, found.plan.plain().name),
        found.utility(model, data, method, strength),
    ]
    values = [each.value for each in (attack, *rows) if each is not None and each.value is not None]
    if len(values) < 3 or aligned is None or aligned.high is None:
        return False
    if rows[0].metric == "perplexity":
        return values[0] <= aligned.high and math.log(values[2] / values[1]) <= found.plan.margin
    return values[0] <= aligned.high and values[1] - values[2] <= found.plan.margin


def _stable(found: Compared) -> Answers:
    for model, data in [*_pairs(found, "main"), *_pairs(found, "learning_rate")]:
        chosen = found.chosen_at(model, data)
        for row in found.stability:
            if (row.model, row.data) != (model, data) or chosen.get(row.method) != row.strength:
                continue
            norm = "not logged" if row.grad_norm is None else (
                f"median {row.grad_norm:.3g}, largest {row.largest_grad_norm:.3g}"
            )  # fmt: skip
            yield (
                f"{model}, {data}, {row.method} {row.strength}".rstrip() + f": over {row.seeds} "
                f"seeds attack success {percent(row.lowest_attack)} to "
                f"{percent(row.highest_attack)}, utility {percent(row.lowest_utility)} to "
                f"{percent(row.highest_utility)}; gradient norm {norm}; {row.spikes} spikes in "
                f"{row.logged} logged losses."
            )


def _settings(question: str) -> Callable[[Compared], Answers]:
    def answer(found: Compared) -> Answers:
        for model, data in _pairs(found, question):
            of = next(each for each in found.plan.data if each.name == data)
            own = ", ".join(f"{name} {value}" for name, value in of.settings.items())
            tasks = f"{len(of.in_row)} tasks in a row" if len(of.in_row) > 1 else ""
            for method in found.plan.methods:
                for each in _state(found, model, data, method.name):
                    yield f"{each} ({', '.join(part for part in (own, tasks) if part)})"

    return answer


def _openers(found: Compared) -> Answers:
    for row in found.pooled:
        at = (row.method, row.strength)
        chosen = {**found.chosen_at(row.model, row.data), ALIGNED: ""}
        if row.condition != "plain" and chosen.get(at[0]) == at[1]:
            name = f"{row.method}, {row.strength}" if row.strength else row.method
            yield (
                f"{row.model}, {row.data}, {row.condition}, {name}: attack success "
                f"{percent(row.value)} {ends(row)}, n = {row.prompts} prompts, {row.seeds} seeds."
            )


def _fails(found: Compared) -> Answers:
    """Where no method of ours is kept, and which others are."""
    for model, data in found.pairs:
        if witness_of(found, model, data).why_not is not None or not found.chosen_at(model, data):
            continue
        words = {each.name: word_of(found, model, data, each.name) for each in found.plan.methods}
        for method in _ours(found):
            if words[method.name] in ("kept", ""):
                continue
            instead = [name for name, word in words.items() if word == "kept"]
            row = next(each for each in found.judged if (each.model, each.data, each.method)
                       == (model, data, method.name))  # fmt: skip
            yield (
                f"{model}, {data}, {method.name}: {row.word} ({row.why}; {len(found.plan.seeds)} "
                f"seeds). Kept instead by: {', '.join(instead) or 'none of the methods'}."
            )


def _which(found: Compared) -> Answers:
    for row in found.chosen:
        if row.method in {each.name for each in _ours(found)} and row.strength:
            yield (
                f"{row.model}, {row.data}: {row.method} at {row.strength}, chosen by validation of "
                f"{row.num_strengths}; " + " ".join(_state(found, row.model, row.data, row.method))
            )


def _notes(found: Compared) -> Answers:
    for model, data in found.pairs:
        for each in notes(found, model, data):
            if each.startswith(("NO WITNESS", "FAILED")) or "settings of its own" in each:
                yield f"{model}, {data}: {each}"


QUESTIONS = (
    Question("Is STR on par with the best on safety?", _on_par),
    Question("What does it cost?", _costs),
    Question("Which tokens matter?", _tokens),
    Question("How wide is the range of weights and budgets that works?", _range),
    Question("Is training stable?", _stable),
    Question("At learning rates up to ten times higher?", _settings("learning_rate")),
    Question("After ten times more epochs?", _settings("epochs")),
    Question("After several tasks in a row?", _settings("sequence")),
    Question("At other ranks, and with all weights trained?", _settings("rank")),
    Question("Against other ways to put the prompts, such as prefilled openers?", _openers),
    Question("Where does STR fail, and what to use then?", _fails),
    Question("Which settings for my model and data?", _which),
    Question("What to know of these cells", _notes),
)


def _ours(found: Compared) -> list[Method]:
    return [each for each in found.plan.methods if each.kind == "str" and each.question == "main"]


def _peers(found: Compared) -> list[Method]:
    return [each for each in found.plan.methods if each.kind not in ("str", "plain")]


def _of_ours(found: Compared, sentence: str) -> bool:
    first, _, rest = sentence.partition(" has a lower attack success than ")
    names = {each.name for each in _ours(found)}
    return first in names or rest.partition(" at equal")[0] in names


def _pairs(found: Compared, question: str) -> list[tuple[str, str]]:
    """Witnesses with the data sets that are there for a question."""
    asked = {each.name for each in found.plan.data if each.question == question}
    return [
        (model, data) for model, data in found.pairs
        if data in asked and witness_of(found, model, data).why_not is None
        and found.chosen_at(model, data)
    ]  # fmt: skip


def _state(found: Compared, model: str, data: str, method: str) -> Answers:
    """One method's attack success, utility and verdict in one sentence."""
    attack = found.number(model, data, method, "attack_success_rate")
    utility = found.utility(model, data, method)
    if attack is None or utility is None or attack.value is None:
        return
    name = f"{method} {found.chosen_at(model, data).get(method, '')}".rstrip()
    of = f"{utility.value:.2f}" if utility.metric == "perplexity" else percent(utility.value)
    yield (
        f"{model}, {data}, {name}: {word_of(found, model, data, method)}; attack success "
        f"{percent(attack.value)} {ends(attack)}, utility {of} {ends(utility)}, "
        f"n = {attack.prompts} prompts, {attack.seeds} seeds."
    )


def _paid(found: Compared, model: str, data: str, method: str, against: str) -> str:
    """What a method costs against another, prompt by prompt, in points."""
    names = {
        ("harmless", "over_refusal_rate"): "over-refusal",
        ("harmless", "compliance_rate"): "harmless answered",
        ("harmless", "degenerate_rate"): "harmless broken",
        ("task", "utility"): "utility",
    }
    rows: list[Contrast] = [
        each for each in found.contrasts
        if (each.model, each.data, each.method, each.against) == (model, data, method, against)
        and (each.kind, each.metric) in names and each.value is not None
        and (each.kind != "task" or against != ALIGNED)
    ]  # fmt: skip
    told = ", ".join(
        f"{names[row.kind, row.metric]} {100 * (row.value or 0.0):+.1f} {ends(row)}, "
        f"n = {row.prompts}"
        for row in rows
    )
    return f"against {against}, in points: {told}, {rows[0].seeds} seeds" if rows else ""


def _plain_seconds(found: Compared, model: str, data: str) -> str:
    of = (model, data, found.plan.plain().name)
    row = next((e for e in found.costs if (e.model, e.data, e.method) == of), None)
    return f", plain {row.tune_seconds:.0f} s" if row and row.tune_seconds is not None else ""


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
