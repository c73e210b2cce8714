"""Sphinx configuration: numpydoc for the API, MyST for the pages."""

import confide

project = "confide"
author = "The confide authors"
copyright = "2026, The confide authors"
version = release = confide.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser", "sphinx.ext.viewcode"]
autosummary_generate = True
templates_path = ["_templates"]
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "confide"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing", "myst.header"]
