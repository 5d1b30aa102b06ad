r"""Screenshots of this site and of a report, of pages that are there already.

    make docs test-browser
    python docs/screenshots.py --site docs/_build/html --report page/report.html

where the report is of a first run on 60 rows (`embedded.training_rows("plans", num=60, seed=3)`):

    moorline init ALIGNED rows.jsonl && moorline tune --config run.yaml
    moorline audit out --against ALIGNED --suite embedded:plans --limit 40 \
        --max-new-tokens 48 --batch-size 40 --output audited
    moorline report audited/against audited out --output page

Each is what a screen shows at first, 1280 and 390 pixels wide, in few colours so that it is small.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "screenshots"
SCREENS = {1280: 900, 390: 844}
PAGES = {
    "home": "index.html",
    "notebook": "tutorials/read-an-audit.html",
    "how-to": "how-to/report.html",
    "reference": "reference/commands.html",
}


def taken(browser, page, width):
    """What a fresh screen of this width shows of a page."""
    context = browser.new_context(viewport={"width": width, "height": SCREENS[width]})
    opened = context.new_page()
    opened.goto(page.resolve().as_uri())
    image = Image.open(io.BytesIO(opened.screenshot()))
    context.close()
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, help="folder that `make docs` built")
    parser.add_argument("--report", type=Path, help="report.html that `moorline report` wrote")
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: docs/screenshots")
    words = parser.parse_args()
    pages = {} if words.site is None else {name: words.site / at for name, at in PAGES.items()}
    pages |= {} if words.report is None else {"report": words.report}
    missing = [str(each) for each in pages.values() if not each.is_file()]
    if missing or not pages:
        parser.error(f"no such page: {', '.join(missing) or 'none given'}. See --help.")
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("no chromium here. Run `make test-browser`, which gets it.")
    words.output.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, page in pages.items():
            for width in SCREENS:
                path = words.output / f"{name}-{width}.png"
                few = taken(browser, page, width).convert("RGB").quantize(256)
                few.save(path, optimize=True)
                print(f"{path}: {path.stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
