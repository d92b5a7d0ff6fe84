"""Weights that lie on the devices of several processes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from helpers import run_script, run_scripts

SCRIPT = Path(__file__).with_name('processes.py')


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port: int = server.getsockname()[1]
        return port


@pytest.mark.parametrize('cases', ['split', pytest.param('Adam,Adafactor,Muon', marks=pytest.mark.slow)])
def test_two_processes_train_as_one(cases: str, tmp_path: Path) -> None:
    """Also, one process restores on another mesh what two have saved, and continues."""
    port, platform = free_port(), {'JAX_PLATFORMS': 'cpu'}
    four, eight = ({'XLA_FLAGS': f'--xla_force_host_platform_device_count={n}', **platform} for n in (4, 8))
    run_scripts(SCRIPT, [(tmp_path, cases, port, rank) for rank in range(2)], tmp_path, seconds=300, **four)
    run_script(SCRIPT, tmp_path, cases, **eight)
