"""Sophia: the Hessian it is given or estimates."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations
from helpers import registered
from internals import group_state

import braintools_optim as bo


def quadratic(tree: Any) -> Any:
    """Return a quadratic with the Hessian [[4, 1], [1, 6]] in x, 2 in y, and 3 between x[0] and y."""
    x, y = tree['x'], tree['y']
    return 2 * x[0] ** 2 + x[0] * x[1] + 3 * x[1] ** 2 + y**2 + 3 * x[0] * y


@pytest.mark.parametrize('form', ['minimize', 'tree', 'states', 'jit'])
def test_sophia_estimates_the_hessian_as_hutchinson(form: str) -> None:
    """An estimate is the diagonal plus or minus the other entries of each row."""
    optimizer = bo.Sophia(0.0, betas=(0.9, 0.0), update_period=1)
    w = registered(optimizer, x=np.array([1.0, -1.0]), y=np.array(0.5))
    seen, reads = [], brainstate.State(jnp.zeros((), int))

    def of_states() -> Any:
        return of_tree({key: state.value for key, state in w.items()})

    def of_tree(tree: Any) -> Any:
        reads.value += 1
        return quadratic(tree)

    def update() -> None:
        if form == 'minimize':
            optimizer.minimize(of_states)
        else:
            value_fn = of_tree if form == 'tree' else of_states
            optimizer.update(brainstate.transform.grad(of_states, w)(), value_fn=value_fn)

    jitted = brainstate.transform.jit(update) if form == 'jit' else update
    for _ in range(12):
        jitted()
        hessian = group_state(optimizer)['hessian']
        seen.append((*hessian['x'].tolist(), hessian['y'].item()))
    possible = {(4 + a + 3 * b, 6 + a, 2 + 3 * b) for a in (-1, 1) for b in (-1, 1)}
    assert set(seen) <= possible
    assert len(set(seen)) > 2
    assert reads.value == 12  # writes of an estimate are dropped


@pytest.mark.slow
def test_sophia_estimates_follow_from_seed_and_count() -> None:
    """A checkpoint resumes exactly, another seed gives another run, and each group estimates its block only."""

    def build(seed: int = 0) -> tuple[bo.Optimizer, Any]:
        optimizer = bo.Sophia(0.01, (0.9, 0.9), 1.0, clip_threshold=10.0, update_period=2, seed=seed)
        w = {key: brainstate.ParamState(jnp.asarray(x)) for key, x in (('x', [1.0, -1.0]), ('y', 0.5))}
        optimizer.register_trainable_weights({'x': w['x']})
        optimizer.add_param_group({'y': w['y']}, lr=0.02)
        return optimizer, w

    def train(optimizer: bo.Optimizer, w: Any, steps: int) -> list[Any]:
        brainstate.transform.for_loop(
            lambda _: optimizer.minimize(lambda: quadratic({k: s.value for k, s in w.items()})), jnp.arange(steps)
        )
        return [*w['x'].value.tolist(), w['y'].value.item()]

    (one, w), (other, v), (third, x) = build(), build(), build(seed=5)
    train(one, w, 3)
    saved, weights = one.state_dict(), {key: state.value for key, state in w.items()}
    final = train(one, w, 4)
    other.load_state_dict(saved)
    for key, state in v.items():
        state.value = weights[key]
    assert train(other, v, 4) == final
    assert train(third, x, 7) != final
    hessian = group_state(one, 1)['hessian']['y']
    np.testing.assert_allclose(hessian, 2 * (1 - 0.9**4))  # y is alone in its group


def test_sophia_takes_newton_steps_on_complex_and_half_weights() -> None:
    """A Newton step leads to the zero of the gradient, when minimizing and when maximizing."""

    def parabola(tree: Any) -> Any:
        half, z = tree['half'].astype(float), tree['complex']
        return jnp.sum(3 * half**2) + 2 * z.real**2 + 5 * z.imag**2

    start = {'half': jnp.array([1.0, 2.0], jnp.bfloat16), 'complex': jnp.array(1.0 + 2.0j)}
    slopes = {'half': 6 * start['half'], 'complex': jnp.array(4.0 - 20.0j)}  # conjugated, as in jax
    for sign in (1, -1):
        optimizer = bo.Sophia(0.1, (0.0, 0.0), gamma=1.0, clip_threshold=10.0, maximize=sign < 0)
        w = registered(optimizer, **start)
        optimizer.update(jax.tree.map(lambda g, s=sign: s * g, slopes), value_fn=lambda w, s=sign: s * parabola(w))
        for key, state in w.items():
            assert state.value.dtype == start[key].dtype
            np.testing.assert_allclose(jnp.asarray(state.value, complex), 0.9 * start[key].astype(complex), rtol=1e-2)


def test_sophia_needs_the_loss_or_the_hessian() -> None:
    optimizer = bo.Sophia()
    w = registered(optimizer, w=np.ones(2))['w']
    g = {'w': jnp.ones(2)}
    with pytest.raises(ValueError, match='needs the loss or its Hessian'):
        optimizer.update(g)
    with pytest.raises(ValueError, match=r'Invalid hessian of w\. Must have the shape'):
        optimizer.update(g, hessian={'w': jnp.ones(3)})
    with pytest.raises(KeyError, match='missing or None: w'):
        optimizer.update(g, hessian={})
    with pytest.raises(ValueError, match='before update'):
        bo.Sophia().update(g, hessian=g)
    tx = bo.to_optax(bo.Sophia())
    with pytest.raises(ValueError, match='needs the weights'):
        tx.update(g, tx.init(g), g, value_fn=lambda: 0.0)
    assert optimizer.step_count.value == 0
    np.testing.assert_array_equal(w.value, 1)
    optimizer.update(g, hessian=g)
    for t in range(2):
        with compilations(0) if t else nullcontext():
            optimizer.update(g, value_fn=sum_of_squares)


def sum_of_squares(tree: Any) -> Any:
    return jnp.sum(tree['w'] ** 2)
