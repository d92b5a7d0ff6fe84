"""Runs stopped half way continue in another process bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tables.optimizers import OPTIMIZERS
from tables.schedules import DISTINCT

import braintools_optim as bo

SCRIPT = Path(__file__).with_name('resuming.py')


def run_script(script: Path, *arguments: Any, **environment: str) -> list[str]:
    """Run a script in another process and return the lines it prints."""
    path = os.pathsep.join(
        [str(Path(bo.__file__).parents[1]), str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
    )
    command = [sys.executable, str(script), *map(str, arguments)]
    env = {**os.environ, **environment, 'PYTHONPATH': path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_runs_continue_in_another_process(tmp_path: Path) -> None:
    """The run after a checkpoint equals the uninterrupted run bit for bit."""
    names = run_script(SCRIPT, 'run', tmp_path)
    assert len(names) > len(OPTIMIZERS) + len(DISTINCT)
    assert run_script(SCRIPT, 'resume', tmp_path) == [f'{name} continues' for name in names]


def test_checkpoints_and_jit_on_two_devices(tmp_path: Path) -> None:
    flags = '--xla_force_host_platform_device_count=2'
    assert run_script(Path(__file__).with_name('two_devices.py'), tmp_path, XLA_FLAGS=flags) == ['done 2']
