"""The site, made by `make docs` from the pages beside this file, the notebooks and the package's docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring

import copilotlab

project = "copilotlab"
author = "the authors of copilotlab"
copyright = f"{author}, MIT licence"
release = version = copilotlab.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
exclude_patterns = ["**/.ipynb_checkpoints"]
nitpicky = True  # a name that leads nowhere is a warning, and `make docs` makes warnings errors
nitpick_ignore_regex = [
    ("py:.*", r"(?!copilotlab).*"),  # names of others, whose pages would have to be fetched
    ("py:.*", r".*\._?T"),  # type variables
]

myst_heading_anchors = 3
myst_enable_extensions: list[str] = []  # a page reads the same where Markdown alone is shown
myst_fence_as_directive = ["mermaid"]
mermaid_cmd = str(Path(sys.executable).with_name("mmdr"))  # draws without a browser
mermaid_output_format = "svg"  # drawn when the site is built: a page fetches no script

nb_execution_mode = "off"  # shown as they were committed; `make notebooks` runs them
# What makes a widget live would be fetched: its static table or picture is shown in its place.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_mime_priority_overrides = [("*", "application/vnd.jupyter.widget-view+json", None)]

default_role = "code"
smartquotes = False  # a default of "" stays one
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = napoleon_numpy_docstring = False  # see `as_written`
napoleon_custom_sections = ["Returns"]  # sentences, no types

html_theme = "furo"
html_title = f"copilotlab {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = False


def as_written(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Read "Parameters:" and the like as sections, and what a module's docstring indents as code.

    Not the sections in a property, where "The words that are embedded: ..." would be a type and what it is for.
    """
    if what not in ("property", "attribute", "data"):
        lines[:] = GoogleDocstring(list(lines), app.config, app, what, name, thing, options).lines()
    if what == "module":
        for i in reversed(range(1, len(lines))):
            if lines[i].startswith("    ") and not lines[i - 1] and not lines[i - 2].startswith("    "):
                lines[i:i] = ["::", ""]


def setup(app: Sphinx) -> None:
    app.add_lexer("acl", TextLexer)  # rules of Redis
    app.connect("autodoc-process-docstring", as_written)
