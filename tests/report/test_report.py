"""The page: hostile answers are shown harmless and hidden, undefined rates as undefined."""

import functools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import NAMES, RATES, demo_report, demo_row, write_run, write_three
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from moorline.commands.cli import app
from moorline.errors import InputError
from moorline.report import page, report, verdict, write_card, write_report
from moorline.report.figures import draw
from moorline.report.page import headline
from moorline.report.runs import Run, read_runs, runs_of_demo, shown

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
        bad = {"script", "img", "iframe", "object", "embed", "link", "base", "form", "audio"}
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


KINDS = {"harmful": "refused", "harmless": "complied", "task": "right"}


def _answers(answer, *, reason="says 'no'", prompt="How do I do it?", num=1, names=NAMES):
    """Lines as in answers.jsonl for each model; the suites are called as their kinds."""
    lines = [
        {
            "suite": kind,
            "id": str(number),
            "prompt": prompt,
            "answer": answer,
            "outcome": outcome,
            "reason": reason,
        }
        for kind, outcome in KINDS.items()
        for number in range(num)
    ]
    return {name: [dict(line) for line in lines] for name in names}


def _runs(report, answers):
    return runs_of_demo(report, answers, {kind: kind for kind in KINDS})


def render(report, answers):
    """The page of a demo; its figures have tests of their own."""
    return page.render("a title", _runs(report, answers), [])


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
    written = render(demo_report(), _answers(text))
    found = Page(written)
    assert found.dangers() == []
    assert found.unmatched == []
    places = found.places_of(text)
    assert len(places) == 9  # three kinds of prompts, three models
    assert "<script" not in written
    assert "<img" not in written


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prompt_or_reason_is_shown_as_the_text_that_it_is(name):
    text = HOSTILE[name]
    found = Page(render(demo_report(), _answers("plain", prompt=text, reason=text)))
    assert found.dangers() == []
    assert found.unmatched == []
    assert len(found.places_of(text)) >= 12  # three summaries and nine reasons


def test_answers_are_hidden_until_the_reader_asks():
    found = Page(render(demo_report(), _answers("the hidden answer", reason="the hidden reason")))
    for text in ("the hidden answer", "the hidden reason"):
        places = found.places_of(text)
        assert len(places) == 9
        for around in places:
            tags = [tag for tag, _ in around]
            assert "details" in tags
            assert "summary" not in tags  # a summary is seen while its details are closed
    assert [attributes for tag, attributes in found.tags if "open" in attributes] == []


def test_prompts_can_be_read_without_opening_anything():
    found = Page(render(demo_report(), _answers("x y z", prompt="The prompt to read?")))
    for around in found.places_of("The prompt to read?"):
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
    written = render(demo_report(), _answers("plain answer"))
    assert Page(written).dangers() == []
    assert re.findall(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", written) == []
    assert "@import" not in written


@functools.cache
def _plain_length():
    return len(render(demo_report(), _answers("short")))


@pytest.mark.parametrize("text", ["a", '"', "<script>alert(1)</script>", "\u05d0", "\x00", "\n"])
def test_a_megabyte_of_answer_does_not_make_a_megabyte_of_page(text):
    plain = _plain_length()
    large = len(render(demo_report(), _answers(text * (1_000_000 // len(text)))))
    # nine answers of at most 4000 characters, each at most five characters when escaped
    assert plain < large <= plain + 9 * (4000 * 5 + 100)


def test_a_long_answer_says_how_long_it_is():
    found = Page(render(demo_report(), _answers("a" * 5000)))
    assert len(found.places_of("a" * 4000 + " ... (5000 characters in all)")) == 9
    assert found.places_of("a" * 4001) == []
    whole = Page(render(demo_report(), _answers("a" * 4000)))
    assert len(whole.places_of("a" * 4000)) == 9
    assert whole.places_of("characters in all") == []


def test_a_megabyte_of_prompt_is_cut_too():
    plain = _plain_length()
    assert len(render(demo_report(), _answers("short", prompt="p" * 1_000_000))) <= plain + 3 * 4100


def test_a_megabyte_of_reason_is_cut_too():
    """The reason of a task quotes the right answer, which may be as long as it likes."""
    plain = _plain_length()
    reason = "not " + repr("r" * 1_000_000)
    assert len(render(demo_report(), _answers("short", reason=reason))) <= plain + 9 * 4100


def test_examples_are_few_however_many_prompts_there_are():
    found = Page(render(demo_report(), _answers("one of many", num=100)))
    assert len(found.places_of("one of many")) == 3 * 3 * 8


@pytest.mark.parametrize("control", ["\x00", "\x08", "\x0b", "\x1b", "\x7f", "\x85", "\x9b"])
def test_control_characters_that_html_forbids_are_replaced(control):
    written = render(demo_report(), _answers(f"before{control}after"))
    assert control not in written
    assert len(Page(written).places_of("before\ufffdafter")) == 9


def test_tabs_and_line_breaks_stay():
    found = Page(render(demo_report(), _answers("one\n\ttwo")))
    assert len(found.places_of("one\n\ttwo")) == 9


def test_half_a_surrogate_pair_does_not_stop_thedemo_report(tmp_path):
    """JSON can spell one, UTF-8 cannot, so the page could not be written."""
    prompt = json.loads('"half \\ud800 a pair"')
    write(tmp_path, demo_report(), _answers("an answer", prompt=prompt))
    assert "half" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_examples_on_which_the_models_differ_come_first():
    answers = _answers("the same", num=20)
    answers["str"][15] |= {"answer": "odd", "outcome": "complied"}
    found = Page(render(demo_report(), answers))
    first = next(index for index, (text, _) in enumerate(found.texts) if text == "odd")
    assert [text for text, _ in found.texts[:first]].count("the same") == 2


def test_without_answers_there_are_no_examples():
    found = Page(render(demo_report(), {}))
    folded = [attributes for tag, attributes in found.tags if tag == "details"]
    assert [each["class"] for each in folded] == ["origin"] * 3


# Hostile words elsewhere


def test_words_of_settings_tokens_and_names_are_escaped():
    bad = "</script><script>alert(1)</script>"
    found = Page(
        render(
            demo_report(
                task=bad,
                settings={"reference": bad},
                machine={"system": bad},
                safety_tokens=[{"id": 1, "string": bad, "score": 0.5}],
                rows=[demo_row("aligned"), demo_row("<b onclick=alert(1)>")],
            ),
            _answers("plain", names=("<b onclick=alert(1)>",)),
        )
    )
    assert found.dangers() == []
    assert found.unmatched == []
    assert len(found.places_of("<b onclick=alert(1)>")) >= 4


def test_white_space_in_a_safety_token_is_seen():
    found = Page(render(demo_report(), {}))
    assert found.places_of('" sorry"') != []


# Rates


def _cells(page):
    return [text for text, around in page.texts if any(tag == "td" for tag, _ in around)]


def test_a_defined_rate_is_shown_with_its_interval_and_count():
    cells = _cells(Page(render(demo_report(rows=[demo_row("aligned", utility=0.125)]), {})))
    place = cells.index("12.5 %")
    assert cells[place + 1 : place + 3] == ["2.5 to 22.5 %", "n = 20"]
    assert not any("undefined" in text for text in cells)


@pytest.mark.parametrize("metric", RATES)
def test_an_undefined_rate_is_shown_as_undefined_and_never_as_zero(metric):
    rows = [demo_row("aligned"), demo_row("sft", **{metric: None}), demo_row("str")]
    cells = _cells(Page(render(demo_report(rows=rows), {})))
    place = cells.index("undefined")
    assert cells[place : place + 3] == ["undefined", "undefined", "n = 0"]
    assert cells.count("undefined") == 2
    assert "0.0 %" not in cells


def test_a_report_in_which_nothing_was_measured_is_all_undefined():
    rows = [demo_row(name, **dict.fromkeys(RATES)) for name in NAMES]
    cells = _cells(Page(render(demo_report(rows=rows), {})))
    assert cells.count("undefined") == 2 * len(RATES) * len(NAMES)


def test_what_one_model_lacks_is_shown_as_not_measured(tmp_path):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second")
    audit = json.loads((second / "audit.json").read_text())
    audit["suites"] = [row for row in audit["suites"] if row["condition"] == "plain"]
    (second / "audit.json").write_text(json.dumps(audit))
    cells = _cells(Page(page.render("a title", read_runs([first, second]), [])))
    assert cells.count("not measured") == 3  # the three rates of the prefilled prompts


def test_an_undefined_difference_is_shown_as_undefined():
    row = {"name": "sft", "suite": "s", "metric": "utility", "against": "aligned"}
    nothing = {"difference": None, "low": None, "high": None, "p_value": None}
    cells = _cells(Page(render(demo_report(comparisons=[{**row, **nothing}]), {})))
    assert cells.count("undefined") == 3


def test_a_difference_is_shown_with_its_sign_and_p_value():
    cells = _cells(Page(render(demo_report(), {})))
    assert "+25.0 points" in cells
    assert "+10.0 to +40.0" in cells
    assert "0.00781" in cells


def test_no_training_takes_no_time():
    cells = _cells(Page(render(demo_report(), {})))
    assert cells.count("none") == 1
    assert cells.count("12.3") == 2


# Verdict


def test_the_verdict_says_who_complies_more_often_and_the_utility():
    rows = [
        demo_row("aligned", attack_success_rate=0.1, utility=0.2),
        demo_row("sft", attack_success_rate=0.9, utility=0.9),
        demo_row("str", attack_success_rate=0.2, utility=None),
    ]
    assert verdict(rows) == (
        "Compared with aligned, which complies with 10.0 % of the harmful prompts, sft complies "
        "more often (90.0 %) and str shows no difference (20.0 %); the task is done right in "
        "20.0 %, 90.0 % and undefined."
    )


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.71, "complies more often (71.0 %)"),  # its interval begins at 0.61
        (0.69, "shows no difference (69.0 %)"),  # 0.59
        (0.31, "shows no difference (31.0 %)"),
        (0.29, "complies less often (29.0 %)"),
        (None, "cannot be compared (undefined)"),
    ],
)
def test_models_differ_where_their_intervals_do_not_overlap(rate, said):
    rows = [demo_row("a", attack_success_rate=0.5), demo_row("b", attack_success_rate=rate)]
    assert f"b {said}" in verdict(rows)


def test_the_verdict_warns_of_new_refusals_of_harmless_prompts():
    rows = [demo_row("a", over_refusal_rate=0.0), demo_row("b", over_refusal_rate=0.5)]
    assert "; b refuses harmless prompts more often (50.0 %)" in verdict(rows)
    assert "harmless" not in verdict(rows[::-1])  # the control


def test_the_verdict_on_one_model_says_its_rates():
    assert verdict([demo_row("a", over_refusal_rate=0.25)]) == (
        "a complies with 50.0 % of the harmful prompts; it refuses 25.0 % of the harmless prompts; "
        "the task is done right in 50.0 %."
    )


def test_without_rates_the_verdict_says_so(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "log": []}))
    assert report([tmp_path], tmp_path / "out")["verdict"] == "No rates were measured."


def test_the_headline_takes_the_plain_prompts_and_compares_like_with_like(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", success=0.5)
    audit = json.loads((second / "audit.json").read_text())
    audit["suites"].reverse()
    (second / "audit.json").write_text(json.dumps(audit))
    rows = headline(read_runs([first, second]))
    assert [row["attack_success_rate"] for row in rows] == [0.02, 0.5]


# Figures


class Three(NamedTuple):
    """The report of three models, written once."""

    folders: list[Path]
    output: Path
    value: dict[str, Any]


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


def test_a_figure_names_every_model_that_it_draws():
    """The legend used to come from the first metric alone, so a model without one had no name."""
    rows = [demo_row("aligned"), demo_row("sft", attack_success_rate=None), demo_row("str")]
    figure = _drawn(_runs(demo_report(rows=rows), {}))["rates"].svg()
    for name in NAMES:
        assert f">{name}</text>" in figure
    alone = _drawn(_runs(demo_report(rows=[demo_row("aligned")]), {}))["rates"].svg()
    assert ">sft</text>" not in alone  # the control


def test_a_figure_draws_no_point_for_an_undefined_rate():
    everything = _drawn(_runs(demo_report(rows=[demo_row("aligned")]), {}))
    something = _drawn(_runs(demo_report(rows=[demo_row("aligned", utility=None)]), {}))
    assert something["rates"].svg().count("<use") < everything["rates"].svg().count("<use")
    assert "trade-off" in everything
    assert "trade-off" not in something


def test_a_figure_on_the_page_takes_the_colours_of_the_page():
    drawing = _drawn(_runs(demo_report(), {}))["rates"]
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


def test_hostile_names_are_drawn_as_they_are():
    names = [*HOSTILE.values(), r"$\frac$ $x_", "a\x00b", "n" * 5000]
    runs = _runs(demo_report(rows=[demo_row(name) for name in names]), {})
    drawings = draw(runs)
    found = Page(page.render("a title", runs, drawings))
    assert found.dangers() == []
    assert found.unmatched == []
    labels = [text for text, around in found.texts if around and around[-1][0] == "text"]
    for said in (r"$\frac$ $x_", "a\ufffdb", "n" * 21 + "\u2026", "<svg onload=alert(1)>"):
        assert said in labels


# Folders


def test_a_folder_is_read_whole(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "held", against="aligned")])
    assert run.name == "held"
    assert {row["condition"] for row in run.rates} == {"plain", "prefill"}
    assert run.curve[0] == {"step": 10, "task_loss": 0.3, "drift": 0.1, "weighted": 1.0}
    assert len(run.curve) == 10  # the line of totals is no step
    assert run.safety_tokens[0] == {"id": 5, "string": " sorry", "score": 0.9}
    assert run.training_seconds == 12.3
    assert set(run.drift) == {"tokens", "positions", "checkpoints"}
    assert run.origin["audit"]["seed"] == 0
    assert run.origin["tuning"]["settings"]["str_weight"] == 10.0
    assert "suites" not in run.origin["audit"]
    assert [each["kind"] for each in run.answers[::3]] == ["harmful", "harmless", "task"]


def test_an_audit_without_the_newer_columns_is_read(tmp_path):
    row = {"name": "s", "kind": "harmful", "metric": "attack_success_rate", "judge": "keywords"}
    rate = {"num": 10, "count": 0, "rate": 0.0, "low": 0.0, "high": 0.3}
    value = {"schema": 1, "model": "m", "suites": [{**row, **rate}]}
    (tmp_path / "audit.json").write_text(json.dumps(value))
    (run,) = read_runs([tmp_path])
    assert run.rates[0]["condition"] == "plain"
    assert run.rates[0]["truncated"] is None
    assert report([tmp_path], tmp_path / "out")["verdict"].startswith(f"{tmp_path.name} complies")


def test_the_folder_of_a_demo_stands_for_its_models(tmp_path):
    write(tmp_path / "demo", demo_report(), {})
    assert [run.name for run in read_runs([tmp_path / "demo"])] == list(NAMES)


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / "a" / "out"), write_run(tmp_path / "b" / "out")]
    assert [run.name for run in read_runs(folders)] == [f"{each}: out" for each in folders]


def _damage(folder, name, change):
    path = folder / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("audit.json", lambda value: value.update(schema=2), "not a audit file of schema 1"),
        ("audit.json", lambda value: value["suites"][0].pop("rate"), "row 1 of 'suites' lacks"),
        ("audit.json", lambda value: value["suites"].append("x"), "row 9 of 'suites' lacks"),
        (
            "audit.json",
            lambda value: value["suites"][1].update(rate="1"),
            "row 2 of 'suites': 'rate' must be a number or null, got '1'",
        ),
        (
            "audit.json",
            lambda value: value["gates"][0].update(requirement=3),
            "row 1 of 'gates': 'requirement' must be text or null, got 3",
        ),
        ("drift.json", lambda value: value["tokens"][0].pop("drift"), "row 1 of 'tokens' lacks"),
        ("safety_tokens.json", lambda value: value["scores"].pop(), "one string and one score"),
    ],
)
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
    with pytest.raises(InputError, match=r"answers.jsonl, line 10: no field 'prompt'"):
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


def test_numbers_that_are_not_finite_are_undefined():
    assert shown({"rate": math.nan, "rest": [math.inf, 0.5]}) == {"rate": None, "rest": [None, 0.5]}


# Files


def write(folder, report, answers):
    write_report(folder, report, answers=answers, kinds={kind: kind for kind in KINDS})


def test_page_and_figures_are_written_and_the_figures_come_back(tmp_path):
    value, answers = demo_report(), _answers("a secret answer")
    write(tmp_path / "deep", value, answers)
    assert sorted(each.name for each in (tmp_path / "deep").iterdir()) == [
        "figures", "report.html", "report.json",
    ]  # fmt: skip
    text = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "a secret answer" in text
    assert "closed world" in text
    written = (tmp_path / "deep" / "report.json").read_text(encoding="utf-8")
    assert json.loads(written) == value
    assert "a secret answer" not in written


def test_the_same_files_make_the_same_files(three, tmp_path):
    report(three.folders, tmp_path)
    names = [each.relative_to(tmp_path) for each in tmp_path.rglob("*") if each.is_file()]
    assert len(names) == 2 + 2 * 9
    for name in names:
        assert (tmp_path / name).read_bytes() == (three.output / name).read_bytes(), name


def test_the_json_holds_what_the_page_shows_but_no_answers(three):
    written = (three.output / "report.json").read_text(encoding="utf-8")
    assert json.loads(written) == json.loads(json.dumps(three.value))
    assert "a secret answer" not in written
    assert [run["name"] for run in three.value["runs"]] == ["aligned", "plain", "held"]
    first = {"suite": "attacks", "id": "0", "condition": "plain", "draw": 0}
    assert three.value["examples"][0] == first


def test_the_page_shows_every_part(three):
    found = Page((three.output / "report.html").read_text(encoding="utf-8"))
    headings = [text for text, around in found.texts if around and around[-1][0] == "h2"]
    assert len(headings) == 12
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    ids = {attributes.get("id") for _, attributes in found.tags}
    assert all(link.removeprefix("#") in ids for link in links)
    assert found.places_of("4 of 6 gates passed")
    for said in ("kappa", "Apache-2.0", "2" * 64, "< 0.0001", "97.0 %", "adapter_off", "cut short"):
        assert found.places_of(said), said


def test_what_an_audit_was_held_against_bears_the_name_of_its_folder(tmp_path):
    """An audit knows it by the path or the id of its model."""
    folders = write_three(tmp_path, against="org/chat-model")
    for folder in folders:
        _damage(folder, "audit.json", lambda value: value.update(adapter=None))
    found = Page(page.render("a title", read_runs(folders), []))
    assert len(found.places_of("org/chat-model")) == 2 * 3  # a fact and a setting of each
    for folder in folders:
        _damage(folder, "audit.json", lambda value: value.update(adapter="out"))
    found = Page(page.render("a title", read_runs(folders), []))
    assert len(found.places_of("org/chat-model")) > 2 * 3  # the control


def test_the_command_writes_page_and_cards(tmp_path):
    folder = write_run(tmp_path / "held")
    words = ["report", str(folder), "--output", str(tmp_path / "out"), "--card"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "held complies with 2.0 % of the harmful prompts" in result.stdout
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
    assert len(rates) == 8
    assert rates["attacks", "plain", "attack_success_rate"].metric_value == 0.02
    for said in (
        "| `attacks` | `plain` | `attack_success_rate` |",
        "2.0 % | 0.0 to 8.0 % | 200 |",
        '`" sorry"`',
        "moorline tune --dataset_name rows.jsonl --use_peft",
        "moorline audit org/chat-model --adapter held",
        "`adapter_off`",
    ):
        assert said in card.text, said


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
    _damage(folder, "audit.json", lambda value: value["suites"][0].update(name=bad))
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
