"""Type checkers and editors see the types of the installed package, from a wheel and from an editable install."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from installing import ROOT, build_wheel, copy_checkout, environment
from language_server import language_server

import braintools_optim as bo

CHECKED = ROOT / 'tests' / 'checked'
MISTAKES = (CHECKED / 'mistakes.py').read_text().splitlines()
FIRST_MISTAKE = MISTAKES.index('# mistakes') + 1
ARGUMENTS = {
    'ChainedScheduler': '[bo.StepLR()]',
    'LambdaLR': '0.1, lambda epoch: 1.0',
    'Lookahead': 'bo.SGD()',
    'MultiplicativeLR': '0.1, lambda epoch: 1.0',
    'OptaxSchedule': 'lambda count: 0.1',
    'PerUpdate': 'bo.StepLR(), 10',
    'NevergradOptimizer': 'lambda x: x, {}, 1',
    'SAM': 'bo.SGD()',
    'SOFO': 'lambda x: jnp.asarray(x), lambda x, y: jnp.asarray(x)',
    'SOFOScan': 'lambda h, x: (h, jnp.asarray(x)), lambda x, y: jnp.asarray(x)',
    'ScipyOptimizer': 'lambda x: x, {}',
    'SequentialLR': '[bo.StepLR()], []',
}
"""The necessary arguments of the constructors that have any."""
CLASSES = {
    name: member.__name__
    for name in bo.__all__
    if inspect.isclass(member := getattr(bo, name)) and issubclass(member, (bo.Optimizer, bo.LRScheduler))
}
IMPORTS = 'import jax.numpy as jnp; import braintools_optim as bo'
EDITED = """\
import braintools_optim as bo

optimizer = bo.Adam(lr=0.1)
optimizer.
"""


class Findings(NamedTuple):
    """What a checker says, by file and line."""

    errors: dict[tuple[str, int], str]
    revealed: dict[tuple[str, int], str]


class Installation(NamedTuple):
    """An environment in which the package is installed."""

    python: Path
    package: Path
    """The folder in which checkers and editors are to find the package."""
    project: Path
    """A folder with programs that use the package."""


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    for module in ('pyright', 'mypy'):
        pytest.importorskip(module, reason=f"{module} is not installed; make types or pip install '.[dev]' installs it")
    folder = tmp_path_factory.mktemp(request.param)
    checkout = copy_checkout(folder)
    if request.param == 'wheel':
        python = environment(folder / 'env', build_wheel(checkout, folder))
        (package,) = folder.glob('env/lib/*/site-packages/braintools_optim')
    else:
        python = environment(folder / 'env', '--editable', checkout)
        package = checkout / 'braintools_optim'
    project = folder / 'project'
    shutil.copytree(CHECKED, project)
    calls = [f'reveal_type(bo.{name}({ARGUMENTS.get(name, "")}))' for name in CLASSES]
    (project / 'constructors.py').write_text('\n'.join([IMPORTS, *calls]))
    (project / 'edited.py').write_text(EDITED)
    return Installation(python, package, project)


def pyright(installation: Installation, *names: str) -> Findings:
    command = [sys.executable, '-m', 'pyright', '--outputjson', '--pythonpath', installation.python, *names]
    done = subprocess.run(command, cwd=installation.project, capture_output=True, text=True, check=False)
    findings = Findings({}, {})
    for entry in json.loads(done.stdout)['generalDiagnostics']:
        place = (Path(entry['file']).name, entry['range']['start']['line'] + 1)
        if shown := re.search(r'^Type of .* is "(.*)"$', entry['message']):
            findings.revealed[place] = shown[1]
        else:
            findings.errors[place] = entry['message']
    return findings


def mypy(installation: Installation, *names: str) -> Findings:
    options = ['--strict', '--no-error-summary', '--disable-error-code=import-untyped']  # optax has no types
    command = [sys.executable, '-m', 'mypy', *options, '--python-executable', installation.python, *names]
    done = subprocess.run(command, cwd=installation.project, capture_output=True, text=True, check=False)
    assert not done.stderr
    findings = Findings({}, {})
    for file, line, severity, message in re.findall(r'^(.+?):(\d+): (\w+): (.*)$', done.stdout, re.MULTILINE):
        if shown := re.search(r'^Revealed type is "(?:.*\.)?(\w+)"$', message):
            findings.revealed[file, int(line)] = shown[1]
        elif severity == 'error':
            findings.errors[file, int(line)] = message
    return findings


@pytest.mark.parametrize('check', [pyright, pytest.param(mypy, marks=pytest.mark.slow)])
def test_checkers_see_the_types(installation: Installation, check: Callable[..., Findings]) -> None:
    """Checkers refuse the mistakes and nothing else, and every constructor returns its own class."""
    findings = check(installation, 'uses.py', 'mistakes.py', 'constructors.py')
    mistakes = {('mistakes.py', line) for line in range(FIRST_MISTAKE + 1, len(MISTAKES) + 1)}
    assert {place: text for place, text in findings.errors.items() if place not in mistakes} == {}
    assert mistakes - findings.errors.keys() == set()
    expected = {('constructors.py', line): name for line, name in enumerate(CLASSES.values(), 2)}
    for line, text in enumerate((CHECKED / 'uses.py').read_text().splitlines(), 1):
        if shown := re.search(r'reveal_type\(.*\)  # (\w+)$', text):
            expected['uses.py', line] = shown[1]
    assert findings.revealed == expected


def test_editors_show_the_options_and_methods(installation: Installation) -> None:
    """The language server of an editor finds the package, its signatures and the attributes of an optimizer."""
    document = installation.project / 'edited.py'
    lines = EDITED.splitlines()
    in_name = lines[2].index('Adam') + 1
    with language_server(installation.python, document) as server:
        (definition,) = server.ask_at('definition', 2, in_name)
        hover = server.ask_at('hover', 2, in_name)
        signature = server.ask_at('signatureHelp', 2, lines[2].index('(') + 1)
        completion = server.ask_at('completion', 3, len(lines[3]))
    path = Path(definition['uri'].removeprefix('file://'))
    assert path.resolve() == (installation.package / 'rules' / 'adam.py').resolve()
    shown = hover['contents']['value']
    assert 'class Adam(' in shown
    assert 'the mean gradient divided by the root of the mean squared gradient' in shown
    for text in (shown, signature['signatures'][0]['label']):
        assert {'lr', 'betas', 'eps', 'weight_decay', 'amsgrad', 'grad_clip_norm'} <= {*re.findall(r'(\w+): ', text)}
    offered = {item['label'] for item in completion['items']}
    assert {'betas', 'weight_decay', 'register_trainable_weights', 'update', 'current_lr', 'lr'} <= offered


def test_correct_uses_run() -> None:
    runpy.run_path(str(CHECKED / 'uses.py'))


@pytest.mark.parametrize('mistake', MISTAKES[FIRST_MISTAKE:])
def test_mistakes_raise(mistake: str) -> None:
    namespace: dict[str, Any] = {}
    exec(compile('\n'.join(MISTAKES[:FIRST_MISTAKE]), 'mistakes.py', 'exec', dont_inherit=True), namespace)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        exec(mistake, namespace)
