"""optax: equal defaults, optax transformations as optimizers, and optimizers as transformations."""

from __future__ import annotations

import functools
from collections.abc import Callable

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import registered
from models import all_values, assert_same, nested_gradients, nested_model
from tables.optimizers import COMMON

import braintools_optim as bo
from braintools_optim import rules


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (rules.Adagrad(0.1, initial_accumulator_value=0.1, eps=1e-7), optax.adagrad(0.1)),
        (rules.Lamb(0.1, weight_decay=0.01), optax.lamb(0.1, weight_decay=0.01)),
        (rules.Novograd(0.1, weight_decay=0.01), optax.novograd(0.1, weight_decay=0.01)),
        (rules.Fromage(0.1), optax.fromage(0.1)),
        (rules.SM3(0.1, 0.9, 1e-8), optax.sm3(0.1, 0.9)),
        (rules.SM3(0.1, 0.0, 1e-8), optax.sm3(0.1, 0.0)),
        (rules.Lion(0.1, weight_decay=0.01), optax.lion(0.1, weight_decay=0.01)),
        (rules.AdaBelief(0.1), optax.adabelief(0.1)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_defaults_equal_optax(ours: bo.Optimizer, theirs: optax.GradientTransformation) -> None:
    params, slope = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    w, state = registered(ours, w=params)['w'], theirs.init(params)
    for _ in range(3):
        ours.update({'w': slope})
        changes, state = theirs.update(slope, state, params)
        params = optax.apply_updates(params, changes)
    np.testing.assert_allclose(w.value, params, rtol=1e-6)


every_optimizer = pytest.mark.parametrize('optimizer', COMMON, ids=lambda o: o.__name__)


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (lambda: bo.OptaxOptimizer(optax.adam(0.1)), optax.adam(0.1)),
        (lambda: bo.OptaxOptimizer(optax.sgd(0.1, 0.9, nesterov=True)), optax.sgd(0.1, 0.9, nesterov=True)),
        (
            lambda: bo.OptaxOptimizer(lr=0.1, weight_decay=0.3),
            optax.chain(optax.add_decayed_weights(0.3), optax.scale_by_adam(), optax.scale(-0.1)),
        ),
        (lambda: bo.OptaxOptimizer(optax.lion(0.2), lr=0.5), optax.lion(0.1)),
        (
            lambda: bo.OptaxOptimizer(optax.adam(0.1), grad_clip_value=0.3),
            optax.chain(optax.clip(0.3), optax.adam(0.1)),
        ),
        (
            lambda: bo.Adam(0.1, weight_decay=0.3),
            optax.chain(optax.add_decayed_weights(0.3), optax.scale_by_adam(), optax.scale(-0.1)),
        ),
        (lambda: bo.AdamW(0.1, weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3)),
    ],
)
def test_options_equal_optax_chains(ours: Callable[[], bo.Optimizer], theirs: optax.GradientTransformation) -> None:
    states = nested_model(jnp.float64)
    opt = ours().register_trainable_weights(states)
    params = {key: state.value for key, state in nested_model(jnp.float64).items()}
    params = {'layer': params['layers', 0, 'weight'], 'scale': params[('scale',)]}
    state = theirs.init(params)
    for t in range(4):
        g = nested_gradients(t, jnp.float64)
        opt.update(g)
        updates, state = theirs.update({'layer': g['layers', 0, 'weight'], 'scale': g[('scale',)]}, state, params)
        params = optax.apply_updates(params, updates)
    assert_same([params['layer'], params['scale']], all_values(states), rtol=1e-6)


@every_optimizer
def test_to_optax_equals_update(optimizer: type[bo.Optimizer]) -> None:
    build = functools.partial(optimizer, lr=optax.linear_schedule(0.1, 0.0, 10), grad_clip_norm=1.0, weight_decay=0.1)
    states = nested_model(jnp.float64)
    opt = build().register_trainable_weights(states)
    tx = optax.chain(optax.identity(), bo.to_optax(build()))
    params = {'layer': {'bias': jnp.ones(3), 'weight': jnp.ones((2, 3))}, 'scale': jnp.asarray(2.0)}
    state = tx.init(params)
    for t in range(3):
        g = nested_gradients(t, jnp.float64)
        opt.update(g)
        updates, state = jax.jit(tx.update)({'layer': g['layers', 0, 'weight'], 'scale': g[('scale',)]}, state, params)
        params = optax.apply_updates(params, updates)
    assert_same([params['layer'], params['scale']], all_values(states), rtol=1e-12)


def test_extra_arguments_reach_optax() -> None:
    w = brainstate.ParamState(jnp.array([3.0, -2.0]))
    opt = bo.OptaxOptimizer(optax.polyak_sgd(max_learning_rate=1.0)).register_trainable_weights({'w': w})
    for _ in range(3):
        opt.update({'w': 2 * w.value}, value=jnp.sum(w.value**2))
    np.testing.assert_allclose(w.value, np.array([3.0, -2.0]) / 8, rtol=1e-6)
