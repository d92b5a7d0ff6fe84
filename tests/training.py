"""An optimizer of three dicts of weights, in one group or in three, and its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintools_optim as bo


def build(make: Callable[[], bo.Optimizer], values: Any = None, groups: int = 1) -> tuple[bo.Optimizer, dict[str, Any]]:
    values = values or {
        name: {'x': np.full((2, 2), 1.5, np.float32), 'y': np.float32(i)} for i, name in enumerate('abc')
    }
    states = {name: brainstate.ParamState(jax.tree.map(jnp.asarray, value)) for name, value in values.items()}
    opt = make()
    if groups == 1:
        opt.register_trainable_weights(states)
    else:
        opt.register_trainable_weights({'a': states['a']})
        opt.add_param_group({'b': states['b']}, lr=0.3, weight_decay=0.1)
        opt.add_param_group({'c': states['c']}, lr_scale=0.5, maximize=True)
    return opt, states


def train(opt: bo.Optimizer, states: dict[str, Any], first: int, last: int) -> None:
    for t in range(first, last):
        opt.update(jax.tree.map(lambda w, t=t: jnp.sin(w + t).astype(w.dtype), {k: s.value for k, s in states.items()}))
        opt.lr.step()
