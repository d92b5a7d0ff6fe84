"""The examples train, say that they compile, and leave nothing behind that git would see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from installing import ROOT

pytestmark = pytest.mark.slow
SHORT = ('--epochs', '1', '--hidden', '8', '--steps', '5', '--batch-size', '400')


def run_example(name: str, folder: Path, *options: str, **environment: str) -> str:
    """Run an example in a folder, check its picture, and return what it prints."""
    for package in ('brainpy', 'sklearn', 'tqdm'):
        pytest.importorskip(package)
    command = [sys.executable, str(ROOT / 'examples' / name), *SHORT, *options]
    variables = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=True)
    assert 'compiling ...' in result.stderr
    (picture,) = folder.iterdir()
    assert picture.read_bytes().startswith(b'\x89PNG')
    ignored = subprocess.run(['git', 'check-ignore', ROOT / picture.name], cwd=ROOT, check=False)
    assert ignored.returncode == 0
    return result.stdout


def test_demo(tmp_path: Path) -> None:
    assert 'test accuracy: ' in run_example('train_spiking_digits.py', tmp_path)


@pytest.mark.parametrize('n_devices', [1, 8])
def test_sharded_training(n_devices: int, tmp_path: Path) -> None:
    """Both runs reach the same accuracy, and the second one splits the slots of at least 1024 entries."""
    flags = f'--xla_force_host_platform_device_count={n_devices}'
    printed = run_example('train_sharded.py', tmp_path, '--hidden', '32', XLA_FLAGS=flags)
    found = re.findall(r'test accuracy ([\d.]+)%, (\d+) bytes of optimizer state per device', printed)
    (accuracy, whole), (same, split) = ((float(accuracy), int(held)) for accuracy, held in found)
    assert accuracy == pytest.approx(same, abs=2)
    large = 2 * 4 * (64 * 32 + 32 * 32)  # both slots of RAdam, in float32, for the input and the recurrent weights
    assert whole - split == large - large // n_devices
    assert whole >= large
