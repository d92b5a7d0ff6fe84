"""Interrupts: a signal handler that raises while an update runs leaves all States of one step, and usable."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run_script

import braintools_optim as bo

SCRIPT = Path(__file__).with_name('interrupted.py')


@pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='needs timers')
def test_states_are_of_one_step_after_an_interrupt() -> None:
    """An interrupt while jax traces may leave jax's configuration changed, hence the process of its own."""
    ways = ['update', 'donate weights', 'jit', 'minimize']
    assert run_script(SCRIPT, *ways) == [f'{way}: 250 interrupts' for way in ways]


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
