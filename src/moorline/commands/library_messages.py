"""What the libraries say: nothing where they are well, one line of ours where they fail."""

import errno
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import transformers
from safetensors import SafetensorError

from ..errors import InputError, MoorlineError, PrerequisiteError

_UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR,
)  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """What happens is said here; the libraries' own bars and news are off meanwhile."""
    verbosity, bars = transformers.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("trl", "moorline.method.cache_job")]
    levels = [each.level for each in loggers]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings(
                "ignore", category=UserWarning, module="torch|transformers|trl|peft"
            )
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def in_one_line(*, building: bool = True) -> Iterator[None]:
    """What the user can put right, raised by a library, as an error of ours.

    Args:
        building: Whether a ValueError is about settings, as TRL and PEFT raise it.
    """
    try:
        yield
    except MoorlineError:
        raise
    except SafetensorError as error:
        raise _disk(error) from error
    except ImportError as error:
        raise PrerequisiteError(
            f"A package is missing: {error}. Install it, or leave out the setting that needs it."
        ) from error
    except ValueError as error:
        if not building and not _in_optimizer(error):
            raise
        raise InputError(f"The settings do not fit each other: {error}") from error
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise _disk(error) from error
        if building and error.errno is None:  # of the hub's client, which takes it for a name there
            raise InputError(f"A setting names what is not there: {error}") from error
        raise
    except RuntimeError as error:
        if " install" in str(error):  # as the trackers' callbacks say it
            raise PrerequisiteError(
                f"{error} Or leave out the setting that needs it (`report_to`?)."
            ) from error
        words = ("No space left", "PytorchStreamWriter", "unexpected pos")
        if any(each in str(error) for each in words):
            raise _disk(error) from error
        if "size mismatch" in str(error):
            raise InputError(
                "The checkpoint holds weights of other sizes: of another model, or of an adapter "
                "with another `lora_r`. Resume with the settings that it was written with."
            ) from error
        raise
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        raise InputError(f"The settings do not fit each other: {error.args[0]}") from error
    except (AttributeError, TypeError) as error:  # of a setting that the host looks into
        if _raised_by_us(error) or not (building or _in_optimizer(error)):
            raise
        raise InputError(
            f"The settings do not fit each other or this machine ({error}). Look at those that "
            "are mappings (`..._kwargs`) or ask for a GPU."
        ) from error


def _in_optimizer(error: BaseException) -> bool:
    """Whether it was raised where the host builds optimizer and schedule, once training begins."""
    names = {each.name for each in traceback.extract_tb(error.__traceback__)}
    return bool(names & {"create_optimizer", "create_scheduler", "get_optimizer_cls_and_kwargs"})


def _raised_by_us(error: BaseException) -> bool:
    """Whether it comes out of our own lines, and so is a fault of ours."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    own = Path(__file__).parents[1]
    return at is None or own in Path(at.tb_frame.f_code.co_filename).parents


def _disk(error: Exception) -> PrerequisiteError:
    return PrerequisiteError(
        f"A file cannot be written: {error}. Make room, or give another folder."
    )
