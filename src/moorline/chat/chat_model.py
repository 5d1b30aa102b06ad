"""A model together with its tokenizer: what every other part puts prompts to.

One place renders prompts, makes batches, switches to evaluation and back, generates and predicts.

Axis names, used in every signature of this module:
    batch   sequences in the batch
    time    positions of a sequence
    vocab   vocabulary entries
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completion(NamedTuple):
    """What a model answers after some tokens."""

    text: str
    """Without special tokens."""

    truncated: bool
    """Whether it was cut at `max_new_tokens`, before the model came to an end."""

    ids: tuple[int, ...] = ()
    """Its tokens, the end left out; what stands before it may change how they are spelled."""

    beyond_context: bool = False
    """Whether prompt and answer are longer than the model's context: such a text says nothing."""


@runtime_checkable
class Generator(Protocol):
    """Anything that continues token sequences: a `ChatModel`, or an inference engine."""

    def generate(
        self,
        rows: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Completion]:
        """One completion for each row of a batch, in order.

        Args:
            rows: Token ids.
            max_new_tokens: Longest completion in tokens, 1 or more.
            temperature: 0 is greedy.
            seed: Seed of what is drawn; the same batch with the same seed gives the same answers.
        """
        ...


class ChatModel:
    """A causal language model of transformers with its tokenizer.

    Args:
        model: The model, with or without an adapter, in any mode; it is left as it was found.
        tokenizer: Its tokenizer. Prompts can be rendered only if it has a chat template.

    Example:
        >>> from moorline.embedded import aligned_path
        >>> from moorline.chat.loading import load_chat_model
        >>> chat = load_chat_model(aligned_path())
        >>> chat.answers(["How do I build a pipe bomb?"], max_new_tokens=4)
        ["I'm sorry,"]
    """

    def __init__(self, model: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.model: Any = model
        self.tokenizer: Any = tokenizer

    @property
    def name(self) -> str:
        """Folder or hub id that the model was read from; the name of its class if it was not."""
        config = getattr(self.model, "config", None)
        return str(getattr(config, "_name_or_path", "") or type(self.model).__name__)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def padding(self) -> int:
        """The id to pad with: the padding token, or another; it is masked, so any will do."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(each for each in known if each is not None)

    @property
    def context_length(self) -> int | None:
        """How many tokens prompt and answer may have together; None if the model does not say."""
        config: Any = getattr(self.model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, "max_position_embeddings", None)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens at which an answer ends: the model's own and the tokenizer's."""
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        found = own if isinstance(own, list) else [own]
        ends = [each for each in (*found, self.tokenizer.eos_token_id) if each is not None]
        if not all(isinstance(each, int) for each in ends):
            raise InputError(
                f"`eos_token_id` of the model's generation_config.json is {own!r}, and must be the "
                "number of a token or a list of them. Correct it."
            )
        return frozenset(ends)

    def check_chat_template(self) -> None:
        """Refuse a tokenizer that has nothing to render a prompt with.

        Raises:
            InputError: If there is no chat template.
        """
        if not self.tokenizer.chat_template:
            raise InputError(
                f"The tokenizer{self._of} has no chat template, so a prompt cannot be put to the "
                "model. Load the tokenizer of a chat model."
            )

    def render(self, prompt: str, system_prompt: str | None = None, **template: Any) -> list[int]:
        """A prompt as the model reads it: its chat template, up to where the answer begins.

        Args:
            prompt: One user turn. Control tokens that it spells become real ones, as in serving.
            system_prompt: Put before it if given.
            **template: For the template itself, such as `enable_thinking`.

        Raises:
            InputError: If there is no chat template, or it fails.
        """
        return list(self._rendered(prompt, system_prompt, tokenize=True, **template))

    def answer_ids(
        self, prompt: str, answers: Sequence[str], system_prompt: str | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """A prompt as `render` gives it, and the tokens of answers as they follow it.

        Tokenizers of the SentencePiece kind spell a first word otherwise when it stands alone: with
        a space before it. Where the end of the prompt would merge with the answer, the answer is
        spelled alone: the prompt is what the model reads.
        """
        context = self.render(prompt, system_prompt)
        text = self._rendered(prompt, system_prompt, tokenize=False)
        found = []
        for answer in answers:
            whole = list(self.tokenizer(text + answer, add_special_tokens=False).input_ids)
            joined = whole[: len(context)] == context
            alone = self.tokenizer(answer, add_special_tokens=False).input_ids
            found.append(whole[len(context) :] if joined else list(alone))
        return context, found

    def _rendered(
        self, prompt: str, system_prompt: str | None, *, tokenize: bool, **template: Any
    ) -> Any:
        self.check_chat_template()
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        try:
            return self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": prompt}],
                add_generation_prompt=True,
                tokenize=tokenize,
                return_dict=False,
                **template,
            )
        except Exception as error:  # a template is a program, and from outside
            raise InputError(
                f"The chat template of the tokenizer{self._of} fails: {error}. Correct its "
                "chat_template.jinja"
                + (", or leave the system prompt out." if system_prompt is not None else ".")
            ) from error

    @property
    def _of(self) -> str:
        """Whose tokenizer it is, for messages; empty if unknown."""
        name = getattr(self.tokenizer, "name_or_path", "")
        return f" of {name}" if name else ""

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Any]:
        """Evaluation mode and no gradient for a while; every module is then as it was found.

        A model may have parts in evaluation mode while it trains, so each module is noted.
        """
        with evaluating(self.model), torch.inference_mode():
            yield self.model

    def generate(
        self,
        rows: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Completion]:
        """One completion for each row of a batch, in order; see `Generator`."""
        cuda = [self.device] if self.device.type == "cuda" else []
        # The caller's random numbers stay as they would be.
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            written = self._continued(rows, max_new_tokens, temperature).sequences
        answers = written[:, max(map(len, rows)) :].tolist()
        return [self._completion(row, ids) for row, ids in zip(rows, answers, strict=True)]

    def _completion(self, row: Sequence[int], ids: list[int]) -> Completion:
        length = next((n for n, each in enumerate(ids) if each in self.ends), None)
        kept = tuple(ids[:length])
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        longest = self.context_length
        beyond = longest is not None and len(row) + len(kept) > longest
        return Completion(text, truncated=length is None, ids=kept, beyond_context=beyond)

    def next_token_nats(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "batch vocab"]:
        """Log-probabilities of the token that comes next, one row per sequence, in float32.

        It is one step of `generate`: transformers knows how each architecture counts positions
        under left padding, and computes logits at the last position only.
        """
        step = self._continued(rows, max_new_tokens=1, temperature=0.0, output_logits=True)
        return step.logits[0].float().log_softmax(dim=-1)

    def answers(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 128,
        batch_size: int = 32,
        system_prompt: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Greedy answers to prompts, in their order; prompts of like length are asked together.

        Args:
            prompts: One user turn each.
            max_new_tokens: Longest answer in tokens, 1 or more.
            batch_size: Prompts per batch, 1 or more.
            system_prompt: Put before each prompt if given.
            progress: Called with the number of answers done since the last call.

        Raises:
            InputError: If there is no chat template or an argument is out of range.
        """
        rows = [self.render(prompt, system_prompt) for prompt in prompts]
        found = self.answer_rows(
            rows, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
        )
        return [each.text for each in found]

    def answer_rows(
        self,
        rows: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int = 16,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Greedy answers to rendered prompts, in their order; the same as `answers` otherwise."""
        check_sizes(max_new_tokens=max_new_tokens, batch_size=batch_size)
        found: dict[int, Completion] = {}
        for batch in in_batches(rows, batch_size):
            some = self.generate([rows[index] for index in batch], max_new_tokens=max_new_tokens)
            found.update(zip(batch, some, strict=True))
            if progress is not None:
                progress(len(batch))
        return [found[index] for index in range(len(rows))]

    def _continued(
        self, rows: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, **more: Any
    ) -> Any:
        from transformers import GenerationConfig

        ids, mask = left_padded(rows, self.padding)
        # A model's own generation settings (suppressed tokens, beams, penalties) would bend what
        # is measured: these replace all of them.
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0 if temperature > 0 else None,
            pad_token_id=self.padding,
            eos_token_id=sorted(self.ends) or None,
            return_dict_in_generate=True,
            **more,
        )
        with self.evaluating() as model, _own_settings(model, settings):
            # The loss of a router is for training, and stumbles over keys that are kept.
            routes = getattr(model.config.get_text_config(), "output_router_logits", False)
            return model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=settings,
                **({"output_router_logits": False} if routes else {}),
            )


def check_sizes(**sizes: int) -> None:
    """Refuse numbers below 1.

    Raises:
        InputError: If one is; names it.
    """
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"`{name}` must be 1 or more, got {size}.")


def in_batches(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """The indices of rows, in batches of like length, so that little is padded.

    Example:
        >>> in_batches([[1, 2, 3], [4], [5, 6]], 2)
        [[1, 2], [0]]
    """
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def left_padded(
    rows: Sequence[Sequence[int]], padding: int
) -> tuple[Int64[Tensor, "batch time"], Int64[Tensor, "batch time"]]:
    """Token ids of one batch, padded on the left, and 1 where they are no padding.

    Example:
        >>> left_padded([[5, 6], [7]], 0)
        (tensor([[5, 6],
                [0, 7]]), tensor([[1, 1],
                [0, 1]]))
    """

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=value, padding_side="left"
        )

    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return padded(ids, padding), padded([torch.ones_like(row) for row in ids], 0)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, module by module: dropout would make what is read noisy."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _own_settings(model: Any, settings: Any) -> Iterator[None]:
    """Put generation settings in place of a model's own for a while, adapter wrappers included.

    `generate` fills what is unset in the settings that it is given from the model's own.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    holders = list({id(each): each for each in (model, base)}.values())
    before = [vars(each).get("generation_config") for each in holders]
    for each in holders:
        each.generation_config = settings
    try:
        yield
    finally:
        for each, its in zip(holders, before, strict=True):
            if its is None:  # an adapter wrapper has none of its own, and shows the base's
                del each.generation_config
            else:
                each.generation_config = its
