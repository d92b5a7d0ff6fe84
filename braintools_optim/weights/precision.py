"""Precision: the dtypes of the arithmetic, and functions with exact values and derivatives at their limits."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from braintools_optim.options.types import Tree

__all__ = [
    'cast_floats',
    'compute_dtype',
    'divide',
    'from_working',
    'round_stochastically',
    'sqrt',
    'to_working',
    'widest',
]

Array = jax.Array


def compute_dtype(x: Array) -> np.dtype:
    """Return the dtype of the arithmetic on an array: the dtype of the array, but float32 at least."""
    is_wide = jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype.itemsize >= 4
    return np.dtype(x.dtype if is_wide else np.float32)


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the widest of some real dtypes, float32 at least."""
    return max([np.dtype(np.float32), *dtypes], key=lambda dtype: dtype.itemsize)


def to_working(x: ArrayLike) -> Array:
    """Return an array in the form of the arithmetic: float32 at least, complex numbers as pairs of reals."""
    x = jnp.asarray(x)
    x = x.astype(compute_dtype(x))
    return jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x


def from_working(x: Array, dtype: DTypeLike) -> Array:
    """Invert :func:`to_working`, with a result in ``dtype``."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(x[..., 0], x[..., 1]).astype(dtype)
    return x.astype(dtype)


def round_stochastically(x: Array, dtype: DTypeLike, key: Array) -> Array:
    """Round ``x`` to one of its two neighbours in a narrower dtype, with probabilities that make the mean exact."""
    near = x.astype(dtype)
    rest = x - near.astype(x.dtype)
    far = jnp.nextafter(near, jnp.where(rest > 0, jnp.inf, -jnp.inf).astype(dtype))
    share = rest / (far.astype(x.dtype) - near.astype(x.dtype))
    return jnp.where((rest != 0) & (jax.random.uniform(key, x.shape) < share), far, near)


def cast_floats(tree: Tree, like: Array) -> Tree:
    """Return ``tree`` with its floating-point numbers in the dtype of ``like``."""

    def cast(x: Array) -> Array:
        return x.astype(like.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def divide(a: Array, b: Array) -> Array:
    """Return ``a / b``, and 0 with derivative 0 where ``b`` is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


@jax.custom_jvp
def sqrt(x: Array) -> Array:
    """Return the square root, with derivative 0 at 0, the second moment of a parameter that never had a gradient."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    root = sqrt(x)
    return root, jnp.where(x == 0, 0.0, dx / jnp.where(x == 0, 1.0, 2 * root))
