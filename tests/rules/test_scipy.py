"""ScipyOptimizer."""

from __future__ import annotations

import sys
from typing import Any

import brainstate
import brainunit as u
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo


def quadratic(x: Any, y: Any) -> Any:
    return (x - 1.0) ** 2 + (y + 2.0) ** 2


BOUNDS = [(-5.0, 5.0), (-3.0, 3.0)]


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize(
    'method', [None, 'L-BFGS-B', 'TNC', 'SLSQP', 'trust-constr', 'Nelder-Mead', 'Powell', 'COBYLA']
)
@pytest.mark.filterwarnings('ignore:delta_grad == 0.0')
def test_minimum_is_found_in_float32(method: str | None) -> None:
    result = bo.ScipyOptimizer(quadratic, BOUNDS, method).minimize(n_iter=2)
    assert isinstance(result.x, tuple)
    np.testing.assert_allclose(result.x, [1.0, -2.0], atol=2e-2)
    assert result.x[0].dtype == jnp.float32


def test_parameters_have_the_structure_and_shapes_of_the_bounds() -> None:
    seen = []

    def loss(*, b: Any, a: Any) -> Any:
        return jnp.sum((a - jnp.arange(6.0).reshape(2, 3)) ** 2) + (b - 3.0) ** 2

    bounds = {'b': (0.0, 2.0), 'a': (jnp.zeros((2, 3)), jnp.full((2, 3), 9.0))}
    result = bo.ScipyOptimizer(loss, bounds, 'L-BFGS-B', callback=seen.append).minimize()
    np.testing.assert_allclose(result.x['a'], np.arange(6.0).reshape(2, 3), atol=1e-4)
    assert result.x['b'] == 2.0  # at the bound
    assert seen[-1].keys() == {'a', 'b'}
    assert seen[-1]['a'].shape == (2, 3)


def test_bounds_with_units_are_numbers_in_the_unit_of_the_lower_bound() -> None:
    bounds = [(-1.0 * u.mV, 0.5 * u.volt)]
    result = bo.ScipyOptimizer(lambda x: (x - 400.0) ** 2, bounds, 'L-BFGS-B').minimize()
    np.testing.assert_allclose(result.x, [400.0])
    with pytest.raises(u.UnitMismatchError):
        bo.ScipyOptimizer(quadratic, [(1.0 * u.mV, 1.0 * u.nA)])


def test_loss_may_write_states() -> None:
    state = brainstate.ShortTermState(jnp.zeros(()))

    def loss(x: Any) -> Any:
        state.value = x
        return (state.value - 1.0) ** 2

    bo.ScipyOptimizer(loss, [(-5.0, 5.0)], 'L-BFGS-B').minimize()
    assert float(state.value) == pytest.approx(1.0, abs=1e-4)


def test_options_reach_scipy() -> None:
    optimizer = bo.ScipyOptimizer(quadratic, BOUNDS, 'SLSQP', options={'maxiter': 1})
    assert (optimizer.method, optimizer.options, optimizer.constraints) == ('SLSQP', {'maxiter': 1}, ())
    assert optimizer.minimize().nit == 1
    constraint = {'type': 'ineq', 'fun': lambda x: x[1] - x[0]}
    result = bo.ScipyOptimizer(quadratic, BOUNDS, 'SLSQP', constraints=constraint, tol=1e-9).minimize()
    np.testing.assert_allclose(result.x, [-0.5, -0.5], atol=1e-4)


def test_finite_result_is_better_than_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([np.nan, 3.0, np.nan, 2.0])
    monkeypatch.setattr(bo.ScipyOptimizer, 'minimize_once', lambda self: type('Result', (), {'fun': next(losses)}))
    assert bo.ScipyOptimizer(quadratic, BOUNDS).minimize(n_iter=4).fun == 2.0


def test_starting_points_come_from_numpy() -> None:
    def runs() -> Any:
        np.random.seed(3)
        return bo.ScipyOptimizer(quadratic, BOUNDS, 'Nelder-Mead', options={'maxiter': 1}).minimize().x

    np.testing.assert_array_equal(runs(), runs())


@pytest.mark.parametrize(
    ('make', 'error', 'message'),
    [
        (lambda: bo.ScipyOptimizer(quadratic, None), ValueError, 'Invalid bounds=None'),
        (lambda: bo.ScipyOptimizer(quadratic, [(1.0, 2.0, 3.0)]), AssertionError, r'bounds\[0\].*Must be a pair'),
        (lambda: bo.ScipyOptimizer(quadratic, {'x': (1.0, [2.0])}), AssertionError, r"bounds\['x'\] of shapes"),
        (lambda: bo.ScipyOptimizer(3, BOUNDS), TypeError, 'Invalid loss_fun=3. Must be callable.'),
        (lambda: bo.ScipyOptimizer(quadratic, BOUNDS).minimize(0), ValueError, 'Invalid n_iter=0. Must be >= 1.'),
        (lambda: bo.ScipyOptimizer(quadratic, BOUNDS).minimize('x'), AssertionError, "Invalid n_iter='x'"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_missing_scipy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'scipy.optimize', None)
    with pytest.raises(ModuleNotFoundError, match='pip install scipy'):
        bo.ScipyOptimizer(quadratic, BOUNDS).minimize()
