"""Constraints: projections that are applied to weights after every update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import brainunit
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from optax import projections

from braintools_optim.options.types import ArrayOrQuantity, Tree
from braintools_optim.weights.precision import to_working
from braintools_optim.weights.predicates import Predicate, matches

__all__ = ['Constraint', 'bound', 'box', 'chained', 'keep_sign', 'keep_zeros', 'non_negative', 'simplex', 'unit_norm']

Array = jax.Array
Axis = int | tuple[int, ...] | None


@dataclass(frozen=True)
class Constraint:
    """A projection of a weight, given as numbers in the weight's unit: ``project(w, data)``.

    ``data = begin(w, unit)`` is computed at registration and kept in the optimizer state.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD
    >>> w = brainstate.ParamState(jnp.array([1.0, -1.0]))
    >>> optimizer = SGD(1.0, constraints={'w': keep_sign()}).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, 3.0])})
    >>> w.value.tolist()
    [0.0, -4.0]
    """

    project: Callable[[Array, Tree], Array]
    begin: Callable[[Array, brainunit.Unit], Tree] = lambda w, unit: ()


Projection = Constraint | Callable[[Array], Array]
"""A constraint, or a function from weight to weight."""


def bound(constraints: Mapping[Predicate, Projection], weights: Mapping[str, ArrayOrQuantity]) -> dict[str, Constraint]:
    """Return the constraint of each weight that has one. Several constraints of one weight apply in their order."""
    every = {predicate: as_constraint(constraint) for predicate, constraint in constraints.items()}
    found = {name: tuple(c for p, c in every.items() if matches(p, name, w)) for name, w in weights.items()}
    chains = {chain: chained(chain) for chain in found.values()}
    for name, chain in found.items():
        w = brainunit.get_mantissa(weights[name])
        if chain and jnp.iscomplexobj(w):
            raise TypeError(f'Invalid constraint of {name}, which is {w.dtype}. Only real weights can have one.')
        for constraint in chain:
            check_projection(constraint, name, w, brainunit.get_unit(weights[name]))
    return {name: chains[chain] for name, chain in found.items() if chain}


def check_projection(constraint: Constraint, name: str, w: Array, unit: brainunit.Unit) -> None:
    """Raise unless a projection keeps the shape of a weight."""
    try:
        result = jax.eval_shape(lambda w: constraint.project(w, constraint.begin(w, unit)), w)
    except (TypeError, ValueError) as error:
        raise type(error)(f'Invalid constraint of {name}, of shape {list(jnp.shape(w))}: {error}') from error
    if getattr(result, 'shape', None) != jnp.shape(w):
        raise ValueError(f'Invalid constraint of {name}, of shape {list(jnp.shape(w))}: it makes {result}.')


def chained(constraints: tuple[Constraint, ...]) -> Constraint:
    """Return several constraints as one."""

    def project(w: Array, data: Tree) -> Array:
        for constraint, part in zip(constraints, data, strict=True):
            w = constraint.project(w, part)
        return w

    return Constraint(project, lambda w, unit: tuple(constraint.begin(w, unit) for constraint in constraints))


def as_constraint(constraint: object) -> Constraint:
    """Return a constraint unchanged, and a function from weight to weight as a constraint."""
    if isinstance(constraint, Constraint):
        return constraint
    if not callable(constraint):
        raise TypeError(f'Invalid constraint {constraint!r}. Must be a Constraint or a function from weight to weight.')
    function: Any = constraint
    return Constraint(lambda w, _: function(w))


def non_negative() -> Constraint:
    """Keep all entries at or above 0."""
    return box(0)


def box(lower: ArrayOrQuantity = None, upper: ArrayOrQuantity = None) -> Constraint:
    """Keep all entries between two bounds: numbers in the weight's unit, or Quantities; arrays broadcast."""

    def begin(w: Array, unit: brainunit.Unit) -> tuple[Array, Array]:
        low, high = (
            jnp.asarray(end if bound is None else mantissa_in(bound, unit), w.dtype)
            for bound, end in ((lower, -jnp.inf), (upper, jnp.inf))
        )
        return low, high

    for name, end in (('lower', lower), ('upper', upper)):
        if end is not None and not is_real(end):
            raise TypeError(f'Invalid {name}={end!r} of a box. Must be a number, an array or a Quantity, without NaN.')
    if lower is not None and upper is not None:
        if brainunit.get_dim(lower) != brainunit.get_dim(upper):
            raise ValueError(f'Invalid lower={lower} of a box. Must have the dimension of upper={upper}.')
        if brainunit.math.any(lower > upper):
            raise ValueError(f'Invalid lower={lower} of a box. Must be at most upper={upper}.')
    return Constraint(lambda w, bounds: jnp.clip(w, *bounds), begin)


def unit_norm(axis: Axis = None) -> Constraint:
    """Keep the 2-norm at 1, of the whole weight or along ``axis``. A weight of zeros stays."""

    def project(w: Array, _: Tree) -> Array:
        w = to_working(w)  # squares overflow in half precision
        largest = jnp.max(jnp.abs(w), axis, keepdims=True, initial=0)
        w = w / jnp.where(largest == 0, 1, largest)
        norm = jnp.sqrt(jnp.sum(w * w, axis, keepdims=True))
        return w / jnp.where(norm == 0, 1, norm)

    return Constraint(project)


def simplex(axis: int | None = None) -> Constraint:
    """Keep all entries at or above 0 and their sum at 1, over the whole weight or along ``axis``."""

    def project(w: Array, _: Tree) -> Array:
        if w.size == 0:
            return w
        w = to_working(w)  # sums lose digits in half precision
        rows = w.reshape(1, -1) if axis is None else jnp.moveaxis(w, axis, -1).reshape(-1, w.shape[axis])
        rows = rows - jnp.max(rows, axis=1, keepdims=True)  # the projection stays the same, with more digits left
        projected: Array = jax.vmap(projections.projection_simplex)(rows)
        if axis is None:
            return projected.reshape(w.shape)
        return jnp.moveaxis(projected.reshape(jnp.moveaxis(w, axis, -1).shape), -1, axis)

    return Constraint(project)


def keep_sign(sign: ArrayLike | None = None) -> Constraint:
    """Keep the sign of each entry, as at registration or as in ``sign`` (Dale's law). A zero stays zero."""

    if sign is not None and not is_real(sign):
        raise TypeError(f'Invalid sign={sign!r}. Must be a number or an array, without NaN.')

    def begin(w: Array, unit: brainunit.Unit) -> Array:
        return jnp.broadcast_to(jnp.sign(jnp.asarray(w if sign is None else sign, w.dtype)), w.shape)

    return Constraint(lambda w, sign: jnp.where(w * sign > 0, w, 0), begin)


def keep_zeros(mask: ArrayLike | None = None) -> Constraint:
    """Keep entries at 0 that are 0 at registration, or where ``mask`` is false."""

    def begin(w: Array, unit: brainunit.Unit) -> Array:
        return jnp.broadcast_to(jnp.asarray(w if mask is None else mask) != 0, w.shape)

    return Constraint(lambda w, mask: jnp.where(mask, w, 0), begin)


def is_real(x: ArrayOrQuantity) -> bool:
    """Return whether ``x`` is a real number or an array, with or without a unit, that holds no NaN."""
    array = np.asarray(brainunit.get_mantissa(x))
    return (array.dtype.kind in 'biu' or jnp.issubdtype(array.dtype, jnp.floating)) and not np.isnan(array).any()


def mantissa_in(bound: ArrayOrQuantity, unit: brainunit.Unit) -> ArrayOrQuantity:
    """Return a bound as numbers in a weight's unit."""
    if not isinstance(bound, brainunit.Quantity):
        return bound
    if bound.unit.dim != unit.dim:
        raise ValueError(f'Invalid bound {bound}. Must have the dimension of the weight, whose unit is {unit}.')
    return bound.to(unit).mantissa
