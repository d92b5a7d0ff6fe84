"""Install the package from a copy of the checkout into environments that share the dependencies of this one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check')


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed and return its output."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_checkout(folder: Path) -> Path:
    """Copy the files from which the package is built, with the links among them."""
    copy = folder / 'braintools_optim'
    copy.mkdir()
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    for name in ('.editable', 'braintools_optim', 'schedulers'):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    return copy


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Build a wheel and return its path."""
    run(*PIP, 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, '.', cwd=checkout)
    (wheel,) = folder.glob('*.whl')
    return wheel


def environment(path: Path, *install: str | Path) -> Path:
    """Create an environment with the dependencies and the package installed, and return its Python."""
    run(sys.executable, '-m', 'venv', '--without-pip', path, cwd=path.parent)
    python = path / 'bin' / 'python'
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=path).strip())
    # a plain path, so that an editable install of this package there has no effect
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    run(*PIP, '--python', python, 'install', '--no-deps', '--no-build-isolation', *install, cwd=path)
    return python
