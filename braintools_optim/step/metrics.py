"""Metrics: the norms, rates and skipped updates that ``metrics=True`` records."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.options.types import Tree
from braintools_optim.step.clipping import global_norm

__all__ = ['first_metrics', 'next_metrics', 'warn_of_skips']

Array = jax.Array
Metrics = dict[str, Array]


def first_metrics(groups: int) -> Metrics:
    """Return the metrics before the first update, for a number of groups."""
    zero, each = jnp.zeros((), jnp.float32), jnp.zeros(groups, jnp.float32)
    return {
        'lr': each,
        'grad_norm': zero,
        'clipped': jnp.zeros((), bool),
        'clipped_fraction': zero,
        'update_norm': zero,
        'update_ratio': each,
        'skipped': jnp.zeros((), jnp.int32),
    }


def next_metrics(
    before: Metrics,
    seen: Mapping[str, Tree],
    rates: Sequence[Array],
    skipped: Array,
    count: Array,
    finite: Array | None,
) -> Metrics:
    """Return the metrics after the update number ``count``, whose step returned the numbers ``seen``.

    A skipped update does not count in ``clipped_fraction``.
    """
    share = seen['clipped'].astype(before['clipped_fraction'].dtype) - before['clipped_fraction']
    share = share if finite is None else jnp.where(finite, share, 0)
    after = {
        'lr': jnp.stack(rates),
        'grad_norm': seen['grad_norm'],
        'clipped': seen['clipped'],
        'clipped_fraction': before['clipped_fraction'] + share / jnp.maximum(count, 1).astype(share.dtype),
        'update_norm': global_norm(seen['update_norms']),
        'update_ratio': jnp.stack(seen['update_ratio']),
        'skipped': skipped,
    }
    return {name: value.astype(before[name].dtype) for name, value in after.items()}


def warn_of_skips(consecutive: Array, limit: Array) -> None:
    """Warn, also from compiled code, after each ``limit`` updates in a row that were skipped."""

    def warn(consecutive: np.ndarray, limit: np.ndarray) -> None:
        if consecutive and consecutive % limit == 0:  # under vmap both branches of the condition run
            warnings.warn(
                f'{consecutive} updates in a row were skipped: gradients were not finite. See diagnose(grads).',
                RuntimeWarning,
                stacklevel=2,
            )

    full = (consecutive > 0) & (consecutive.astype(limit.dtype) % limit == 0)
    jax.lax.cond(full, lambda *args: jax.debug.callback(warn, *args), lambda *args: None, consecutive, limit)
