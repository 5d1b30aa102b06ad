"""The report in a real browser: quiet, whole, readable by all, and harmless whatever it quotes.

`make test-browser` gets Chromium and axe-core and leaves screenshots in `.browser/`.
"""

from pathlib import Path

import pytest
from helpers import BROWSER, sideways, violations, write_run, write_three

from moorline.report import Report, report
from moorline.report.page import render
from moorline.report.runs import read_runs, shown
from moorline.report.verdict import findings, verdict

pytestmark = pytest.mark.browser

_ANSWER = "an answer that is hidden"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The report of three models with everything in it."""
    parent = tmp_path_factory.mktemp("full")
    report(write_three(parent, answer=_ANSWER), parent / "out")
    return parent / "out" / "report.html"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The report of one audit alone."""
    parent = tmp_path_factory.mktemp("short")
    folder = write_run(parent / "aligned")
    for name in ("run.json", "drift.json", "safety_tokens.json", "answers.jsonl"):
        (folder / name).unlink()
    report([folder], parent / "out")
    return parent / "out" / "report.html"


def _open_all(page):
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")


@pytest.mark.parametrize("name", ["full", "short"])
def test_the_page_opens_quietly_and_asks_for_nothing(name, open_page, request):
    path = request.getfixturevalue(name)
    opened = open_page(path)
    _open_all(opened.page)
    assert opened.said == []
    assert opened.asked == [path.as_uri()]


def test_the_check_of_a_page_hears_and_sees(open_page, axe, tmp_path):
    """The control of the tests here: of a bad page each of them would say so."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<html><body style='width: 2000px'><img src='https://example.invalid/x.png'>"
        "<p style='color: #999; background: #aaa'>pale</p><script>harmed = 1; nothing()</script>"
    )
    opened = open_page(path, width=390)
    assert any("nothing is not defined" in each for each in opened.said)
    assert "https://example.invalid/x.png" in opened.asked
    assert {"image-alt", "color-contrast"} <= violations(opened.page, axe).keys()
    assert sideways(opened.page) > 0
    assert opened.page.evaluate("window.harmed") == 1


@pytest.mark.parametrize(("name", "num"), [("full", 9), ("short", 5)])
def test_every_figure_is_there_and_named(name, num, open_page, request):
    page = open_page(request.getfixturevalue(name)).page
    figures = page.get_by_role("img")
    assert figures.count() == page.locator("figure").count() == num
    for place in range(num):
        box = figures.nth(place).bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
        assert len(figures.nth(place).get_attribute("aria-label")) > 20
        assert figures.nth(place).locator("css=text:visible").count() > 3


def test_letters_in_figures_are_large_enough_on_a_phone(full, open_page):
    page = open_page(full, width=390).page
    sizes = page.evaluate(
        """[...document.querySelectorAll('figure svg')].map(
            each => each.getBoundingClientRect().width / each.viewBox.baseVal.width * 10)"""
    )
    assert min(sizes) > 9  # pixels; the letters have 10 points


def _focused(page, within):
    return page.evaluate("within => Boolean(document.activeElement.closest(within))", within)


def test_hidden_answers_are_shown_and_hidden_by_keyboard_alone(full, open_page):
    page = open_page(full).page
    answer = page.locator("details.example pre").first
    assert answer.text_content() == _ANSWER
    assert not answer.is_visible()
    for _ in range(100):
        page.keyboard.press("Tab")
        if _focused(page, "details.example"):
            break
    assert _focused(page, "details.example")
    page.keyboard.press("Enter")
    assert answer.is_visible()
    page.keyboard.press("Space")
    assert not answer.is_visible()
    assert page.locator("details[open]").count() == 0


def test_the_first_stop_of_the_keyboard_leads_past_the_head(full, open_page):
    page = open_page(full).page
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert _focused(page, ".skip")
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["full", "short"])
def test_axe_finds_nothing(name, width, scheme, open_page, axe, request):
    page = open_page(request.getfixturevalue(name), width=width, scheme=scheme).page
    page.screenshot(path=BROWSER / f"{name}-{width}-{scheme}.png", full_page=True)
    assert violations(page, axe) == {}
    _open_all(page)
    assert violations(page, axe) == {}


@pytest.mark.parametrize("width", [390, 320])
@pytest.mark.parametrize("name", ["full", "short"])
def test_the_page_does_not_scroll_sideways_on_a_phone(name, width, open_page, request):
    page = open_page(request.getfixturevalue(name), width=width).page
    assert sideways(page) == 0
    _open_all(page)
    assert sideways(page) == 0


@pytest.mark.parametrize("name", ["full", "short"])
def test_every_column_is_seen_on_a_phone(name, open_page, request):
    """The last column stood off the screen, and nothing said so."""
    page = open_page(request.getfixturevalue(name), width=390).page
    _open_all(page)
    outside = """[...document.querySelectorAll('td')].filter(each => {
        const box = each.getBoundingClientRect();
        return box.right > innerWidth || box.left < 0 }).length"""
    assert page.locator("td").count() > 10
    assert page.evaluate(outside) == 0
    named = "[...document.querySelectorAll('td')].every(each => each.dataset.label)"
    assert page.evaluate(named)
    page.add_style_tag(content="table { width: 900px } table, tr { display: table !important }")
    assert page.evaluate(outside) > 0  # the control


def test_all_answers_are_found_by_their_words_and_hidden_until_asked(full, open_page):
    opened = open_page(full)
    page = opened.page
    entries = page.locator("#answers-list details")
    assert entries.count() == 0
    assert not page.locator("#answers-form").is_visible()
    page.click("#answers-show")
    assert entries.count() == 25
    assert "27 answers; 25 listed" in page.locator("#answers-count").inner_text()
    page.click("#answers-more")
    assert entries.count() == 27
    page.get_by_role("combobox", name="model").select_option("held")
    page.get_by_role("combobox", name="suite").select_option("plans")
    assert entries.count() == 3
    page.get_by_label("words in prompt or answer").fill("PLANS 2")
    assert entries.count() == 1
    assert not entries.first.locator("pre").is_visible()
    entries.first.locator("summary").click()
    assert entries.first.locator("pre").inner_text() == _ANSWER
    page.get_by_label("words in prompt or answer").fill("nowhere to be found")
    assert entries.count() == 0
    assert opened.said == []


def test_the_table_is_a_file_to_keep(full, open_page):
    opened = open_page(full)
    with opened.page.expect_download() as told:
        opened.page.get_by_role("link", name="Download every number").click()
    assert told.value.suggested_filename == "measurements.csv"
    text = Path(told.value.path()).read_text(encoding="utf-8")
    assert text.startswith("model,suite,kind,condition,metric")
    assert len(text.splitlines()) > 50
    assert opened.said == []


def test_a_print_hides_the_answers_and_shows_the_settings(full, open_page):
    page = open_page(full).page
    page.emulate_media(media="print")
    assert not page.locator("details.example pre").first.is_visible()
    assert page.locator("details.origin pre").first.is_visible()
    assert not page.locator("nav").is_visible()


HOSTILE = {
    "script": "<script>window.harmed = 1</script>",
    "image": "<img src=x onerror='window.harmed = 1'>",
    "svg": "<svg onload='window.harmed = 1'><script>window.harmed = 1</script></svg>",
    "style end": "</style></pre></details></main><script>window.harmed = 1</script>",
    "attribute": "\"' onmouseover='window.harmed = 1' autofocus onfocus='window.harmed = 1'",
    "link": "<a href='javascript:window.harmed = 1'>x</a><meta http-equiv=refresh content=0>",
    "megabyte": "<b>" + "w" * 1_000_000,
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202egnorw",
    "null": "be\x00fore\x1b[31m",
}


def _outline(page):
    """What a page is made of, whatever its texts say."""
    return page.evaluate(
        """[...document.querySelectorAll('*')]
            .filter(each => !each.closest('.example, .origin, #answers'))
            .map(each => each.parentElement?.tagName + ' ' + each.tagName).join()"""
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_words_are_shown_harmless(name, open_page, tmp_path):
    text = HOSTILE[name]
    plain, hostile = tmp_path / "plain.html", tmp_path / "hostile.html"
    # In the answers and prompts, and in the names of suites, categories, judges and models.
    for path, answer in ((plain, "x"), (hostile, text)):
        words = {"answer": answer, "prompt": answer, "names": answer, "against": answer}
        folder = write_run(tmp_path / path.stem, **words)
        runs = read_runs([folder])
        made = Report(title=answer, verdict=tuple(verdict(runs)), findings=tuple(findings(runs)),
                      runs=tuple(runs))  # fmt: skip
        path.write_text(render(made), encoding="utf-8")
    # Without the page's own policy, so that nothing but the escaping protects.
    opened = open_page(hostile, width=390, bypass_csp=True)
    opened.page.click("#answers-show")
    assert opened.page.locator("#answers-list details").count() == 9
    _open_all(opened.page)
    opened.page.mouse.wheel(0, 100_000)
    assert opened.page.evaluate("window.harmed") is None
    assert opened.said == []
    assert opened.asked == [hostile.as_uri()]
    filtered = opened.page.locator("#answers-list pre").first
    assert filtered.inner_text() == shown(text)[:1000]
    opened.page.locator("#answers-list").evaluate("each => each.replaceChildren()")
    # innerText leaves out what is not seen
    assert opened.page.locator("details.example pre").first.inner_text() == shown(text)
    assert _outline(opened.page) == _outline(open_page(plain).page)
    assert sideways(opened.page) == 0
