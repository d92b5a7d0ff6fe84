"""Sphinx extension: formulas as MathML, which browsers render without a script and without a connection.

The font STIX Two Math is taken from ziamath and becomes a part of the pages.
"""

from __future__ import annotations

import re
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

FONT = 'STIXTwoMath-Regular.ttf'
MATH = '<math xmlns="http://www.w3.org/1998/Math/MathML" display="{display}">{content}</math>'


def content_of(latex: str, display: str) -> str:
    """Return the MathML of a formula, without the element ``math``."""
    mathml = (
        convert(latex, display=display).replace(r'\_', '_').replace('<mo>&#x02016;', '<mo stretchy="false">&#x02016;')
    )
    return re.sub(r'^<math[^>]*>|</math>$', '', mathml)


def aligned(latex: str) -> str:
    """Return the MathML of a formula of several lines, aligned at each ``&``."""
    inner = re.compile(r'\\begin\{cases\}.*?\\end\{cases\}', re.DOTALL)
    cases = inner.findall(latex)
    rows = ''
    for line in inner.sub('CASES', latex).split(r'\\'):
        while 'CASES' in line:
            line = line.replace('CASES', cases.pop(0), 1)
        left, _, right = line.partition('&') if '&' in inner.sub('', line) else ('', '', line)
        right = '{}' + right  # the relation at the start of the right side keeps its space
        cells = [content_of(side, 'block') if side.strip() else '' for side in (left, right)]
        left_cell, right_cell = (f'<mstyle displaystyle="true">{cell}</mstyle>' for cell in cells)
        rows += f'<mtr><mtd class="left">{left_cell}</mtd><mtd class="right">{right_cell}</mtd></mtr>'
    return f'<mtable>{rows}</mtable>'


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula inside a line."""
    self.body.append(MATH.format(display='inline', content=content_of(node.astext(), 'inline')))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    latex = node.astext().strip()
    has_lines = '&' in re.sub(r'\\begin.*?\\end', '', latex, flags=re.DOTALL)
    content = aligned(latex) if has_lines else content_of(latex, 'block')
    self.body.append(f'<div class="formula">{MATH.format(display="block", content=content)}</div>')
    raise nodes.SkipNode


def copy_font(app: Sphinx, exception: Exception | None) -> None:
    """Copy the font of formulas into the pages."""
    if exception is None and app.builder.format == 'html':
        with as_file(files('ziamath') / 'fonts' / FONT) as font:
            shutil.copy(font, Path(app.outdir, '_static', FONT))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect('build-finished', copy_font)
    app.add_html_math_renderer('mathml', (visit_inline, None), (visit_block, None))
    return {'parallel_read_safe': True}
