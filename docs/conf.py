"""How the site is built: `make docs`. Needs no network."""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1",
    HF_DATASETS_CACHE=tempfile.mkdtemp(prefix="moorline-docs-"),
    # the notebooks run the command of this environment, activated or not
    PYTHONPATH=f"{HERE / 'kernel'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
)  # fmt: skip

import generate  # noqa: E402

import moorline  # noqa: E402

generate.write(HERE / "reference" / "generated")

project = "Moorline"
author = "The Moorline developers"
release = version = moorline.__version__
copyright = "2026, the Moorline developers. Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "reference/generated/*.md", "**/.ipynb_checkpoints"]
nitpicky = False

html_theme = "furo"
html_title = "Moorline"
html_extra_path = ["llms.txt"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off" if os.environ.get("DOCS_NOTEBOOKS") == "off" else "cache"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_custom_sections = ["Source"]
default_role = "code"  # single backticks are code, as in the Markdown pages


def _examples_as_code(_app, _what, _name, _obj, _options, lines):
    """Show an indented example of a docstring as code: outside of sections, after a blank line."""
    made, top = [], ""
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            top = line
        begins = indented and not lines[number - 1].strip() and not _is_section(top)
        if begins and not any(each == "::" for each in made[-2:]):
            made += ["::", ""] if not _within(made) else []
        made.append(line)
    lines[:] = made


def _within(made):
    """Whether the last line with words is part of a block of code already."""
    last = next((each for each in reversed(made) if each.strip()), "")
    return last.startswith("    ")


def _is_section(line):
    return line.endswith(":") and line[:-1].replace(" ", "").isalpha() and len(line) < 20


def setup(app):
    # before napoleon, which has the priority 500
    app.connect("autodoc-process-docstring", _examples_as_code, priority=400)
