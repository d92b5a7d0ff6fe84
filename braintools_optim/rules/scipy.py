"""ScipyOptimizer: minimization of a function within bounds by ``scipy.optimize.minimize``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.options.types import Structure, Tree
from braintools_optim.rules.bounds import Bounds, BoundsOptimizer, check_iterations

__all__ = ['ScipyOptimizer']

OptimizeResult = Any
"""A ``scipy.optimize.OptimizeResult``, which scipy does not describe to type checkers."""

WITHOUT_GRADIENT = {'nelder-mead', 'powell', 'cobyla', 'cobyqa'}


class ScipyOptimizer(BoundsOptimizer):
    """Minimize a function within bounds by ``scipy.optimize.minimize``, from random starting points.

    The gradient comes from jax, for the methods that use one. scipy computes in float64; the loss receives arrays of
    the default dtype, without units.

    Parameters
    ----------
    loss_fun : callable
        The loss, ``loss_fun(*parameters)`` if ``bounds`` is a sequence and ``loss_fun(**parameters)`` if it is a dict.
        It returns a scalar and may read and write States.
    bounds : dict or sequence of pairs
        A pair ``(min, max)`` for each parameter: two numbers or arrays of the same shape, with or without units.
    method : str or callable, optional
        The method of ``scipy.optimize.minimize``. scipy chooses one by default.
    constraints, tol, options
        Passed to ``scipy.optimize.minimize``.
    callback : callable, optional
        Called after each iteration with the parameters in the structure of ``bounds``.

    Raises
    ------
    ValueError
        If ``bounds`` is neither a dict nor a sequence of pairs.

    Examples
    --------
    >>> bounds = [(-5.0, 5.0), (-3.0, 3.0)]
    >>> optimizer = ScipyOptimizer(lambda x, y: (x - 1.0) ** 2 + (y + 2.0) ** 2, bounds)
    >>> [round(float(x), 3) for x in optimizer.minimize().x]
    [1.0, -2.0]
    """

    def __init__(
        self,
        loss_fun: Callable[..., Tree],
        bounds: Mapping[str, Tree] | Sequence[Tree],
        method: str | Callable[..., OptimizeResult] | None = None,
        constraints: Tree = (),
        tol: float | None = None,
        callback: Callable[..., object] | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        if not callable(loss_fun):
            raise TypeError(f'Invalid loss_fun={loss_fun!r}. Must be callable.')
        self.loss_fun, self.bounds = loss_fun, self.read_bounds(bounds)
        self.method, self.constraints, self.tol = method, constraints, tol
        self.callback, self.options = callback, options

    def minimize(self, n_iter: int = 1) -> OptimizeResult:
        """Minimize from ``n_iter`` random starting points and return the best of scipy's results.

        The parameters ``result.x`` have the structure of ``bounds``. The starting points come from ``numpy.random``.
        """
        best: OptimizeResult = None
        for _ in range(check_iterations(n_iter)):
            result = self.minimize_once()
            if best is None or result.fun < best.fun or np.isnan(best.fun):
                best = result
        return best

    def minimize_once(self) -> OptimizeResult:
        """Minimize from one random starting point."""
        try:
            minimize = import_module('scipy.optimize').minimize
        except ModuleNotFoundError as error:
            message = 'ScipyOptimizer requires scipy. Install it with: pip install scipy'
            raise ModuleNotFoundError(message) from error
        bounds, structure = jax.tree.flatten(self.bounds, is_leaf=lambda x: isinstance(x, Bounds))
        start = [np.random.uniform(b.low, b.high, b.low.shape) for b in bounds]
        tree_of = unflatten_vectors(structure, [x.shape for x in start])
        gradient: Any = brainstate.transform.jit(brainstate.transform.grad(self.loss_of, return_value=True))

        def loss(x: np.ndarray, *_: Any) -> float:
            return float(self.loss_of(tree_of(x)))

        def loss_and_gradient(x: np.ndarray, *_: Any) -> tuple[float, np.ndarray]:
            slopes, value = gradient(tree_of(x))
            return float(value), as_vector(jax.tree.leaves(slopes))

        def callback(x: np.ndarray, *state: Any) -> object:
            return None if self.callback is None else self.callback(tree_of(x), *state)

        uses_gradient = not (isinstance(self.method, str) and self.method.lower() in WITHOUT_GRADIENT)
        result = minimize(
            loss_and_gradient if uses_gradient else loss,
            as_vector(start),
            jac=uses_gradient or None,
            method=self.method,
            bounds=[pair for b in bounds for pair in zip(as_vector([b.low]), as_vector([b.high]), strict=True)],
            constraints=self.constraints,
            tol=self.tol,
            callback=None if self.callback is None else callback,
            options=self.options,
        )
        result['x'] = tree_of(result['x'])
        return result

    def loss_of(self, parameters: Tree) -> jax.Array:
        """Return the loss of parameters in the structure of the bounds."""
        if isinstance(parameters, dict):
            return jnp.asarray(self.loss_fun(**parameters))
        return jnp.asarray(self.loss_fun(*parameters))


def as_vector(arrays: Sequence[Tree]) -> np.ndarray:
    """Return the entries of arrays as one vector of float64, which scipy's compiled methods require."""
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in arrays]) if arrays else np.zeros(0)


def unflatten_vectors(structure: Structure, shapes: Sequence[tuple[int, ...]]) -> Callable[[np.ndarray], Tree]:
    """Return the inverse of flattening a tree of arrays to a vector."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def tree_of(vector: np.ndarray) -> Tree:
        parts = np.split(np.asarray(vector), ends[:-1])
        dtype = jnp.result_type(float)
        leaves = [jnp.asarray(part.reshape(shape), dtype) for part, shape in zip(parts, shapes, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    return tree_of
