"""LBFGS and Lookahead: to the minimum that scipy finds, and to the bit what optax's own steps give."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo


def rosenbrock(x: Any) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize(('size', 'jitted'), [(2, False), (2, True), (20, True)])
@pytest.mark.parametrize('linesearch', ['zoom', 'backtracking'])
def test_lbfgs_finds_the_minimum_of_rosenbrocks_function(size: int, linesearch: str, jitted: bool) -> None:
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


def test_lbfgs_is_optaxs_and_obeys_lr() -> None:
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
def test_lbfgs_solves_a_logistic_regression_as_scipy_does() -> None:
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


@pytest.mark.parametrize('inside', [optax.sgd(0.1, 0.9), bo.SGD(0.1, 0.9)], ids=['optax', 'ours'])
def test_lookahead_goes_back_part_of_the_way(inside: Any) -> None:
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
    optimizer.lr = 0.0  # stands still
    before = np.array(w.value)
    optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_allclose(w.value, before)
    with pytest.raises(ValueError, match='sync_period=0'):
        bo.Lookahead(inside, sync_period=0)
    with pytest.raises(ValueError, match=r'alpha=1\.5'):
        bo.Lookahead(inside, alpha=1.5)


@pytest.mark.parametrize('optimizer', [bo.SGD, bo.Adam, bo.OptaxOptimizer], ids=lambda o: o.__name__)
def test_minimize_is_gradient_and_update(optimizer: Any) -> None:
    target = jnp.array([1.0, 2.0])
    weights = [brainstate.ParamState(jnp.zeros(2)) for _ in range(2)]
    for w, way in zip(weights, ('minimize', 'update'), strict=True):
        opt = optimizer(lr=0.1).register_trainable_weights({'w': w})

        def loss(scale: Any, w: Any = w) -> Any:
            return scale * jnp.sum((w.value - target) ** 2), w.value

        for scale in (1.0, 2.0):
            if way == 'minimize':
                value, aux = opt.minimize(loss, jnp.asarray(scale), has_aux=True)
                assert value.shape == ()
                assert aux.shape == (2,)
            else:
                opt.update(brainstate.transform.grad(lambda s: loss(s)[0], {'w': w})(scale))
    np.testing.assert_allclose(weights[0].value, weights[1].value, rtol=1e-12)
    with pytest.raises(ValueError, match='before minimize'):
        optimizer(lr=0.1).minimize(loss)
