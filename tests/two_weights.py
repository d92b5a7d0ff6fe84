"""An optimizer of a matrix and a vector, and their gradients."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintools_optim as bo
from braintools_optim import rules

START = {'w': np.array([[1.0, -2.0], [0.5, 3.0]]), 'b': np.array([0.5, -1.0])}


def build(name: str = 'Adam', **options: Any) -> tuple[bo.Optimizer, dict[str, brainstate.ParamState]]:
    opt = getattr(rules, name)(**{'lr': 0.01, **options})
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in START.items()}
    return opt.register_trainable_weights(states), states


def slopes(t: int, bad: float | None = None) -> dict[str, jax.Array]:
    rng = np.random.default_rng(t)
    g = {key: rng.normal(size=w.shape) for key, w in START.items()}
    if bad is not None:
        g['w'][t % 2, 0] = bad
    return {key: jnp.asarray(x) for key, x in g.items()}
