"""The Python of README, CONTRIBUTING and the docs runs as it stands there, and prints what stands there."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import braintools_optim
from benchmarks.comparison import PEERS, false_cells, is_installed, table

ROOT = Path(__file__).parents[1]
DOCS = sorted(path for path in (ROOT / 'docs').rglob('*.md') if not {'_build', 'gallery'} & {*path.parts})
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *DOCS]
ONLINE = ROOT / 'docs' / 'online.md'
BLOCK = re.compile(r'^( *)```python\n(.*?)^\1```\n(?:\n\1```text\n(.*?)^\1```)?', re.MULTILINE | re.DOTALL)
OPTIONAL = ('flax', 'torch')  # which `make torch` installs, and `make test` does not
NUMBER = re.compile(r'\d+(?:\.\d+)?(?:e[+-]?\d+)?')
COLUMNS = 100  # that the pages show without cutting them off


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run_and_print_what_is_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in OPTIONAL:
        if re.search(rf'^(import|from) {package}\b', page.read_text(), re.MULTILINE):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {'__name__': page.stem}
    for _, block, shown in BLOCK.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(textwrap.dedent(block), page.name, 'exec', dont_inherit=True), namespace)
        if shown:
            assert_alike(printed.getvalue(), textwrap.dedent(shown))


@pytest.mark.usefixtures('float32')
@pytest.mark.filterwarnings('ignore:ETP primitive')  # braintrace names the weights whose gradients have no trace
def test_example_with_braintrace_learns() -> None:
    pytest.importorskip('braintrace')
    namespace: dict[str, Any] = {}
    for block in re.findall(
        r'^```(?:python|{code-block} python)\n(.*?)^```', ONLINE.read_text(), re.MULTILINE | re.DOTALL
    ):
        exec(compile(block, ONLINE.name, 'exec', dont_inherit=True), namespace)
    losses = namespace['losses']
    assert losses[-1000:].mean() < 0.3 * losses[:1000].mean()


def assert_alike(printed: str, shown: str) -> None:
    """Assert that texts are equal, up to the rounding of numbers that a long computation gives on other machines."""
    assert NUMBER.sub('#', printed) == NUMBER.sub('#', shown), printed
    for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        last_digit = 10.0 ** -len(theirs.partition('.')[2].partition('e')[0]) if 'e' not in theirs else 0.0
        assert float(ours) == pytest.approx(float(theirs), rel=0.05, abs=1.01 * last_digit * ('.' in theirs)), printed


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_code_are_not_cut_off(page: Path) -> None:
    code = re.findall(r'^ *```(?:python|text|sh)\n(.*?)^ *```', page.read_text(), re.MULTILINE | re.DOTALL)
    assert [line for block in code for line in block.split('\n') if len(line) > COLUMNS] == []


def test_reference_has_every_public_name() -> None:
    pages = '\n'.join(path.read_text() for path in (ROOT / 'docs' / 'reference').glob('*.md'))
    documented = set(re.findall(r'auto(?:class|function):: (?:braintools_optim\.)?(\w+)', pages))
    public = {name: getattr(braintools_optim, name) for name in braintools_optim.__all__}
    names = {x.__name__ for name, x in public.items() if inspect.isclass(x) or inspect.isfunction(x)}
    assert names - documented - {'Rate', 'SharedOptions', 'Predicate'} == set()


def test_readme_shows_the_comparison() -> None:
    readme = (ROOT / 'README.md').read_text()
    assert '\n'.join(table()) == readme.partition('<!-- comparison -->\n')[2].partition('\n<!-- end -->')[0]


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('peer', PEERS)
def test_cells_of_the_comparison_are_true(peer: str) -> None:
    if not is_installed(peer):
        pytest.skip(f'{peer} is not installed')
    assert false_cells(peer) == []
