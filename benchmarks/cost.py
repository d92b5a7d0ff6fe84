"""Measure the time until the first update, memory use, and how the time of an update scales."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import medians
from benchmarks.steps import PEERS
from benchmarks.train import TRAIN

__all__ = ['first_step', 'growth', 'memory']


DURATIONS: dict[str, list[float]] = {}
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: DURATIONS.setdefault(event.rsplit('/', 1)[-1], []).append(seconds)
)


def first_step(leaves: int, shapes: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Measure the time from the gradients to the first new weights, and its part for tracing and lowering the step.

    The result is in seconds, the minimum over ``repetitions``. jax reports the duration of every trace; the longest one
    is the trace of the step.
    """
    g = {f'layer{i:03}': jnp.full((64, 64 - i % shapes), 0.01) for i in range(leaves)}
    times: dict[str, dict[str, list[float]]] = {peer: {'tracing': [], 'all': []} for peer in ('ours', 'optax')}
    for _ in range(repetitions):
        for peer, measured in times.items():
            jax.clear_caches()
            DURATIONS.clear()
            start = time.perf_counter()
            jax.block_until_ready(PEERS[peer](g, 1.0)())
            measured['all'].append(time.perf_counter() - start)
            measured['tracing'].append(
                max(DURATIONS['jaxpr_trace_duration']) + max(DURATIONS['jaxpr_to_mlir_module_duration'])
            )
    return {peer: {what: min(values) for what, values in measured.items()} for peer, measured in times.items()}


def growth(sizes: list[tuple[int, int]], repetitions: int) -> list[dict[str, Any]]:
    """Measure a step in milliseconds, for given numbers of leaves and weights."""
    rows = []
    for leaves, weights in sizes:
        g = {f'layer{i:03}': jnp.full((weights // leaves,), 0.01) for i in range(leaves)}
        steps = {peer: PEERS[peer](g, 1.0) for peer in ('donating', 'optax')}
        rows.append({'leaves': leaves, 'weights': weights, 'ms': medians(steps, repetitions)})
    return rows


def memory(leaves: int, side: int) -> dict[str, Any]:
    """Return the bytes that XLA plans for a train step, and the peak resident memory of a process that runs ten."""
    rows: dict[str, Any] = {'weights': 4 * leaves * side * side}
    for name in ('ours, brainstate jit', 'ours, donating jit'):
        plan = TRAIN[name](leaves, side).lower().compile().memory_analysis()  # type: ignore[attr-defined]
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        command = [sys.executable, '-m', 'benchmarks.resident', name, str(leaves), str(side)]
        resident = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows[name] = {'planned': held + plan.temp_size_in_bytes, 'resident': resident}
    return rows
