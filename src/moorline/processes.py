"""Several processes of one job, as `accelerate launch` and `torchrun` start them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

from .errors import MoorlineError, PrerequisiteError

_Value = TypeVar("_Value")

# One may judge, or answer its last prompts, for long while the others wait.
_PATIENCE = timedelta(days=7)


class Share(NamedTuple):
    """Which part of a job a process does."""

    process: int = 0
    num_processes: int = 1

    def has(self, number: int) -> bool:
        """Whether a piece of the job, by its number, is this process's."""
        return number % self.num_processes == self.process


WHOLE = Share()
"""All of it: one process."""


def rank() -> int:
    """Which of its processes this one is, from 0; told by the launcher, before torch is loaded."""
    given = os.environ.get("RANK", "0")
    return int(given) if given.isdecimal() else 0


def count() -> int:
    """How many processes the launcher started for this job."""
    given = os.environ.get("WORLD_SIZE", "1")
    return int(given) if given.isdecimal() else 1


@contextmanager
def joined() -> Iterator[Share]:
    """Speak with the other processes of this job, if there are any; gives this one's share.

    On a machine with GPUs each process takes the one of its number.
    """
    import torch
    import torch.distributed as together

    if count() < 2 or together.is_initialized():
        yield WHOLE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    together.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Share(rank(), count())
    finally:
        together.destroy_process_group()


def from_all(value: _Value) -> list[_Value]:
    """What each process has, in all of them, in their order; `value` must be picklable."""
    import torch.distributed as together

    if not together.is_available() or not together.is_initialized():
        return [value]
    found: list = [None] * together.get_world_size()
    together.all_gather_object(found, value)
    return found


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
