"""Weights that lie on several devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run_script
from tables.optimizers import OPTIMIZERS


@pytest.mark.parametrize('which', ['few', pytest.param('all', marks=pytest.mark.slow)])
def test_the_optimizer_state_lies_where_the_weights_lie(which: str) -> None:
    """On a 4 x 2 mesh, and training goes as on one device."""
    flags = '--xla_force_host_platform_device_count=8'
    names = run_script(Path(__file__).with_name('sharded.py'), which, XLA_FLAGS=flags)
    assert len(names) == (len(OPTIMIZERS) if which == 'all' else 4)
