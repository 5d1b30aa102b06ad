"""Rows of a data set as a trainer takes them: in the chat template, with the responses marked.

`args` and `settings` are the settings of TRL's trainer with ours.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .conversation import conversation_of, mark_responses

_log = logging.getLogger(__name__)


def settle_responses(args: Any, dataset: Any, tokenizer: Any, formatting_func: Any) -> bool:
    """Settle `args.assistant_only_loss`; True if our rule says which tokens are responses."""
    sample = next(iter(dataset), None)
    if sample is None:
        raise InputError("`train_dataset` is empty: there is nothing to learn.")
    if "input_ids" in sample or formatting_func is not None:
        args.assistant_only_loss = bool(args.assistant_only_loss)
        return False
    in_template = _in_template(args, tokenizer)
    if isinstance(sample.get("prompt"), str) and isinstance(sample.get("completion"), str):
        if in_template:
            _log.info("'prompt' and 'completion' are put into the chat template as one turn each.")
        else:
            _log.warning(
                "'prompt' and 'completion' are trained on as plain text; an audit asks in the "
                "chat template."
            )
    conversational = conversation_of(sample, texts=in_template) is not None
    if args.assistant_only_loss is None:
        args.assistant_only_loss = conversational
        if not conversational and "prompt" not in sample:
            _log.warning(
                "The data is plain text, so every token counts as a response and is held. Use "
                "'messages' or 'prompt' and 'completion' columns to hold the responses only."
            )
    if args.assistant_only_loss and not conversational:
        raise InputError(
            "`assistant_only_loss` needs conversations, but the data has the columns "
            f"{', '.join(sample)}. Leave it out, or give a 'messages' column."
        )
    with_images = "image" in sample or "images" in sample  # which TRL tokenizes batch by batch
    return bool(args.assistant_only_loss) and not with_images


def prepared_row(
    row: Mapping[str, Any], settings: Any, tokenizer: Any, *, marks: bool
) -> dict[str, Any]:
    """A row as conversation; tokenized, with its responses marked, where they are ours to mark."""
    found = conversation_of(row, texts=_in_template(settings, tokenizer))
    if found is None:
        return dict(row)
    if marks:
        after = 0 if settings.completion_only_loss is False else found.num_prompt
        return mark_responses(tokenizer, found.messages, after=after, **found.variables)
    kept = {name: row[name] for name in row if name != "conversations"}
    if "prompt" in row:
        border = found.num_prompt
        return {**kept, "prompt": found.messages[:border], "completion": found.messages[border:]}
    return {**kept, "messages": found.messages}


def _in_template(settings: Any, tokenizer: Any) -> bool:
    """Whether a prompt and completion that are texts go into the chat template."""
    as_they_are = settings.str_plain_text or settings.completion_only_loss is False
    return bool(tokenizer.chat_template) and not as_they_are


def mapped(dataset: Any, function: Any, num_proc: int | None) -> Any:
    """A data set with its rows prepared."""
    sample = next(iter(dataset), None)
    if sample is None or (first := function(sample)) == dict(sample):
        return dataset
    more: Any = {"num_proc": num_proc} if hasattr(dataset, "num_rows") else {}
    gone = [each for each in sample if each not in first]
    return dataset.map(function, remove_columns=gone, **more)
