"""Interrupt updates at random moments, and check after each interrupt that all States belong to the same step.

Run it with the ways of updating: ``update``, ``donate weights``, ``jit``, ``minimize``.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from jax._src.config import trace_context

import braintools_optim as bo

jax.config.update('jax_enable_x64', True)
G = {f'w{i}': jnp.ones(8) for i in range(4)}
INTERRUPTS = 250


class StopTrainingError(Exception):
    """What the signal handler raises."""


def handler(number: int, frame: FrameType | None) -> None:
    raise StopTrainingError


def build() -> tuple[bo.Optimizer, dict[str, brainstate.ParamState]]:
    weights = {name: brainstate.ParamState(jnp.zeros(8)) for name in G}
    return bo.SGD(lr=1.0, momentum=0.5).register_trainable_weights(weights), weights


def stepper(way: str, optimizer: bo.Optimizer, weights: dict[str, brainstate.ParamState]) -> Callable[[], Any]:
    def loss() -> Any:
        return sum(w.value.sum() for w in weights.values())

    if way == 'donate weights':
        optimizer.donate_weights = True
    return {
        'update': lambda: optimizer.update(G),
        'donate weights': lambda: optimizer.update(G),
        'minimize': lambda: optimizer.minimize(loss),
        'jit': bo.jit(lambda: optimizer.update(G)),
    }[way]


def assert_of_one_step(optimizer: bo.Optimizer, weights: dict[str, brainstate.ParamState]) -> None:
    """Weights, slots and counts are those of one step; the momentum is 2 - 2^(1 - t) after t steps of gradient 1."""
    step = int(optimizer.step_count.value)
    state = optimizer.opt_state.value
    assert set(np.asarray(state.step).tolist()) == {step}
    for name, w in weights.items():
        np.testing.assert_allclose(state['momentum_buffer'][name], 2 - 2.0 ** (1 - step), rtol=1e-12)
        np.testing.assert_allclose(w.value, -(2 * step - 2 + 2.0 ** (1 - step)), rtol=1e-9)


def measure(step: Callable[[], Any]) -> float:
    """Return the seconds that a step takes."""
    for _ in range(5):
        step()
    start = time.perf_counter()
    for _ in range(50):
        step()
    return (time.perf_counter() - start) / 50


def interrupt(step: Callable[[], Any], seconds: float, way: str) -> None:
    """Step until a timer interrupts."""
    # jax traces the loss in minimize; interrupted there, jax may raise another error, or lose the first one
    expected = Exception if way == 'minimize' else StopTrainingError
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        while True:
            step()
    except expected:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(way: str) -> None:
    optimizer, weights = build()
    step = stepper(way, optimizer, weights)
    duration, rng = measure(step), random.Random(0)
    configuration = trace_context()
    for _ in range(INTERRUPTS):
        interrupt(step, rng.uniform(0.1, 3) * duration, way)
        if way == 'minimize' and trace_context() != configuration:
            return  # jax was interrupted when it left a context, and runs functions without compilation from now on
        assert_of_one_step(optimizer, weights)
    optimizer.load_state_dict(optimizer.state_dict())
    step()
    assert_of_one_step(optimizer, weights)


if __name__ == '__main__':
    signal.signal(signal.SIGALRM, handler)
    for chosen in sys.argv[1:]:
        run(chosen)
        print(f'{chosen}: {INTERRUPTS} interrupts')
