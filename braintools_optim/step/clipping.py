"""Clipping of gradients: by a norm, relative to the norms of units, and by value."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from braintools_optim.options.types import Tree
from braintools_optim.weights.precision import compute_dtype, widest

__all__ = ['clip_adaptively', 'clip_by_value', 'global_norm', 'norm_clip_factor', 'sum_of_squares']

Array = jax.Array


def global_norm(gradients: Tree) -> Array:
    """Return the 2-norm of all entries of a tree of gradients, accumulated in float32 at least. Units are ignored."""
    squares = [sum_of_squares(g) for g in jax.tree.leaves(gradients)]
    dtype = widest(s.dtype for s in squares)
    squares = [s if s.dtype == dtype else s.astype(dtype) for s in squares]
    return jnp.sqrt(functools.reduce(jax.lax.add, squares, jnp.zeros((), dtype)))


def sum_of_squares(g: ArrayLike) -> Array:
    """Return the sum of the squared entries, in few operations because they are traced for every parameter."""
    g = jnp.asarray(g)
    if g.dtype != compute_dtype(g):
        g = g.astype(compute_dtype(g))
    squares = jax.lax.square(g.real) + jax.lax.square(g.imag) if jnp.iscomplexobj(g) else jax.lax.square(g)
    return jax.lax.reduce_sum(squares, axes=tuple(range(g.ndim)))


def norm_clip_factor(norm: Array, max_norm: Array) -> Array:
    """Return the factor by which gradients of this norm are multiplied, as in torch's ``clip_grad_norm_``."""
    return jnp.minimum(1.0, max_norm / (norm + 1e-6))


def clip_adaptively(gradient: Array, weight: Array, limit: Array) -> Array:
    """Clip the gradient of each unit to ``limit`` times the norm of its weights (Brock et al., 2021), as optax does."""
    clip = optax.adaptive_grad_clip(limit)
    clipped: Tree = clip.update(gradient, clip.init(weight), weight)[0]
    result: Array = clipped.astype(gradient.dtype)
    return result


def clip_by_value(gradient: Array, limit: Array) -> Array:
    """Clip each entry to ``[-limit, limit]``; the real and the imaginary part separately, as torch does."""
    if jnp.iscomplexobj(gradient):
        return jax.lax.complex(*(jnp.clip(part, -limit, limit) for part in (gradient.real, gradient.imag)))
    return jnp.clip(gradient, -limit, limit)
