"""What a step shows of itself: the numbers from which the metrics are made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.options.types import Tree
from braintools_optim.step.clipping import sum_of_squares
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.stage import Context, Leaf
from braintools_optim.step.stages import CLIP_VALUES, apply_stages
from braintools_optim.weights.precision import compute_dtype

__all__ = ['Observed', 'Update']

Array = jax.Array
SMALL = 4096
"""The number of entries up to which arrays are copied and summed together, which takes less time than many kernels."""


@dataclass(frozen=True)
class Update:
    """The new parameters of one group, or their changes, and what they shared in the step."""

    context: Context
    results: Mapping[str, Array]


@dataclass(frozen=True)
class Observed:
    """One step in which metrics are recorded."""

    policy: WeightPolicy
    weights: Mapping[str, Array]
    gradients: Mapping[str, Array]
    loss_scale: Array | None
    norms: Sequence[Array]
    """The norms before clipping: over all gradients, over each group, or over each gradient."""
    updates: Sequence[Update]

    def numbers(self, limit: Array | None, leaf_of: Callable[[str, Context], Leaf]) -> dict[str, Tree]:
        """Return the numbers for the metrics, given the limit of the norms."""
        norms, places = self.norms, {key: i for i, key in enumerate(self.weights)}
        sizes, changes = self.norms_of(self.weights, -1), self.norms_of(self.changes(), -1)
        groups = [np.array([places[key] for key in update.results], int) for update in self.updates]
        changed, before = (jnp.stack([jnp.linalg.norm(x[own]) for own in groups]) for x in (changes, sizes))
        seen = {
            'grad_norm': jnp.sqrt(sum((norm**2 for norm in norms), start=jnp.zeros(()))),
            'clipped': jnp.any(jnp.stack(norms) > limit) if limit is not None and norms else jnp.zeros((), bool),
            'update_norm': jnp.linalg.norm(changed),
            'update_ratio': ratio(changed, before),
        }
        if self.policy.metrics != 'weights':
            return seen
        slopes = self.norms_of(self.gradients, 1)
        return seen | {
            'grad_norms': slopes if self.loss_scale is None else slopes / self.loss_scale,
            'update_ratios': ratio(changes, sizes),
            'weight_norms': sizes,
            'clipped_entries': self.clipped_shares(leaf_of),
        }

    def changes(self) -> dict[str, Array]:
        """Return the changes of the parameters that are updated."""
        results = {key: x for update in self.updates for key, x in update.results.items()}
        return results if self.policy.changes_only else {key: x - self.weights[key] for key, x in results.items()}

    def norms_of(self, arrays: Mapping[str, Array], power: int) -> Array:
        """Return the norm of each parameter's array, in the unit in which it counts in norms; 0 where it has none.

        The factors of ``norm_scales`` are those of gradients, for which ``power`` is 1; for parameters it is -1.
        """
        known = np.array([key in arrays for key in self.weights], bool)
        scales = np.array([self.policy.norm_scales.get(key, 1.0) ** power for key in self.weights if key in arrays])
        norms = jnp.sqrt(sums_of_squares([arrays[key] for key in self.weights if key in arrays]))
        norms = norms if (scales == 1).all() else norms * jnp.asarray(scales, norms.dtype)
        return norms if known.all() else jnp.zeros(len(known), norms.dtype).at[known].set(norms)

    def clipped_shares(self, leaf_of: Callable[[str, Context], Leaf]) -> Array:
        """Return the share of the entries of each gradient that are clipped by value."""
        found: dict[str, Array] = {}
        for update in self.updates:
            if update.context.shared.grad_clip_value is not None:
                found |= {key: clipped_share(self.policy, leaf_of(key, update.context)) for key in update.results}
        zeros = jnp.zeros(len(self.weights))
        return jnp.stack([found.get(key, zeros[0]) for key in self.weights]) if found else zeros


def clipped_share(policy: WeightPolicy, leaf: Leaf) -> Array:
    """Return the share of the entries of a gradient that are clipped by value."""
    leaf = apply_stages(policy.stages[: policy.stages.index(CLIP_VALUES)], leaf)
    return jnp.mean(CLIP_VALUES.apply(leaf).gradient != leaf.gradient)


def ratio(changed: Array, size: Array) -> Array:
    """Return the norm of an update over that of its parameters, 0 if they are 0."""
    return jnp.where(size > 0, changed / jnp.where(size > 0, size, 1), 0)


def sums_of_squares(arrays: Sequence[Array]) -> Array:
    """Return the sum of the squared entries of each array, in float32 at least."""
    together: dict[Hashable, list[int]] = {}
    for i, x in enumerate(arrays):
        together.setdefault((x.size, x.dtype) if x.size <= SMALL else i, []).append(i)
    sums = [sums_over([arrays[i] for i in places]) for places in together.values()]
    dtype = jnp.result_type(jnp.float32, *sums)
    found = jnp.concatenate([jnp.zeros(0, dtype), *(x.astype(dtype) for x in sums)])
    order = np.argsort([i for places in together.values() for i in places])
    return found if (np.diff(order) == 1).all() else found[order]


def sums_over(arrays: Sequence[Array]) -> Array:
    """Return the sum of the squared entries of each array; all have equally many entries and the same dtype."""
    if len(arrays) == 1:
        return sum_of_squares(arrays[0])[None]
    rows = jnp.stack([x.astype(compute_dtype(x)).ravel() for x in arrays])
    squares = jax.lax.square(rows.real) + jax.lax.square(rows.imag) if jnp.iscomplexobj(rows) else jax.lax.square(rows)
    return jax.lax.reduce_sum(squares, axes=(1,))
