"""Sharding: the optimizer state of weights that lie on several devices lies on the same devices."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from braintools_optim.options.types import Tree

__all__ = ['Layout', 'beside', 'is_here', 'placed']

Array = jax.Array
constrain: Any = jax.lax.with_sharding_constraint
Parts = Sequence[Any]
"""For each axis of an array, the axes of the mesh over which it is split, or None."""
SMALL = 1024
"""The number of entries below which slots are not split further."""


def beside(tree: Tree, weights: Mapping[str, Array], layout: Layout | None = None) -> Tree:
    """Return a tree of arrays, such as the optimizer state, with each array on the devices of the weights.

    An array under the name of a weight that broadcasts against the weight is split like the weight, along the axes that
    they share, and over the axis of the mesh that the layout names. All other arrays are replicated.
    """
    layout = layout or Layout.of(weights)
    if not layout.shardings:
        return tree
    default = next(iter(layout.shardings.values()))

    def place(path: tuple[Any, ...], x: Array) -> Tree:
        names = [part.key for part in path if getattr(part, 'key', None) in weights]
        put = constrain if isinstance(x, Tracer) else placed
        if not names:
            return put(x, with_parts(default, ()))
        if (sharding := layout.shardings.get(names[-1])) is None:
            return x
        parts = split_further(x, sharding, parts_like(weights[names[-1]], sharding, x), layout.over)
        return put(x, with_parts(sharding, parts))

    return jax.tree_util.tree_map_with_path(place, tree)


@dataclass(frozen=True)
class Layout:
    """How weights are laid out over a mesh, and the further axis of the mesh over which their slots are split."""

    shardings: Mapping[str, NamedSharding] = field(default_factory=dict)
    over: str | None = None

    @classmethod
    def of(cls, weights: Mapping[str, Array], over: str | None = None) -> Layout:
        """Return the layout of weights; raise if slots cannot be split over the axis."""
        shardings = {key: sharding for key, w in weights.items() if (sharding := sharding_of(w)) is not None}
        if over is not None:
            if without := [key for key in weights if key not in shardings]:
                raise ValueError(
                    f'Invalid shard_memory_over={over!r}. {", ".join(without)} must be put on a mesh with this axis '
                    f'first: jax.device_put(w, NamedSharding(mesh, PartitionSpec()))'
                )
            for key, sharding in shardings.items():
                axes = sharding.mesh.axis_names
                if over not in axes:
                    raise ValueError(f'Invalid shard_memory_over={over!r}. Must be an axis of {axes}, of {key}.')
        return cls(shardings, over)

    def aligned(self, gradients: dict[str, Array], weights: Mapping[str, Array]) -> dict[str, Array]:
        """Return traced gradients in the layout of the weights, unless slots are split further.

        Otherwise the compiler would compute each slot in the layout of the gradient, and gather all of them afterwards.
        """
        fitting = {key: g for key, g in gradients.items() if getattr(g, 'shape', None) == weights[key].shape}
        return gradients if self.over else gradients | self.constrained(fitting)

    def kept(self, weights: Mapping[str, Array], updated: Container[str]) -> dict[str, Array]:
        """Return traced weights, which keep their layout.

        If slots are split further, each device computes its share of a weight that is updated before the shares are
        gathered. XLA would otherwise gather the changes of all weights, which takes as much memory as the weights.
        """
        if self.over is None:
            return self.constrained(weights)
        shares = beside({key: w for key, w in weights.items() if key in updated}, weights, self)
        return self.constrained({**weights, **shares})

    def constrained(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return traced arrays by the names of weights, in the layout of these weights."""
        return {key: constrain(x, self.shardings[key]) if key in self.shardings else x for key, x in arrays.items()}


def split_further(x: Array, sharding: NamedSharding, parts: Parts, over: str | None) -> Parts:
    """Return how the axes of a slot are split that is also split over another axis of the mesh.

    The greatest dimension that divides is split. Small slots, and slots that are split over this axis already, stay.
    """
    each = [() if part is None else part if isinstance(part, tuple) else (part,) for part in parts]
    each += [()] * (x.ndim - len(each))
    mesh = dict(sharding.mesh.shape)
    if over is None or any(over in axes for axes in each) or x.size < SMALL:
        return parts
    pieces = [math.prod(mesh[axis] for axis in axes) * mesh[over] for axes in each]
    fitting = [i for i in range(x.ndim) if x.shape[i] % pieces[i] == 0]
    if not fitting:
        return parts
    place = max(fitting, key=lambda i: x.shape[i])
    each[place] = (*each[place], over)
    return [axes if len(axes) > 1 else axes[0] if axes else None for axes in each]


def sharding_of(x: Array) -> NamedSharding | None:
    """Return how an array is laid out over a mesh, None if it is not. The compiler lays out traced arrays."""
    sharding = None if isinstance(x, Tracer) else getattr(x, 'sharding', None)
    return sharding if isinstance(sharding, NamedSharding) else None


def is_here(x: Tree) -> bool:
    """Return whether this process can read the whole of an array: each part lies on a device of this process, too."""
    if isinstance(x, Tracer) or not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return True
    here, everywhere = x.sharding.addressable_devices_indices_map(x.shape), x.sharding.devices_indices_map(x.shape)
    return set(map(str, here.values())) == set(map(str, everywhere.values()))


def placed(x: Tree, sharding: jax.sharding.Sharding) -> Array:
    """Return an array that every process has, or an array on the same devices, with this sharding.

    Between processes, ``device_put`` would first compare the numbers that all of them have, which takes a collective
    for each array and refuses NaN.
    """
    if sharding.is_fully_addressable or not getattr(x, 'is_fully_addressable', True):
        moved: Array = jax.device_put(x, sharding)
        return moved
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data, impl = placed(jax.random.key_data(x), sharding), jax.random.key_impl(x)
        keys: Array = jax.random.wrap_key_data(data, impl=impl)
        return keys
    parts = np.asarray(x)
    return jax.make_array_from_callback(parts.shape, sharding, lambda index: parts[index])


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
