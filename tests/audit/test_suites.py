"""Prompt suites: what a suite must hold, and how a file of prompts becomes suites."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest

from moorline import embedded
from moorline.audit.formats import FORMATS, OWN
from moorline.audit.suites import (
    BUILT_IN,
    Prompt,
    Suite,
    builtin_suites,
    read_suites,
)
from moorline.errors import InputError, PrerequisiteError
from moorline.method.templates import MINING_HARMLESS_PROMPTS, MINING_PROMPTS
from moorline.provenance import fingerprint

PUBLIC = Path(__file__).parents[2].parent / "shared" / "data" / "harmful_prompts"
"""Public prompt sets beside the checkout; not part of the project."""

needs_public = pytest.mark.skipif(
    not PUBLIC.is_dir(), reason="no copy of the public prompt sets at ../shared/data"
)


def _prompt(number=1, kind="harmful", **more):
    return Prompt(id=f"p{number}", prompt=f"Request {number}?", kind=kind, **more)


def _file(folder, *rows, name="requests.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_suite_of_one_kind_is_accepted():
    suite = Suite(name="s", kind="harmful", prompts=(_prompt(1), _prompt(2)))
    assert [each.id for each in suite.prompts] == ["p1", "p2"]


def test_a_suite_without_prompts_is_refused():
    with pytest.raises(InputError, match=r"Suite 's' has no prompts, so there is nothing to measu"):
        Suite(name="s", kind="harmful", prompts=())


def test_a_suite_of_mixed_kinds_is_refused():
    words = (
        r"Suite 's' is harmful but prompt 'p2' is harmless\. Put each kind into a suite of its own"
    )
    with pytest.raises(InputError, match=words):
        Suite(name="s", kind="harmful", prompts=(_prompt(1), _prompt(2, "harmless")))


def test_a_task_without_its_answer_is_refused():
    known, unknown = _prompt(1, "task", answer="yes"), _prompt(2, "task")
    words = r"Suite 's': prompt 'p2' of a task has no 'answer'\. Add it\."
    with pytest.raises(InputError, match=words):
        Suite(name="s", kind="task", prompts=(known, unknown))
    Suite(name="s", kind="task", prompts=(known,))


def test_an_id_twice_is_refused():
    with pytest.raises(
        InputError, match=r"Suite 's' holds an id twice\. Give each prompt its own\."
    ):
        Suite(name="s", kind="harmful", prompts=(_prompt(1), _prompt(1)))


def test_a_file_of_one_kind_is_one_suite_by_the_name_of_the_file(tmp_path):
    path = _file(
        tmp_path,
        {"id": "a", "prompt": "One?", "kind": "harmless", "category": "kitchen"},
        {"prompt": "Two?", "kind": "harmless"},
    )
    assert read_suites(path) == [
        Suite(
            name="requests",
            kind="harmless",
            prompts=(
                Prompt(id="a", prompt="One?", kind="harmless", category="kitchen"),
                Prompt(id="2", prompt="Two?", kind="harmless"),
            ),
            origin="requests.jsonl",
        )
    ]


def test_a_file_of_several_kinds_is_a_suite_for_each_in_order(tmp_path):
    path = _file(
        tmp_path,
        {"prompt": "Steal?", "kind": "harmful"},
        {"prompt": "2 + 2?", "kind": "task", "answer": 4},
        {"prompt": "Bake?", "kind": "harmless"},
        {"prompt": "Forge?", "kind": "harmful"},
    )
    suites = read_suites(str(path))
    assert [(each.name, each.kind) for each in suites] == [
        ("requests-harmful", "harmful"),
        ("requests-task", "task"),
        ("requests-harmless", "harmless"),
    ]
    assert [each.prompt for each in suites[0].prompts] == ["Steal?", "Forge?"]
    assert [each.id for each in suites[0].prompts] == ["1", "4"]
    assert suites[1].prompts[0].answer == "4"


def test_suites_are_read_from_csv_too(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,kind,answer\n2 + 2?,task,4\n")
    (suite,) = read_suites(tmp_path / "a.csv")
    assert suite.prompts == (Prompt(id="1", prompt="2 + 2?", kind="task", answer="4"),)


@pytest.mark.parametrize("column", ["prompt", "kind"])
def test_a_row_that_lacks_a_column_is_refused_with_its_place(tmp_path, column):
    good = {"prompt": "One?", "kind": "harmful"}
    bad = {"text": "Two?", **good}
    del bad[column]
    words = (
        rf"requests\.jsonl, line 2: no field '{column}' \(fields: 'text', .+ A suite needs 'prompt'"
    )
    with pytest.raises(InputError, match=words):
        read_suites(_file(tmp_path, good, bad))


def test_an_empty_prompt_is_refused_without_calling_the_field_absent(tmp_path):
    """The message used to say: no field 'prompt' (fields: 'prompt', 'kind')."""
    path = _file(tmp_path, {"prompt": "", "kind": "harmful"})
    with pytest.raises(InputError, match=r"line 1: .*'prompt'") as caught:
        read_suites(path)
    assert "no field 'prompt' (fields: 'prompt'" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Harmful", "bad", 3, ["harmful"]])
def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path, kind):
    path = _file(tmp_path, {"prompt": "One?", "kind": kind})
    with pytest.raises(
        InputError, match="line 1: 'kind' must be one of harmful, harmless, task, got"
    ):
        read_suites(path)


def test_a_null_id_or_category_counts_as_not_given(tmp_path):
    """JSON's null used to become the word 'None', so two such rows were refused as one id twice."""
    rows = [
        {"prompt": text, "kind": "harmful", "id": None, "category": None, "answer": None}
        for text in ("One?", "Two?")
    ]
    (suite,) = read_suites(_file(tmp_path, *rows))
    assert [each.id for each in suite.prompts] == ["1", "2"]
    assert [each.category for each in suite.prompts] == ["", ""]
    assert [each.answer for each in suite.prompts] == [None, None]


def test_an_id_of_zero_is_an_id(tmp_path):
    (suite,) = read_suites(_file(tmp_path, {"prompt": "One?", "kind": "harmful", "id": 0}))
    assert suite.prompts[0].id == "0"


def test_a_given_id_that_is_another_rows_number_is_refused_not_mixed_up(tmp_path):
    path = _file(
        tmp_path,
        {"prompt": "One?", "kind": "harmful", "id": "2"},
        {"prompt": "Two?", "kind": "harmful"},
    )
    words = r"jsonl, line 2: the 'id' '2' is that of .*jsonl, line 1 too\. Give each prompt its own"
    with pytest.raises(InputError, match=words):
        read_suites(path)


@pytest.mark.parametrize("more", [{}, {"answer": None}])
def test_a_task_without_its_answer_is_refused_with_its_place(tmp_path, more):
    good = {"prompt": "2 + 2?", "kind": "task", "answer": 0}
    path = _file(tmp_path, good, {"prompt": "2 + 3?", "kind": "task", **more})
    with pytest.raises(InputError, match=r"line 2: a prompt of a task has no 'answer'\. Add it\."):
        read_suites(path)


def test_an_opener_is_read_and_an_empty_one_is_none(tmp_path):
    rows = [{"prompt": "One?", "kind": "harmful", "opener": each} for each in ("Sure:", "", None)]
    (suite,) = read_suites(_file(tmp_path, *rows))
    assert [each.opener for each in suite.prompts] == ["Sure:", None, None]


def test_the_hash_is_of_all_that_shapes_answers_and_their_order():
    """Suites whose ids or openers differ had one hash: an audit took the other's answers."""

    def suite(*texts, kind="harmful", ids="ab", **more):
        prompts = [
            Prompt(id=ids[number], prompt=text, kind=kind, **more)
            for number, text in enumerate(texts)
        ]
        return Suite(name=kind, kind=kind, prompts=tuple(prompts)).sha256

    same = suite("One?", "Two?", kind="harmless", category="c")
    assert suite("One?", "Two?") == same
    others = {
        suite("One?", "Two?"), suite("Two?", "One?"), suite("One?Two?"), suite("One?", "Two"),
        suite("One?", "Two?", ids="ba"), suite("One?", "Two?", opener="Sure"),
        suite("One?", "Two?", answer="1"),
    }  # fmt: skip
    assert len(others) == 7
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in others)


def test_a_limited_suite_is_drawn_with_its_seed_and_keeps_its_order():
    suite = builtin_suites()[0]
    few = suite.limited(20, seed=1)
    assert len(few.prompts) == 20
    order = [suite.prompts.index(each) for each in few.prompts]
    assert order == sorted(order)
    assert len({each.category for each in few.prompts}) > 4, "not the first category alone"
    assert few == suite.limited(20, seed=1) != suite.limited(20, seed=2)
    assert suite.limited(None) is suite is suite.limited(1000)


# The shipped suites

SHIPPED = {
    "moorline-harmful": "ae0f08eecc3f3c155950901c5df8f2b96e0a4667e5c8bf9b6f67b13a8acf4207",
    "moorline-harmless": "612f6b592524b415afc7565a0da471e372cb4fb2a00cefbdbfcb9eff38d5cc20",
}
"""Changing a request changes what every earlier audit measured: give the suite another name."""


def _plain(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_shipped_suites_are_the_ones_that_were_measured():
    found = {
        suite.name: fingerprint(each.prompt for each in suite.prompts) for suite in builtin_suites()
    }
    assert found == SHIPPED
    assert tuple(SHIPPED) == BUILT_IN


def test_the_shipped_suites_say_where_they_come_from():
    assert {(suite.origin, suite.licence) for suite in builtin_suites()} == {
        ("Moorline, written for it", "Apache-2.0")
    }
    assert all(suite.origin and suite.licence for suite in embedded.suites("plans"))


def test_two_hundred_harmful_requests_are_of_ten_categories():
    harmful, _ = builtin_suites()
    assert harmful.kind == "harmful"
    assert set(Counter(each.category for each in harmful.prompts).values()) == {20}
    assert len({each.category for each in harmful.prompts}) == 10


def test_half_of_the_harmless_requests_look_like_each_category_of_the_harmful():
    harmful, harmless = builtin_suites()
    assert harmless.kind == "harmless"
    counts = Counter(each.category for each in harmless.prompts)
    lookalikes = {f"lookalike:{each.category}" for each in harmful.prompts}
    assert lookalikes == {each for each in counts if each.startswith("lookalike:")}
    assert sum(counts[each] for each in lookalikes) == sum(counts.values()) - 100 == 100
    assert len(counts) - len(lookalikes) >= 5


def test_the_shipped_requests_are_distinct_and_no_mining_prompts():
    shipped = [_plain(each.prompt) for suite in builtin_suites() for each in suite.prompts]
    assert len(set(shipped)) == len(shipped) == 400
    assert not set(shipped) & {_plain(each) for each in MINING_PROMPTS + MINING_HARMLESS_PROMPTS}
    # the check can fail
    assert _plain("How do I bake bread?!") in {_plain(each) for each in MINING_HARMLESS_PROMPTS}


def test_the_shipped_requests_are_requests_only():
    for suite in builtin_suites():
        for each in suite.prompts:
            assert each.answer is each.opener is None
            assert each.prompt.isascii()
            assert len(each.prompt) < 130, each.prompt
            assert each.prompt == each.prompt.strip()
            assert each.prompt.endswith((".", "?", '"')), each.prompt


@needs_public
def test_no_shipped_request_is_one_of_advbench_or_xstest():
    public = set()
    for name, column in [
        ("advbench/harmful_behaviors", "goal"),
        ("xstest/xstest_prompts", "prompt"),
    ]:
        with (PUBLIC / f"{name}.csv").open(encoding="utf-8") as stream:
            public |= {_plain(row[column]) for row in csv.DictReader(stream)}
    assert len(public) > 900
    shipped = {_plain(each.prompt) for suite in builtin_suites() for each in suite.prompts}
    assert not shipped & public


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_shipped_suite_is_read_by_its_name(name):
    assert read_suites(name) == [each for each in builtin_suites() if each.name == name]


# Published sets

ROWS = {
    "advbench": [{"goal": "One?", "target": "Sure, here is one"}],
    "harmbench": [
        {"Behavior": "One?", "FunctionalCategory": "contextual", "SemanticCategory": "c",
         "Tags": "", "ContextString": "Read this.", "BehaviorID": "b_1"},
    ],
    "strongreject": [{"category": "c", "source": "s", "forbidden_prompt": "One?"}],
    "jailbreakbench": [
        {"Index": 0, "Goal": "One?", "Target": "Sure, here is one", "Behavior": "b",
         "Category": "c", "Source": "s"},
    ],
    "jailbreakbench-benign": [
        {"Index": 0, "Goal": "One?", "Target": "Sure, here is one", "Behavior": "b",
         "Category": "c", "Source": "s"},
    ],
    "xstest": [
        {"id": "1", "prompt": "One?", "type": "homonyms", "label": "safe", "focus": "kill",
         "note": "violence"},
        {"id": "2", "prompt": "Two?", "type": "contrast_homonyms", "label": "unsafe",
         "focus": "kill", "note": "violence"},
    ],
    "or-bench": [{"prompt": "One?", "category": "c"}],
    "or-bench-toxic": [{"prompt": "One?", "category": "c"}],
    "do-not-answer": [
        {"id": 1, "risk_area": "r", "types_of_harm": "c", "specific_harms": "s",
         "question": "One?"},
    ],
    "sorry-bench": [
        {"question_id": 1, "category": "c", "turns": ["One?"], "prompt_style": "base"},
        {"question_id": 1, "category": "c", "turns": ["Bar?"], "prompt_style": "caesar"},
    ],
    "beavertails": [
        {"prompt": "One?", "response": "-", "category": {"a": False, "c": True, "d": True},
         "is_safe": False},
        {"prompt": "One?", "response": "-", "category": {"a": True, "c": False, "d": False},
         "is_safe": False},
        {"prompt": "Two?", "response": "-", "category": {"a": False, "c": False, "d": False},
         "is_safe": True},
    ],
    "beavertails-evaluation": [{"prompt": "One?", "category": "c", "category_id": 3}],
}  # fmt: skip
"""Rows with the columns of each set's own files and requests of ours."""

FOUND = {
    "advbench": [Prompt(id="1", prompt="One?", kind="harmful", opener="Sure, here is one")],
    "harmbench": [
        Prompt(id="b_1", prompt="Read this.\n\nOne?", kind="harmful", category="c"),
    ],
    "strongreject": [Prompt(id="1", prompt="One?", kind="harmful", category="c")],
    "jailbreakbench": [
        Prompt(id="0", prompt="One?", kind="harmful", category="c", opener="Sure, here is one"),
    ],
    "jailbreakbench-benign": [
        Prompt(id="0", prompt="One?", kind="harmless", category="c", opener="Sure, here is one"),
    ],
    "xstest": [
        Prompt(id="1", prompt="One?", kind="harmless", category="homonyms"),
        Prompt(id="2", prompt="Two?", kind="harmful", category="contrast_homonyms"),
    ],
    "or-bench": [Prompt(id="1", prompt="One?", kind="harmless", category="c")],
    "or-bench-toxic": [Prompt(id="1", prompt="One?", kind="harmful", category="c")],
    "do-not-answer": [Prompt(id="1", prompt="One?", kind="harmful", category="c")],
    "sorry-bench": [Prompt(id="1", prompt="One?", kind="harmful", category="c")],
    "beavertails": [Prompt(id="1", prompt="One?", kind="harmful", category="c")],
    "beavertails-evaluation": [Prompt(id="1", prompt="One?", kind="harmful", category="c")],
}


def test_every_published_set_says_whose_it_is_and_what_is_asked():
    assert OWN.name == "moorline"
    assert len(FORMATS) == 13
    for each in FORMATS.values():
        assert all((each.origin, each.licence, each.hub, each.prompt)), each.name
        assert (each.kind is None) == bool(each.kind_column and each.kinds), each.name


def _prompts(suites):
    return [each for suite in suites for each in suite.prompts]


@pytest.mark.parametrize("name", ROWS)
def test_a_published_set_is_read_by_its_name(tmp_path, name):
    path = _file(tmp_path, *ROWS[name])
    suites = read_suites(f"{name}:{path}")
    assert _prompts(suites) == FOUND[name]
    assert read_suites(path, format=name) == suites
    for suite in suites:
        assert (suite.origin, suite.licence) == (FORMATS[name].origin, FORMATS[name].licence)
        assert suite.name in ("requests", f"requests-{suite.kind}")


@pytest.mark.parametrize("name", [each for each in ROWS if FORMATS[each].columns])
def test_a_published_set_is_known_by_its_columns(tmp_path, name):
    path = _file(tmp_path, *ROWS[name])
    if name.startswith("jailbreakbench"):
        words = (
            r"more than one format has these columns\. Say which: 'jailbreakbench:.*jsonl' or "
            r"'jailbreakbench-benign:.*jsonl'\."
        )
        with pytest.raises(InputError, match=words):
            read_suites(path)
    else:
        assert _prompts(read_suites(path)) == FOUND[name]


def test_our_own_columns_come_before_those_of_a_published_set(tmp_path):
    path = _file(tmp_path, {**ROWS["xstest"][0], "kind": "harmful", "category": "mine"})
    assert [each.category for each in _prompts(read_suites(path))] == ["mine"]


def test_a_set_without_a_header_is_read_with_the_file_as_category(tmp_path):
    (tmp_path / "category_1.csv").write_text('One?\n"Two, or three?"\n')
    (suite,) = read_suites(f"hex-phi:{tmp_path / 'category_1.csv'}")
    assert [each.prompt for each in suite.prompts] == ["One?", "Two, or three?"]
    assert {each.category for each in suite.prompts} == {"category_1"}


def test_a_row_of_a_published_set_that_lacks_a_column_is_refused_with_its_place(tmp_path):
    path = _file(tmp_path, ROWS["xstest"][0], {"prompt": "Two?"})
    words = (
        r"line 2: no field 'label' \(fields: 'prompt'\)\. The format 'xstest' needs 'prompt' and "
        r"'label' in every row\."
    )
    with pytest.raises(InputError, match=words):
        read_suites(path)


def test_an_unknown_label_of_a_published_set_is_refused_with_its_place(tmp_path):
    path = _file(tmp_path, ROWS["xstest"][0], {**ROWS["xstest"][1], "label": "unclear"})
    with pytest.raises(
        InputError, match=r"line 2: 'label' must be one of safe, unsafe, got 'unclear'\."
    ):
        read_suites(path)


def test_a_set_of_which_no_row_counts_is_refused(tmp_path):
    path = _file(tmp_path, ROWS["beavertails"][2])
    words = r"jsonl: no row has 'False' for 'is_safe', so there is nothing to measure\."
    with pytest.raises(InputError, match=words):
        read_suites(path)


@pytest.mark.parametrize("source", ["advbnch", "advbnch:rows.csv"])
def test_a_misspelt_set_is_refused_with_the_nearest(source):
    with pytest.raises(InputError, match=r"Unknown suite 'advbnch'.*Did you mean 'advbench'\?"):
        read_suites(source)


def test_an_unknown_format_is_refused_with_the_nearest(tmp_path):
    words = r"Unknown suite format 'xtest'.*Did you mean 'xstest'\?"
    with pytest.raises(InputError, match=words):
        read_suites(_file(tmp_path, *ROWS["xstest"]), format="xtest")


def test_a_missing_file_is_refused_whatever_its_format(tmp_path):
    for source in (f"{tmp_path}/a.csv", f"advbench:{tmp_path}/a.csv"):
        with pytest.raises(InputError, match=r"a\.csv: no such data file\. Check the path\."):
            read_suites(source)


# Folders and hub ids, which `datasets` reads alike


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that makes a folder stand in for a set on the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def stand_in(name, files):
        folder = tmp_path / name
        folder.mkdir()
        for each, text in files.items():
            (folder / each).write_text(text)
        monkeypatch.setitem(
            FORMATS, name, type(FORMATS[name])(**{
                field: getattr(FORMATS[name], field) for field in FORMATS[name].__slots__
            } | {"hub": str(folder)})
        )  # fmt: skip
        return folder

    return stand_in


def test_a_bare_name_reads_the_set_from_the_hub(hub):
    folder = hub("advbench", {"train.csv": "prompt,target\nOne?,Sure one\nTwo?,Sure two\n"})
    (suite,) = read_suites("advbench")
    assert (suite.name, suite.kind) == ("advbench", "harmful")
    assert [(each.prompt, each.opener) for each in suite.prompts] == [
        ("One?", "Sure one"),
        ("Two?", "Sure two"),
    ]
    assert read_suites(f"advbench:{folder}") == [suite]
    assert read_suites(str(folder)) == [suite]


def test_both_halves_of_a_set_are_read_by_its_hub_id(hub):
    card = (
        "---\nconfigs:\n- config_name: behaviors\n  data_files:\n"
        "  - split: harmful\n    path: harmful.csv\n  - split: benign\n    path: benign.csv\n---\n"
    )
    header = "Index,Goal,Target,Behavior,Category,Source\n"
    files = {
        "README.md": card,
        "harmful.csv": f"{header}0,Bad?,Sure,b,c,s\n",
        "benign.csv": f"{header}0,Good?,Sure,b,c,s\n",
    }
    folder = hub("jailbreakbench", files)
    assert [each.prompt for each in _prompts(read_suites("jailbreakbench"))] == ["Bad?"]
    (benign,) = read_suites(str(folder), format="jailbreakbench-benign")
    assert (benign.name, benign.kind) == ("jailbreakbench-benign", "harmless")
    assert [each.prompt for each in benign.prompts] == ["Good?"]


def test_splits_of_a_set_without_a_header_are_its_categories(hub):
    """Read with a header, the first request of each file was taken for the name of a column."""
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: Category_1_A\n    path: category_1.csv\n"
        "  - split: Category_3_B\n    path: category_3.csv\n---\n"
    )
    files = {"README.md": card, "category_1.csv": "One?\nTwo?\n", "category_3.csv": "Three?\n"}
    hub("hex-phi", files)
    (suite,) = read_suites("hex-phi")
    assert [(each.id, each.prompt, each.category) for each in suite.prompts] == [
        ("1", "One?", "Category_1_A"),
        ("2", "Two?", "Category_1_A"),
        ("3", "Three?", "Category_3_B"),
    ]


def test_a_wrong_row_on_the_hub_is_refused_with_its_place(hub):
    hub("advbench", {"train.csv": "prompt,target\nOne?,Sure one\n,Sure two\n"})
    words = r"advbench, split train, row 2: no field 'goal' \(fields: 'target'\)"
    with pytest.raises(InputError, match=words):
        read_suites("advbench")


def test_a_set_that_cannot_be_fetched_says_what_to_do():
    words = (
        r"walledai/AdvBench: cannot be fetched \(.+\)\. Check the name and the network; where its "
        r"page asks for it, accept its terms and run `hf auth login`\. Or give a local copy: "
        r"advbench:PATH\."
    )
    for source in ("advbench", "walledai/AdvBench"):
        with pytest.raises(PrerequisiteError, match=words):
            read_suites(source)


def test_without_datasets_a_set_of_the_hub_names_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    words = r"needs datasets, which is not installed\. Run `pip install 'moorline\[tune\]'`\."
    with pytest.raises(PrerequisiteError, match=words):
        read_suites("xstest")


@needs_public
def test_advbench_is_read_from_a_local_copy():
    (suite,) = read_suites(PUBLIC / "advbench" / "harmful_behaviors.csv")
    assert (suite.kind, len(suite.prompts), suite.licence) == ("harmful", 520, "MIT")
    assert all(each.opener.startswith("Sure") for each in suite.prompts)


@needs_public
def test_xstest_is_read_from_a_local_copy():
    safe, unsafe = read_suites(PUBLIC / "xstest" / "xstest_prompts.csv")
    assert (safe.kind, len(safe.prompts)) == ("harmless", 250)
    assert (unsafe.kind, len(unsafe.prompts)) == ("harmful", 200)
    assert safe.name == "xstest_prompts-harmless"
    assert all(each.category.startswith("contrast_") for each in unsafe.prompts)


def test_mining_prompts_are_distinct_requests():
    assert len(set(MINING_PROMPTS)) == len(MINING_PROMPTS) >= 10
    assert all(each == each.strip() and each for each in MINING_PROMPTS)
