"""Metrics: what an update saw and did, kept in a State."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.clipping import global_norm

__all__ = ['first_metrics', 'next_metrics', 'warn_of_skips']

Array = jax.Array
Metrics = dict[str, Any]


def first_metrics(groups: int) -> Metrics:
    """Before the first update."""
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
    before: Metrics, seen: Metrics, rates: Sequence[Array], skipped: Array, count: Array, finite: Array | None
) -> Metrics:
    """After an update, the ``count``-th; ``seen`` is what the step reports. One that was skipped is not counted."""
    share = seen['clipped'] - before['clipped_fraction']
    share = share if finite is None else jnp.where(finite, share, 0)
    after = {
        'lr': jnp.stack(rates),
        'grad_norm': seen['grad_norm'],
        'clipped': seen['clipped'],
        'clipped_fraction': before['clipped_fraction'] + share / jnp.maximum(count, 1),
        'update_norm': global_norm(seen['update_norms']),
        'update_ratio': jnp.stack(seen['update_ratio']),
        'skipped': skipped,
    }
    return {name: value.astype(before[name].dtype) for name, value in after.items()}


def warn_of_skips(consecutive: Array, limit: Array) -> None:
    """Warn, also from compiled code, whenever so many updates in a row have been skipped."""

    def warn(consecutive: Any, limit: Any) -> None:
        if consecutive and consecutive % limit == 0:  # under vmap both branches run
            warnings.warn(
                f'{consecutive} updates in a row were skipped: gradients were not finite. See diagnose(grads).',
                RuntimeWarning,
                stacklevel=2,
            )

    full = (consecutive > 0) & (consecutive % limit == 0)
    jax.lax.cond(full, lambda *args: jax.debug.callback(warn, *args), lambda *args: None, consecutive, limit)
