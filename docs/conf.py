"""Sphinx configuration: build the site from the pages in this folder and the docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import gallery
import speed

gallery.write(Path(__file__).parent)
speed.write(Path(__file__).parent)

project = 'braintools_optim'
author = 'the braintools_optim developers'
copyright = '2026, the braintools_optim developers'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.mathjax', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = 'braintools_optim'
myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = 'any'
suppress_warnings = ['ref.any']
