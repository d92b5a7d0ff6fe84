"""A single weight, and how far an update moves it."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp

import braintools_optim as bo


def one_weight(optimizer: bo.Optimizer, start: float = 0.0) -> brainstate.ParamState:
    w = brainstate.ParamState(jnp.asarray(start))
    optimizer.register_trainable_weights({'w': w})
    return w


def moved(optimizer: bo.Optimizer, w: brainstate.ParamState, gradient: float = -1.0) -> float:
    before = float(w.value)
    optimizer.update({'w': jnp.asarray(gradient)})
    return float(w.value) - before
