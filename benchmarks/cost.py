"""What is not the time of a step: the time to the first one, memory, and how the time grows."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintools_optim as bo
from benchmarks.harness import medians
from benchmarks.steps import PEERS, chain, optax_update
from benchmarks.train import TRAIN

__all__ = ['first_step', 'growth', 'memory', 'tracing']


def tracing(leaves: int, shapes: int, repetitions: int) -> dict[str, float]:
    """Seconds to trace and lower one step of ours and of the optax chain, the least of some."""
    g = {f'layer{i:03}': jnp.full((64, 64 - i % shapes), 0.01) for i in range(leaves)}
    states = {name: brainstate.ParamState(jnp.ones_like(x)) for name, x in g.items()}
    optimizer = bo.Adam(1e-3, grad_clip_norm=1.0).register_trainable_weights(states)
    tx = chain(1.0)
    state = tx.init(g)
    times: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for name, lower in {
            'ours': lambda: bo.jit(lambda g: optimizer.update(g)).lower(g),
            'optax': lambda: jax.jit(optax_update(tx)).lower(g, state, g),
        }.items():
            jax.clear_caches()
            start = time.perf_counter()
            lower()
            times.setdefault(name, []).append(time.perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def first_step(leaves: int, repetitions: int) -> dict[str, float]:
    """Seconds from gradients to the first new weights, registration and compilation included, the least of some."""
    g = {f'layer{i:03}': jnp.full((64, 64), 0.01) for i in range(leaves)}
    times: dict[str, list[float]] = {'ours': [], 'optax': []}
    for _ in range(repetitions):
        for peer, values in times.items():
            jax.clear_caches()
            start = time.perf_counter()
            jax.block_until_ready(PEERS[peer](g, 1.0)())
            values.append(time.perf_counter() - start)
    return {peer: min(values) for peer, values in times.items()}


def growth(sizes: list[tuple[int, int]], repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds a step takes, by number of leaves and weights."""
    rows = []
    for leaves, weights in sizes:
        g = {f'layer{i:03}': jnp.full((weights // leaves,), 0.01) for i in range(leaves)}
        steps = {peer: PEERS[peer](g, 1.0) for peer in ('donating', 'optax')}
        rows.append({'leaves': leaves, 'weights': weights, 'ms': medians(steps, repetitions)})
    return rows


def memory(leaves: int, side: int) -> dict[str, Any]:
    """Bytes that XLA plans for a train step, and the greatest resident memory of a process of ten steps."""
    rows: dict[str, Any] = {'weights': 4 * leaves * side * side}
    for name in ('ours, brainstate jit', 'ours, donating jit'):
        plan = TRAIN[name](leaves, side).lower().compile().memory_analysis()  # type: ignore[attr-defined]
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        command = [sys.executable, '-m', 'benchmarks.resident', name, str(leaves), str(side)]
        resident = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows[name] = {'planned': held + plan.temp_size_in_bytes, 'resident': resident}
    return rows
