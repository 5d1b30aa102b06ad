"""Fuzz what reads files from outside: any bytes are read, or refused in our words.

    python tests/fuzz/readers.py [--minutes 60] [--target NAME] [--seed 0] [--atheris --kept DIR]

With `--atheris` (libFuzzer, guided by coverage) one target after the other, each input that reached
something new kept in DIR; else bytes of the corpus are changed at random. Minutes are of processor
time. The corpus in `corpus/` is kept: what was ever found goes there, and
`tests/test_properties.py` reads all of it.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path


def _watched() -> AbstractContextManager[object]:
    """What is imported here is watched by atheris, where that is asked for."""
    if "--atheris" not in sys.argv:
        return nullcontext()
    import atheris

    return atheris.instrument_imports(include=["moorline", "yaml"])


with _watched():
    from moorline.audit.answering import Store
    from moorline.audit.suites import read_suites
    from moorline.commands.run_file import Run
    from moorline.commands.tune_settings import read_keys
    from moorline.compare.plan import read_plan
    from moorline.errors import MoorlineError
    from moorline.method.cache import Manifest
    from moorline.method.safety_tokens import SafetyTokens
    from moorline.tables import SUFFIXES, rows_of

CORPUS = Path(__file__).parent / "corpus"
_KNOWN = {"str_weight", "learning_rate", "output_dir", "env"}
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk would be waited for
_FOLDER = Path(tempfile.mkdtemp(prefix="moorline-fuzz-", dir=_MEMORY))


def _file(name: str, content: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(content)
    return path


def _answers(content: bytes) -> None:
    _file("answers.jsonl", content)
    _file("audit.json", b'{"schema": 2, "status": "running", "fingerprint": "a", "at": "now"}')
    list(Store(_FOLDER, "a").there())


def _tables(content: bytes) -> None:
    for suffix in SUFFIXES:
        path = _file(f"rows{suffix}", content)
        try:
            list(rows_of(path))
        except MoorlineError:
            continue


def _run(content: bytes) -> None:
    _file("run.json", content)
    Run.read(_FOLDER)


def _manifest(content: bytes) -> None:
    _file("cache.json", content)
    Manifest.load(_FOLDER)


TARGETS: dict[str, Callable[[bytes], object]] = {
    "tokens": lambda content: SafetyTokens.load(_file("tokens.json", content)),
    "suite": lambda content: read_suites(_file("suite.jsonl", content)),
    "cache": _manifest,
    "yaml": lambda content: read_keys(str(_file("run.yaml", content)), _KNOWN),
    "plan": lambda content: read_plan(_file("plan.yaml", content)),
    "answers": _answers,
    "run": _run,
    "tables": _tables,
}
"""What reads a file, by name; takes its bytes."""


def read(target: str, content: bytes) -> None:
    """Read some bytes; whatever is not refused in our words gets out."""
    try:
        TARGETS[target](content)
    except MoorlineError as error:
        assert str(error).strip(), "a refusal says something"


def seeds(target: str) -> list[bytes]:
    """The corpus of a target."""
    return [path.read_bytes() for path in sorted(CORPUS.glob(f"{target}-*"))]


def changed(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """A few changes of some bytes."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(found))
        match chance.randint(0, 5):
            case 0:
                found[at:at] = bytes(chance.choices(range(256), k=chance.randint(1, 4)))
            case 1:
                del found[at : at + chance.randint(1, 16)]
            case 2 if found:
                found[min(at, len(found) - 1)] ^= 1 << chance.randint(0, 7)
            case 3:
                other = chance.choice(others)
                start = chance.randint(0, len(other))
                found[at:at] = other[start : start + chance.randint(1, 40)]
            case 4:
                words = (b"null", b"[", b"{", b'"', b"NaN", b"1e999", b"-1", b"\\ud800", b"\xff",
                         b"true", b"&a", b"*a", b"!!python/object", b"\x00", b"9" * 30)  # fmt: skip
                found[at:at] = chance.choice(words)
            case 5:
                found[at:at] = found[: chance.randint(0, 64)]
    return bytes(found[:20_000])


def by_chance(target: str, seconds: float, seed: int) -> int:
    """Change the corpus at random for a while; how many inputs were read."""
    chance, pool, num = random.Random(f"{seed} {target}"), seeds(target), 0
    until = time.process_time() + seconds
    while time.process_time() < until:
        content = changed(chance.choice(pool), chance, pool)
        num += 1
        try:
            read(target, content)
        except BaseException:
            found = CORPUS / f"{target}-found-{num}"
            found.write_bytes(content)
            print(f"{target}: {found}")
            raise
        if chance.random() < 0.01:  # what was changed is changed further
            pool.append(content)
    return num


def guided(target: str, seconds: float, kept: Path) -> None:
    """The same by libFuzzer, which goes on from what it kept; what gets out ends it."""
    import atheris

    began, num = time.process_time(), 0
    kept.mkdir(parents=True, exist_ok=True)
    for index, content in enumerate(seeds(target)):
        (kept / f"seed-{index}").write_bytes(content)

    def one(content: bytes) -> None:
        nonlocal num
        num += 1
        read(target, content)
        spent = time.process_time() - began
        if spent > seconds:
            print(f"{target:<10} {num:>9} inputs, nothing uncaught, {spent:.0f} s", flush=True)
            os._exit(0)  # libFuzzer counts seconds of the clock alone

    words = [sys.argv[0], "-max_len=20000", "-timeout=300", "-rss_limit_mb=4096",
             f"-artifact_prefix={CORPUS}/{target}-found-", str(kept)]  # fmt: skip
    atheris.Setup(words, one)
    atheris.Fuzz()


def main() -> None:
    """Fuzz one target, or all by turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    parser.add_argument("--kept", type=Path, help="folder of what libFuzzer keeps; a new one")
    asked = parser.parse_args()
    if asked.atheris and asked.target is None:  # libFuzzer ends its process: one for each
        for name in sorted(TARGETS):
            words = ["--target", name, "--minutes", str(asked.minutes / len(TARGETS))]
            kept = ["--kept", str(asked.kept / name)] if asked.kept else []
            subprocess.run([sys.executable, __file__, "--atheris", *words, *kept], check=True)
        return
    if asked.atheris:
        kept = asked.kept or Path(tempfile.mkdtemp(prefix="moorline-fuzz-kept-"))
        guided(asked.target, 60 * asked.minutes, kept)
        return
    names = [asked.target] if asked.target else sorted(TARGETS)
    for name in names:
        num = by_chance(name, 60 * asked.minutes / len(names), asked.seed)
        print(f"{name:<10} {num:>9} inputs, nothing uncaught", flush=True)


if __name__ == "__main__":
    main()
