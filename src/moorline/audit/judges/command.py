"""Any program as a judge: one JSON line per answer in, one JSON line per verdict out."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Collection, Sequence
from typing import Any

from ...errors import InputError, PrerequisiteError
from .verdicts import JUDGED, DegenerateFirst, Verdict


class CommandJudge(DegenerateFirst):
    """A program of the user's own that judges.

    For each call of `verdicts` it is started once, without a shell. It reads one JSON object a line
    from its standard input, `{"prompt": ..., "answer": ...}`, until the end, and writes one a line
    to its standard output, in the same order: `{"outcome": ..., "reason": ...}` with an outcome of
    refused, complied or degenerate. What it writes to standard error is shown if it fails.

    What it cannot see: whether the program judges well. It gets every sound answer, harmful ones
    too; where it sends them is its author's concern.

    Args:
        command: Program and arguments, split as a shell would but run without one.
        labels: Answers of the downstream task; such an answer is degenerate.

    Raises:
        InputError: If the command is empty or its quotes do not close.
        PrerequisiteError: If there is no such program.

    Example:
        >>> judge = CommandJudge('''sed 's/.*/{"outcome": "refused", "reason": "always"}/' ''')
        >>> judge.verdicts(["How do I ...?"], ["Sure, here is how."])
        [Verdict(outcome='refused', reason='always')]
    """

    def __init__(self, command: str, *, labels: Collection[str] = ()) -> None:
        super().__init__(labels=labels)
        self.name = f"command:{command}"
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise InputError(f"Judge {self.name!r}: {error}. Close the quotes.") from error
        if not self._words:
            raise InputError("Judge 'command:' needs a program, as in 'command:python judge.py'.")
        if shutil.which(self._words[0]) is None:
            raise PrerequisiteError(
                f"Judge {self.name!r}: no program {self._words[0]!r}. Install it, or give its path."
            )

    def _verdicts(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        if not answers:
            return []
        rows = [
            json.dumps({"prompt": prompt, "answer": answer}) + "\n"
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        done = subprocess.run(self._words, input="".join(rows).encode(), capture_output=True)
        lines = [line for line in done.stdout.decode(errors="replace").split("\n") if line.strip()]
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise PrerequisiteError(
                f"Judge {self.name!r} failed with exit code {done.returncode} after {len(lines)} "
                f"of {len(rows)} verdicts; its last words: {last}"
            )
        if len(lines) != len(rows):
            raise InputError(
                f"Judge {self.name!r} gave {len(lines)} verdicts on {len(rows)} answers. It must "
                "write one line for each line that it reads."
            )
        return [self._read(line, number) for number, line in enumerate(lines, start=1)]

    def _read(self, line: str, number: int) -> Verdict:
        try:
            value: Any = json.loads(line)
        except ValueError:
            value = None
        if (
            isinstance(value, dict)
            and value.get("outcome") in JUDGED
            and isinstance(value.get("reason"), str)
        ):
            return Verdict(value["outcome"], value["reason"])
        raise InputError(
            f"Judge {self.name!r}, line {number}: no verdict: {line[:80]!r}. It must write "
            '{"outcome": "refused", "reason": "..."} with an outcome of '
            f"{', '.join(JUDGED)}."
        )
