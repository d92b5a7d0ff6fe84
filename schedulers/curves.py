"""The curves that schedules are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ['half_wave', 'line', 'passed', 'power', 'proportion', 'ramp', 'root']

Array = jax.Array


def line(start: Any, end: Any, share: Any) -> Any:
    """From ``start`` to ``end``, exact at both."""
    return start * (1 - share) + end * share


def ramp(epoch: Any, length: Any) -> Array:
    """The share of ``length`` epochs that has passed: 0 before, 1 after; a step if there are none."""
    return jnp.where(epoch < length, jnp.maximum(epoch, 0) / (length or 1), 1.0)


def half_wave(share: Any) -> Array:
    """From 0 to 1 along half a cosine, with small values as exact as large ones."""
    return jnp.sin(jnp.pi / 2 * share) ** 2


def root(share: Any, power: Any) -> Array:
    """``share**power`` for a share of at least 0, without an infinite derivative at 0."""
    return jnp.where(share > 0, jnp.where(share > 0, share, 1.0) ** power, 0.0**power)


def power(base: Any, exponent: Any) -> Any:
    """``base**exponent``, as exact for large exponents in float32 as the Python number ``base`` is."""
    if isinstance(base, Tracer):
        return base**exponent
    rounded = float(np.asarray(base, jnp.result_type(float)))
    rest = (base - rounded) / rounded if rounded else 0.0
    return rounded**exponent * (1 + exponent * rest)


def passed(milestones: Sequence[Any], epoch: Array) -> Array:
    """How many of the milestones, in increasing order, are not after ``epoch``."""
    return jnp.sum(epoch[..., None] >= np.asarray(milestones), axis=-1, dtype=jnp.int32)


def proportion(rate: Any, reference: Any) -> Any:
    """``rate / reference``; 1 if the reference is 0 and there is no proportion to keep."""
    return jnp.where(reference == 0, 1.0, rate / jnp.where(reference == 0, 1.0, reference))
