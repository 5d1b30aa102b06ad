"""Rows that are longer than training reads, told of rather than cut without a word."""

import logging
from typing import TYPE_CHECKING

import pyarrow.compute

from ..errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)


def tell_of_cut_rows(
    whole: "Dataset", prepared: "Dataset", max_length: int, *, packing: bool, name: str
) -> None:
    """Say how many rows `max_length` cuts.

    Args:
        whole: The rows tokenized, none of them cut.
        prepared: The rows as training reads them.
        max_length: Tokens after which a row is cut.
        packing: Whether several rows stand in one of `prepared`.
        name: What the data is called: "train".

    Raises:
        InputError: If it cuts off every response.
    """
    lengths = pyarrow.compute.list_value_length(whole.with_format("arrow")["input_ids"])  # pyright: ignore
    longest = pyarrow.compute.max(lengths).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    if not longest or longest <= max_length:
        return
    num = pyarrow.compute.sum(pyarrow.compute.greater(lengths, max_length)).as_py()  # pyright: ignore
    if not len(prepared):
        raise InputError(
            f"`max_length` {max_length} cuts off every response of the {name} data, whose "
            f"longest row has {longest} tokens. Set `max_length` to {longest}, or shorten the rows."
        )
    lost = 0 if packing else len(whole) - len(prepared)
    _log.warning(
        "%d of %d rows of the %s data are longer than `max_length` %d and are cut (the longest has "
        "%d tokens)%s.",
        num, len(whole), name, max_length, longest,
        f"; {lost} of them lose their whole response and are left out" if lost else "",
    )  # fmt: skip
