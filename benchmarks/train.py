"""A whole train step of a chain of layers: gradient, clipping and Adam.

Each step returns the loss, which the benchmark waits for; all outputs of a compiled function become ready together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import optax

import braintools_optim as bo
from benchmarks.steps import chain

__all__ = ['TRAIN']

Step = Callable[[], Any]
Jit = Callable[[Callable[..., Any]], Any]
Update = Callable[[Any], None]
BATCH = 8


def loss(weights: list[Any], x: Any) -> Any:
    for w in weights:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)


def initial(leaves: int, side: int) -> tuple[list[jax.Array], jax.Array]:
    """Return random weights and a batch of inputs."""
    keys = jax.random.split(jax.random.key(0), leaves + 1)
    weights = [jax.random.normal(key, (side, side)) / side**0.5 for key in keys[1:]]
    return weights, jax.random.normal(keys[0], (BATCH, side))


def with_states(jit: Jit, build: Callable[[dict[str, brainstate.ParamState]], Update], leaves: int, side: int) -> Step:
    """Return a train step on States, with the update that ``build`` returns for them."""
    values, x = initial(leaves, side)
    states = {f'layer{i:03}': brainstate.ParamState(w) for i, w in enumerate(values)}
    update = build(states)

    @jit
    def step(x: Any) -> Any:
        gradient = brainstate.transform.grad(
            lambda: loss([s.value for s in states.values()], x), states, return_value=True
        )
        grads, value = gradient()
        update(grads)
        return value

    def run() -> Any:
        return step(x)

    run.lower = lambda: step.lower(x)  # type: ignore[attr-defined]
    return run


def ours(states: dict[str, brainstate.ParamState]) -> Update:
    """Adam of this library."""
    return bo.Adam(1e-3, grad_clip_norm=1.0).register_trainable_weights(states).update


def ours_with_metrics(states: dict[str, brainstate.ParamState]) -> Update:
    """Adam of this library, with the metrics of each weight."""
    return bo.Adam(1e-3, grad_clip_norm=1.0, metrics='weights').register_trainable_weights(states).update


def optax_in_states(states: dict[str, brainstate.ParamState]) -> Update:
    """The optax chain with its arrays in States, which shows the cost of brainstate's dispatch."""
    tx = chain(1.0)
    opt_state = brainstate.LongTermState(tx.init({name: s.value for name, s in states.items()}))

    def update(grads: Any) -> None:
        updates, opt_state.value = tx.update(grads, opt_state.value)
        for name, state in states.items():
            state.value = state.value + updates[name]

    return update


def by_hand(leaves: int, side: int) -> Step:
    """The optax chain under ``jax.jit``, with all arrays passed as arguments and donated."""
    weights, x = initial(leaves, side)
    tx = chain(1.0)

    def update(weights: Any, state: Any, x: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(weights, x)
        updates, state = tx.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state, value

    compiled = jax.jit(update, donate_argnums=(0, 1))
    carry = weights, tx.init(weights)

    def run() -> Any:
        nonlocal carry
        *carry, value = compiled(*carry, x)
        return value

    return run


TRAIN: dict[str, Callable[[int, int], Step]] = {
    'ours, brainstate jit': partial(with_states, brainstate.transform.jit, ours),
    'ours, donating jit': partial(with_states, bo.jit, ours),
    'with metrics': partial(with_states, bo.jit, ours_with_metrics),
    'optax by hand': by_hand,
    'optax in States, brainstate jit': partial(with_states, brainstate.transform.jit, optax_in_states),
}
