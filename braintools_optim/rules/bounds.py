"""The base of optimizers that search within bounds and do not use gradients of States."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import brainunit
import numpy as np
from brainstate.graph import Node

from braintools_optim.optimizer import Optimizer
from braintools_optim.options.types import Tree

__all__ = ['Bounds', 'BoundsOptimizer', 'WrongArgumentError', 'WrongArgumentTypeError', 'check_iterations']

Pairs = Mapping[str, Tree] | Sequence[Tree]


class WrongArgumentError(ValueError, AssertionError):
    """An argument that is out of range. Callers of braintools.optim catch an ``AssertionError``."""


class WrongArgumentTypeError(TypeError, AssertionError):
    """An argument of a wrong type. Callers of braintools.optim catch an ``AssertionError``."""


class Bounds(NamedTuple):
    """The bounds of one parameter as numbers in the unit of the lower bound."""

    low: np.ndarray
    high: np.ndarray
    unit: brainunit.Unit

    @classmethod
    def of(cls, name: object, pair: Tree) -> Bounds:
        """Return the bounds that a pair states; raise if it is not a pair, or if shapes or units differ."""
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise WrongArgumentError(f'Invalid bounds[{name!r}]={pair!r}. Must be a pair (min, max).')
        low, high = map(brainunit.Quantity, pair)
        brainunit.fail_for_unit_mismatch(low, high)
        low_array, high_array = np.asarray(low.mantissa), np.asarray(high.in_unit(low.unit).mantissa)
        if low_array.shape != high_array.shape:
            raise WrongArgumentError(
                f'Invalid bounds[{name!r}] of shapes {low_array.shape} and {high_array.shape}. Must have one shape.'
            )
        return cls(low_array, high_array, low.unit)

    def with_unit(self, value: Tree) -> Tree:
        """Return a number as a quantity, unless the bounds are dimensionless."""
        return value if self.unit.dim.is_dimensionless else brainunit.Quantity(value, self.unit)


class BoundsOptimizer(Node):
    """Base of optimizers that search within bounds instead of following gradients of registered States."""

    replaces_gradient = True  # SAM and Lookahead cannot wrap it

    @staticmethod
    def read_bounds(bounds: Pairs | None) -> dict[str, Bounds] | tuple[Bounds, ...]:
        """Return bounds in the structure in which they are given: by name, or in order."""
        if isinstance(bounds, Mapping):
            return {name: Bounds.of(name, pair) for name, pair in bounds.items()}
        if isinstance(bounds, (list, tuple)):
            return tuple(Bounds.of(i, pair) for i, pair in enumerate(bounds))
        raise ValueError(f'Invalid bounds={bounds!r}. Must be a dict or a sequence of pairs (min, max).')

    def register_trainable_weights(self, param_states: Tree) -> NoReturn:
        """Raise a ``NotImplementedError``: the loss is a function of the parameters within the bounds."""
        raise NotImplementedError(f'{type(self).__name__} has no weights. Call minimize().')

    def update(self, grads: Tree) -> NoReturn:
        """Raise a ``NotImplementedError``: :meth:`minimize` does all steps."""
        raise NotImplementedError(f'{type(self).__name__} takes no gradients. Call minimize().')


def check_iterations(n_iter: int) -> int:
    """Return a positive integer; raise for anything else."""
    if not isinstance(n_iter, int):
        raise WrongArgumentTypeError(f'Invalid n_iter={n_iter!r}. Must be an integer.')
    if n_iter < 1:
        raise WrongArgumentError(f'Invalid n_iter={n_iter!r}. Must be >= 1.')
    return n_iter


Optimizer.register(BoundsOptimizer)  # as in braintools.optim, where both kinds of optimizers have this base
