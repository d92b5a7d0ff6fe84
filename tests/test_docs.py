"""The Python of README, CONTRIBUTING and the docs runs as it stands there, and prints what stands there."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import math
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import braintools_optim
from benchmarks.comparison import PEERS, false_cells, is_installed, table

ROOT = Path(__file__).parents[1]
DOCS = sorted(path for path in (ROOT / 'docs').rglob('*.md') if not {'_build', 'gallery'} & {*path.parts})
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *DOCS]
ONLINE = ROOT / 'docs' / 'online.md'
LOGGING = ROOT / 'docs' / 'logging.md'
BLOCK = re.compile(r'^( *)```python\n(.*?)^\1```\n(?:\n\1```text\n(.*?)^\1```)?', re.MULTILINE | re.DOTALL)
OPTIONAL = ('flax', 'torch')  # which `make torch` installs, and `make test` does not
NUMBER = re.compile(r'\d+(?:\.\d+)?(?:e[+-]?\d+)?')
Curves = dict[str, list[tuple[int, float]]]
COLUMNS = 100  # that the pages show without cutting them off


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run_and_print_what_is_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in OPTIONAL:
        if re.search(rf'^(import|from) {package}\b', page.read_text(), re.MULTILINE):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    record_tensorboard(monkeypatch)
    record_wandb(monkeypatch)
    run_blocks(page)


def run_blocks(page: Path) -> dict[str, Any]:
    """Run the Python of a page, compare what it prints, and return its variables."""
    namespace: dict[str, Any] = {'__name__': page.stem}
    for _, block, shown in BLOCK.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(textwrap.dedent(block), page.name, 'exec', dont_inherit=True), namespace)
        if shown:
            assert_alike(printed.getvalue(), textwrap.dedent(shown))
    return namespace


def record_tensorboard(monkeypatch: pytest.MonkeyPatch) -> dict[str, Curves]:
    """Put a stand-in in the place of TensorBoard's writer; return the curves that it is given, by folder."""
    found: dict[str, Curves] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            self.curves = found.setdefault(folder, {})

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.curves.setdefault(name, []).append((step, value))

        def close(self) -> None:
            pass

    summary = ModuleType('tensorboard.summary')
    monkeypatch.setattr(summary, 'Writer', Writer, raising=False)
    monkeypatch.setitem(sys.modules, 'tensorboard', ModuleType('tensorboard'))
    monkeypatch.setitem(sys.modules, 'tensorboard.summary', summary)
    return found


def record_wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, float]]]:
    """Put a stand-in in the place of Weights & Biases; return the steps and dicts that it is given."""
    history: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(log=lambda data, step: history.append((step, data)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(init=lambda **settings: run))
    return history


@pytest.mark.usefixtures('float32')
def test_logging_page_writes_numbers_of_each_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curves, history = record_tensorboard(monkeypatch), record_wandb(monkeypatch)
    log = run_blocks(LOGGING)['optimizer'].log()
    every_tenth, compiled = curves['runs/first'], curves['runs/compiled']
    assert every_tenth.keys() == (log.keys() - {'step'}) | {'loss'}
    steps = [*range(11, 102, 10)]
    assert [step for step, _ in every_tenth['loss']] == steps
    rates = [0.05 * (1 + math.cos(math.pi * (step - 2) / 300)) for step in steps]  # the first update was not followed
    np.testing.assert_allclose([rate for _, rate in every_tenth['lr/0']], rates, rtol=1e-4)

    assert [step for step, _ in history] == [*range(111, 202, 10)]
    assert all(type(name) is str and type(value) is float for _, data in history for name, value in data.items())
    ratios = {f'update_ratio/{name}' for name in ('hidden.weight', 'hidden.bias', 'readout.weight')}
    assert compiled.keys() == {'loss', 'grad_norm', 'update_norm', 'clipped', 'lr/0'} | ratios
    for name, curve in compiled.items():
        assert [step for step, _ in curve] == [*range(202, 302)]
        if name != 'loss':
            assert curve[-1][1] == pytest.approx(log[name], rel=1e-6)
    assert json.loads(Path('log.jsonl').read_text()).keys() == log.keys() | {'loss'}
    table = LOGGING.read_text().partition('## What the names mean')[2]
    named = {name.partition('`')[0].split('/')[0] for name in re.findall(r'^\| `(.*?)`', table, re.MULTILINE)}
    assert named == {name.split('/')[0] for name in log}


@pytest.mark.usefixtures('float32')
def test_tensorboard_reads_what_the_logging_page_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('tensorboard.summary')
    reading = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    monkeypatch.chdir(tmp_path)
    record_wandb(monkeypatch)
    log = run_blocks(LOGGING)['optimizer'].log()
    found = {}
    for folder in ('runs/first', 'runs/compiled'):
        events = reading.EventAccumulator(folder, size_guidance={'tensors': 0})  # keep all
        events.Reload()
        found[folder] = {
            name: [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(name)]
            for name in events.Tags()['tensors']
        }
    assert found['runs/first'].keys() == (log.keys() - {'step'}) | {'loss'}
    assert [step for step, _ in found['runs/first']['loss']] == [*range(11, 102, 10)]
    assert len(found['runs/compiled']['grad_norm']) == 100
    assert found['runs/compiled']['grad_norm'][-1] == (301, pytest.approx(log['grad_norm'], rel=1e-6))


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
