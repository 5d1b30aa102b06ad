"""Where numbers come from: versions, machine, hashes; and files written whole or not at all."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .errors import InputError

_PACKAGES = ("moorline", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "scipy")


def versions() -> dict[str, str]:
    """The installed versions of the packages that can change a result, and Python's own."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> Mapping[str, Any]:
    """What ran it: processor, cores, memory in bytes, system; no names of people or hosts."""
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
    }


def reset_peak_memory() -> None:
    """Let `peak_memory` count from here on; where the system cannot, from the process's start."""
    import torch

    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # of Linux alone
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> tuple[int, Literal["cuda", "process"]]:
    """The most bytes that this process held: on its GPUs, or resident where it used none."""
    import resource

    import torch

    devices = range(torch.cuda.device_count())
    if on_gpus := sum(torch.cuda.max_memory_allocated(each) for each in devices):
        return on_gpus, "cuda"
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


_CONTROL = re.compile(
    # Sequences that steer a terminal: CSI; OSC and its like, if they end; others. One that does not
    # end takes nothing with it, or it would swallow what we say after it.
    r"\x1b\[[0-?]{0,64}[@-~]?"
    r"|\x1b[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"
    r"|\x1b[@-~]?"
    # What is left: other controls but tab and line feed, C1, marks that turn the direction of text.
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def size_in_words(num_bytes: int) -> str:
    """A size as people read it.

    Example:
        >>> size_in_words(700), size_in_words(230_000), size_in_words(12_500_000_000)
        ('1 kB', '230 kB', '12.5 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{max(num_bytes / 1e3, 1):.0f} kB"


def printable(text: str) -> str:
    r"""A text without what would steer the terminal that it is printed on.

    Escape sequences go whole (colours, titles, links, cursor), and so do other control characters
    and the marks that turn the direction of text; tabs and line feeds stay.

    Example:
        >>> printable("a\x1b[2Jb\x1b]0;title\x07c\rd\n")
        'abcd\n'
    """
    return _CONTROL.sub("", text).encode(errors="replace").decode()


def now() -> str:
    """The present moment in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of one file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(parts: Iterable[str]) -> str:
    """SHA-256 over strings, each after its length, so that their borders count.

    Example:
        >>> fingerprint(["ab", "c"]) == fingerprint(["a", "bc"])
        False
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def file_in(folder: Path, name: str) -> Path:
    """A file whose name is made of words that stood in a file from outside.

    Raises:
        InputError: If the name would lead out of the folder.
    """
    if Path(name).name != name or "\\" in name or "\0" in name:
        raise InputError(
            f"{name!r} cannot be the name of a file: it would lead to another folder. The file "
            "that gave the name was not written by Moorline, or was changed; write it again."
        )
    return folder / name


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all: into a neighbour first, then renamed over `path`."""
    write_lines(path, [text])


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write a text file as `write_text` does, its lines, with their ends, as they come."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; what we write is meant to be read by others too.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON text that UTF-8 can hold; NaN and infinity are refused."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        text = json.dumps(value, indent=indent, allow_nan=False)
    return text + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, indented, whole or not at all; NaN and infinity are refused."""
    write_text(path, as_json(value, indent=2))


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Read a JSON object that we once wrote.

    Args:
        path: The file.
        what: What the file should be, for the error message ("safety-token file").

    Raises:
        InputError: If the file is missing, is not JSON, or holds no object; names the place.
    """
    path, a = Path(path), "an" if what[:1] in "aeiou" else "a"
    if not path.is_file():
        raise InputError(f"{path}: no such {what}. Check the path.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply to read" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: not {a} {what}: {reason}. Write it again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: {a} {what} holds a JSON object, got {type(value).__name__}.")
    return value
