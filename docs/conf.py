"""Sphinx configuration: build the site from the pages in this folder and the docstrings."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import board  # noqa: E402
import gallery  # noqa: E402
import paths  # noqa: E402
import scale  # noqa: E402
import speed  # noqa: E402

board.write(HERE)
gallery.write(HERE)
paths.write(HERE)
scale.write(HERE)
speed.write(HERE)

project = 'braintools_optim'
author = 'the braintools_optim developers'
copyright = '2026, the braintools_optim developers'
extensions = ['myst_parser', 'mathml', 'signatures', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_design']
exclude_patterns = ['_build', 'gallery']
default_role = 'any'
suppress_warnings = ['ref.any']
nitpick_ignore_regex = [('py:class', r'(brainstate|brainunit|jax|numpy|optax)\..*')]

html_theme = 'furo'
html_title = 'braintools_optim'
html_static_path = ['_static']
html_css_files = ['style.css']
html_math_renderer = 'mathml'
html_copy_source = False
html_show_sourcelink = False
add_module_names = False
maximum_signature_line_length = 88
pygments_dark_style = 'monokai'

myst_enable_extensions = ['dollarmath', 'colon_fence', 'attrs_block']
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring = False
napoleon_use_param = False  # types of arguments are plain text, such as "pair of float"
napoleon_use_rtype = False
napoleon_use_ivar = True
