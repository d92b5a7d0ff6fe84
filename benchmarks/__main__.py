"""Print the table of measurements and keep it: ``python -m benchmarks [--smoke] [--output FILE]``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import optax

import braintools_optim as bo
from benchmarks.harness import medians
from benchmarks.steps import PEERS, MissingPeerError

SIZES = [('4 leaves of 64x64', 4, 64), ('50 leaves of 64x64', 50, 64), ('300 leaves of 64x64', 300, 64),
         ('4 leaves of 2048x2048', 4, 2048)]  # fmt: skip


def gradients(leaves: int, side: int) -> dict[str, jax.Array]:
    return {f'layer{i:03}': jnp.full((side, side), 0.01 * (i + 1)) for i in range(leaves)}


def step_times(smoke: bool) -> list[dict[str, Any]]:
    """Milliseconds a step of Adam takes."""
    rows = []
    for name, leaves, side in SIZES[:1] if smoke else SIZES:
        for clip in (1.0, None):
            g, steps, missing = gradients(leaves, side), {}, []
            for peer, build in PEERS.items():
                if peer != 'braintools' or side < 2048:
                    try:
                        steps[peer] = build(g, clip)
                    except MissingPeerError as error:
                        missing.append(str(error))
            repetitions = 3 if smoke else 300 if leaves == 4 and side == 64 else 40
            slow = {'braintools': steps.pop('braintools')} if 'braintools' in steps else {}
            times = medians(steps, repetitions) | medians(slow, 3 if smoke else 7)
            rows.append({'what': name, 'clip': clip is not None, 'ms': times, 'missing': missing})
    return rows


def tracing_times(leaves: int = 300) -> dict[str, float]:
    """Seconds to trace and lower one step, ours and an optax chain's."""
    g = gradients(leaves, 64)
    states = {name: brainstate.ParamState(jnp.ones_like(x)) for name, x in g.items()}
    optimizer = bo.Adam(1e-3, grad_clip_norm=1.0).register_trainable_weights(states)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale(-1e-3))
    state = tx.init(g)
    start = time.perf_counter()
    brainstate.transform.jit(lambda: optimizer.update(g)).lower()
    middle = time.perf_counter()
    jax.jit(lambda p, s: optax.apply_updates(p, tx.update(g, s, p)[0])).lower(g, state)
    return {'ours': middle - start, 'optax': time.perf_counter() - middle}


def temporary_memory(side: int = 512) -> float:
    """Bytes of temporary memory of a compiled step with clipping, over those of the weights."""
    g = gradients(4, side)
    states = {name: brainstate.ParamState(jnp.ones_like(x)) for name, x in g.items()}
    optimizer = bo.Adam(1e-3, grad_clip_norm=1.0).register_trainable_weights(states)
    compiled = brainstate.transform.jit(lambda: optimizer.update(g)).compile()
    return float(compiled.memory_analysis().temp_size_in_bytes / (4 * 4 * side * side))


def show(result: dict[str, Any]) -> None:
    print(f'{"milliseconds a step of Adam":34}' + ''.join(f'{peer:>13}' for peer in PEERS))
    for row in result['steps']:
        name = f'{row["what"]}, {"clipped" if row["clip"] else "not clipped"}'
        shown = (f'{row["ms"][peer]:.3f}' if peer in row['ms'] else '-' for peer in PEERS)
        print(f'{name:34}' + ''.join(f'{value:>13}' for value in shown))
        for peer in row['missing']:
            print(f'    {peer} is not installed: pip install .[benchmarks]')
    trace = result['trace and lower']
    print(f'trace and lower 300 leaves: ours {trace["ours"]:.3f} s, optax {trace["optax"]:.3f} s')
    print(f'temporary memory of a step: {100 * result["temporary memory"]:.3f}% of the weights')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--smoke', action='store_true', help='only prove that everything runs')
    parser.add_argument('--output', type=Path, help='a JSON file to keep the result in')
    args = parser.parse_args()
    result = {
        'date': datetime.date.today().isoformat(),
        'machine': f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}',
        'versions': {name: __import__(name).__version__ for name in ('jax', 'brainstate', 'optax')},
        'steps': step_times(args.smoke),
        'trace and lower': tracing_times(10 if args.smoke else 300),
        'temporary memory': temporary_memory(8 if args.smoke else 512),
    }
    show(result)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + '\n')
        print(f'kept in {args.output}')


if __name__ == '__main__':
    main()
