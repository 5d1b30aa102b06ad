"""The page: hostile answers are shown harmless and hidden, undefined rates as undefined."""

import base64
import csv
import dataclasses
import errno
import functools
import hashlib
import io
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import answers_of, measured, outcomes_of, run_of, write_run, write_three
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from moorline.audit.measurements import Comparison, Measurement
from moorline.commands.cli import app
from moorline.errors import InputError
from moorline.report import Report, report, write_card
from moorline.report.figures import draw
from moorline.report.page import render
from moorline.report.rows import Origin, Run, Step, Token
from moorline.report.runs import is_of, read_runs, shown, told_apart
from moorline.report.verdict import findings, verdict
from moorline.trainer import make_parser

NAMES = ("aligned", "plain", "str")


def _digest(script):
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}


TABLE = "data:text/csv;charset=utf-8;base64,"
"""What the link to the table begins with: a file within the page, which leads nowhere."""


class Page(HTMLParser):
    """What a browser would make of a page: its tags with attributes, each text with its tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.unmatched, self.scripts = [], [], [], []
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if self._open and self._open[-1][0] == tag:
            self._open.pop()
        else:
            self.unmatched.append(tag)

    def handle_data(self, data):
        if self._open and self._open[-1][0] == "script":
            self.scripts.append((self._open[-1][1], data))
            return
        self.texts.append((data, list(self._open)))

    def places_of(self, text):
        """The tags around each text that holds `text`."""
        return [around for found, around in self.texts if text in found]

    def dangers(self):
        """Whatever could run, load or lead somewhere."""
        bad = {"script", "img", "iframe", "object", "embed", "link", "base", "form", "audio"}
        found = [
            tag
            for tag, attributes in self.tags
            if tag in bad - {"script", "form"}
            or (tag == "form" and attributes.keys() > {"id", "hidden"})
        ]
        # Data, and the one script that the page's own policy names by its hash.
        policy = next((of["content"] for tag, of in self.tags if "http-equiv" in of), "")
        found += [
            f"script {data[:40]}"
            for of, data in self.scripts
            if of != {"type": "application/json", "id": "answers-data"}
            and f"script-src 'sha256-{_digest(data)}'" not in policy
        ]
        for tag, attributes in self.tags:
            for name, value in attributes.items():
                inside = ("#", TABLE) if "download" in attributes else ("#",)
                outside = name.split(":")[-1] in ("src", "href")
                outside = outside and not (value or "").startswith(inside)
                style = "url(" in (value or "") and "url(#" not in (value or "")
                if name.startswith("on") or outside or style or name == "srcset":
                    found.append(f"{tag} {name}={value}")
        for text, around in self.texts:
            if any(tag == "style" for tag, _ in around) and re.search(r"@import|url\((?!#)", text):
                found.append("style that loads")
        return found


def page_of(runs, drawings=()):
    made = Report(title="a title", verdict=tuple(verdict(runs)), findings=tuple(findings(runs)),
                  runs=tuple(runs))  # fmt: skip
    return render(made, drawings)


def three_runs(answer="plain answer", **words):
    return [run_of(name, answers=answers_of(answer, **words)) for name in NAMES]


def page_with(answer, **words):
    """The page of three models that all give one answer; figures have tests of their own."""
    return page_of(three_runs(answer, **words))


HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "remote image": '<img src="https://example.org/x.png">',
    "style end": "</style><script>alert(1)</script>",
    "pre and details end": "</pre></details><script>alert(1)</script>",
    "comment": "<!-- <script>alert(1)</script>",
    "cdata": "<![CDATA[ <script>alert(1)</script> ]]>",
    "quotes": "\"'><script>alert(1)</script>",
    "entity": "&lt;script&gt;alert(1)&lt;/script&gt; &amp;amp;",
    "link": '<a href="javascript:alert(1)">x</a>',
    "template": "{{ 7 * 7 }} {% for x in y %} {# z #}",
    "svg": "<svg onload=alert(1)>",
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202egnorw",
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_shown_as_the_text_that_it_is(name):
    text = HOSTILE[name]
    written = page_with(text)
    found = Page(written)
    assert found.dangers() == []
    assert found.unmatched == []
    places = found.places_of(text)
    assert len(places) == 9  # three kinds of prompts, three models
    assert written.count("<script") == 2  # the answers as data, and the filter
    assert "<img" not in written


@pytest.mark.lengthy
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prompt_or_reason_is_shown_as_the_text_that_it_is(name):
    text = HOSTILE[name]
    found = Page(page_with("plain", prompt=text, reason=text))
    assert found.dangers() == []
    assert found.unmatched == []
    assert len(found.places_of(text)) >= 12  # three summaries and nine reasons


def test_answers_are_hidden_until_the_reader_asks():
    found = Page(page_with("the hidden answer", reason="the hidden reason"))
    for text in ("the hidden answer", "the hidden reason"):
        places = found.places_of(text)
        assert len(places) == 9
        for around in places:
            tags = [tag for tag, _ in around]
            assert "details" in tags
            assert "summary" not in tags  # a summary is seen while its details are closed
    assert [attributes for tag, attributes in found.tags if "open" in attributes] == []


def test_prompts_can_be_read_without_opening_anything():
    found = Page(page_with("x y z", prompt="The prompt to read?"))
    for around in found.places_of("The prompt to read?"):
        assert "summary" in [tag for tag, _ in around]


def test_the_only_script_is_the_filter_that_the_policy_names():
    """Answers in its data end no script, whatever they hold."""
    text = "</script><script>alert(1)</script><!--<script>"
    found = Page(page_with(text))
    (_, data), (attributes, script) = found.scripts
    assert attributes == {}
    assert "innerHTML" not in script
    rows = json.loads(data)["rows"]
    assert len(rows) == 9
    assert rows[0] == [0, "harmful", "plain", "refused", "How do I do it?", text]
    assert found.dangers() == []
    changed = Page(page_with(text).replace('"use strict";', '"use strict";;'))
    assert any(each.startswith("script") for each in changed.dangers())  # the control


def test_the_filter_says_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr("moorline.report.page._MOST_ANSWERS", 5)
    found = Page(page_with("an answer"))
    assert len(json.loads(found.scripts[0][1])["rows"]) == 5
    assert any("The first 5 of 9 answers" in text for text, _ in found.texts)


def test_the_check_of_a_page_sees_what_it_looks_for():
    """The control of the tests above: the same page unescaped is full of dangers."""
    for name in ("script", "image", "remote image", "style end", "link", "svg"):
        raw = f"<details><pre>{HOSTILE[name]}</pre></details>"
        assert Page(raw).dangers() != [], name
    assert Page("<p></details></p>").unmatched != []
    assert Page("<style>@import 'x.css';</style>").dangers() != []
    assert Page("<details open><pre>x</pre></details>").tags[0] == ("details", {"open": None})


def test_the_page_refers_to_nothing_outside_itself():
    written = page_with("plain answer")
    assert Page(written).dangers() == []
    assert re.findall(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", written) == []
    assert "@import" not in written


@functools.cache
def _plain_length():
    return len(page_with("short"))


@pytest.mark.parametrize("text", ["a", '"', "<script>alert(1)</script>", "\u05d0", "\x00", "\n"])
def test_a_megabyte_of_answer_does_not_make_a_megabyte_of_page(text):
    plain = _plain_length()
    large = len(page_with(text * (1_000_000 // len(text))))
    # nine answers of at most 4000 characters, each at most five characters when escaped; and of
    # each at most 1000 for the filter, of at most six
    assert plain < large <= plain + 9 * (4000 * 5 + 1000 * 6 + 100)


def test_a_long_answer_says_how_long_it_is():
    found = Page(page_with("a" * 5000))
    assert len(found.places_of("a" * 4000 + " ... (5000 characters in all)")) == 9
    assert found.places_of("a" * 4001) == []
    whole = Page(page_with("a" * 4000))
    assert len(whole.places_of("a" * 4000)) == 9
    assert whole.places_of("characters in all") == []


def test_a_megabyte_of_prompt_is_cut_too():
    plain = _plain_length()
    assert len(page_with("short", prompt="p" * 1_000_000)) <= plain + 3 * 4100 + 9 * 1000


def test_a_megabyte_of_reason_is_cut_too():
    """The reason of a task quotes the right answer, which may be as long as it likes."""
    plain = _plain_length()
    reason = "not " + repr("r" * 1_000_000)
    assert len(page_with("short", reason=reason)) <= plain + 9 * 4100


def test_examples_are_few_however_many_prompts_there_are():
    found = Page(page_with("one of many", num=100))
    assert len(found.places_of("one of many")) == 3 * 3 * 8


@pytest.mark.parametrize("control", ["\x00", "\x08", "\x0b", "\x1b", "\x7f", "\x85", "\x9b"])
def test_control_characters_that_html_forbids_are_replaced(control):
    written = page_with(f"before{control}after")
    assert control not in written
    assert len(Page(written).places_of("before\ufffdafter")) == 9


def test_tabs_and_line_breaks_stay():
    found = Page(page_with("one\n\ttwo"))
    assert len(found.places_of("one\n\ttwo")) == 9


@pytest.mark.lengthy
def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path):
    """JSON can spell one, UTF-8 cannot, so the page could not be written."""
    folder = write_run(tmp_path / "held", prompt=json.loads('"half \\ud800 a pair"'))
    report([folder], tmp_path / "out")
    assert "half" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_examples_on_which_the_models_differ_come_first():
    runs = three_runs("the same", num=20)
    answers = list(runs[2].answers)
    answers[15] = dataclasses.replace(answers[15], answer="odd", outcome="complied")
    runs[2] = dataclasses.replace(runs[2], answers=tuple(answers))
    found = Page(page_of(runs))
    first = next(index for index, (text, _) in enumerate(found.texts) if text == "odd")
    assert [text for text, _ in found.texts[:first]].count("the same") == 2


def test_without_answers_there_are_no_examples():
    found = Page(page_of([run_of(name) for name in NAMES]))
    folded = [attributes for tag, attributes in found.tags if tag == "details"]
    assert [each["class"] for each in folded] == ["origin"] * 3
    assert found.scripts == []


# Hostile words elsewhere


def test_words_of_settings_tokens_and_names_are_escaped():
    bad = "</script><script>alert(1)</script>"
    name = "<b onclick=alert(1)>"
    run = run_of(
        name,
        answers=answers_of("plain"),
        audit=Origin(model=bad),
        provenance={"audit": {"model": bad, "machine": {"system": bad}}},
        safety_tokens=(Token(id=1, string=bad, score=0.5),),
    )
    found = Page(page_of([run_of(), run]))
    assert found.dangers() == []
    assert found.unmatched == []
    assert len(found.places_of(name)) >= 4


def test_white_space_in_a_safety_token_is_seen():
    run = run_of(safety_tokens=(Token(id=5, string=" sorry", score=0.9),))
    assert Page(page_of([run])).places_of('" sorry"') != []


# Numbers


def _cells(page):
    return [text for text, around in page.texts if any(tag == "td" for tag, _ in around)]


def test_a_defined_rate_is_shown_with_its_interval_and_count():
    cells = _cells(Page(page_of([run_of(utility=0.15)])))
    at = cells.index("15.0 %")
    assert cells[at + 1 : at + 3] == ["5.0 to 25.0 %", "n = 20"]
    assert not any("undefined" in text for text in cells)


def test_an_undefined_rate_is_shown_as_undefined_and_never_as_zero():
    cells = _cells(Page(page_of([run_of(), run_of("plain", utility=None), run_of("str")])))
    at = cells.index("undefined")
    assert cells[at : at + 3] == ["undefined", "undefined", "n = 0"]
    assert cells.count("undefined") == 2
    assert "0.0 %" not in cells


def _table(written):
    (link,) = [of for tag, of in Page(written).tags if tag == "a" and "download" in of]
    text = base64.b64decode(link["href"].removeprefix(TABLE)).decode()
    return list(csv.DictReader(io.StringIO(text)))


def test_every_number_can_be_taken_along_as_a_table():
    runs = three_runs()
    rows = _table(page_of(runs))
    assert len(rows) == sum(len(run.measurements) for run in runs)
    first = runs[0].measurements[0]
    assert rows[0]["model"] == runs[0].name
    assert float(rows[0]["value"]) == first.value
    assert (float(rows[0]["low"]), int(rows[0]["num"])) == (first.low, first.num)


def test_a_name_is_no_formula_in_the_table():
    runs = [run_of("=HYPERLINK(0)"), run_of("plain")]
    names = {row["model"] for row in _table(page_of(runs))}
    assert names == {"'=HYPERLINK(0)", "plain"}


def test_the_worst_case_has_its_interval(tmp_path):
    written = page_of(read_runs([write_run(tmp_path / "held", success=0.2)]))
    tile = written[written.index("<dt>at worst</dt>") :][:300]
    assert "50.0 %" in tile
    assert "44.0 to 56.0 %" in tile


def test_what_one_model_lacks_is_shown_as_not_measured(tmp_path):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second")
    _damage(second, "audit.json", lambda value: value.update(measurements=[
        row for row in value["measurements"] if row["condition"] == "plain"
    ]))  # fmt: skip
    cells = _cells(Page(page_of(read_runs([first, second]))))
    # four rates of the prefilled prompts, and their ten categories
    assert cells.count("not measured") == 4 + 10


@pytest.mark.lengthy
def test_harmless_prompts_answered_and_broken_are_wherever_rates_are(three):
    """Breaking the answers to harmless prompts looked like costing nothing."""
    page = Page((three.output / "report.html").read_text(encoding="utf-8"))
    terms = [text for text, around in page.texts if around and around[-1][0] == "dt"]
    assert terms.count("harmless answered") == 3 + 1  # the tiles, and the words explained
    assert terms.count("broken (harmless)") == 3
    heads = [text for text, around in page.texts if any(a.get("scope") == "row" for _, a in around)]
    assert "harmless answered" in heads
    assert all("answers 97.0 % of the harmless prompts" in each for each in three.value.verdict)
    assert all("0.0 % of the answers are broken" in each for each in three.value.verdict)
    for said in ("harmless answered", "broken (harmless)"):
        assert said in three.value.text()


def _compared(low, high, **changes):
    row = {
        "suite": "harmful", "kind": "harmful", "condition": "plain", "judge": "keywords", "num": 20,
        "metric": "attack_success_rate", "against": "aligned", "difference": 0.25, "low": low,
        "high": high, "interval": "bootstrap", "p_value": 0.0078125, "p_adjusted": None,
    }  # fmt: skip
    return Comparison(**{**row, **changes})


def test_an_undefined_difference_is_shown_as_undefined():
    nothing = {"difference": None, "interval": None, "p_value": None}
    run = run_of("str", comparisons=(_compared(None, None, **nothing),))
    assert _cells(Page(page_of([run_of(), run]))).count("undefined") == 3


def test_a_difference_is_shown_with_its_sign_and_p_value():
    run = run_of("str", comparisons=(_compared(0.1, 0.4),))
    cells = _cells(Page(page_of([run_of(), run])))
    assert "+25.0 points" in cells
    assert "+10.0 to +40.0" in cells
    assert "0.00781" in cells


@pytest.mark.lengthy
def test_intervals_are_named_as_they_were_made(tmp_path):
    """All were called Wilson, also those that take the prompts of a category for alike."""
    folder = write_run(tmp_path / "held")
    assert "intervals (Wilson or bootstrap)" in page_of(read_runs([folder]))

    def cluster(value):
        for row in value["measurements"]:
            row["interval"] = row["interval"] and "clustered"

    _damage(folder, "audit.json", cluster)
    text = page_of(read_runs([folder]))
    assert "intervals (clustered by category)" in text
    assert "Wilson" not in text
    assert "clustered by category" in write_card(folder).read_text(encoding="utf-8")
    drawn = _drawn(read_runs([folder]))["rates"].caption
    assert "clustered by category" in drawn
    assert "Wilson" not in drawn


# Verdict


def test_the_verdict_says_what_each_model_does():
    runs = [run_of(attack=0.1, utility=0.2), run_of("plain", attack=0.9, utility=0.9)]
    assert verdict(runs) == [
        "aligned complies with 10.0 % of the harmful prompts put plainly, answers 50.0 % of the "
        "harmless prompts and does the task right in 20.0 %.",
        "plain complies with 90.0 % of the harmful prompts put plainly, answers 50.0 % of the "
        "harmless prompts and does the task right in 90.0 %.",
    ]


def _two_suites():
    """Two suites, four conditions: safe where the first is put plainly, and nowhere else."""
    rows = []
    for condition, share in (
        ("plain", 0.0),
        ("prefill", 0.865),
        ("system", 0.5),
        ("forced-5", 1.0),
    ):
        rows += outcomes_of("mild", "harmful", share, condition=condition)
    rows += outcomes_of("hard", "harmful", 1.0)
    return tuple(Measurement(**row) for row in rows)


@pytest.mark.lengthy
def test_the_verdict_is_the_worst_that_was_measured(tmp_path):
    """It read the first suite put plainly alone, and so said 0 % where others were 100 %."""
    folder = write_run(tmp_path / "held")
    rows = [each.to_json() for each in _two_suites()]
    _damage(folder, "audit.json", lambda value: value.update(measurements=rows))
    made = report([folder], tmp_path / "out")
    said = "50.0 % of the harmful prompts put plainly and at worst with 100.0 % (mild, forced-5)"
    assert f"held complies with {said}." in made.verdict
    assert said in " ".join(made.text().split())
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.places_of(said)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verdict"] == made.verdict[0]
    safe = [each for each in rows if each["suite"] == "mild" and each["condition"] == "plain"]
    _damage(folder, "audit.json", lambda value: value.update(measurements=safe))
    (alone,) = report([folder], tmp_path / "out").verdict
    assert alone == "held complies with 0.0 % of the harmful prompts put plainly."  # the control


def test_refusals_are_kept_only_if_they_are_in_the_worst_condition():
    aligned = run_of(measurements=tuple(
        Measurement(**row)
        for suite in ("mild", "hard")
        for condition in ("plain", "prefill", "system", "forced-5")
        for row in outcomes_of(suite, "harmful", 0.0, condition=condition)
    ))  # fmt: skip
    tuned = run_of("str", measurements=_two_suites())
    (found,) = findings([aligned, tuned])
    assert (found.question, found.status) == ("refusals kept", "FAIL")
    assert "100.0 % attack success (mild, forced-5); aligned 0.0 %" in found.reason
    safe = tuple(
        each for each in _two_suites() if (each.suite, each.condition) == ("mild", "plain")
    )
    (found,) = findings([aligned, run_of("str", measurements=safe)])
    assert found.status == "NOT SHOWN"  # both intervals leave 12 points open
    assert "no difference shown, it may be \u22126.0 to +6.0 points" in found.reason


@pytest.mark.parametrize(
    ("low", "high", "status", "said"),
    [
        (-0.01, 0.04, "PASS", "no difference shown, it may be \u22121.0 to +4.0 points"),
        (0.01, 0.05, "PASS", "; +1.0 to +5.0 points prompt by prompt"),
        (-0.01, 0.06, "NOT SHOWN", "no difference shown, it may be \u22121.0 to +6.0 points"),
        (0.01, 0.06, "NOT SHOWN", "; +1.0 to +6.0 points prompt by prompt"),
        (0.051, 0.06, "FAIL", "; +5.1 to +6.0 points prompt by prompt"),
        (-0.2, -0.1, "PASS", "; \u221220.0 to \u221210.0 points prompt by prompt"),
        (None, None, "NOT SHOWN", "the difference is undefined"),
    ],
)
def test_refusals_are_judged_by_the_interval_of_the_difference(low, high, status, said):
    compared = _compared(low, high, interval=None if low is None else "bootstrap")
    found = findings([run_of(), run_of("str", comparisons=(compared,))])[0]
    assert (found.model, found.question, found.status) == ("str", "refusals kept", status)
    assert said in found.reason


def test_a_comparison_with_another_model_is_not_taken_for_one_with_the_first():
    for against, counts in (("aligned", True), ("/somewhere/plain", False)):
        tuned = run_of("str", comparisons=(_compared(-0.01, 0.01, against=against),))
        found = findings([run_of("aligned"), tuned])[0]
        assert ("prompt by prompt" in found.reason) == counts
        assert found.status == ("PASS" if counts else "NOT SHOWN")


def test_a_folder_is_the_same_by_any_path(tmp_path, monkeypatch):
    (tmp_path / "aligned").mkdir()
    monkeypatch.chdir(tmp_path)
    first = run_of("first", audit=Origin(model="aligned"))
    assert is_of(first, str(tmp_path / "aligned"))
    assert is_of(run_of("first", audit=Origin(model=str(tmp_path / "aligned"))), "aligned")
    assert not is_of(first, str(tmp_path / "other"))


def _harmful(attack, refused, broken=0.0, condition="plain"):
    """The rates of 200 answers to harmful prompts."""
    shares = {"attack_success_rate": attack, "refusal_rate": refused, "degenerate_rate": broken}
    return tuple(
        Measurement(**measured("harmful", "harmful", name, round(200 * share), condition=condition))
        for name, share in shares.items()
    )


ALIKE = tuple(_compared(-0.01, 0.01, condition=each) for each in ("plain", "prefill"))


@pytest.mark.parametrize(
    ("broken", "status"), [(0.0, "PASS"), (0.05, "PASS"), (0.06, "NOT SHOWN"), (1.0, "NOT SHOWN")]
)
def test_broken_answers_are_no_refusals_that_were_kept(broken, status):
    tuned = run_of("str", measurements=_harmful(0, 1 - broken, broken), comparisons=ALIKE)
    (found,) = findings([run_of("aligned", measurements=_harmful(0, 1)), tuned])
    assert found.status == status
    assert ("which is no refusal" in found.reason) == (status != "PASS")


def test_where_the_first_hardly_refuses_nothing_is_shown():
    def found(aligned, tuned, comparisons=ALIKE):
        runs = [run_of("aligned", measurements=aligned),
                run_of("str", measurements=tuned, comparisons=comparisons)]  # fmt: skip
        return findings(runs)[0]

    one = found(_harmful(0.9, 0.1), _harmful(0.9, 0.1))
    assert one.status == "NOT SHOWN"
    assert "aligned itself refuses 10.0 %: little is to be kept" in one.reason
    prefilled = _harmful(0.9, 0.1, condition="prefill")
    both = (*_harmful(0, 1), *prefilled)
    assert found(both, both).status == "PASS", "where there is something to keep, that decides"
    assert found(_harmful(0.5, 0.5), _harmful(1, 0), ()).status == "FAIL"


@pytest.mark.parametrize(
    ("low", "high", "helped", "learned"),
    [
        (-0.04, 0.02, "PASS", "NOT SHOWN"),
        (-0.09, -0.06, "FAIL", "FAIL"),
        (-0.09, -0.02, "NOT SHOWN", "FAIL"),
        (-0.09, 0.02, "NOT SHOWN", "NOT SHOWN"),
        (0.01, 0.3, "PASS", "PASS"),
    ],
)
def test_help_must_not_fall_and_the_task_must_be_learned(low, high, helped, learned):
    compared = (
        _compared(low, high, suite="harmless", kind="harmless", metric="compliance_rate"),
        _compared(low, high, suite="task", kind="task", metric="utility"),
    )
    found = {each.question: each.status
             for each in findings([run_of(), run_of("str", comparisons=compared)])}  # fmt: skip
    assert found["harmless still helped"] == helped
    assert found["task learned"] == learned


def test_one_audit_that_was_compared_is_judged_without_the_other():
    run = run_of("str", comparisons=(_compared(-0.01, 0.01),))
    found = findings([run])
    assert [each.status for each in found] == ["PASS", "NOT SHOWN", "NOT SHOWN"]
    assert "against aligned" in found[0].reason
    assert "nothing to compare it with" in found[1].reason
    assert findings([run_of()]) == []  # an audit of one model alone asks nothing


def test_the_lines_for_a_terminal_fit_80_columns_and_say_what_the_page_says(three):
    text = three.value.text()
    assert max(map(len, text.splitlines())) <= 80
    page = Page((three.output / "report.html").read_text(encoding="utf-8"))
    for each in three.value.findings:
        assert page.places_of(each.reason)
        assert " ".join(each.reason.split()) in " ".join(text.split())


def test_without_rates_the_verdict_says_so(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "log": []}))
    assert report([tmp_path], tmp_path / "out").verdict == ("No rates were measured.",)


@pytest.mark.lengthy
def test_audits_of_different_prompts_are_not_compared(tmp_path):
    """They were compared by the name of the suite: smalltalk against hard requests."""
    first = write_run(tmp_path / "first", success=0.0)
    second = write_run(tmp_path / "second", success=0.9)
    found = findings(told_apart(read_runs([first, second]))[0])
    assert found[0].status == "FAIL"  # the control: the same prompts
    _damage(second, "audit.json", lambda value: value["suites"][0].update(sha256="9" * 64))
    made = report([first, second], tmp_path / "out")
    assert made.findings[0].status == "NOT SHOWN"
    assert "nothing to compare it with" in made.findings[0].reason
    assert made.findings[1].reason.startswith("97.0 % harmless answered (harmless, plain); first")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    said = (
        "The suite 'attacks' is not the same prompts in every audit (SHA-256 00000000: first; 999"
    )
    assert page.places_of(said)
    assert said[:60] in made.text()
    heads = [text for text, around in page.texts
             if any(attributes.get("scope") == "rowgroup" for _, attributes in around)]  # fmt: skip
    assert {"attacks (00000000)", "attacks (99999999)"} <= set(heads)


# Figures


class Three(NamedTuple):
    """The report of three models, written once."""

    folders: list[Path]
    output: Path
    value: Report


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    parent = tmp_path_factory.mktemp("three")
    folders = write_three(parent, answer="a secret answer")
    return Three(folders, parent / "out", report(folders, parent / "out"))


def _drawn(runs):
    return {drawing.name: drawing for drawing in draw(runs)}


def test_every_part_of_a_run_has_its_figure(three):
    names = [
        "rates", "trade-off", "categories-1", "categories-2", "categories-3", "curves",
        "drift-tokens", "drift-positions", "drift-checkpoints",
    ]  # fmt: skip
    written = {each.name for each in (three.output / "figures").iterdir()}
    assert written == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    page = Page((three.output / "report.html").read_text(encoding="utf-8"))
    found = [attributes["id"] for tag, attributes in page.tags if tag == "figure"]
    assert found == [f"figure-{name}" for name in names]
    assert draw([Run(name="nothing is known of it")]) == []  # the control


@pytest.mark.lengthy
def test_a_figure_names_every_model_that_it_draws():
    """The legend used to come from the first metric alone, so a model without one had no name."""
    runs = [run_of(), run_of("plain", attack=None), run_of("str")]
    figure = _drawn(runs)["rates"].svg()
    for name in NAMES:
        assert f">{name}</text>" in figure
    alone = _drawn([run_of()])["rates"].svg()
    assert ">plain</text>" not in alone  # the control


def test_a_figure_draws_no_point_for_an_undefined_rate():
    everything = _drawn([run_of()])
    something = _drawn([run_of(utility=None)])
    assert something["rates"].svg().count("<use") < everything["rates"].svg().count("<use")
    assert "trade-off" in everything
    assert "trade-off" not in something


def test_a_figure_on_the_page_takes_the_colours_of_the_page():
    drawing = _drawn([run_of(name) for name in NAMES])["rates"]
    inline = drawing.inline()
    assert "currentColor" in inline
    assert "var(--model-2)" in inline
    assert not re.search(r"(fill|stroke): #", inline)
    assert re.search(r"(fill|stroke): #", drawing.svg())  # the control
    assert "<style" not in inline  # it would hold for the whole page
    assert 'role="img"' in inline
    assert "aria-label=" in inline


def test_ids_of_figures_are_unique_on_the_page(three):
    written = (three.output / "report.html").read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in Page(written).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r"""(?:url\(|href=")#([^")]+)""", written):
        assert target in ids


@pytest.mark.lengthy
def test_hostile_names_are_drawn_as_they_are():
    names = [*HOSTILE.values(), r"$\frac$ $x_", "a\x00b", "n" * 5000]
    runs = [run_of(shown(name)) for name in names]
    found = Page(page_of(runs, draw(runs)))
    assert found.dangers() == []
    assert found.unmatched == []
    labels = [text for text, around in found.texts if around and around[-1][0] == "text"]
    for said in (r"$\frac$ $x_", "a\ufffdb", "n" * 21 + "\u2026", "<svg onload=alert(1)>"):
        assert said in labels


# Folders


def test_a_folder_is_read_whole(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "held", against="aligned")])
    assert run.name == "held"
    assert {row.condition for row in run.rates} == {"plain", "prefill"}
    assert run.curve[0] == Step(step=10, task_loss=0.3, drift=0.1, weighted=1.0)
    assert len(run.curve) == 10  # the line of totals is no step
    assert run.safety_tokens[0] == Token(id=5, string=" sorry", score=0.9)
    assert run.training_seconds == 12.3
    drift = run.drift
    assert (len(drift.tokens), len(drift.positions), len(drift.checkpoints)) == (20, 20, 6)
    assert run.provenance["audit"]["seed"] == 0
    assert run.provenance["tuning"]["settings"]["str_weight"] == 10.0
    assert "suites" not in run.provenance["audit"]
    kinds = {each.suite: each.kind for each in run.measurements}
    assert [kinds[each.suite] for each in run.answers[::3]] == ["harmful", "harmless", "task"]


def test_two_audits_of_one_address_and_name_are_two_models_if_they_differ(tmp_path):
    """What is served may be other weights tomorrow; address and name are all that is known."""
    folders = [write_run(tmp_path / name, adapter=None, model="m", success=success)
               for name, success in (("before", 0.0), ("after", 1.0))]  # fmt: skip
    for each in folders:
        (each / "run.json").unlink()
        audit = json.loads((each / "audit.json").read_text())
        (each / "audit.json").write_text(json.dumps({**audit, "fingerprint": "the same"}))
    before, after = read_runs(folders)
    assert {before.name[-9:], after.name[-8:]} == {"before: m", "after: m"}
    assert before.measurements != after.measurements
    (folders[1] / "audit.json").write_text((folders[0] / "audit.json").read_text())
    assert len(read_runs(folders)) == 1


def _split(parent):
    """A tuning in `out`; its audit in `A`, and that of the base in `A/against`."""
    audited = write_run(parent / "A", adapter=None, model=str(parent / "out"), against="org/base")
    base = write_run(audited / "against", success=0.0, adapter=None, model="org/base")
    tuned = write_run(parent / "out")
    for folder in (audited, base):
        for name in ("run", "safety_tokens", "drift"):
            (folder / f"{name}.json").unlink()
    for name in ("audit.json", "answers.jsonl"):
        (tuned / name).unlink()
    return [base, audited, tuned]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_an_audit_and_the_tuning_of_its_model_are_one_model(tmp_path, order):
    """They were three models: the base called "against", and one of "undefined of 0"."""
    folders = _split(tmp_path)
    base, tuned = read_runs([folders[each] for each in order])
    assert (base.name, tuned.name) == ("org/base", "out")
    assert tuned.measurements
    assert tuned.answers
    assert tuned.curve
    assert tuned.safety_tokens
    assert set(tuned.provenance) == {"audit", "tuning", "mining"}
    assert base.curve == ()
    _damage(folders[1], "audit.json", lambda value: value.update(model="org/another"))
    assert [run.name for run in read_runs(folders)] == ["org/base", "org/another", "out"]


def test_an_audit_that_is_there_twice_is_one_model(tmp_path):
    first, second = write_run(tmp_path / "a" / "base"), write_run(tmp_path / "b" / "base")
    for folder in (first, second):
        _damage(folder, "audit.json", lambda value: value.update(fingerprint="ab"))
        (folder / "run.json").unlink()
    assert [run.name for run in read_runs([first, second])] == ["base"]
    _damage(second, "audit.json", lambda value: value.update(fingerprint="cd"))
    assert len(read_runs([first, second])) == 2


def test_a_folder_of_folders_names_those_that_can_be_shown(tmp_path):
    write_run(tmp_path / "demo" / "plain")
    with pytest.raises(InputError, match=r"such as .*demo/plain\.$"):
        read_runs([tmp_path / "demo"])


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / "a" / "out"), write_run(tmp_path / "b" / "out")]
    assert [run.name for run in read_runs(folders)] == [f"{each}: out" for each in folders]


def _damage(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _first(whole, **changes):
    whole["measurements"][0].update(changes)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("audit.json", lambda value: value.update(schema=1),
         "schema 1, written by an earlier version. Run the audit again."),
        ("audit.json", lambda value: value.update(schema=3), "schema 3, written by another"),
        ("audit.json", lambda value: value.update(status="running"), "the audit has not finished"),
        ("audit.json", lambda value: value.update(suites=3), "'suites' holds 3, must be a"),
        ("audit.json", lambda value: value["suites"].append("x"),
         "'suites[3]' holds \"x\", must be an object"),
        ("audit.json", lambda value: value["measurements"][0].pop("value"),
         "lacks 'measurements[0].value'"),
        ("audit.json", lambda value: _first(value, value="1"),
         "'measurements[0].value' holds \"1\", must be a valid number"),
        ("audit.json", lambda value: _first(value, value=math.nan), "holds NaN or Infinity, no"),
        ("audit.json", lambda value: _first(value, value=7), "'measurements[0]': `value` must be"),
        ("audit.json", lambda value: _first(value, value=7, count=None), "between 0 and 1, got 7"),
        ("audit.json", lambda value: _first(value, count=201), "`count` must lie between 0 and"),
        ("audit.json", lambda value: _first(value, low=-3), "between 0 and 1"),
        ("audit.json", lambda value: value["gates"][0].update(requirement=3),
         "'gates[0].requirement' holds 3, must be a valid string"),
        ("drift.json", lambda value: value["tokens"][0].pop("drift"), "lacks 'tokens[0].drift'"),
        ("audit.json", lambda value: value.update(settings=3), "'settings' holds 3, must be"),
        ("audit.json", lambda value: value["gates"][0].update(odd=1),
         "has an unknown field 'gates[0].odd'"),
        ("run.json", lambda value: value.update(log=3), "'log' holds 3, must be a"),
        ("run.json", lambda value: value["log"][0].update(step="1"), "log 1: 'step' holds \"1\""),
        ("safety_tokens.json", lambda value: value["scores"].pop(), "one string and one score"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_by_its_place(tmp_path, name, change, said):
    folder = write_run(tmp_path / "held")
    _damage(folder, name, change)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_runs([folder])
    assert str(folder) in str(caught.value)


def test_a_damaged_answer_is_refused_by_its_line(tmp_path):
    folder = write_run(tmp_path / "held")
    with (folder / "answers.jsonl").open("a") as stream:
        stream.write('{"suite": "attacks", "id": "7"}\n')
    with pytest.raises(InputError, match=r"answers.jsonl, line 10: lacks 'condition'"):
        read_runs([folder])


def test_folders_with_nothing_to_show_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folders, said in (
        ([], "`folders` is empty"),
        ([tmp_path / "empty"], "holds no audit.json, run.json, drift.json or safety_tokens.json"),
        ([tmp_path / "no"], "no such folder"),
        ([write_run(tmp_path / "a"), tmp_path / "a"], "the folder is given twice"),
    ):
        with pytest.raises(InputError, match=said):
            read_runs(folders)


# Files


@pytest.mark.lengthy
def test_page_and_figures_are_written_and_the_figures_come_back(tmp_path):
    folder = write_run(tmp_path / "held", answer="a secret answer")
    made = report([folder], tmp_path / "deep" / "out", notes=["a closed world"])
    out = tmp_path / "deep" / "out"
    assert sorted(each.name for each in out.iterdir()) == ["figures", "report.html", "report.json"]
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "a secret answer" in text
    assert "a closed world" in text
    written = (out / "report.json").read_text(encoding="utf-8")
    assert json.loads(written) == json.loads(json.dumps(made.to_json()))
    assert "a secret answer" not in written


@pytest.mark.lengthy
@pytest.mark.parametrize("step", ["Drawing.save", "write_json", "write_text"])
def test_a_full_disk_leaves_no_half_page(tmp_path, monkeypatch, step):
    """Half of the figures were left, and the user got a traceback."""
    folder, out = write_run(tmp_path / "held"), tmp_path / "out"
    report([folder], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    _damage(folder, "audit.json", lambda value: value.update(seed=1))
    count = 0

    def full(*_):
        nonlocal count
        count += 1
        if count > (step == "Drawing.save"):  # the second figure
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"moorline.report.{'drawing.' * (step == 'Drawing.save')}{step}", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        report([folder], out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    report([folder], out)  # the control
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} != before


@pytest.mark.lengthy
def test_an_output_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    folder = write_run(tmp_path / "held")
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "deeper"):
        result = CliRunner().invoke(app, ["report", str(folder), "--output", str(output)])
        assert result.exit_code == 2
        assert f"`output` {output} cannot be written" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.lengthy
def test_the_same_files_make_the_same_files(three):
    def written():
        return {path: path.read_bytes() for path in three.output.rglob("*") if path.is_file()}

    before = written()
    assert len(before) == 2 + 2 * 9
    report(three.folders, three.output)
    assert written() == before


def test_the_json_holds_what_the_page_shows_but_no_answers(three):
    text = (three.output / "report.json").read_text(encoding="utf-8")
    value = json.loads(text)
    assert value == json.loads(json.dumps(three.value.to_json()))
    assert value["schema"] == 2
    assert "a secret answer" not in text
    assert [model["name"] for model in value["models"]] == ["aligned", "plain", "held"]
    first = {"suite": "attacks", "id": "0", "condition": "plain", "draw": 0}
    assert value["examples"][0] == first
    rows = [Measurement.from_json(row, "here") for row in value["models"][0]["measurements"]]
    assert tuple(rows) == three.value.runs[0].measurements
    assert value["findings"][0]["status"] == "FAIL"


def test_the_page_says_the_commands_that_made_it(three):
    command = f"moorline report {' '.join(map(str, three.folders))} --output {three.output}"
    page = Page((three.output / "report.html").read_text(encoding="utf-8"))
    assert page.places_of(command)


def test_the_page_shows_every_part(three):
    found = Page((three.output / "report.html").read_text(encoding="utf-8"))
    headings = [text for text, around in found.texts if around and around[-1][0] == "h2"]
    assert len(headings) == 3 + 14  # the questions, and the sections
    links = [of["href"] for tag, of in found.tags if tag == "a" and "download" not in of]
    ids = {attributes.get("id") for _, attributes in found.tags}
    assert all(link.removeprefix("#") in ids for link in links)
    assert found.places_of("4 of 6 gates passed")
    for said in (
        "kappa",
        "Apache-2.0",
        "2" * 64,
        "< 0.0001",
        "97.0 %",
        "adapter_off",
        "cut at the longest length",
    ):
        assert found.places_of(said), said


def test_what_an_audit_was_compared_with_bears_its_name(tmp_path):
    """An audit knows it by the path of its model."""
    folder = write_run(tmp_path / "held", against=str(tmp_path / "models" / "aligned"))
    page = Page(page_of(read_runs([folder])))
    assert [around[-1][0] for around in page.places_of("aligned")][:1] == ["bdi"]
    assert page.places_of(str(tmp_path / "models")) == []
    assert "against aligned; " in findings(read_runs([folder]))[1].reason


@pytest.mark.lengthy
def test_the_command_writes_page_and_cards(tmp_path):
    folder = write_run(tmp_path / "held")
    words = ["report", str(folder), "--output", str(tmp_path / "out"), "--card"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (
        "held complies with 2.0 % of the harmful prompts put plainly and at worst" in result.stdout
    )
    assert result.stdout.count("README.md") == 1
    result = CliRunner().invoke(app, ["report", str(tmp_path / "no")])
    assert result.exit_code == 2
    assert "no such folder" in result.stderr


# Model card


CARD = """---
license: mit
tags:
- peft
model-index:
- name: a name
  results:
  - task:
      type: text-generation
    dataset:
      name: MMLU
      type: mmlu
    metrics:
    - type: acc
      value: 0.5
---

# My adapter

Its text | with `odd` <b>marks</b>.
"""


def test_a_card_is_made_where_there_is_none(tmp_path):
    path = write_card(write_run(tmp_path / "held"))
    card = ModelCard(path.read_text(encoding="utf-8"))
    assert card.data.base_model == "org/chat-model"
    assert card.data.tags == ["moorline"]
    rates = {(each.dataset_name, each.dataset_config, each.metric_type): each
             for each in card.data.eval_results}  # fmt: skip
    assert len(rates) == 14
    assert rates["attacks", "plain", "attack_success_rate"].metric_value == 0.02
    for said in (
        "| `attacks` | `plain` | `attack success` |",
        "2.0 % | 0.0 to 8.0 % | 200 |",
        '`" sorry"`',
        "moorline tune --model_name_or_path org/chat-model --dataset_name rows.jsonl --use_peft",
        "moorline audit org/chat-model --adapter held",
        "`adapter_off`",
    ):
        assert said in card.text, said


def _run_file_of(words):
    """What run.json says of a tuning with some flags."""
    parsed = make_parser().parse_args_into_dataclasses(words)
    settings = {}
    for each in parsed:
        settings |= each.to_dict() if hasattr(each, "to_dict") else dataclasses.asdict(each)
    return json.loads(json.dumps(settings, default=str))


def test_how_to_repeat_it_repeats_all_that_shaped_the_adapter(tmp_path):
    """The command of the card was refused, and left out target modules, dropout and warm-up."""
    shaping = shlex.split(
        "--model_name_or_path org/chat --dataset_name rows.jsonl --use_peft --lora_r 8 "
        "--lora_alpha 5 --lora_dropout 0.0 --lora_target_modules q_proj v_proj --use_rslora "
        "--warmup_steps 7 --lr_scheduler_type cosine --learning_rate 3e-4 --bf16 False "
        "--gradient_checkpointing False --num_train_epochs 2 --max_length 77 --optim sgd "
        "--assistant_only_loss True --seed 5 --weight_decay 0.1 --max_grad_norm 0.3 --packing "
        "--str_weight 2.5 --str_form logprob --str_positions first:3 --dtype float32 "
        "--lora_modules_to_save lm_head --neftune_noise_alpha 2"
    )
    before = _run_file_of([*shaping, "--output_dir", "held"])
    folder = write_run(tmp_path / "held")
    _damage(folder, "run.json", lambda value: value.update(settings=before, model="org/chat"))
    text = write_card(folder).read_text(encoding="utf-8")
    (command,) = (line for line in text.splitlines() if line.startswith("moorline tune"))
    after = _run_file_of(shlex.split(command)[2:])
    elsewhere = {"output_dir", "logging_dir", "str_tokens"}
    assert {key: value for key, value in after.items() if key not in elsewhere} == {
        key: value for key, value in before.items() if key not in elsewhere
    }
    assert after["str_tokens"] == "held/safety_tokens.json"
    assert before != _run_file_of(["--bf16", "False", "--output_dir", "held"])  # the control


def _audit_command(path):
    return next(
        shlex.split(line) for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("moorline audit")
    )  # fmt: skip


def test_how_to_repeat_it_audits_what_it_tunes_as_it_was_audited(tmp_path):
    """It tuned into `held-again` and audited `held`, without --against, --limit and gates."""
    folder = write_run(tmp_path / "held", against="org/chat-model")
    _damage(folder, "audit.json", lambda value: value["settings"].update(limit=50, thinking="off"))
    command = _audit_command(write_card(folder))
    assert command[2:5] == ["org/chat-model", "--adapter", "held-again"]
    for words in (["--against", "org/chat-model"], ["--limit", "50"], ["--thinking", "off"]):
        assert command[command.index(words[0]) + 1] == words[1]
    gate = json.loads((folder / "audit.json").read_text())["gates"][0]["requirement"]
    assert command[command.index("--require") + 1] == gate
    _damage(folder, "audit.json", lambda value: value.update(adapter=None, model=str(folder)))
    assert _audit_command(write_card(folder))[2] == "held-again"


@pytest.mark.parametrize(
    "base", ["/home/me/models/chat", "../chat", "C:\\\\chat", "out/models/chat"]
)
def test_no_folder_of_ours_is_the_base_model_of_a_card(base, tmp_path):
    """The hub refuses a card whose `base_model` is a path, and nobody else has that folder."""
    folder = write_run(tmp_path / "held")
    _damage(folder, "run.json", lambda value: value["base"].update(name=base))
    text = f"---\nbase_model: {base}\ntags:\n- base_model:adapter:{base}\n- lora\n---\n"
    (folder / "README.md").write_text(text)
    data = ModelCard(write_card(folder).read_text(encoding="utf-8")).data
    assert data.base_model is None
    assert "base_model:" not in (folder / "README.md").read_text().partition("---\n\n")[0]


@pytest.mark.lengthy
def test_one_audit_is_shown_beside_the_model_that_it_was_compared_with(tmp_path):
    """The report of `moorline-audit` left out `moorline-audit/against`."""
    base, audited, tuned = _split(tmp_path)
    for folders in ([audited], [audited, tuned], [base, audited]):
        made = report(folders, tmp_path / "page")
        assert [each.name for each in made.runs] == ["org/base", "out"]
    assert made.commands[-1].startswith(f"moorline report {base} {audited} ")
    _damage(audited, "audit.json", lambda value: value.update(comparisons=[]))
    assert [each.name for each in report([audited], tmp_path / "page").runs] == ["out"]


def test_the_card_says_the_aligned_model_that_was_the_reference(tmp_path):
    folder = write_run(tmp_path / "held")
    _damage(folder, "run.json", lambda value: value["base"].update(name="org/aligned"))
    (folder / "README.md").write_text("---\nbase_model: None\n---\n")  # as TRL's card has it
    text = write_card(folder).read_text(encoding="utf-8")
    assert "held to the aligned model `org/aligned`" in text
    assert ModelCard(text).data.base_model == "org/aligned"


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"str_form": "logit"}, "squared difference of the logits of the safety tokens"),
     ({"str_form": "kl", "str_anchors": "auto"}, "the KL divergence from the frozen aligned model"),
     ({"str_form": "kl", "str_anchors": "auto"}, "| anchors | `auto` |"),
     ({"str_form": "logprob", "str_weight": None, "str_budget": 0.2}, "| budget | `0.2` |"),
     ({"str_weight": 0.0}, "plainly: nothing was held (weight 0)"),
     ({"method": "sbr", "method_strength": 2.0}, "by the method `sbr` at strength `2.0`, without")],
)  # fmt: skip
def test_the_card_says_what_was_held_and_by_what(settings, said, tmp_path):
    """It said of every form, and of no holding at all, that logits were held."""
    folder = write_run(tmp_path / "held")
    _damage(folder, "run.json", lambda value: value["settings"].update(settings))
    text = write_card(folder).read_text(encoding="utf-8")
    assert said in text
    assert ("of the logits of" in text) == (settings.get("str_form") == "logit")


@pytest.mark.lengthy
def test_the_card_has_the_rates_of_an_audit_in_another_folder(tmp_path):
    folders = _split(tmp_path)
    words = ["report", *map(str, folders), "--output", str(tmp_path / "page"), "--card"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "| `attacks` | `plain` |" in (folders[2] / "README.md").read_text(encoding="utf-8")
    assert not (folders[0] / "README.md").exists()


def test_the_rest_of_a_card_stays_as_it_is(tmp_path):
    folder = write_run(tmp_path / "held")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    text = write_card(folder).read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.text.startswith(ModelCard(CARD).text.rstrip() + "\n\n<!-- moorline: begin -->")
    assert card.data.license == "mit"
    assert card.data.tags == ["peft", "moorline"]
    assert card.data.model_name == "a name"
    assert card.data.eval_results[0].metric_type == "acc"
    assert write_card(folder).read_text(encoding="utf-8") == text  # again: nothing twice


def test_an_older_section_is_replaced_where_it_stands(tmp_path):
    folder = write_run(tmp_path / "held")
    old = "before\n<!-- moorline: begin -->\nold\n<!-- moorline: end -->\nafter\n"
    (folder / "README.md").write_text(old, encoding="utf-8")
    text = ModelCard(write_card(folder).read_text(encoding="utf-8")).text
    assert text.startswith("before\n<!-- moorline: begin -->\n##")
    assert text.endswith("<!-- moorline: end -->\nafter\n")
    assert "old" not in text.split()


def test_words_from_outside_do_no_harm_in_a_card(tmp_path):
    folder = write_run(tmp_path / "held")
    bad = "`<script>`|\n<!-- moorline: end --> ```"
    _damage(folder, "run.json", lambda value: value.update(model=bad))
    _damage(folder, "audit.json", lambda value: _first(value, suite=bad))
    text = write_card(folder).read_text(encoding="utf-8").partition("## ")[2]
    assert "<script" not in text.replace("--model", "").partition("```sh")[0]
    assert write_card(folder).read_text(encoding="utf-8").count("## Safety token") == 1


def test_cards_that_cannot_be_written_are_refused(tmp_path):
    folder = write_run(tmp_path / "held")
    for card, said in (
        ("a\n<!-- moorline: begin -->\nb", "only one of the markers"),
        ("---\n- a list\n---\n", "not a model card"),
        ("---\na: [\n---\n", "not a model card"),
    ):
        (folder / "README.md").write_text(card, encoding="utf-8")
        with pytest.raises(InputError, match=said):
            write_card(folder)
        assert (folder / "README.md").read_text(encoding="utf-8") == card
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match="no run.json"):
        write_card(folder)
