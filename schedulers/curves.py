"""The curves from which schedules are built."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from braintools_optim.options.kinds import Scalar

__all__ = [
    'as_float',
    'count_passed',
    'half_cosine',
    'interpolate',
    'one_if_zero',
    'precise_power',
    'ramp',
    'ratio',
    'safe_power',
]

Array = jax.Array


def as_float(x: ArrayLike | Sequence[ArrayLike]) -> Array:
    """Return a number or a sequence of numbers as an array of the default floats."""
    return jnp.asarray(x, jnp.result_type(float))


def interpolate(start: Scalar, end: Scalar, fraction: Scalar) -> Scalar:
    """Interpolate linearly from ``start`` to ``end``, exactly at both ends."""
    return start * (1 - fraction) + end * fraction


def ramp(epoch: Scalar, length: Scalar) -> Array:
    """Rise linearly from 0 at epoch 0 to 1 at epoch ``length``; stay at 0 before and at 1 after.

    A ramp of length 0 is a step at epoch 0.
    """
    return jnp.where(epoch < length, jnp.maximum(epoch, 0) / one_if_zero(length), 1.0)


def one_if_zero(x: Scalar) -> Scalar:
    """Return a number, or 1 if it is 0, as a divisor whose quotient is not used then."""
    return jnp.where(x == 0, 1, x) if isinstance(x, Tracer) else x or 1


def half_cosine(fraction: Scalar) -> Array:
    """Rise from 0 to 1 along half a cosine, with the same relative precision for small and large values."""
    return jnp.sin(jnp.pi / 2 * fraction) ** 2


def safe_power(fraction: Array, exponent: Scalar) -> Array:
    """Return ``fraction**exponent`` for a fraction >= 0, with a finite derivative at 0."""
    return jnp.where(fraction > 0, jnp.where(fraction > 0, fraction, 1.0) ** exponent, 0.0**exponent)


def precise_power(base: Scalar, exponent: Array) -> Array:
    """Return ``base**exponent``, corrected for the error of rounding the Python number ``base`` to float32."""
    if isinstance(base, Tracer):
        return base**exponent
    exponent, rounded = as_float(exponent), float(np.asarray(base, jnp.result_type(float)))
    rest = (base - rounded) / rounded if rounded else 0.0
    return rounded**exponent * (1 + exponent * rest)


def count_passed(milestones: Sequence[Scalar], epoch: Array) -> Array:
    """Return the number of milestones, given in increasing order, that are at or before ``epoch``."""
    if any(isinstance(milestone, Tracer) for milestone in milestones):
        return jnp.sum(as_float(epoch)[..., None] >= as_float(milestones), axis=-1, dtype=jnp.int32)
    given = np.asarray(milestones)
    epoch = epoch if np.issubdtype(given.dtype, np.integer) else as_float(epoch)
    return jnp.sum(epoch[..., None] >= given.astype(epoch.dtype), axis=-1, dtype=jnp.int32)


def ratio(rate: Scalar, reference: Scalar) -> Array:
    """Return ``rate / reference``, or 1 if the reference is 0."""
    return jnp.where(reference == 0, 1.0, rate / jnp.where(reference == 0, 1.0, reference))
