"""Derivatives through updates."""

from __future__ import annotations

import inspect
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import loss_arguments, thinned
from tables.optimizers import COMMON, STANDALONE

import braintools_optim as bo

transform = brainstate.transform


@thinned(COMMON, 'optimizer')
def test_derivatives_equal_finite_differences(optimizer: type[bo.Optimizer]) -> None:
    """The derivatives of a later loss with respect to lr and the initial weights equal finite differences."""
    zero = 1e-3 if optimizer is bo.OptaxOptimizer else 0.0  # optax's root has no derivative at zero
    target = jnp.array([0.3, -0.7, 1.1])
    w, still = brainstate.ParamState(jnp.zeros(3)), brainstate.ParamState(jnp.ones(2))
    opt = optimizer(lr=0.1, weight_decay=0.0).register_trainable_weights({'w': w, 'still': still})
    state, start = jax.tree.map(np.array, opt.opt_state.value), opt.step_count.value

    def later_loss(lr: Any, initial: Any) -> Any:
        opt.opt_state.value, opt.step_count.value = jax.tree.map(jnp.asarray, state), start
        opt.lr, w.value, still.value = lr, initial, jnp.ones(2)
        for t in range(5):
            g = (w.value - target) * (1.0 + 0.3 * t) + 0.1 * jnp.sin(3 * w.value)
            opt.update({'w': g, 'still': jnp.full(2, zero)})  # a weight that never has a gradient
        return jnp.sum((w.value - target) ** 2) + jnp.sum(still.value)

    at = 0.05, jnp.array([1.0, 0.5, -0.5])
    slopes = transform.jit(transform.grad(later_loss, argnums=(0, 1)))(*at)
    evaluate, h = transform.jit(later_loss), 1e-6
    numeric_lr = (evaluate(at[0] + h, at[1]) - evaluate(at[0] - h, at[1])) / (2 * h)
    np.testing.assert_allclose(slopes[0], numeric_lr, rtol=1e-5)
    for i, e in enumerate(jnp.eye(3)):
        numeric = (evaluate(at[0], at[1] + h * e) - evaluate(at[0], at[1] - h * e)) / (2 * h)
        np.testing.assert_allclose(slopes[1][i], numeric, rtol=1e-5, atol=1e-8)


every_rule = pytest.mark.parametrize('rule', STANDALONE, ids=lambda rule: rule.__name__)
SLOPES = np.random.default_rng(1).normal(size=(12, 2, 3)) * np.array([1.0, 0.1, 3.0])
START = np.array([[1.0, -2.0, 0.5], [-1.5, 0.7, 2.0]])


@pytest.mark.slow
@every_rule
def test_derivatives_through_updates_are_finite(rule: type[bo.Optimizer]) -> None:
    """The derivatives are finite even where a gradient is zero."""
    optimizer = rule(lr=0.1)
    tx = bo.to_optax(optimizer)
    slopes = jnp.asarray(SLOPES[:3]).at[:, 0].set(0.0).at[0, 1, 0].set(0.0)

    def final(w: Any, slopes: Any) -> Any:
        state = tx.init({'w': w})
        for slope in slopes:
            extra = loss_arguments(optimizer, {'w': slope})
            change, state = tx.update({'w': slope}, state, {'w': w}, **extra)
            w = w + change['w']
        return jnp.sum(w)

    with jax.disable_jit():
        derivatives = jax.grad(final, (0, 1))(jnp.asarray(START), slopes)
    assert all(jnp.isfinite(d).all() for d in derivatives)


@thinned([bo.SGD, bo.Momentum, bo.Adam, bo.RMSprop, bo.Lars, bo.Rprop], 'optimizer')
def test_optimizer_created_inside_a_transformation(optimizer: Any) -> None:
    def final(lr: Any) -> Any:
        w = brainstate.ParamState(jnp.asarray(1.0))
        opt = optimizer(lr=lr).register_trainable_weights({'w': w})
        opt.update({'w': jnp.asarray(0.5)})
        if 'momentum' in inspect.signature(optimizer).parameters and optimizer not in (bo.SGD, bo.RMSprop):
            opt.momentum = 0.5  # refused for SGD and RMSprop, which began without momentum
        opt.update({'w': jnp.asarray(0.5)})
        return w.value

    inside = brainstate.transform.jit(final)(0.1)
    np.testing.assert_allclose(inside, final(0.1), rtol=1e-9)
    assert np.isfinite(brainstate.transform.grad(final)(0.1))


@pytest.mark.parametrize('jit', [lambda f: f, bo.jit], ids=['update', 'jit'])
def test_update_inside_plain_jax_jit_is_refused(jit: Any) -> None:
    """brainstate's error names the transformation to use instead."""
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.Adam(lr=0.1).register_trainable_weights({'w': w})
    step = jit(lambda g: optimizer.update({'w': g}))
    for closed_over in (False, True):
        with pytest.raises(brainstate.TraceContextError, match=r'brainstate\.transform\.jit'):
            jax.jit((lambda g: step(jnp.ones(2))) if closed_over else step)(jnp.ones(2))
    np.testing.assert_array_equal(w.value, 1.0)
    assert optimizer.step_count.value == 0
    step(jnp.ones(2))
    assert (w.value < 1).all()
