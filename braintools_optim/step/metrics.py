"""Metrics: the norms, rates and skipped updates that the option ``metrics`` records."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from braintools_optim.options.kinds import as_number
from braintools_optim.options.types import Tree

__all__ = ['first_metrics', 'flat', 'next_metrics', 'warn_of_skips']

Array = jax.Array
Metrics = dict[str, Array]


OF_WEIGHTS = {
    'grad_norms': 'grad_norm',
    'update_ratios': 'update_ratio',
    'weight_norms': 'weight_norm',
    'clipped_entries': 'clipped_entries',
}
"""The metrics with one entry per parameter, and what an entry is called in :func:`flat`."""


def first_metrics(groups: int, weights: int | None) -> Metrics:
    """Return the metrics before the first update, for a number of groups and of parameters, if they have metrics."""
    zero, each = jnp.zeros((), jnp.float32), jnp.zeros(groups, jnp.float32)
    of_weights = () if weights is None else OF_WEIGHTS
    return {
        'lr': each,
        'grad_norm': zero,
        'clipped': jnp.zeros((), bool),
        'clipped_fraction': zero,
        'update_norm': zero,
        'update_ratio': each,
        'skipped': jnp.zeros((), jnp.int32),
        **{name: jnp.zeros(weights, jnp.float32) for name in of_weights},
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
        **{name: seen[name] for name in OF_WEIGHTS if name in before},
        'lr': jnp.stack(rates),
        'grad_norm': seen['grad_norm'],
        'clipped': seen['clipped'],
        'clipped_fraction': before['clipped_fraction'] + share / jnp.maximum(count, 1).astype(share.dtype),
        'update_norm': seen['update_norm'],
        'update_ratio': seen['update_ratio'],
        'skipped': skipped,
    }
    return {name: value.astype(before[name].dtype) for name, value in after.items()}


def flat(metrics: Mapping[str, ArrayLike], weights: Sequence[str]) -> dict[str, float]:
    """Return metrics as Python floats under names such as ``lr/0``, ``grad_norm`` and ``grad_norm/encoder.weight``."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        entries: dict[str, Any] = {name: value}
        if name in OF_WEIGHTS:
            entries = {f'{OF_WEIGHTS[name]}/{key}': x for key, x in zip(weights, np.asarray(value), strict=True)}
        elif np.ndim(value):
            form = 'lr/{}' if name == 'lr' else f'{name}/group/{{}}'
            entries = {form.format(i): x for i, x in enumerate(np.asarray(value))}
        found |= {key: float(x if np.asarray(x).dtype == bool else as_number(x)) for key, x in entries.items()}
    return found


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
