"""One step of Adam by this library and by its peers, on the same weights and gradients.

Each step returns the last weight, which the benchmark waits for; all outputs of a compiled function become ready
together. The weight is read as an attribute of the State, because the cost of ``State.value`` is not part of an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax

import braintools_optim as bo
from braintools_optim.compiled.access import value_of

__all__ = ['PEERS', 'MissingPeerError', 'adam', 'adam_state', 'chain', 'optax_update']

Step = Callable[[], Any]
Gradients = dict[str, jax.Array]


class MissingPeerError(Exception):
    """Raised if the library of a peer is not installed."""


def filled(value: float, like: jax.Array) -> jax.Array:
    """Return an array on the same devices as another one; ``jnp.full_like`` uses one device."""
    return 0.0 * like + value


def ours(gradients: Gradients, clip: float | None) -> Step:
    """``update``, called eagerly with default settings: the buffers of the weights are not donated."""
    return _ours(gradients, clip, donate_weights=False)


def ours_donating(gradients: Gradients, clip: float | None) -> Step:
    """``update``, called eagerly with ``donate_weights``."""
    return _ours(gradients, clip, donate_weights=True)


def _ours(gradients: Gradients, clip: float | None, donate_weights: bool) -> Step:
    states = {name: brainstate.ParamState(filled(1.0, g)) for name, g in gradients.items()}
    optimizer = bo.Adam(1e-3, grad_clip_norm=clip).register_trainable_weights(states)
    optimizer.donate_weights = donate_weights
    *_, last = states.values()

    def step() -> Any:
        optimizer.update(gradients)
        return value_of(last)

    return step


def adam(clip: float | None) -> Callable[..., Any]:
    """Return the same mathematics on plain lists of arrays: a function from state and gradients to the new state."""

    def update(w: Any, m: Any, v: Any, t: Any, g: Any) -> Any:
        t = t + 1
        if clip is not None:
            norm = jnp.sqrt(sum(jnp.sum(x * x) for x in g))
            g = [x * jnp.minimum(1.0, clip / (norm + 1e-6)) for x in g]
        debias1, debias2 = 1 / (1 - 0.9**t), 1 / (1 - 0.999**t)
        m = [a + 0.1 * (x - a) for a, x in zip(m, g, strict=True)]
        v = [a + 0.001 * (x * x - a) for a, x in zip(v, g, strict=True)]
        w = [p - 1e-3 * (debias1 * a / (jnp.sqrt(debias2 * b) + 1e-8)) for p, a, b in zip(w, m, v, strict=True)]
        return w, m, v, t

    return update


def adam_state(g: Sequence[jax.Array]) -> tuple[Any, ...]:
    """Return weights of ones, and the state of :func:`adam` before the first update."""
    return [filled(1.0, x) for x in g], [filled(0.0, x) for x in g], [filled(0.0, x) for x in g], jnp.zeros(())


def by_hand(gradients: Gradients, clip: float | None) -> Step:
    """The same mathematics on plain lists of arrays under ``jax.jit``, with all buffers donated."""
    g = list(gradients.values())
    compiled, state = jax.jit(adam(clip), donate_argnums=(0, 1, 2, 3)), adam_state(g)

    def step() -> Any:
        nonlocal state
        state = compiled(*state, g)
        return state[0][-1]

    return step


def chain(clip: float | None) -> optax.GradientTransformation:
    """Return Adam, composed of optax transformations."""
    clipping = [optax.clip_by_global_norm(clip)] if clip is not None else []
    return optax.chain(*clipping, optax.scale_by_adam(), optax.scale(-1e-3))


def optax_update(tx: optax.GradientTransformation) -> Callable[[Any, Any, Any], Any]:
    """Return a function from weights, state and gradients to new weights and state."""

    def update(params: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    return update


def optax_chain(gradients: Gradients, clip: float | None) -> Step:
    """A chain of optax transformations under ``jax.jit``, with all buffers donated."""
    tx = chain(clip)
    compiled = jax.jit(optax_update(tx), donate_argnums=(0, 1))
    params = {name: jnp.ones_like(g) for name, g in gradients.items()}
    carry = params, tx.init(params)
    *_, last = gradients

    def step() -> Any:
        nonlocal carry
        carry = compiled(*carry, gradients)
        return carry[0][last]

    return step


def flax_nnx(gradients: Gradients, clip: float | None) -> Step:
    """``flax.nnx.Optimizer`` around the same chain under ``nnx.jit``, which donates nothing by default."""
    try:
        from flax import nnx
    except ImportError as error:
        raise MissingPeerError('flax') from error
    model = nnx.Module()
    for name, g in gradients.items():
        setattr(model, name, nnx.Param(jnp.ones_like(g)))
    optimizer = nnx.Optimizer(model, chain(clip), wrt=nnx.Param)
    *_, last = gradients
    wrapped = jax.tree.unflatten(jax.tree.structure(nnx.state(model, nnx.Param)), gradients.values())

    @nnx.jit
    def update(model: Any, optimizer: Any, g: Any) -> None:
        optimizer.update(model, g)

    def step() -> Any:
        update(model, optimizer, wrapped)
        return getattr(model, last)[...]

    return step


def braintools(gradients: Gradients, clip: float | None) -> Step:
    """``update`` of braintools.optim, called eagerly."""
    try:
        from braintools.optim import Adam
    except ImportError as error:
        raise MissingPeerError('braintools') from error
    states = {name: brainstate.ParamState(jnp.ones_like(g)) for name, g in gradients.items()}
    optimizer = Adam(lr=1e-3, grad_clip_norm=clip)
    optimizer.register_trainable_weights(states)
    *_, last = states.values()

    def step() -> Any:
        optimizer.update(gradients)
        return value_of(last)

    return step


def torch_fused(gradients: Gradients, clip: float | None) -> Step:
    """torch's ``clip_grad_norm_`` and ``Adam(fused=True)``."""
    try:
        import torch
    except ImportError as error:
        raise MissingPeerError('torch') from error
    parameters = [torch.nn.Parameter(torch.ones(g.shape)) for g in gradients.values()]
    for parameter, g in zip(parameters, gradients.values(), strict=True):
        parameter.grad = torch.from_numpy(np.array(g))
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> Any:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return []

    return step


PEERS: dict[str, Callable[[Gradients, float | None], Step]] = {
    'ours': ours,
    'donating': ours_donating,
    'by hand': by_hand,
    'optax': optax_chain,
    'flax.nnx': flax_nnx,
    'torch fused': torch_fused,
    'braintools': braintools,
}
