"""SOAP: which of its eigenvectors the gradients determine."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo


def path(rank: int, change: float) -> np.ndarray:
    """Return a weight after 6 updates whose first gradient has this rank; ``change`` is relative."""
    rng = np.random.default_rng(0)
    w = brainstate.ParamState(jnp.zeros((6, 6)))
    optimizer = bo.SOAP(lr=0.1, precondition_frequency=3).register_trainable_weights({'w': w})
    singular_values = np.where(np.arange(6) < rank, np.arange(1.0, 7.0), 0.0)
    for t in range(6):
        g = rng.normal(size=(6, 6))
        if t == 0:
            left, _, right = np.linalg.svd(g)
            g = left @ np.diag(singular_values) @ right
        optimizer.update({'w': jnp.asarray(g * (1 + change * np.sin(np.arange(36.0)).reshape(6, 6)))})
    return np.asarray(w.value)


@pytest.mark.parametrize(('rank', 'low', 'high'), [(6, 0.0, 1e-9), (2, 1e-2, 1.0)])
def test_a_first_gradient_of_low_rank_leaves_eigenvectors_to_rounding(rank: int, low: float, high: float) -> None:
    """The eigenvectors of the eigenvalue 0 are any basis of its space, and later gradients lie in this space."""
    apart = np.max(np.abs(path(rank, 0.0) - path(rank, 1e-15)))
    assert low <= apart < high
