"""Sphinx's settings: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import sde

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # the table of orders, in the API of comparisons

project = "sde"
copyright = "2026, the authors of sde"
release = version = sde.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # MathJax with the pages, so that formulas are shown without a network
]
exclude_patterns = ["_build", "_generated"]
default_role = "literal"

html_theme = "furo"
html_title = f"sde {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Equations carry the number of their page: (3.2) is the second equation of derivation 3.
numfig = True
math_numfig = True
numfig_secnum_depth = 1
math_eqref_format = "({number})"

autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "needs"}  # its value is a class, which autodoc would document as an alias
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def find_public(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element) -> Element | None:
    """Resolves a reference by the name in its own module to the public name on a page of the API."""
    if node.get("refdomain") != "py":
        return None
    objects: dict[str, Any] = env.domains["py"].data["objects"]
    # Methods are found by class and name, everything else by its last part.
    parts = node["reftarget"].lstrip("~.").split(".")
    tails = [".".join(parts[-2:]), parts[-1]]
    for tail in tails:
        matches = [name for name in objects if name == tail or name.endswith("." + tail)]
        matches = [name for name in matches if not objects[name].aliased]
        if len(matches) == 1:
            entry = objects[matches[0]]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, matches[0])
    return None


def before_napoleon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escapes the star of a shape such as (B, *) or (N, C, *spatial), which would start emphasis."""
    lines[:] = [re.sub(r"(?<=[(\s])\*(?=\w*\))", r"\\*", line) for line in lines]


def after_napoleon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Restores the words before a colon that napoleon takes for a type: this package has types in annotations only."""
    for i, line in enumerate(lines):
        if line.startswith(":rtype:"):
            start = max(k for k in range(i) if lines[k].startswith((":returns:", ":Yields:")))
            field, text = lines[start].split(" ", 1)
            lines[start], lines[i] = f"{field} {line.removeprefix(':rtype:').strip()}: {text}", ""
        elif line.startswith(":type:"):
            lines[0], lines[i] = f"{line.removeprefix(':type:').strip()}: {lines[0]}", ""


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("missing-reference", find_public)
