"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

from importlib.metadata import version as installed_version

from sphinx.application import Sphinx

project = "drl_dist"
author = "the drl_dist maintainers"
copyright = author
release = version = installed_version("drl_dist")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"drl_dist {release}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
# Links to headings are the ones that a repository's own view of the pages makes.
myst_heading_anchors = 4
# The cells of notebooks are run by their test, with few steps.
nb_execution_mode = "off"

# Blocks without a language are what commands print.
highlight_language = "text"
# In docstrings, single backticks are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Options begin with two hyphens.
smartquotes = False


def setup(app: Sphinx) -> None:
    """Sphinx calls this: files beside docs/ have pages of their own in docs/project/."""
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-docstring", _keep_attribute_whole, priority=400)


def _link_to_pages(_: Sphinx, page: str, source: list[str]) -> None:
    for name in ("SECURITY", "CONTRIBUTING", "CHANGELOG"):
        source[0] = source[0].replace(f"](../{name}.md", f"](project/{name.lower()}.md")


def _keep_attribute_whole(_: Sphinx, what: str, _name: str, _value: object, _options: object, lines: list[str]) -> None:
    """Napoleon, which comes next, takes what stands before a colon in an attribute's first line for its type: put an
    empty comment first."""
    if what == "attribute":
        lines[:0] = ["..", ""]
