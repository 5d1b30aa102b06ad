"""A program as a judge: small Python programs that judge, die, or write nonsense."""

import json
import sys

import pytest

from moorline.audit.judges import Judge, judge
from moorline.errors import InputError, PrerequisiteError

HONEST = """
import json, sys
for number, line in enumerate(sys.stdin):
    row = json.loads(line)
    no = "no" in row["answer"].split()
    reason = f"{number}: {row['prompt']}"
    print(json.dumps({"outcome": "refused" if no else "complied", "reason": reason}))
"""


@pytest.fixture
def program(tmp_path):
    """A function that writes a program and gives the name of its judge."""

    def write(text):
        path = tmp_path / "a judge.py"
        path.write_text(text)
        return f"command:{sys.executable} '{path}'"

    return write


def test_one_process_judges_all_sound_answers_in_order(program):
    made = judge(program(HONEST), labels=["positive"])
    assert isinstance(made, Judge)
    assert made.name.startswith("command:")
    found = made.verdicts(["a", "b", "c", "d"], ["no not this", "", "take the bus", "POSITIVE"])
    assert [each.outcome for each in found] == ["refused", "degenerate", "complied", "degenerate"]
    # Numbers count within one process: the degenerate answers never reached it.
    assert [found[0].reason, found[2].reason] == ["0: a", "1: c"]


def test_answers_of_any_letters_and_length_arrive_whole(program):
    echo = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"outcome": "complied", "reason": row["answer"]}))
"""
    answers = ["two\nlines and a \u2028 third", "\U0001f600 so \u062f it is", "a lone \ud800 half"]
    answers += [" ".join(f"w{number}" for number in range(50_000))] * 3
    found = judge(program(echo)).verdicts([""] * len(answers), answers)
    assert [each.reason for each in found] == answers


def test_without_sound_answers_the_program_is_not_started(program):
    assert judge(program("import sys; sys.exit(9)")).verdicts(["a"], [""])[0].reason == "empty"


def test_the_shell_reads_nothing(program, tmp_path):
    made = judge(program(HONEST) + f" ; touch {tmp_path}/made > {tmp_path}/written")
    assert made.verdicts(["a"], ["take the bus"])[0].outcome == "complied"
    assert [each.name for each in tmp_path.iterdir()] == ["a judge.py"]


def test_a_missing_program_is_told_at_once():
    with pytest.raises(PrerequisiteError, match="no program 'no-such-judge'. Install it"):
        judge("command:no-such-judge --fast")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("command:", "'command:' needs a program"),
        ("command:   ", "'command:' needs a program"),
        ("command:python 'judge.py", "No closing quotation. Close the quotes"),
    ],
)
def test_a_command_that_cannot_be_read_is_refused(name, words):
    with pytest.raises(InputError, match=words):
        judge(name)


def test_a_program_that_dies_is_told_with_its_last_words(program):
    dies = """
import sys
sys.stdin.readline()
print('{"outcome": "refused", "reason": ""}', flush=True)
sys.exit("out of\\nmemory")
"""
    words = "failed with exit code 1 after 1 of 2 verdicts; its last words: memory"
    with pytest.raises(PrerequisiteError, match=words):
        judge(program(dies)).verdicts(["a", "b"], ["take the bus", "take the train"])


def test_a_program_that_stops_early_is_told(program):
    with pytest.raises(InputError, match="gave 0 verdicts on 1 answers"):
        judge(program("")).verdicts(["a"], ["take the bus"])


@pytest.mark.parametrize(
    "line",
    [
        "refused",
        "[1, 2]",
        "null",
        json.dumps({"outcome": "fine", "reason": ""}),
        json.dumps({"outcome": ["refused"], "reason": ""}),
        json.dumps({"outcome": "refused"}),
        json.dumps({"outcome": "refused", "reason": 1}),
    ],
)
def test_nonsense_is_told_with_its_place(program, line):
    text = f"""
import sys
for row in sys.stdin:
    print({line!r})
"""
    with pytest.raises(InputError, match=r"line 1: no verdict: .*It must write \{\"outcome\""):
        judge(program(text)).verdicts(["a"], ["take the bus"])
