"""Clipping: by the norm of all gradients, of a group's or of one, adaptively, and by value."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from braintools_optim.precision import compute_dtype

__all__ = ['clip_adaptively', 'clip_by_value', 'global_norm', 'norm_clip_factor']

Array = jax.Array


def global_norm(gradients: Any) -> Array:
    """The 2-norm of all entries of a tree of gradients, accumulated in float32 at least; units do not count."""
    squares = [sum_of_squares(g) for g in jax.tree.leaves(gradients)]
    dtype = jnp.result_type(jnp.float32, *squares)
    squares = [s if s.dtype == dtype else s.astype(dtype) for s in squares]
    return jnp.sqrt(functools.reduce(jax.lax.add, squares, jnp.zeros((), dtype)))


def sum_of_squares(g: Any) -> Array:
    """Written for few operations, because they are traced for every leaf."""
    g = jnp.asarray(g)
    if g.dtype != compute_dtype(g):
        g = g.astype(compute_dtype(g))
    squares = jax.lax.square(g.real) + jax.lax.square(g.imag) if jnp.iscomplexobj(g) else jax.lax.square(g)
    return jax.lax.reduce_sum(squares, axes=tuple(range(g.ndim)))


def norm_clip_factor(norm: Array, max_norm: Array) -> Array:
    """What gradients of this norm are multiplied by, as torch's ``clip_grad_norm_`` does it."""
    return jnp.minimum(1.0, max_norm / (norm + 1e-6))


def clip_adaptively(gradient: Array, weight: Array, limit: Array) -> Array:
    """No unit's gradient is longer than ``limit`` times its weights (Brock et al., 2021), as optax does it."""
    clip = optax.adaptive_grad_clip(limit)
    clipped: Any = clip.update(gradient, clip.init(weight), weight)[0]
    result: Array = clipped.astype(gradient.dtype)
    return result


def clip_by_value(gradient: Array, limit: Array) -> Array:
    """Real and imaginary part each, as torch does it."""
    if jnp.iscomplexobj(gradient):
        return jax.lax.complex(*(jnp.clip(part, -limit, limit) for part in (gradient.real, gradient.imag)))
    return jnp.clip(gradient, -limit, limit)
