"""Interrupts: a signal handler that raises while an update runs leaves all States of one step, and usable."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo

G = {f'w{i}': jnp.ones(8) for i in range(4)}


class StopTrainingError(Exception):
    """What the signal handler raises."""


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


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='needs timers')
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # raised inside jax's callbacks
@pytest.mark.parametrize('way', ['update', 'donate weights', 'minimize', 'jit'])
def test_states_are_of_one_step_after_an_interrupt(way: str) -> None:
    optimizer, weights = build()
    step = stepper(way, optimizer, weights)
    for _ in range(5):
        step()
    start = time.perf_counter()
    for _ in range(50):
        step()
    duration = (time.perf_counter() - start) / 50

    def handler(number: int, frame: FrameType | None) -> None:
        raise StopTrainingError

    rng, previous = random.Random(0), signal.signal(signal.SIGALRM, handler)
    # jax traces the loss in minimize; interrupted there, it may raise another error, or lose the first one
    error = Exception if way == 'minimize' else StopTrainingError
    try:
        for _ in range(250):
            with pytest.raises(error):  # noqa: PT012
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.1, 3) * duration, 1.0)
                while True:
                    step()
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert_of_one_step(optimizer, weights)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    optimizer.load_state_dict(optimizer.state_dict())
    step()
    assert_of_one_step(optimizer, weights)


def test_callback_that_raises_leaves_the_states_as_they_were() -> None:
    """Functions that call Python are not donated to, in eager updates as in ``jit``."""

    def refuse(w: Any) -> Any:
        if w[0] < -2.5:
            raise ValueError('too small')
        return w

    def project(w: jax.Array) -> jax.Array:
        return jax.pure_callback(refuse, jax.ShapeDtypeStruct(w.shape, w.dtype), w)

    weights = {'w': brainstate.ParamState(jnp.zeros(2))}
    optimizer = bo.SGD(lr=1.0, momentum=0.5, constraints={'w': project}).register_trainable_weights(weights)
    optimizer.update({'w': jnp.ones(2)})
    optimizer.update({'w': jnp.ones(2)})
    before = weights['w'].value, np.array(optimizer.opt_state.value['momentum_buffer']['w'])
    with pytest.raises(Exception, match='too small'):  # noqa: PT012
        optimizer.update({'w': jnp.ones(2)})
        jax.block_until_ready(weights['w'].value)
    np.testing.assert_array_equal(weights['w'].value, before[0])
    np.testing.assert_array_equal(optimizer.opt_state.value['momentum_buffer']['w'], before[1])


@pytest.mark.filterwarnings('error')
def test_warning_that_is_an_error_leaves_the_states_usable() -> None:
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.Adam(0.1, on_nonfinite='skip', max_consecutive_skips=1).register_trainable_weights({'w': w})
    optimizer.update({'w': jnp.ones(2)})
    with pytest.raises(Exception, match='updates in a row were skipped'):  # noqa: PT012
        optimizer.update({'w': jnp.full(2, jnp.nan)})
        jax.effects_barrier()
    assert np.isfinite(optimizer.opt_state.value['exp_avg']['w']).all()
    optimizer.update({'w': jnp.ones(2)})
    assert np.isfinite(w.value).all()


@pytest.mark.parametrize('cls', [bo.Adam, bo.Prodigy, bo.LBFGS])
@pytest.mark.parametrize('revive', ['load', 'reset'])
def test_lost_buffers_are_replaced(cls: Any, revive: str) -> None:
    weights = {name: brainstate.ParamState(jnp.ones(3)) for name in 'ab'}
    optimizer = cls(0.1, metrics=True).register_trainable_weights(weights)
    g = {name: jnp.ones(3) for name in 'ab'}
    optimizer.update(g)
    saved = optimizer.state_dict()
    for state in (optimizer.opt_state, optimizer.step_count, optimizer.metrics_state):
        for leaf in jax.tree.leaves(state.value):
            leaf.delete()
    if revive == 'load':
        optimizer.load_state_dict(saved)
        again = optimizer.state_dict()
        jax.tree.map(np.testing.assert_array_equal, again['opt_state'], saved['opt_state'])
    else:
        optimizer.reset()
        assert optimizer.step_count.value == 0
    optimizer.update(g)
    assert np.isfinite(weights['a'].value).all()


def test_lost_weights_are_named() -> None:
    w = brainstate.ParamState(jnp.ones(3))
    optimizer = bo.Adam(0.1).register_trainable_weights({'w': w})
    saved = optimizer.state_dict()
    for leaf in (w.value, *jax.tree.leaves(optimizer.opt_state.value)):
        leaf.delete()
    with pytest.raises(ValueError, match=r'The weights w were deleted\. Assign their States first'):
        optimizer.load_state_dict(saved)
    w.value = jnp.ones(3)
    optimizer.load_state_dict(saved)
    optimizer.update({'w': jnp.ones(3)})
