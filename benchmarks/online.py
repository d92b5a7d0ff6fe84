"""An update at every step of one compiled loop, as in online learning.

The gradient is that of half the squared norm of the weights, so that no gradient can be computed before the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintools_optim as bo
from benchmarks.harness import medians
from benchmarks.steps import adam, adam_state, chain, optax_update

__all__ = ['in_scan']

Loop = Callable[[], Any]
CLIP = 1.0


def ours(weights: Mapping[str, jax.Array], updates: int) -> Loop:
    """``update`` inside ``for_loop``."""
    states = {name: brainstate.ParamState(w) for name, w in weights.items()}
    optimizer = bo.Adam(1e-3, grad_clip_norm=CLIP).register_trainable_weights(states)
    *_, last = states.values()

    def step(_: Any) -> None:
        optimizer.update({name: state.value for name, state in states.items()})

    @bo.jit
    def loop() -> Any:
        brainstate.transform.for_loop(step, jnp.arange(updates))
        return last.value

    return loop


def by_hand(weights: Mapping[str, jax.Array], updates: int) -> Loop:
    """The same mathematics on plain lists of arrays inside ``jax.lax.scan``."""
    update = adam(CLIP)
    return scanned(lambda state: update(*state, state[0]), adam_state(list(weights.values())), updates)


def optax_chain(weights: Mapping[str, jax.Array], updates: int) -> Loop:
    """A chain of optax transformations inside ``jax.lax.scan``."""
    tx = chain(CLIP)
    update = optax_update(tx)
    params = dict(weights)
    return scanned(lambda state: update(*state, state[0]), (params, tx.init(params)), updates)


def scanned(update: Callable[[Any], Any], state: Any, updates: int) -> Loop:
    """Return a function that continues the loop, with all buffers donated."""
    compiled = jax.jit(
        lambda state: jax.lax.scan(lambda carry, _: (update(carry), None), state, length=updates)[0], donate_argnums=0
    )

    def loop() -> Any:
        nonlocal state
        state = compiled(state)
        return jax.tree.leaves(state[0])[-1]

    return loop


PEERS = {'ours': ours, 'by hand': by_hand, 'optax': optax_chain}


def in_scan(leaves: int, side: int, updates: int, repetitions: int) -> dict[str, Any]:
    """Measure one of ``updates`` updates inside a loop in milliseconds, for ``leaves`` square matrices."""
    weights = {f'layer{i:03}': jnp.full((side, side), 1.0 + 0.01 * i) for i in range(leaves)}
    times = medians({name: build(weights, updates) for name, build in PEERS.items()}, repetitions)
    return {'leaves': leaves, 'side': side, 'ms': {name: time / updates for name, time in times.items()}}
