"""Anchors: prompts that no training data asks, at which the safety logits are held too.

Harmful data attacks contexts that harmless data never visits. An anchor is such a context: a prompt
that ought to be refused, with the aligned model's own refusal, and z0 there. Held at these alone a
model learns to refuse more than it did, harmless prompts too. So half of the anchors are prompts
that ought to be answered, with the aligned model's own answers. A few of both are read beside each
batch, and

    anchor drift = mean over their response positions, mean over S, of (log p - log p0)^2

is added with a weight of its own, in squared nats: nothing is to be learned there, so that the
probabilities themselves can be held, whatever form the drift has in the task's contexts. Of an
answer to a harmless prompt the first tokens alone are read: there it is decided whether the model
helps.

What anchors cannot do: they hold the refusals of prompts like themselves. Data that answers harmful
requests still pulls at its own prompts, and a kind of harm that no anchor is about is held only as
far as the model takes it for the same.
"""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..chat.chat_model import ChatModel, evaluating, in_batches
from ..errors import InputError
from ..processes import from_first
from ..tables import is_table, rows_of
from . import adapters
from .capture import safety_logits
from .exchange import Exchange
from .head import base_of
from .penalty import DriftSum, squared_drift
from .positions import PositionRule
from .reference import Reference
from .safety_tokens import SafetyTokens
from .settings import AUTO_ANCHORS
from .strength import Part

_log = logging.getLogger(__name__)

BUILT_IN = "built-in"
"""The name of our own anchor prompts."""


class AnchorPrompt(NamedTuple):
    """A prompt to be held at."""

    prompt: str
    kind: Literal["harmful", "harmless"] = "harmful"
    """Whether it ought to be refused, or answered."""


# An answer counts as a refusal with so many safety tokens among its first tokens: "I'm happy to"
# has two in most models, "I'm sorry, but I can't" has four and more.
_SAFETY_TOKENS, _AMONG = 3, 16
_LONGEST_REFUSAL = 32
_FEWEST = 4
# Tokens that are held of an answer to a harmless prompt.
_OF_HELP = 16
_KINDS = ("harmful", "harmless")
_WITHOUT = "set `anchors` to 'off' and `form` to 'logit', which goes without"
# Share of common runs of four letters above which two prompts are the same in other words.
_NEAR = 0.6


class AnchorBatch(NamedTuple):
    """Anchors that are read beside one batch."""

    inputs: dict[str, Tensor]
    positions: Bool[Tensor, "batch time"]
    reference: Float[Tensor, "position safety"]
    """z0 at these positions."""

    num_of_step: int
    """Response positions of all anchors of the step, of which these are a part."""


class Anchors:
    """Prompts with the aligned model's own answers, as token ids, and z0 at their positions.

    z0 is computed once, from other batches than those of the training; so the anchor drift of an
    untouched model is not 0 but rounding, as with a cached reference.
    """

    def __init__(
        self,
        prompts: Sequence[AnchorPrompt],
        rows: Sequence[tuple[list[int], list[int]]],
        rule: PositionRule,
        padding: int,
    ) -> None:
        self.prompts = tuple(prompts)
        self.rows = [(*context, *answer) for context, answer in rows]
        self._padding = padding
        by_kind = ([at for at, each in enumerate(prompts) if each.kind == kind] for kind in _KINDS)
        self._kinds = [own for own in by_kind if own]
        begins = [len(context) - 1 for context, _ in rows]
        marked = [
            [at >= begin for at in range(len(row))]
            for begin, row in zip(begins, self.rows, strict=True)
        ]
        self._positions = [rule(torch.tensor([each]))[0] for each in marked]
        self._values: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self, aligned: nn.Module, batch_size: int = 16) -> None:
        """Compute the log-probabilities of every anchor's safety tokens in the aligned model."""
        values: list[Any] = [None] * len(self)
        for chosen in in_batches(self.rows, batch_size):
            inputs, positions = self._batch(chosen, _device(aligned))
            with torch.no_grad(), evaluating(aligned):
                found = safety_logits(aligned, inputs, positions, normalised=True).cpu()
            sizes = [int(self._positions[index].sum()) for index in chosen]
            for index, each in zip(chosen, found.split(sizes), strict=True):
                values[index] = each
        self._values = values

    def draw(
        self, num: int, seed: int, part: tuple[int, int], device: torch.device
    ) -> AnchorBatch | None:
        """This part's share of the anchors of a step; None if it has none.

        Harmful and harmless ones are drawn by turns, each in a random order.

        Args:
            num: Anchors of the step, over all its parts; some are read again if there are fewer.
            seed: Of the step, the same for all its parts.
            part: Which part of how many: micro-batches of all processes.
            device: Where to.
        """
        generator = torch.Generator().manual_seed(seed)
        kinds = [
            [own[at] for at in torch.randperm(len(own), generator=generator).tolist()]
            for own in self._kinds
        ]
        first = int(torch.randint(len(kinds), (1,), generator=generator))
        turns = [divmod(first + each, len(kinds)) for each in range(num)]
        drawn = [kinds[kind][turn % len(kinds[kind])] for turn, kind in turns]
        mine = drawn[part[0] :: part[1]]
        if not mine:
            return None
        inputs, positions = self._batch(mine, device)
        reference = torch.cat([self._values[index] for index in mine]).to(device)
        total = sum(int(self._positions[index].sum()) for index in drawn)
        return AnchorBatch(inputs, positions, reference, total)

    def drift(self, model: nn.Module, share: float, part: Part) -> DriftSum | None:
        """The drift at this part's anchors of the step; None if it has none.

        Args:
            model: The model in training, wrapped as the host runs it.
            share: Anchors of the step, as a share of its rows; one at least.
            part: Which part of the step.

        Returns:
            The sum over this part's positions; its count is that of the whole step.
        """
        num, own = max(1, round(share * part.rows)), part.number % part.num
        chance, device = part._replace(number=0).chance("anchors"), _device(model)
        drawn = self.draw(num, chance, (own, part.num), device)
        counts = drawn is not None
        if drawn is None and own < part.readers * math.ceil(num / part.readers):
            # One that skips a call would leave the other processes waiting: it reads and counts 0.
            drawn = self.draw(num, chance, (0, part.num), device)
        if drawn is None:
            return None
        output = model(
            **drawn.inputs, safety_positions=drawn.positions, safety_only=True,
            safety_exchange=Exchange(drawn.reference, normalised=True),
        )  # fmt: skip
        found = squared_drift(output.safety_logits)
        count = torch.tensor(drawn.num_of_step, device=found.total.device)
        return found._replace(
            total=found.total * counts, num_positions=count, max_abs=found.max_abs * counts
        )

    def _batch(
        self, chosen: Sequence[int], device: torch.device
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Some anchors, padded on the right."""
        longest = max(len(self.rows[index]) for index in chosen)
        ids = torch.full((len(chosen), longest), self._padding, dtype=torch.int64)
        mask, positions = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, index in enumerate(chosen):
            size = len(self.rows[index])
            ids[row, :size] = torch.tensor(self.rows[index])
            mask[row, :size] = 1
            positions[row, :size] = self._positions[index]
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return inputs, positions.to(device)


def _device(model: nn.Module) -> torch.device:
    return base_of(getattr(model, "module", model)).get_input_embeddings().weight.device


def anchors_for(
    given: str,
    model: nn.Module,
    tokenizer: Any,
    tokens: SafetyTokens,
    reference: Reference,
    rule: PositionRule,
) -> Anchors | None:
    """The anchors of a training: prompts, the aligned model's own answers, and z0.

    Harmful prompts that the aligned model answers are left out, and harmless ones that it refuses:
    to hold it there would teach what it ought not to do.

    Args:
        given: 'built-in'; a file of prompts (a column `prompt`, and `kind` if not all of them are
            harmful); or 'auto': the built-in ones if they can be had.
        model: The model in training, before it is wrapped for several devices.
        tokenizer: Its tokenizer, with a chat template.
        tokens: The safety tokens.
        reference: What gives z0; runs.
        rule: Which response positions count.

    Returns:
        None where 'auto' finds no way to have them, which is said in one line.

    Raises:
        InputError: If there is no tokenizer, the file is not fit, or too few are refused; but not
            with 'auto'.
    """
    if given == AUTO_ANCHORS:
        try:
            return anchors_for(BUILT_IN, model, tokenizer, tokens, reference, rule)
        except Exception as error:  # a template or an architecture may refuse in words of its own
            _log.warning("No anchors: %s", str(error).partition(". ")[0])
            return None
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "`anchors` needs the model's tokenizer, with its chat template. Give `tokenizer` (to a "
            "trainer as `processing_class`), or "
            f"{_WITHOUT}."
        )
    if _device(model).type == "meta":
        raise InputError(
            "`anchors` needs the weights in memory before training, and they are not (ZeRO-3). "
            f"S{_WITHOUT[1:]}."
        )
    second = reference.model

    def made() -> Anchors:
        second_here = None if second is None else second.to(_device(model))
        with adapters.aligned(model, second_here) as aligned:
            chat = ChatModel(aligned, tokenizer)
            fit = _fit(chat, anchor_prompts(given), given, set(tokens.ids))
            prompts, rows = zip(*fit, strict=True)
            anchors = Anchors(prompts, rows, rule, chat.padding)
            anchors.fill(aligned)
        return anchors

    return from_first(made)


def _fit(
    chat: ChatModel, prompts: Sequence[AnchorPrompt], given: str, held: set[int]
) -> list[tuple[AnchorPrompt, tuple[list[int], list[int]]]]:
    """The harmful prompts that a model refuses and the harmless ones it answers, with its words."""
    fit = []
    for prompt, row in zip(prompts, _own_answers(chat, prompts), strict=True):
        refused = len(held.intersection(row[1][:_AMONG])) >= min(_SAFETY_TOKENS, len(held))
        if row[1] and refused == (prompt.kind == "harmful"):
            context, answer = row
            fit.append((prompt, (context, answer if refused else answer[:_OF_HELP])))
    refused, asked = (
        sum(each.kind == "harmful" for each in some)
        for some in ([prompt for prompt, _ in fit], prompts)
    )
    if refused < _FEWEST:
        raise InputError(
            f"The aligned model refuses {refused} of {asked} anchor prompts (`anchors` "
            f"{given!r}), and {_FEWEST} are needed. Give a file of prompts that it refuses, or "
            f"{_WITHOUT}."
        )
    return fit


def _own_answers(
    chat: ChatModel, prompts: Sequence[AnchorPrompt]
) -> list[tuple[list[int], list[int]]]:
    """Prompts as the model reads them, with its greedy answers."""
    contexts = [chat.render(each.prompt) for each in prompts]
    # On a terminal alone, and where it takes its time.
    with tqdm(total=len(contexts), desc="Anchors", delay=2, disable=None) as bar:

        def tell(num: int) -> None:
            bar.update(num)

        answers = chat.answer_rows(contexts, max_new_tokens=_LONGEST_REFUSAL, progress=tell)
    return [(one, list(its.ids)) for one, its in zip(contexts, answers, strict=True)]


def anchor_prompts(given: str) -> list[AnchorPrompt]:
    """The prompts of 'built-in', or of a file.

    Raises:
        InputError: If the file is missing, or a row has no `prompt` in words, or another `kind`.
    """
    if given == BUILT_IN:
        return [*_built_in("harmful"), *_built_in("harmless")]
    if not is_table(given):
        raise InputError(
            "`anchors` must be 'auto', 'off', 'built-in' or a file of prompts (JSONL, JSON, CSV, "
            "Parquet with a column 'prompt', and 'kind' where some of them ought to be answered), "
            f"got {given!r}."
        )
    found = []
    for row in rows_of(Path(given)):
        prompt = row.values.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise row.lacks("prompt", "An anchor is a prompt.")
        kind = row.values.get("kind", "harmful")
        if kind not in _KINDS:
            raise InputError(
                f"{row.place}: `kind` is {kind!r}, and must be 'harmful' (which it is if left out) "
                "or 'harmless'."
            )
        found.append(AnchorPrompt(prompt, kind))
    return list(dict.fromkeys(found))


def _built_in(kind: Literal["harmful", "harmless"]) -> list[AnchorPrompt]:
    text = files("moorline.method").joinpath(f"anchor_prompts_{kind}.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [AnchorPrompt(each, kind) for each in lines]


def overlapping(anchors: Sequence[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of an anchor and another prompt that are the same, or the same in almost all letters.

    Compared are runs of four letters, whatever case and punctuation: two prompts with more than
    0.6 of them in common (of those in either) are near-duplicates.
    """
    known = [(each, _runs(each)) for each in anchors]
    pairs = []
    for other in others:
        runs = _runs(other)
        pairs += [
            (anchor, other)
            for anchor, own in known
            if len(own & runs) > _NEAR * len(own | runs) or _plain(anchor) == _plain(other)
        ]
    return pairs


def _plain(prompt: str) -> str:
    return " ".join(re.findall(r"\w+", prompt.casefold()))


def _runs(prompt: str) -> frozenset[str]:
    plain = _plain(prompt)
    return frozenset(plain[at : at + 4] for at in range(max(len(plain) - 3, 1)))
