"""NevergradOptimizer, with nevergrad if it is installed and otherwise with a random search in its place."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import brainunit as u
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo

INSTALLED = importlib.util.find_spec('nevergrad') is not None


class Parameter(SimpleNamespace):
    """A parameter of the random search, with the arguments of nevergrad's parameters."""

    def sample(self, random: np.random.RandomState) -> Any:
        return random.uniform(self.lower, self.upper)


class Container:
    """The parameters of the random search."""

    def __init__(self, *parts: Parameter, **named: Parameter):
        self.parts, self.named, self.random_state = parts, named, np.random.RandomState()

    def sample(self) -> Any:
        if self.named:
            return {name: part.sample(self.random_state) for name, part in self.named.items()}
        return tuple(part.sample(self.random_state) for part in self.parts)


class RandomSearch:
    """A random search with the methods of nevergrad's optimizers."""

    def __init__(self, parametrization: Container, budget: int | None, num_workers: int):
        self.parametrization, self.budget, self.num_workers = parametrization, budget, num_workers
        self.told: list[tuple[float, Any]] = []

    def ask(self) -> Any:
        return SimpleNamespace(value=self.parametrization.sample())

    def tell(self, candidate: Any, loss: float) -> None:
        self.told.append((float(loss), candidate))

    def provide_recommendation(self) -> Any:
        return self.told[0][1]


@pytest.fixture(autouse=True)
def nevergrad(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INSTALLED:
        parameters = SimpleNamespace(Scalar=Parameter, Array=Parameter, Tuple=Container, Dict=Container)
        methods = dict.fromkeys(('DE', 'RandomSearch', 'OnePlusOne'), RandomSearch)
        module = SimpleNamespace(p=parameters, optimizers=SimpleNamespace(registry=methods))
        monkeypatch.setitem(sys.modules, 'nevergrad', module)  # type: ignore[arg-type]


BOUNDS = [(-5.0, 5.0), (-3.0, 3.0)]


def quadratic(x: Any, y: Any) -> Any:
    return x**2 + y**2


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_best_candidate_is_returned() -> None:
    optimizer = bo.NevergradOptimizer(quadratic, BOUNDS, n_sample=8, method='RandomSearch', seed=0)
    best = optimizer.minimize(n_iter=5, verbose=False)
    assert len(optimizer.candidates) == len(optimizer.errors) == 40
    assert quadratic(*best) == pytest.approx(optimizer.errors.min())
    assert tuple(best) == tuple(optimizer.candidates[optimizer.errors.argmin()])
    again = bo.NevergradOptimizer(quadratic, BOUNDS, n_sample=8, method='RandomSearch', seed=0)
    assert again.minimize(n_iter=5, verbose=False) == best
    assert len(again.minimize(verbose=False)) == 2
    assert len(again.candidates) == 8


def test_candidates_are_batched_with_the_units_and_shapes_of_the_bounds() -> None:
    def losses(*, v: Any, w: Any) -> Any:
        assert v.shape == (4,)
        assert w.shape == (4, 2)
        return (v / u.mV) ** 2 + jnp.sum(w**2, axis=1)

    bounds = {'v': (-1.0 * u.mV, 0.001 * u.volt), 'w': (np.zeros(2), np.ones(2))}
    optimizer = bo.NevergradOptimizer(losses, bounds, n_sample=4, method='RandomSearch')
    best = optimizer.minimize(verbose=False)
    assert best.keys() == {'v', 'w'}
    assert -1.0 * u.mV <= best['v'] <= 1.0 * u.mV
    assert best['w'].shape == (2,)


@pytest.mark.filterwarnings('ignore:Clipping very high value')  # of nevergrad
def test_losses_that_are_all_nan_give_the_recommendation() -> None:
    optimizer = bo.NevergradOptimizer(lambda x, y: jnp.full(4, jnp.nan), BOUNDS, n_sample=4, method='OnePlusOne')
    with pytest.warns(RuntimeWarning, match='The losses of all candidates are NaN'):
        best = optimizer.minimize(verbose=False)
    assert np.isfinite(best).all()


def test_recommendation_is_returned_on_request() -> None:
    optimizer = bo.NevergradOptimizer(quadratic, BOUNDS, 4, 'RandomSearch', use_nevergrad_recommendation=True)
    best = optimizer.minimize(verbose=False)
    assert np.isfinite(best).all()


def test_lowest_loss_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = bo.NevergradOptimizer(quadratic, BOUNDS, n_sample=4, method='RandomSearch')
    optimizer.minimize(n_iter=2)
    assert f'Iteration 1, best error: {optimizer.errors.min():.5f}' in capsys.readouterr().out


def test_exceeded_budget_warns() -> None:
    optimizer = bo.NevergradOptimizer(quadratic, BOUNDS, n_sample=4, method='RandomSearch', budget=7)
    with pytest.warns(RuntimeWarning, match='8 evaluations'):
        optimizer.minimize(n_iter=2, verbose=False)


@pytest.mark.parametrize(
    ('make', 'error', 'message'),
    [
        (lambda: bo.NevergradOptimizer(quadratic, 3, 4), ValueError, 'Invalid bounds=3'),
        (lambda: bo.NevergradOptimizer(quadratic, [(1.0,)], 4), AssertionError, 'Must be a pair'),
        (lambda: bo.NevergradOptimizer('x', BOUNDS, 4), AssertionError, "Invalid batched_loss_fun='x'"),
        (lambda: bo.NevergradOptimizer(quadratic, BOUNDS, -4), AssertionError, 'Invalid n_sample=-4'),
        (lambda: bo.NevergradOptimizer(quadratic, BOUNDS, 4).minimize(-1), AssertionError, 'Invalid n_iter=-1'),
        (
            lambda: bo.NevergradOptimizer(lambda x, y: x[:2], BOUNDS, 4, 'RandomSearch').minimize(verbose=False),
            ValueError,
            r'Invalid losses of shape \(2,\). batched_loss_fun must return 4 numbers',
        ),
    ],
)
def test_wrong_arguments_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_missing_nevergrad_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'nevergrad', None)
    with pytest.raises(ModuleNotFoundError, match='pip install nevergrad'):
        bo.NevergradOptimizer(quadratic, BOUNDS, 4)
