"""Precision: what a step computes in, whatever the weights are kept in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    'cast_floats',
    'compute_dtype',
    'divide',
    'finite',
    'from_working',
    'round_stochastically',
    'sqrt',
    'to_working',
]

Array = jax.Array


def compute_dtype(x: Any) -> Any:
    """The dtype of the arithmetic on a leaf: its own, but float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def to_working(x: Any) -> Array:
    """A leaf in the form of the arithmetic: float32 at least, complex numbers as pairs of reals."""
    x = jnp.asarray(x)
    x = x.astype(compute_dtype(x))
    return jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x


def from_working(x: Array, dtype: Any) -> Array:
    """The inverse of :func:`to_working`, in the leaf's own dtype."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(x[..., 0], x[..., 1]).astype(dtype)
    return x.astype(dtype)


def round_stochastically(x: Array, dtype: Any, key: Array) -> Array:
    """One of the two neighbours of ``x`` in a narrower dtype, the nearer one more often: right on average."""
    near = x.astype(dtype)
    rest = x - near.astype(x.dtype)
    far = jnp.nextafter(near, jnp.where(rest > 0, jnp.inf, -jnp.inf).astype(dtype))
    share = rest / (far.astype(x.dtype) - near.astype(x.dtype))
    return jnp.where((rest != 0) & (jax.random.uniform(key, x.shape) < share), far, near)


def cast_floats(tree: Any, like: Array) -> Any:
    """``tree`` with its floating-point numbers in the dtype of ``like``."""

    def cast(x: Any) -> Any:
        return x.astype(like.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def finite(x: Array) -> Array:
    """``x``, at most the greatest finite number."""
    return jnp.minimum(x, np.finfo(x.dtype).max)


def divide(a: Array, b: Array) -> Array:
    """``a / b``, and 0 with derivative 0 where ``b`` is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


@jax.custom_jvp
def sqrt(x: Array) -> Array:
    """The square root, with derivative 0 at 0: a weight that never had a gradient has no slope."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    root = sqrt(x)
    return root, jnp.where(x == 0, 0.0, dx / jnp.where(x == 0, 1.0, 2 * root))
