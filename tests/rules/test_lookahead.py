"""Lookahead, and other rules for a whole group."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo


@pytest.mark.parametrize('inside', [optax.sgd(0.1, 0.9), bo.SGD(0.1, 0.9)], ids=['optax', 'ours'])
def test_lookahead_equals_the_recurrence(inside: Any) -> None:
    w = brainstate.ParamState(jnp.array([1.0, -2.0]))
    optimizer = bo.Lookahead(inside, sync_period=3, alpha=0.3, weight_decay=0.1)
    optimizer.register_trainable_weights({'w': w})
    fast = slow = np.array(w.value)
    buffer = np.zeros(2)
    for t in range(1, 8):
        slope = np.sin(fast + t)
        optimizer.update({'w': jnp.sin(w.value + t)})
        buffer = 0.9 * buffer + slope + 0.1 * fast
        fast = fast - 0.1 * buffer
        if t % 3 == 0:
            fast = slow = slow + 0.3 * (fast - slow)
        np.testing.assert_allclose(w.value, fast, rtol=1e-12)
    assert optimizer.base_optimizer is inside
    optimizer.lr = 0.0  # no step
    before = np.array(w.value)
    optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_allclose(w.value, before)
    with pytest.raises(ValueError, match='sync_period=0'):
        bo.Lookahead(inside, sync_period=0)
    with pytest.raises(ValueError, match=r'alpha=1\.5'):
        bo.Lookahead(inside, alpha=1.5)


@pytest.mark.parametrize('make', [bo.LBFGS, bo.Lookahead, bo.OptaxOptimizer], ids=lambda make: make.__name__)
def test_group_optimizers_without_compilation(make: Any) -> None:
    """Updates without jit equal compiled ones, with a line search or a loss scale."""
    options = {'linesearch': 'backtracking'} if make is bo.LBFGS else {'loss_scale': 2.0, 'grad_clip_value': 0.1}
    first = [optax.sgd(0.1)] if make is not bo.LBFGS else []
    found = []
    for interpreted in (True, False) if make is not bo.LBFGS else (True,):
        w = brainstate.ParamState(jnp.array([3.0, -4.0]))
        optimizer = make(*first, **options).register_trainable_weights({'w': w})
        with jax.disable_jit(interpreted):
            optimizer.minimize(lambda w=w: jnp.sum((w.value - 1.0) ** 2))
        found.append(w.value)
    assert np.sum((found[0] - 1.0) ** 2) < 29.0
    np.testing.assert_allclose(found[0], found[-1], rtol=1e-12)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'complex64'])
def test_lookahead_keeps_the_dtypes_of_its_state(dtype: str) -> None:
    w = brainstate.ParamState(jnp.ones(2, dtype))
    optimizer = bo.Lookahead(optax.adam(0.1), 2, lr=0.5).register_trainable_weights({'w': w})
    before = jax.tree.map(jnp.result_type, optimizer.opt_state.value)
    brainstate.transform.for_loop(lambda g: optimizer.update({'w': g}), jnp.ones((3, 2), dtype))
    assert jax.tree.map(jnp.result_type, optimizer.opt_state.value) == before


def test_constructor_arguments_of_lookahead_are_fixed() -> None:
    opt = bo.Lookahead(optax.sgd(0.1))
    for name, value in (('alpha', 0.1), ('sync_period', 2), ('base_optimizer', None)):
        with pytest.raises(ValueError, match=f'{name} of Lookahead is fixed'):
            setattr(opt, name, value)
