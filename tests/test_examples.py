"""The demo trains, says that it compiles, and leaves nothing behind that git would see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from installing import ROOT


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    for package in ('brainpy', 'sklearn', 'tqdm'):
        pytest.importorskip(package)
    options = ['--epochs', '1', '--hidden', '8', '--steps', '5', '--batch-size', '400']
    demo = [sys.executable, str(ROOT / 'examples' / 'train_spiking_digits.py'), *options]
    variables = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(demo, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert 'compiling ...' in result.stderr
    assert 'test accuracy: ' in result.stdout
    picture = next(tmp_path.iterdir())
    assert picture.read_bytes().startswith(b'\x89PNG')
    ignored = subprocess.run(['git', 'check-ignore', ROOT / picture.name], cwd=ROOT, check=False)
    assert ignored.returncode == 0
