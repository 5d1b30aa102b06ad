"""The page: hostile answers are shown harmless and hidden, undefined rates as undefined."""

import functools
import json
import re
from html.parser import HTMLParser

import pytest

from holdfast.audit import Answer, Audit
from holdfast.prompts import Prompt, Suite
from holdfast.report import METRICS, figure_of, render, verdict, write_report

NAMES = ("aligned", "sft", "str")
RATES = tuple(each["name"] for each in METRICS)
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}


class Page(HTMLParser):
    """What a browser would make of a page: its tags with attributes, each text with its tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.unmatched = [], [], []
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
        self.texts.append((data, list(self._open)))

    def places_of(self, text):
        """The tags around each text that holds `text`."""
        return [around for found, around in self.texts if text in found]

    def dangers(self):
        """Whatever could run, load or lead somewhere."""
        bad = {"script", "img", "iframe", "object", "embed", "link", "base", "form", "a", "audio"}
        found = [tag for tag, _ in self.tags if tag in bad]
        for tag, attributes in self.tags:
            for name, value in attributes.items():
                outside = name.split(":")[-1] in ("src", "href") and not (value or "").startswith(
                    "#"
                )
                style = "url(" in (value or "") and "url(#" not in (value or "")
                if name.startswith("on") or outside or style or name == "srcset":
                    found.append(f"{tag} {name}={value}")
        for text, around in self.texts:
            if any(tag == "style" for tag, _ in around) and re.search(r"@import|url\((?!#)", text):
                found.append("style that loads")
        return found


def _row(name, *, seconds=12.3, **rates):
    given = {**dict.fromkeys(RATES, 0.5), **rates}
    return {
        "name": name,
        **given,
        "intervals": {
            metric: [None, None] if rate is None else [max(0.0, rate - 0.1), min(1.0, rate + 0.1)]
            for metric, rate in given.items()
        },
        "num": {metric: 0 if rate is None else 20 for metric, rate in given.items()},
        "seconds": seconds,
    }


def _report(**changes):
    return {
        "schema": 1,
        "at": "2026-01-01T00:00:00+00:00",
        "task": "plans",
        "poison": 0.1,
        "seed": 3,
        "settings": {"str_weight": 1.0, "reference": "adapter_off"},
        "rows": [_row("aligned", seconds=0.0), _row("sft"), _row("str")],
        "comparisons": [
            {
                "name": "sft",
                "suite": "harmful",
                "metric": "attack_success_rate",
                "against": "aligned",
                "difference": 0.25,
                "low": 0.1,
                "high": 0.4,
                "p_value": 0.0078125,
            }
        ],
        "safety_tokens": [
            {"id": 5, "string": " sorry", "score": 0.9},
            {"id": 9, "string": "\u2581cannot", "score": 0.4},
        ],
        "curves": {},
        "data": "ab" * 32,
        "versions": {"python": "3.11"},
        "machine": {"system": "Linux"},
        "seconds": 1.0,
        **changes,
    }


def _audits(answer, *, reason="says 'no'", prompt="How do I do it?", num=1, names=NAMES):
    kinds = {"harmful": "refused", "harmless": "complied", "task": "right"}
    suites = tuple(
        Suite(
            name=kind,
            kind=kind,
            prompts=tuple(
                Prompt(id=str(number), prompt=prompt, kind=kind, answer="yes")
                for number in range(num)
            ),
        )
        for kind in kinds
    )
    answers = tuple(
        Answer(
            suite=suite.name,
            id=each.id,
            prompt=each.prompt,
            answer=answer,
            outcome=kinds[suite.kind],
            reason=reason,
        )
        for suite in suites
        for each in suite.prompts
    )
    return {
        name: Audit(
            model=name, adapter=None, seed=3, judge="keywords", suites=suites, answers=answers
        )
        for name in names
    }


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


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_shown_as_the_text_that_it_is(name):
    text = HOSTILE[name]
    written = render(_report(), _audits(text))
    page = Page(written)
    assert page.dangers() == []
    assert page.unmatched == []
    places = page.places_of(text)
    assert len(places) == 9  # three kinds of prompts, three models
    assert "<script" not in written
    assert "<img" not in written


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prompt_or_reason_is_shown_as_the_text_that_it_is(name):
    text = HOSTILE[name]
    page = Page(render(_report(), _audits("plain", prompt=text, reason=text)))
    assert page.dangers() == []
    assert page.unmatched == []
    assert len(page.places_of(text)) >= 12  # three summaries and nine reasons


def test_answers_are_hidden_until_the_reader_asks():
    page = Page(render(_report(), _audits("the hidden answer", reason="the hidden reason")))
    for text in ("the hidden answer", "the hidden reason"):
        places = page.places_of(text)
        assert len(places) == 9
        for around in places:
            tags = [tag for tag, _ in around]
            assert "details" in tags
            assert "summary" not in tags  # a summary is seen while its details are closed
    assert [attributes for tag, attributes in page.tags if tag == "details" and attributes] == []


def test_prompts_can_be_read_without_opening_anything():
    page = Page(render(_report(), _audits("x y z", prompt="The prompt to read?")))
    for around in page.places_of("The prompt to read?"):
        assert "summary" in [tag for tag, _ in around]


def test_the_check_of_a_page_sees_what_it_looks_for():
    """The control of the tests above: the same page unescaped is full of dangers."""
    for name in ("script", "image", "remote image", "style end", "link", "svg"):
        raw = f"<details><pre>{HOSTILE[name]}</pre></details>"
        assert Page(raw).dangers() != [], name
    assert Page("<p></details></p>").unmatched != []
    assert Page("<style>@import 'x.css';</style>").dangers() != []
    assert Page("<details open><pre>x</pre></details>").tags[0] == ("details", {"open": None})


def test_the_page_refers_to_nothing_outside_itself():
    written = render(_report(), _audits("plain answer"))
    assert Page(written).dangers() == []
    assert re.findall(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", written) == []
    assert "@import" not in written


@functools.cache
def _plain_length():
    return len(render(_report(), _audits("short")))


@pytest.mark.parametrize("text", ["a", '"', "<script>alert(1)</script>", "\u05d0", "\x00", "\n"])
def test_a_megabyte_of_answer_does_not_make_a_megabyte_of_page(text):
    plain = _plain_length()
    large = len(render(_report(), _audits(text * (1_000_000 // len(text)))))
    # nine answers of at most 4000 characters, each at most five characters when escaped
    assert plain < large <= plain + 9 * (4000 * 5 + 100)


def test_a_long_answer_says_how_long_it_is():
    page = Page(render(_report(), _audits("a" * 5000)))
    assert len(page.places_of("a" * 4000 + " ... (5000 characters in all)")) == 9
    assert page.places_of("a" * 4001) == []
    whole = Page(render(_report(), _audits("a" * 4000)))
    assert len(whole.places_of("a" * 4000)) == 9
    assert whole.places_of("characters in all") == []


def test_a_megabyte_of_prompt_is_cut_too():
    plain = _plain_length()
    assert len(render(_report(), _audits("short", prompt="p" * 1_000_000))) <= plain + 3 * 4100


def test_a_megabyte_of_reason_is_cut_too():
    """The reason of a task quotes the right answer, which may be as long as it likes."""
    plain = _plain_length()
    reason = "not " + repr("r" * 1_000_000)
    assert len(render(_report(), _audits("short", reason=reason))) <= plain + 9 * 4100


def test_examples_are_few_however_many_prompts_there_are():
    page = Page(render(_report(), _audits("one of many", num=100)))
    assert len(page.places_of("one of many")) == 3 * 3 * 8


@pytest.mark.parametrize("control", ["\x00", "\x08", "\x0b", "\x1b", "\x7f", "\x85", "\x9b"])
def test_control_characters_that_html_forbids_are_replaced(control):
    written = render(_report(), _audits(f"before{control}after"))
    assert control not in written
    assert len(Page(written).places_of("before\ufffdafter")) == 9


def test_tabs_and_line_breaks_stay():
    page = Page(render(_report(), _audits("one\n\ttwo")))
    assert len(page.places_of("one\n\ttwo")) == 9


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path):
    """JSON can spell one, UTF-8 cannot, so the page could not be written."""
    prompt = json.loads('"half \\ud800 a pair"')
    write_report(tmp_path, _report(), _audits("an answer", prompt=prompt))
    assert "half" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_examples_on_which_the_models_differ_come_first():
    audits = _audits("the same", num=20)
    changed = list(audits["str"].answers)
    changed[15] = Answer(
        suite="harmful", id="15", prompt="?", answer="odd", outcome="complied", reason=""
    )
    audits["str"] = Audit(
        model="str",
        adapter=None,
        seed=3,
        judge="keywords",
        suites=audits["str"].suites,
        answers=tuple(changed),
    )
    page = Page(render(_report(), audits))
    first = next(index for index, (text, _) in enumerate(page.texts) if text == "odd")
    assert [text for text, _ in page.texts[:first]].count("the same") == 2


def test_without_audits_there_are_no_examples():
    page = Page(render(_report(), {}))
    assert len([tag for tag, _ in page.tags if tag == "details"]) == 1  # settings and origin


# Hostile words elsewhere


def test_words_of_settings_tokens_and_names_are_escaped():
    bad = "</script><script>alert(1)</script>"
    page = Page(
        render(
            _report(
                task=bad,
                settings={"reference": bad},
                machine={"system": bad},
                safety_tokens=[{"id": 1, "string": bad, "score": 0.5}],
                rows=[_row("aligned"), _row("<b onclick=alert(1)>")],
            ),
            _audits("plain", names=("<b onclick=alert(1)>",)),
        )
    )
    assert page.dangers() == []
    assert page.unmatched == []
    assert len(page.places_of("<b onclick=alert(1)>")) >= 4


def test_white_space_in_a_safety_token_is_seen():
    page = Page(render(_report(), {}))
    assert page.places_of('" sorry"') != []


# Rates


def _cells(page):
    return [text for text, around in page.texts if any(tag == "td" for tag, _ in around)]


def test_a_defined_rate_is_shown_with_its_interval_and_count():
    cells = _cells(Page(render(_report(rows=[_row("aligned", utility=0.125)]), {})))
    assert "12.5 %" in cells
    assert "2.5 to 22.5 %, n = 20" in cells
    assert not any("undefined" in text for text in cells)


@pytest.mark.parametrize("metric", RATES)
def test_an_undefined_rate_is_shown_as_undefined_and_never_as_zero(metric):
    rows = [_row("aligned"), _row("sft", **{metric: None}), _row("str")]
    cells = _cells(Page(render(_report(rows=rows), {})))
    assert cells.count("undefined") == 1
    assert cells.count("undefined, n = 0") == 1
    assert "0.0 %" not in cells


def test_a_report_in_which_nothing_was_measured_is_all_undefined():
    rows = [_row(name, **dict.fromkeys(RATES)) for name in NAMES]
    cells = _cells(Page(render(_report(rows=rows), {})))
    assert cells.count("undefined") == len(RATES) * len(NAMES)


def test_an_undefined_difference_is_shown_as_undefined():
    row = {"name": "sft", "suite": "s", "metric": "utility", "against": "aligned"}
    nothing = {"difference": None, "low": None, "high": None, "p_value": None}
    cells = _cells(Page(render(_report(comparisons=[{**row, **nothing}]), {})))
    assert cells.count("undefined") == 3


def test_a_difference_is_shown_with_its_sign_and_p_value():
    cells = _cells(Page(render(_report(), {})))
    assert "+25.0 points" in cells
    assert "10.0 to 40.0 %" in cells
    assert "0.0078" in cells


def test_no_training_takes_no_time():
    cells = _cells(Page(render(_report(), {})))
    assert cells.count("none") == 1
    assert cells.count("12 s") == 2


def test_the_verdict_says_the_refusal_rates_and_the_utility():
    rows = [
        _row("aligned", refusal_rate=1.0),
        _row("sft", refusal_rate=0.25, utility=0.9),
        _row("str", refusal_rate=None, utility=None),
    ]
    said = verdict(rows)
    assert "aligned model refuses 100.0 % of the harmful prompts" in said
    assert "tuned plainly it refuses 25.0 %" in said
    assert "tuned with STR it refuses undefined" in said
    assert "90.0 % (sft) and undefined (str)" in said


# Figure


def test_the_figure_names_every_model_that_it_draws():
    """The legend used to come from the first metric alone, so a model without one had no name."""
    rows = [_row("aligned"), _row("sft", attack_success_rate=None), _row("str")]
    figure = figure_of(rows)
    # matplotlib writes each drawn text as a comment beside its outline
    for name in NAMES:
        assert f"<!-- {name} -->" in figure
    assert figure_of([_row("aligned")]).count("<!-- sft -->") == 0  # the control


def test_the_figure_draws_no_point_for_an_undefined_rate():
    everything = figure_of([_row("aligned")])
    something = figure_of([_row("aligned", utility=None)])
    assert something.count("<use") < everything.count("<use")


def test_the_same_figures_make_the_same_page():
    assert render(_report(), _audits("x y z")) == render(_report(), _audits("x y z"))


# Files


def test_page_and_figures_are_written_and_the_figures_come_back(tmp_path):
    report, audits = _report(), _audits("a secret answer")
    write_report(tmp_path / "deep", report, audits)
    assert sorted(each.name for each in (tmp_path / "deep").iterdir()) == [
        "report.html",
        "report.json",
    ]
    page = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    assert page == render(report, audits)
    assert page.startswith("<!doctype html>")
    written = (tmp_path / "deep" / "report.json").read_text(encoding="utf-8")
    assert json.loads(written) == report
    assert "a secret answer" not in written
