"""An update on eight devices, which a CPU is divided into, in a process of its own.

python -m benchmarks.devices LEAVES SIDE REPETITIONS   # inside this process, on the devices that there are
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.harness import medians
from benchmarks.steps import PEERS

__all__ = ['on_devices']

PLACES = {'replicated': PartitionSpec(), 'split': PartitionSpec('data')}


def on_devices(leaves: int, side: int, repetitions: int, devices: int = 8) -> list[dict[str, Any]]:
    """Measure an update with clipping in milliseconds, of weights that are replicated and of weights that are split."""
    flags = f'--xla_force_host_platform_device_count={devices}'
    command = [sys.executable, '-m', 'benchmarks.devices', str(leaves), str(side), str(repetitions)]
    env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    rows: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, capture_output=True, env=env).stdout)
    return rows


def measure(leaves: int, side: int, repetitions: int) -> list[dict[str, Any]]:
    """Measure on all devices of this process."""
    mesh, rows = Mesh(np.array(jax.devices()), ('data',)), []
    for place, spec in PLACES.items():
        gradient = jax.device_put(jnp.full((side, side), 0.01), NamedSharding(mesh, spec))
        gradients = {f'layer{i:03}': gradient + 0.01 * i for i in range(leaves)}
        steps = {peer: PEERS[peer](gradients, 1.0) for peer in ('ours', 'donating', 'by hand')}
        times = medians(steps, repetitions)
        rows.append({'leaves': leaves, 'side': side, 'devices': mesh.size, 'place': place, 'ms': times})
    return rows


if __name__ == '__main__':
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
