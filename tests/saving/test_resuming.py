"""Runs stopped half way continue in another process bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run_script
from tables.optimizers import OPTIMIZERS
from tables.schedules import DISTINCT

SCRIPT = Path(__file__).with_name('resuming.py')


@pytest.mark.slow
def test_runs_continue_in_another_process(tmp_path: Path) -> None:
    """The run after a checkpoint equals the uninterrupted run bit for bit."""
    names = run_script(SCRIPT, 'run', tmp_path)
    assert len(names) > len(OPTIMIZERS) + len(DISTINCT)
    assert run_script(SCRIPT, 'resume', tmp_path) == [f'{name} continues' for name in names]


def test_checkpoints_and_jit_on_two_devices(tmp_path: Path) -> None:
    flags = '--xla_force_host_platform_device_count=2'
    assert run_script(Path(__file__).with_name('two_devices.py'), tmp_path, XLA_FLAGS=flags) == ['done 2']
