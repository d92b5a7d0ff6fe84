"""Compare Adam on a GPU with the limit of memory bandwidth: ``python -m benchmarks.gpu [--smoke] [--output PATH]``."""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Leave memory for torch; jax reads this variable when it is imported.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp

from benchmarks.report import gpu_table, save
from benchmarks.steps import PEERS

BYTES = {False: 28, True: 32}  # per weight: w, m and v are read and written, g is read; clipping reads g once more
HELD = 16  # bytes per weight in memory: w, m, v, g
SIZES = [(4, 10**8), (4, 3 * 10**8), (4, 10**9), (1000, 10**7)]


def milliseconds(step: Callable[[], Any], wait: Callable[[Any], Any], repetitions: int = 20) -> float:
    """Return the median time of ``wait(step())`` in milliseconds, after three calls to warm up."""
    times = []
    for _ in range(3):
        wait(step())
    for _ in range(repetitions):
        start = time.perf_counter()
        wait(step())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def bandwidth(weights: int = 2 * 10**8) -> float:
    """Measure the bandwidth of reading an array and writing it back, in bytes per second."""
    held, add = [jnp.zeros(weights)], jax.jit(lambda x: x + 1, donate_argnums=0)

    def step() -> Any:
        held[0] = add(held[0])
        return held[0]

    return 8 * weights / (1e-3 * milliseconds(step, jax.block_until_ready))


def torch_step(leaves: int, weights: int, clip: bool, **implementation: bool) -> float | None:
    """Measure torch's ``clip_grad_norm_`` and Adam in milliseconds; None if torch cannot use the device of jax."""
    try:
        import torch
    except ImportError:
        return None
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    if device == 'cuda' and not torch.cuda.is_available():
        return None
    parameters = [torch.nn.Parameter(torch.ones(weights // leaves, device=device)) for _ in range(leaves)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, **implementation)

    def step() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()

    def wait(_: Any) -> None:
        if device == 'cuda':
            torch.cuda.synchronize()

    if device == 'cuda':
        torch.cuda.empty_cache()  # release the memory of earlier sizes
    return milliseconds(step, wait)


def row(leaves: int, weights: int, clip: bool, speed: float) -> dict[str, Any]:
    """Measure one size, and return the row of the results."""
    g = {f'layer{i:04}': jnp.full((weights // leaves,), 0.01) for i in range(leaves)}
    ms: dict[str, float | None] = {}
    for peer in ('donating', 'optax'):
        ms[peer] = milliseconds(PEERS[peer](g, 1.0 if clip else None), jax.block_until_ready)
    for implementation in ('foreach', 'fused'):
        ms[f'torch {implementation}'] = torch_step(leaves, weights, clip, **{implementation: True})
    return {
        'leaves': leaves,
        'weights': weights,
        'clip': clip,
        'least ms': 1e3 * BYTES[clip] * weights / speed,
        'ms': ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--smoke', action='store_true', help='only check that everything runs, with small sizes and on any device'
    )
    parser.add_argument('--output', type=Path, help='a JSON file, or a folder in which DATE-DEVICE.json is written')
    args = parser.parse_args()
    if jax.default_backend() != 'gpu' and not args.smoke:
        print(f'jax finds no GPU, only {jax.devices()}. Nothing is measured.')
        return
    (device, *_) = jax.devices()
    limit = (device.memory_stats() or {}).get('bytes_limit', 0)
    # torch needs a second copy of the arrays, so jax may use only half of the memory
    sizes = [(2, 100)] if args.smoke else [(n, weights) for n, weights in SIZES if 2 * HELD * weights < limit]
    speed = bandwidth(100) if args.smoke else bandwidth()
    result = {
        'date': datetime.date.today().isoformat(),
        'device': device.device_kind,
        'jax': jax.__version__,
        'bandwidth': speed,
        'rows': [row(leaves, weights, clip, speed) for leaves, weights in sizes for clip in (True, False)],
    }
    print('\n'.join(gpu_table(result)))
    if args.output:
        save(result, args.output, device.device_kind.replace(' ', '-'))


if __name__ == '__main__':
    main()
