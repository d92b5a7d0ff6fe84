"""Exact comparison of everything that an update may change."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from internals import flatten_states

import braintools_optim as bo


def everything(optimizer: bo.Optimizer, tree: Any) -> Any:
    found: Any = brainstate.graph.states(optimizer)
    own = {'.'.join(map(str, path)): jax.tree.map(np.array, state.value) for path, state in found.items()}
    return own, [jax.tree.map(np.array, state.value) for _, state in flatten_states(tree)]


def assert_same(a: Any, b: Any, **tolerance: float) -> None:
    def compare(x: Any, y: Any) -> None:
        x, y = np.asarray(x), np.asarray(y)
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        if tolerance and jnp.issubdtype(x.dtype, jnp.inexact):
            wide = [np.asarray(z, np.complex128) for z in (x, y)]
            np.testing.assert_allclose(*wide, **tolerance)
        else:
            np.testing.assert_array_equal(x, y)

    jax.tree.map(compare, a, b)
