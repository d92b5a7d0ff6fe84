"""A sweep over learning rates of a small spiking network, against the same trainings one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from brainstate.transform import for_loop

import braintools_optim as optim
from benchmarks.board import TASKS, Training

__all__ = ['sweep_times']

MEASURED = 3
"""How many trainings are compiled each by itself; the time of all members is extrapolated."""


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def sweep_times(members: int, updates: int) -> dict[str, Any]:
    """Measure all trainings in seconds, compilation included."""
    task, rates = TASKS['evidence'](), jnp.geomspace(1e-4, 1e-1, members)
    keys = jax.random.split(jax.random.key(0), updates)

    def run(lr: Any) -> dict[str, Any]:
        training = Training(lambda rate: optim.Adam(lr=rate, grad_clip_norm=1.0), task, lr, jax.random.key(1))
        return {'loss': for_loop(training.update, keys)}

    def compiled_once() -> list[Any]:
        compiled = jax.jit(run)
        return [compiled(rate) for rate in rates]

    def compiled_each() -> list[Any]:
        return [jax.jit(lambda lr: run(lr))(rate) for rate in rates[:MEASURED]]

    each = seconds(compiled_each) / min(MEASURED, members)
    return {
        'members': members,
        'updates': updates,
        's': {
            'sweep': seconds(lambda: optim.sweep(run, lr=rates)['loss']),
            'one compiled training, called for each': seconds(compiled_once),
            'each compiled by itself': members * each,
        },
    }
