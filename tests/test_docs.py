"""The Python of README, CONTRIBUTING and the docs runs as it stands there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path) -> None:
    namespace: dict[str, Any] = {'__name__': page.stem}
    for _, block in re.findall(r'^( *)```python\n(.*?)^\1```', page.read_text(), flags=re.MULTILINE | re.DOTALL):
        exec(compile(textwrap.dedent(block), page.name, 'exec', dont_inherit=True), namespace)
