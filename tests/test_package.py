"""The package is the same, with one class identity, as a wheel, installed editable, and as a bare checkout."""

from __future__ import annotations

import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from installing import ROOT, build_wheel, copy_checkout, environment, run

import braintools_optim

CHECK = """
import importlib.util
import braintools_optim as bo
import braintools_optim.schedulers.base as base
from braintools_optim.schedulers import LRScheduler
assert bo.LRScheduler is LRScheduler is base.LRScheduler is bo.StepLR.__mro__[1]
assert isinstance(bo.Adam(bo.StepLR()).lr, LRScheduler)
found = importlib.util.find_spec('schedulers')
print(bo.__file__, found and found.origin)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path)


def modules(package: Path) -> set[str]:
    """Return the paths of the modules of a package, the name of its folder included."""
    return {path.relative_to(package.parent).as_posix() for path in package.rglob('*.py')}


def test_import_initializes_no_backend() -> None:
    """Importing the package creates no array, so jax can still be configured."""
    script = "import braintools_optim, jax; jax.config.update('jax_num_cpu_devices', 2); print(len(jax.devices('cpu')))"
    assert run(sys.executable, '-c', script, cwd=ROOT) == '2\n'


@pytest.mark.parametrize('with_links', [True, False], ids=['links', 'no links'])
def test_files_of_wheel(checkout: Path, tmp_path: Path, with_links: bool) -> None:
    """A wheel holds every module once, also if git wrote the links as text files, as it does on some Windows."""
    package, schedulers = modules(checkout / 'braintools_optim'), modules(checkout / 'schedulers')
    if not with_links:
        for link in (checkout / 'braintools_optim' / 'schedulers', checkout / '.editable' / 'braintools_optim'):
            target = str(link.readlink())
            link.unlink()
            link.write_text(target)
    names = zipfile.ZipFile(build_wheel(checkout, tmp_path)).namelist()
    files = {name for name in names if '.dist-info/' not in name}
    expected = package | {f'braintools_optim/{name}' for name in schedulers} | {'braintools_optim/py.typed'}
    assert files == expected
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_wheel(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / 'env', build_wheel(checkout, tmp_path))
    inside, schedulers = run(python, '-c', CHECK, cwd=Path('/')).split()
    assert Path(inside).is_relative_to(tmp_path / 'env')
    assert schedulers == 'None'
    from_root, _ = run(python, '-P', '-c', CHECK, cwd=checkout).split()
    assert from_root == inside


@pytest.mark.slow
def test_editable(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / 'env', '--editable', checkout)
    for cwd in (Path('/'), checkout):
        found, _ = run(python, '-c', CHECK, cwd=cwd).split()
        assert Path(found).resolve() == checkout / 'braintools_optim' / '__init__.py'
    assert run(python, '-c', CHECK, cwd=Path('/')).split()[1] == 'None'
    for folder in ('braintools_optim/rules', 'schedulers'):
        (checkout / folder / 'added_later.py').touch()
    script = 'import braintools_optim.rules.added_later, braintools_optim.schedulers.added_later'
    run(python, '-c', script, cwd=tmp_path)


@pytest.mark.slow
def test_bare_checkout(checkout: Path) -> None:
    found, _ = run(sys.executable, '-c', CHECK, cwd=checkout).split()
    assert Path(found) == checkout / 'braintools_optim' / '__init__.py'
    (checkout / 'test_it.py').write_text('def test_it():\n' + ''.join(f'    {line}\n' for line in CHECK.splitlines()))
    run(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'test_it.py', cwd=checkout)


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    cited = re.search(r'^version: (.*)$', (ROOT / 'CITATION.cff').read_text(), re.MULTILINE)
    assert cited is not None
    assert project['version'] == cited[1] == braintools_optim.__version__
