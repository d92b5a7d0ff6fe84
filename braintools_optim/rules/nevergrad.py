"""NevergradOptimizer: minimization of a function within bounds without gradients, by nevergrad."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from braintools_optim.options.types import Tree
from braintools_optim.rules.bounds import (
    Bounds,
    BoundsOptimizer,
    WrongArgumentError,
    WrongArgumentTypeError,
    check_iterations,
)

__all__ = ['NevergradOptimizer']

Nevergrad = Any
"""A module or an object of nevergrad, which is installed only on request."""


class NevergradOptimizer(BoundsOptimizer):
    """Minimize a function within bounds by a method of nevergrad, which asks for the losses of a batch of candidates.

    Parameters
    ----------
    batched_loss_fun : callable
        The losses of a batch of candidates, ``batched_loss_fun(*parameters)`` if ``bounds`` is a sequence and
        ``batched_loss_fun(**parameters)`` if it is a dict. Each parameter is an array whose first axis are the
        ``n_sample`` candidates, with the unit of its bounds. The function returns ``n_sample`` numbers.
    bounds : dict or sequence of pairs
        A pair ``(min, max)`` for each parameter: two numbers or arrays of the same shape, with or without units.
    n_sample : int
        Number of candidates in each iteration, >= 1.
    method : str, default 'DE'
        Name of an optimizer in ``nevergrad.optimizers.registry``, such as ``'DE'``, ``'CMA'`` or ``'PSO'``.
    use_nevergrad_recommendation : bool, default False
        Return nevergrad's recommendation instead of the candidate with the lowest loss.
    budget : int, optional
        Number of evaluations for which nevergrad plans. It does not limit :meth:`minimize`.
    num_workers : int, default 1
        Number of workers for which nevergrad plans. The candidates are evaluated in one call in any case.
    method_params : dict, optional
        Further arguments of the nevergrad optimizer.
    seed : int, optional
        Seed of nevergrad's random numbers.

    Attributes
    ----------
    candidates : list
        All candidates since the last call of :meth:`minimize`, without units.
    errors : numpy.ndarray
        The losses of the candidates.

    Raises
    ------
    ModuleNotFoundError
        If nevergrad is not installed.
    ValueError
        If ``bounds`` is neither a dict nor a sequence of pairs.
    """

    candidates: list[Tree]
    errors: np.ndarray
    optimizer: Nevergrad

    def __init__(
        self,
        batched_loss_fun: Callable[..., ArrayLike],
        bounds: Mapping[str, Tree] | Sequence[Tree] | None,
        n_sample: int,
        method: str = 'DE',
        use_nevergrad_recommendation: bool = False,
        budget: int | None = None,
        num_workers: int = 1,
        method_params: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ):
        self._nevergrad = imported_nevergrad()
        if not callable(batched_loss_fun):
            raise WrongArgumentTypeError(f'Invalid batched_loss_fun={batched_loss_fun!r}. Must be callable.')
        if n_sample < 1:
            raise WrongArgumentError(f'Invalid n_sample={n_sample!r}. Must be >= 1.')
        self.vmap_loss_fun, self.n_sample = batched_loss_fun, n_sample
        self.bounds, self._checked_bounds = bounds, self.read_bounds(bounds)
        self.parametrization = self._parametrization()
        self.method, self.method_params = method, dict(method_params or {})
        self.use_nevergrad_recommendation = use_nevergrad_recommendation
        self.budget, self.num_workers, self.seed = budget, num_workers, seed

    def _parametrization(self) -> Nevergrad:
        """Return the bounds as nevergrad describes them."""
        parameters = self._nevergrad.p

        def parameter(bounds: Bounds) -> Nevergrad:
            if bounds.low.ndim == 0:
                return parameters.Scalar(lower=float(bounds.low), upper=float(bounds.high))
            return parameters.Array(shape=bounds.low.shape, lower=bounds.low, upper=bounds.high)

        if isinstance(self._checked_bounds, dict):
            return parameters.Dict(**{name: parameter(bounds) for name, bounds in self._checked_bounds.items()})
        return parameters.Tuple(*map(parameter, self._checked_bounds))

    def initialize(self) -> None:
        """Build a new nevergrad optimizer and forget all candidates."""
        build = self._nevergrad.optimizers.registry[self.method]
        self.optimizer = build(
            parametrization=self.parametrization,
            budget=self.budget,
            num_workers=self.num_workers,
            **self.method_params,
        )
        for name in ('_llambda', 'llambda'):  # the size of the population, where the method has one
            if hasattr(self.optimizer, name):
                setattr(self.optimizer, name, self.n_sample)
                break
        if self.seed is not None:
            self.optimizer.parametrization.random_state.seed(self.seed)
        self.candidates, self.errors = [], np.zeros(0)

    def minimize(self, n_iter: int = 1, verbose: bool = True) -> Tree:
        """Evaluate ``n_iter`` batches of candidates and return the best parameters in the structure of the bounds.

        With ``verbose``, print the lowest loss after each batch.
        """
        evaluations = check_iterations(n_iter) * self.n_sample
        if self.budget is not None and evaluations > self.budget:
            message = f'{evaluations} evaluations (n_iter * n_sample) exceed budget={self.budget}, which is no limit.'
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        self.initialize()
        best: Tree = None
        for i in range(n_iter):
            best = self._one_trial(choice_best=True)
            if verbose:
                lowest = np.min(self.errors, initial=np.inf, where=~np.isnan(self.errors))
                print(f'Iteration {i}, best error: {lowest:.5f}, best parameters: {best}')
        return best

    def _one_trial(self, choice_best: bool = False) -> Tree:
        """Evaluate one batch of candidates; with ``choice_best``, return the best parameters so far."""
        asked = [self.optimizer.ask() for _ in range(self.n_sample)]
        candidates = [candidate.value for candidate in asked]
        batch = self._with_units(jax.tree.map(lambda *values: jnp.asarray(values), *candidates))
        losses = self.vmap_loss_fun(**batch) if isinstance(batch, dict) else self.vmap_loss_fun(*batch)
        errors = np.ravel(np.asarray(losses))
        if len(errors) != self.n_sample:
            raise WrongArgumentError(
                f'Invalid losses of shape {np.shape(losses)}. batched_loss_fun must return {self.n_sample} numbers.'
            )
        for candidate, error in zip(asked, errors, strict=True):
            self.optimizer.tell(candidate, error)
        self.candidates.extend(candidates)
        self.errors = np.concatenate([self.errors, errors])
        return self._best() if choice_best else None

    def _best(self) -> Tree:
        """Return the candidate with the lowest loss, or nevergrad's recommendation."""
        are_nan = np.isnan(self.errors)
        if are_nan.all() and not self.use_nevergrad_recommendation:
            message = "The losses of all candidates are NaN: nevergrad's recommendation is returned."
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        if self.use_nevergrad_recommendation or are_nan.all():
            return self._with_units(self.optimizer.provide_recommendation().value)
        return self._with_units(self.candidates[int(np.nanargmin(self.errors))])

    def _with_units(self, values: Tree) -> Tree:
        """Return parameters with the units of their bounds."""
        if isinstance(self._checked_bounds, dict):
            return {name: bounds.with_unit(values[name]) for name, bounds in self._checked_bounds.items()}
        return [bounds.with_unit(value) for bounds, value in zip(self._checked_bounds, values, strict=True)]


def imported_nevergrad() -> Nevergrad:
    """Return the module nevergrad; raise if it is not installed."""
    try:
        return import_module('nevergrad')
    except ModuleNotFoundError as error:
        message = 'NevergradOptimizer requires nevergrad. Install it with: pip install nevergrad'
        raise ModuleNotFoundError(message) from error
