"""States of several kinds, and a function that reads and writes them."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

N = 5
X = jnp.arange(float(N))


def states() -> dict[str, brainstate.State]:
    values = {'a': X + 1.0, 'b': X * 3.0, 'c': X - 4.0, 'number': 2.0, 'tree': {'u': X + 7.0, 'v': (X,)}}
    return {name: brainstate.State(jax.tree.map(lambda x: x * 1, value)) for name, value in values.items()}


def add(s: Any, x: Any) -> Any:
    s['a'].value = s['a'].value + x * s['b'].value
    return {'sum': s['a'].value.sum(), 'nothing': None, 'pair': (x, 1.0)}
