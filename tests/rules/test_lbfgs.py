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


def quadratic(x: Any) -> Any:
    return (x[0] - 1) ** 2 / 2 + 5 * (x[1] - 1) ** 2 + 50 * (x[2] - 1) ** 2


def rosenbrock_of_torch(x: Any) -> Any:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize(
    ('loss', 'start', 'search'),
    [
        (rosenbrock_of_torch, (-1.2, -1.2), 'strong_wolfe'),
        (quadratic, (3.0, -4.0, 2.0), 'strong_wolfe'),
        (quadratic, (3.0, -4.0, 2.0), None),
    ],
)
@pytest.mark.parametrize('max_iter', [20, 100])
def test_options_of_torch_find_its_minimum(loss: Any, start: Any, search: Any, max_iter: int) -> None:
    """With the same options, both reach the minimum, and stop after about as many evaluations of the loss."""
    torch = pytest.importorskip('torch')
    options: dict[str, Any] = {'history_size': 10, 'tolerance_grad': 1e-7, 'tolerance_change': 1e-9}
    options |= {'max_iter': max_iter, 'line_search_fn': search}
    theirs = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    torch_optimizer = torch.optim.LBFGS([theirs], **options)

    def closure() -> Any:
        torch_optimizer.zero_grad()
        value = loss(theirs)
        value.backward()
        return value

    w = brainstate.ParamState(jnp.asarray(start))
    optimizer = bo.LBFGS(**options).register_trainable_weights({'w': w})
    of_states = lambda: loss(w.value)  # noqa: E731
    for _ in range(3):
        torch_optimizer.step(closure)
        optimizer.minimize(of_states)
    assert loss(theirs).item() < 1e-10
    assert loss(w.value) < 1e-10
    np.testing.assert_allclose(w.value, theirs.detach().numpy(), atol=1e-5)
    path = np.array(w.value)
    optimizer.minimize(of_states)  # as in torch, the tolerances leave a minimum alone
    np.testing.assert_allclose(w.value, path, atol=1e-5)


@pytest.mark.parametrize(('size', 'max_iter'), [(2, 60), (20, 400)])
def test_one_update_with_many_iterations_minimizes_rosenbrock(size: int, max_iter: int) -> None:
    w = brainstate.ParamState(jnp.full(size, -1.2))
    optimizer = bo.LBFGS(line_search_fn='strong_wolfe', max_iter=max_iter, max_eval=10**6)
    optimizer.register_trainable_weights({'w': w})
    optimizer.minimize(lambda: rosenbrock(w.value))
    assert rosenbrock(w.value) < 1e-20


def iterated(updates: int, weights: Any = (1.5, -0.5, 2.0), maximize: bool = False, **options: Any) -> Any:
    """Return the weights after some updates."""
    w = brainstate.ParamState(jnp.asarray(weights))
    optimizer = bo.LBFGS(maximize=maximize, **options).register_trainable_weights({'w': w})
    sign = -1 if maximize else 1
    loss = lambda: sign * rosenbrock(w.value) / 100  # noqa: E731
    for _ in range(updates):
        optimizer.minimize(loss)
    return w.value


@pytest.mark.parametrize('search', [None, 'strong_wolfe', 'zoom', 'backtracking'])
@pytest.mark.parametrize('lr', [1.0, 0.5])
def test_iterations_in_one_update_equal_updates(search: Any, lr: float) -> None:
    many = iterated(6, lr=lr, linesearch=search)
    np.testing.assert_allclose(iterated(1, lr=lr, linesearch=search, max_iter=6, max_eval=999), many, rtol=1e-9)
    np.testing.assert_allclose(iterated(2, lr=lr, linesearch=search, max_iter=3, max_eval=999), many, rtol=1e-9)
    opposite = iterated(2, lr=lr, linesearch=search, max_iter=3, max_eval=999, maximize=True)
    np.testing.assert_allclose(opposite, many, rtol=1e-9)


def test_max_eval_and_tolerances_end_an_update() -> None:
    np.testing.assert_array_equal(iterated(1, max_iter=50, max_eval=3), iterated(1, max_iter=2, max_eval=99))
    np.testing.assert_array_equal(iterated(1, max_iter=4), iterated(1, max_iter=4, max_eval=5))
    np.testing.assert_array_equal(iterated(1, max_iter=50, lr=0.0), (1.5, -0.5, 2.0))
    for max_iter in (1, 5):
        for options in ({'tolerance_grad': 1e3}, {'tolerance_change': 1e6}):
            np.testing.assert_array_equal(iterated(2, max_iter=max_iter, **options), (1.5, -0.5, 2.0))
        np.testing.assert_array_equal(
            iterated(2, max_iter=max_iter, tolerance_grad=1e-30, tolerance_change=1e-30), iterated(2, max_iter=max_iter)
        )


def test_several_iterations_need_the_loss_and_leave_frozen_weights_alone() -> None:
    w = {key: brainstate.ParamState(jnp.full(2, -1.2)) for key in ('a', 'b')}
    optimizer = bo.LBFGS(max_iter=5, line_search_fn='strong_wolfe').register_trainable_weights(w)
    optimizer.freeze('b')
    optimizer.minimize(lambda: rosenbrock(w['a'].value) + jnp.sum(w['b'].value ** 2))
    np.testing.assert_array_equal(w['b'].value, -1.2)
    alone = iterated(1, (-1.2, -1.2), max_iter=5, line_search_fn='strong_wolfe')
    np.testing.assert_allclose(w['a'].value, alone, rtol=1e-6)
    g = {'a': jnp.ones(2)}
    with pytest.raises(ValueError, match=r'max_iter=20 needs the loss: .*minimize'):
        bo.LBFGS(max_iter=20).register_trainable_weights({'a': w['a']}).update(g)
    with pytest.raises(ValueError, match='Invalid partial=True with max_iter > 1'):
        optimizer.update(g, value=1.0, value_fn=lambda: 1.0, partial=True)


def test_names_of_torch() -> None:
    optimizer = bo.LBFGS(history_size=7, line_search_fn='strong_wolfe')
    assert (optimizer.memory_size, optimizer.linesearch) == (7, 'strong_wolfe')
    with pytest.raises(ValueError, match=r'Invalid history_size=7 with memory_size=5\. Must be one'):
        bo.LBFGS(history_size=7, memory_size=5)
    with pytest.raises(ValueError, match=r"Invalid line_search_fn='zoom'\. Must be 'strong_wolfe' or"):
        bo.LBFGS(line_search_fn='zoom')
    for wrong in ({'max_iter': 0}, {'max_eval': 0}, {'history_size': 0}, {'tolerance_grad': -1.0}):
        with pytest.raises(ValueError, match='Must be'):
            bo.LBFGS(**wrong)


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
