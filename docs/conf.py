"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "drl_dist"
author = "the drl_dist maintainers"
copyright = author
release = version = installed_version("drl_dist")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"drl_dist {release}"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
# Links to headings are the ones that a repository's own view of the pages makes.
myst_heading_anchors = 4
# The cells of notebooks are run by their test, with small numbers.
nb_execution_mode = "off"

# In docstrings, single backticks are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
