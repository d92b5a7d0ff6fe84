"""Sharding: the optimizer state of weights that lie on several devices lies on the same devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from braintools_optim.options.types import Tree

__all__ = ['beside']

Array = jax.Array
Parts = Sequence[Any]
"""For each axis of an array, the axes of the mesh over which it is split, or None."""


def beside(tree: Tree, weights: Mapping[str, Array]) -> Tree:
    """Return a tree of arrays, such as the optimizer state, with each array on the devices of the weights.

    An array under the name of a weight that broadcasts against the weight is split like the weight, along the axes that
    they share. All other arrays are replicated.
    """
    shardings = {key: sharding for key, w in weights.items() if (sharding := sharding_of(w)) is not None}
    if not shardings:
        return tree
    default = next(iter(shardings.values()))

    def place(path: tuple[Any, ...], x: Array) -> Tree:
        names = [part.key for part in path if getattr(part, 'key', None) in weights]
        if not names:
            return jax.device_put(x, with_parts(default, ()))
        if (sharding := shardings.get(names[-1])) is None:
            return x
        return jax.device_put(x, with_parts(sharding, parts_like(weights[names[-1]], sharding, x)))

    return jax.tree_util.tree_map_with_path(place, tree)


def sharding_of(x: Array) -> NamedSharding | None:
    """Return how an array is laid out over a mesh, None if it is not. The compiler lays out traced arrays."""
    sharding = None if isinstance(x, Tracer) else getattr(x, 'sharding', None)
    return sharding if isinstance(sharding, NamedSharding) else None


def with_parts(sharding: NamedSharding, parts: Parts) -> NamedSharding:
    """Return the sharding over the same mesh that splits the axes of an array in this way."""
    partition: Any = PartitionSpec
    return NamedSharding(sharding.mesh, partition(*parts), memory_kind=sharding.memory_kind)


def parts_like(weight: Array, sharding: NamedSharding, x: Array) -> Parts:
    """Return how the axes of an array are split that belongs to a weight."""
    shape, parts = list(weight.shape), [*sharding.spec, *[None] * (weight.ndim - len(sharding.spec))]
    if jnp.iscomplexobj(weight) and not jnp.iscomplexobj(x):  # the real and the imaginary parts lie along the last axis
        shape, parts = [*shape, 2], [*parts, None]
    axes = list(zip(reversed(x.shape), reversed(shape), reversed(parts)))  # noqa: B905 (one may have more axes)
    fits = all(size in (1, own) for size, own, _ in axes)
    split = [part if fits and size == own else None for size, own, part in axes] + [None] * (x.ndim - len(axes))
    return list(reversed(list(dropwhile(lambda part: part is None, split))))
