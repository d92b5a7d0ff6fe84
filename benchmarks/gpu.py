"""Adam with clipping on a GPU, and what its memory allows: ``python -m benchmarks.gpu [--smoke] [--output PATH]``."""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch needs some, too; before jax is imported

import jax
import jax.numpy as jnp

from benchmarks.report import gpu_table, keep
from benchmarks.steps import PEERS

BYTES = {False: 28, True: 32}  # a weight: w, m and v are read and written, g is read, for clipping once more
HELD = 16  # bytes a weight: w, m, v, g
SIZES = [(4, 10**8), (4, 3 * 10**8), (4, 10**9), (1000, 10**7)]


def milliseconds(step: Callable[[], Any], wait: Callable[[Any], Any], repetitions: int = 20) -> float:
    times = []
    for _ in range(3):
        wait(step())
    for _ in range(repetitions):
        start = time.perf_counter()
        wait(step())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def bandwidth(weights: int = 2 * 10**8) -> float:
    """Bytes a second of reading an array and writing it back."""
    held, add = [jnp.zeros(weights)], jax.jit(lambda x: x + 1, donate_argnums=0)

    def step() -> Any:
        held[0] = add(held[0])
        return held[0]

    return 8 * weights / (1e-3 * milliseconds(step, jax.block_until_ready))


def torch_step(leaves: int, weights: int, clip: bool, **how: bool) -> float | None:
    """Milliseconds of torch's ``clip_grad_norm_`` and Adam; None if torch does not see what jax sees."""
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
    optimizer = torch.optim.Adam(parameters, lr=1e-3, **how)

    def step() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()

    def wait(_: Any) -> None:
        if device == 'cuda':
            torch.cuda.synchronize()

    if device == 'cuda':
        torch.cuda.empty_cache()  # what earlier sizes held
    return milliseconds(step, wait)


def row(leaves: int, weights: int, clip: bool, speed: float) -> dict[str, Any]:
    g = {f'layer{i:04}': jnp.full((weights // leaves,), 0.01) for i in range(leaves)}
    ms: dict[str, float | None] = {}
    for peer in ('donating', 'optax'):
        ms[peer] = milliseconds(PEERS[peer](g, 1.0 if clip else None), jax.block_until_ready)
    for how in ('foreach', 'fused'):
        ms[f'torch {how}'] = torch_step(leaves, weights, clip, **{how: True})
    return {
        'leaves': leaves,
        'weights': weights,
        'clip': clip,
        'least ms': 1e3 * BYTES[clip] * weights / speed,
        'ms': ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--smoke', action='store_true', help='only prove that everything runs, on any device')
    parser.add_argument('--output', type=Path, help='a JSON file, or a folder for DATE-DEVICE.json')
    args = parser.parse_args()
    if jax.default_backend() != 'gpu' and not args.smoke:
        print(f'jax sees no GPU here, but {jax.devices()}. Nothing is measured.')
        return
    (device, *_) = jax.devices()
    limit = (device.memory_stats() or {}).get('bytes_limit', 0)
    # torch needs its own copy beside jax's, so half of what there is
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
        keep(result, args.output, device.device_kind.replace(' ', '-'))


if __name__ == '__main__':
    main()
