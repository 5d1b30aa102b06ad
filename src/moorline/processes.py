"""Several processes of one job, as `accelerate launch` and `torchrun` start them."""

import os
from collections.abc import Callable
from typing import TypeVar

from .errors import MoorlineError, PrerequisiteError

_Value = TypeVar("_Value")


def rank() -> int:
    """Which of its processes this one is, from 0; told by the launcher, before torch is loaded."""
    given = os.environ.get("RANK", "0")
    return int(given) if given.isdecimal() else 0


def from_first(compute: Callable[[], _Value]) -> _Value:
    """What the first process computes, in all of them.

    For what must be the same everywhere and only the first can be trusted with: under FSDP's
    `cpu_ram_efficient_loading` it alone has the weights before training.

    Args:
        compute: Called in the first process only; its value must be picklable.

    Raises:
        MoorlineError: What `compute` raised, in every process, so that none waits for the others.

    Example:
        >>> from_first(lambda: 6 * 7)
        42
    """
    import torch.distributed as together

    if not together.is_available() or not together.is_initialized():
        return compute()
    found: list = [None, None]
    failed: BaseException | None = None
    if together.get_rank() == 0:
        try:
            found[0] = compute()
        except MoorlineError as error:
            found[1] = failed = error
        except BaseException as error:
            found[1] = PrerequisiteError(f"The first process failed with {error!r}; see there.")
            failed = error
    together.broadcast_object_list(found, src=0)
    if failed is not None:
        raise failed
    if found[1] is not None:
        raise found[1]
    return found[0]
