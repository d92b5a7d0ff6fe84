"""L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import GRADS, optimizer_in_use, snapshot

import braintools_optim as bo


def rosenbrock(x: Any) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize(('size', 'jitted'), [(2, False), (2, True), (20, True)])
@pytest.mark.parametrize('linesearch', ['zoom', 'backtracking'])
def test_lbfgs_minimizes_rosenbrock(size: int, linesearch: str, jitted: bool) -> None:
    w = brainstate.ParamState(jnp.full(size, -1.2))
    optimizer = bo.LBFGS(linesearch=linesearch).register_trainable_weights({'w': w})
    loss = lambda: rosenbrock(w.value)  # noqa: E731
    if jitted:
        brainstate.transform.jit(
            lambda: brainstate.transform.for_loop(lambda _: optimizer.minimize(loss), jnp.arange(190 + 10 * size))
        )()
    else:
        for _ in range(210):
            optimizer.minimize(loss)
    assert float(rosenbrock(w.value)) < 1e-16
    np.testing.assert_allclose(w.value, 1.0, atol=1e-8)


@pytest.mark.slow
def test_lbfgs_takes_the_loss_in_either_form() -> None:
    results = []
    for form in ('tree', 'states'):
        layer = brainstate.ParamState({'x': jnp.array([3.0, -1.0]), 'y': jnp.array(2.0)})
        optimizer = bo.LBFGS(linesearch='zoom').register_trainable_weights({('net', 0): layer})

        def of_tree(tree: Any) -> Any:
            value = tree['net'][0]
            return jnp.sum((value['x'] - 1) ** 4) + jnp.sum(value['x']) * value['y'] + value['y'] ** 2

        def of_states(layer: Any = layer, of_tree: Any = of_tree) -> Any:
            return of_tree({'net': {0: layer.value}})

        for _ in range(5):
            grads = brainstate.transform.grad(of_states, {('net', 0): layer})()
            optimizer.update(grads, value=of_states(), value_fn=of_tree if form == 'tree' else of_states)
        results.append(layer.value)
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert float(of_tree({'net': {0: results[0]}})) < -0.4


def test_lbfgs_equals_optax_and_follows_lr() -> None:
    w = brainstate.ParamState(jnp.array([1.5, -0.5, 2.0]))
    optimizer = bo.LBFGS(lr=bo.StepLR(0.5, 3, 0.1), memory_size=4).register_trainable_weights({'w': w})
    tx = optax.lbfgs(lambda count: 0.5 * 0.1 ** (count // 3), memory_size=4, linesearch=None)
    params = w.value
    state = tx.init(params)
    loss = lambda: rosenbrock(w.value) / 100  # noqa: E731
    for _ in range(7):
        optimizer.minimize(loss)
        optimizer.lr.step()
        updates, state = tx.update(jax.grad(lambda x: rosenbrock(x) / 100)(params), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(w.value, params, rtol=1e-9)


@pytest.mark.slow
def test_lbfgs_equals_scipy_on_logistic_regression() -> None:
    optimize = pytest.importorskip('scipy.optimize')
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(60, 3))), jnp.asarray(np.sign(rng.normal(size=60)))

    def loss(v: Any) -> Any:
        return jnp.mean(jax.nn.softplus(-y * (x @ v))) + 0.05 * jnp.sum(v**2)

    w = brainstate.ParamState(jnp.zeros(3))
    optimizer = bo.LBFGS(linesearch='zoom').register_trainable_weights({'w': w})
    of_states = lambda: loss(w.value)  # noqa: E731
    for _ in range(30):
        optimizer.minimize(of_states)
    best = optimize.minimize(lambda v: np.asarray(loss(v)), np.zeros(3), jac=jax.grad(loss), tol=1e-12)
    np.testing.assert_allclose(w.value, best.x, atol=1e-8)


def test_lbfgs_options() -> None:
    for wrong in ('nope', 12345):
        with pytest.raises(ValueError, match='Unknown linesearch'):
            bo.LBFGS(linesearch=wrong)
    with pytest.raises(TypeError):
        bo.LBFGS(scale_init_hess=True)
    with pytest.raises(ValueError, match='memory_size=0'):
        bo.LBFGS(memory_size=0)
    assert (bo.LBFGS().memory_size, bo.LBFGS().scale_init_precond) == (10, True)


def update(grads: Any = GRADS, **arguments: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.update(grads, **arguments)


LOSS = lambda: 1.0  # noqa: E731


@pytest.mark.parametrize('linesearch', ['zoom', 'backtracking', optax.scale_by_backtracking_linesearch(5)])
@pytest.mark.parametrize('jitted', [False, True])
def test_line_search_without_the_loss_is_refused(linesearch: Any, jitted: bool) -> None:
    optimizer, states = optimizer_in_use(bo.LBFGS, linesearch=linesearch)
    for arguments in ({}, {'value': 1.0}, {'value_fn': LOSS}, {'value': 1.0, 'value_fn': 3.0}):
        update = lambda g, arguments=arguments: optimizer.update(g, **arguments)  # noqa: E731
        before = snapshot(optimizer, states)
        with pytest.raises(ValueError, match=r'Invalid value=.*, value_fn=.*\. A line search needs the loss'):
            (brainstate.transform.jit(update) if jitted else update)(GRADS)
        jax.tree.map(np.testing.assert_array_equal, before[0], snapshot(optimizer, states)[0])
