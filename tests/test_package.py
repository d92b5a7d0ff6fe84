"""The package is the same, with one class identity, as a wheel, installed editable, and as a bare checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the checkout without files that git does not hold."""
    copy = tmp_path_factory.mktemp('checkout') / 'braintools_optim'
    copy.mkdir()
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    for name in ('braintools_optim', 'schedulers'):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    return copy


def environment(path: Path, *install: str | Path) -> Path:
    """Create an environment with the dependencies and the package installed, and return its Python."""
    run(sys.executable, '-m', 'venv', '--without-pip', path, cwd=path.parent)
    python = path / 'bin' / 'python'
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=path).strip())
    # a plain path, so that an editable install of this package there has no effect
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    pip = (sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--disable-pip-version-check')
    run(*pip, '--no-deps', '--no-build-isolation', *install, cwd=path)
    return python


def test_import_initializes_no_backend() -> None:
    """Importing the package creates no array, so jax can still be configured."""
    script = "import braintools_optim, jax; jax.config.update('jax_num_cpu_devices', 2); print(len(jax.devices('cpu')))"
    assert run(sys.executable, '-c', script, cwd=ROOT) == '2\n'


@pytest.mark.slow
def test_wheel(checkout: Path, tmp_path: Path) -> None:
    run(
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '-q',
        '--no-deps',
        '--no-build-isolation',
        '-w',
        tmp_path,
        '.',
        cwd=checkout,
    )
    (wheel,) = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert {'braintools_optim/schedulers/base.py', 'braintools_optim/rules/adam.py', 'braintools_optim/py.typed'} <= {
        *names
    }
    assert {name.split('/')[0].split('-')[0] for name in names} == {'braintools_optim'}
    python = environment(tmp_path / 'env', wheel)
    inside, schedulers = run(python, '-c', CHECK, cwd=Path('/')).split()
    assert Path(inside).is_relative_to(tmp_path)
    assert schedulers == 'None'
    from_root, _ = run(python, '-P', '-c', CHECK, cwd=checkout).split()
    assert from_root == inside


@pytest.mark.slow
def test_editable(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / 'env', '--editable', checkout)
    for cwd in (Path('/'), checkout):
        found, _ = run(python, '-c', CHECK, cwd=cwd).split()
        assert Path(found) == checkout / 'braintools_optim' / '__init__.py'
    assert run(python, '-c', CHECK, cwd=Path('/')).split()[1] == 'None'


@pytest.mark.slow
def test_bare_checkout(checkout: Path) -> None:
    found, _ = run(sys.executable, '-c', CHECK, cwd=checkout).split()
    assert Path(found) == checkout / 'braintools_optim' / '__init__.py'
    (checkout / 'test_it.py').write_text('def test_it():\n' + ''.join(f'    {line}\n' for line in CHECK.splitlines()))
    run(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'test_it.py', cwd=checkout)
