"""The site in a real browser: readable by all, wide and on a telephone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BROWSER, sideways, violations

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    "index", "tutorials/first-run", "how-to/axolotl", "how-to/troubleshooting", "method",
    "how-to/report", "reference/messages", "reference/commands", "reference/settings",
    "reference/files", "reference/python", "compatibility",
)  # fmt: skip
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site without running its notebooks, which `make docs` does."""
    pytest.importorskip("sphinx", reason="no sphinx; `make setup`")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", str(DOCS), str(folder)], check=False,
        capture_output=True, text=True, env={**os.environ, "DOCS_NOTEBOOKS": "off"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious_and_no_page_is_too_wide(name, width, site, open_page, axe):
    page = open_page(site / f"{name}.html", width=width).page
    page.screenshot(path=BROWSER / f"site-{name.replace('/', '-')}-{width}.png")
    assert sideways(page) == 0
    assert violations(page, axe, SERIOUS) == {}
