"""Run the benchmarks, print the tables and save the results: ``python -m benchmarks [--smoke] [--output PATH]``."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintools_optim as bo
from benchmarks.cost import first_step, growth, memory
from benchmarks.devices import on_devices
from benchmarks.harness import medians
from benchmarks.online import in_scan
from benchmarks.report import save, tables
from benchmarks.steps import PEERS, MissingPeerError
from benchmarks.sweeps import sweep_times
from benchmarks.train import TRAIN

SIZES = [('4 leaves of 64x64', 4, 64), ('50 leaves of 64x64', 50, 64), ('300 leaves of 64x64', 300, 64),
         ('4 leaves of 2048x2048', 4, 2048)]  # fmt: skip

SLOW = ('flax.nnx', 'braintools')  # not measured for many or large leaves


def gradients(leaves: int, side: int) -> dict[str, jax.Array]:
    """Return gradients of ``leaves`` square matrices."""
    return {f'layer{i:03}': jnp.full((side, side), 0.01 * (i + 1)) for i in range(leaves)}


def step_times(smoke: bool) -> list[dict[str, Any]]:
    """Measure a step of Adam in milliseconds; for large leaves also without clipping, to time the rule alone."""
    rows = []
    for name, leaves, side in SIZES[:1] if smoke else SIZES:
        for clip in (1.0,) if side < 2048 else (1.0, None):
            g, steps, missing = gradients(leaves, side), {}, []
            for peer, build in PEERS.items():
                if peer not in SLOW or leaves * side <= 50 * 64:
                    try:
                        steps[peer] = build(g, clip)
                    except MissingPeerError as error:
                        missing.append(str(error))
            repetitions = 3 if smoke else 300 if leaves == 4 and side == 64 else 20
            slow = {'braintools': steps.pop('braintools')} if 'braintools' in steps else {}
            times = medians(steps, repetitions) | medians(slow, 3 if smoke else 5)
            rows.append({'what': name, 'clip': clip is not None, 'ms': times, 'missing': missing})
    return rows


def train_times(smoke: bool) -> list[dict[str, Any]]:
    """Measure a whole train step in milliseconds."""
    rows = []
    for name, leaves, side in SIZES[:1] if smoke else SIZES:
        steps = {peer: build(leaves, side) for peer, build in TRAIN.items()}
        rows.append({'what': name, 'ms': medians(steps, 3 if smoke else 200 if leaves * side < 1000 else 20)})
    return rows


def temporary_memory(side: int = 512) -> float:
    """Return the temporary memory of a compiled step with clipping as a fraction of the size of the weights."""
    g = gradients(4, side)
    states = {name: brainstate.ParamState(jnp.ones_like(x)) for name, x in g.items()}
    optimizer = bo.Adam(1e-3, grad_clip_norm=1.0).register_trainable_weights(states)
    compiled = brainstate.transform.jit(lambda: optimizer.update(g)).compile()
    return float(compiled.memory_analysis().temp_size_in_bytes / (4 * 4 * side * side))


def measure(smoke: bool) -> dict[str, Any]:
    """Run all benchmarks, and return the results."""
    by_leaves = [(n, 1024 * n) for n in ((1, 10) if smoke else (1, 10, 100, 1000))]
    by_weights = [(4, 10**k) for k in ((4, 5) if smoke else (4, 5, 6, 7, 8))]
    loops = [(4, 8)] if smoke else [(4, 8), (50, 8), (4, 64), (50, 64)]
    leaves, repetitions = (4, 1) if smoke else (300, 3)
    return {
        'date': datetime.date.today().isoformat(),
        'machine': f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}',
        'versions': {
            name: version(name) for name in ('braintools_optim', 'jax', 'brainstate', 'optax', 'flax', 'torch')
        },
        # First, because a first step usually runs in a process with few live objects.
        'first step': [
            {'leaves': leaves, 'shapes': shapes, 's': first_step(leaves, shapes, repetitions)} for shapes in (1, 10)
        ],
        'steps': step_times(smoke),
        'train': train_times(smoke),
        'in a loop': [in_scan(leaves, side, *((10, 3) if smoke else (1000, 15))) for leaves, side in loops],
        'on devices': [
            row for leaves in ((4,) if smoke else (4, 50, 300)) for row in on_devices(leaves, 64, 3 if smoke else 50)
        ],
        'sweep': sweep_times(*((4, 5) if smoke else (64, 100))),
        'by leaves': growth(by_leaves, 3 if smoke else 25),
        'by weights': growth(by_weights, 3 if smoke else 7),
        'memory': memory(4, 64 if smoke else 2048),
        'temporary memory': temporary_memory(8 if smoke else 512),
    }


def version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--smoke', action='store_true', help='only check that everything runs, with small sizes')
    parser.add_argument('--output', type=Path, help='a JSON file, or a folder in which DATE-MACHINE.json is written')
    args = parser.parse_args()
    result = measure(args.smoke)
    print('\n'.join(tables(result)))
    if args.output:
        save(result, args.output, f'{platform.machine()}-{os.cpu_count()}cores')


if __name__ == '__main__':
    main()
