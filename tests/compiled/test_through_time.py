"""Training through time in chunks, and gradients that are computed again instead of stored, compared with optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo

transform = brainstate.transform
LENGTH, CHUNK = 40, 5
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(LENGTH, 2)))
TARGETS = jnp.cumsum(INPUTS[:, 0]) / 5
rng = np.random.default_rng(1)
START = {'inward': rng.normal(size=(2, 4)), 'recurrent': 0.3 * rng.normal(size=(4, 4)), 'readout': rng.normal(size=4)}


def cell(weights: dict[str, Any], h: Any, x: Any) -> tuple[Any, Any]:
    h = jnp.tanh(x @ weights['inward'] + h @ weights['recurrent'])
    return h, h @ weights['readout']


class Network(brainstate.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = {name: brainstate.ParamState(jnp.asarray(value)) for name, value in START.items()}
        self.h = brainstate.HiddenState(jnp.zeros(4))

    def update(self, x: Any) -> Any:
        self.h.value, out = cell({name: state.value for name, state in self.weights.items()}, self.h.value, x)
        return out

    def loss(self, xs: Any, ys: Any) -> Any:
        return jnp.mean((transform.for_loop(self, xs) - ys) ** 2)


def plain_loss(weights: dict[str, Any], h: Any, xs: Any, ys: Any) -> tuple[Any, Any]:
    h, outs = jax.lax.scan(lambda h, x: cell(weights, h, x), h, xs)
    return jnp.mean((outs - ys) ** 2), h


def by_optax(tx: optax.GradientTransformation, chunks: list[tuple[Any, Any]], keeps_h: bool) -> tuple[Any, list[Any]]:
    """Return the weights and the losses after an update for each chunk."""
    weights: dict[str, Any] = {name: jnp.asarray(value) for name, value in START.items()}
    state, h, losses = tx.init(weights), jnp.zeros(4), []
    gradient = jax.jit(jax.value_and_grad(plain_loss, has_aux=True))
    for xs, ys in chunks:
        (loss, last), grads = gradient(weights, h, xs, ys)
        h = last if keeps_h else h
        updates, state = tx.update(grads, state, weights)
        weights = optax.apply_updates(weights, updates)
        losses.append(loss)
    return weights, losses


def assert_trained(network: Network, losses: Any, exact: tuple[Any, list[Any]]) -> None:
    np.testing.assert_allclose(losses, jnp.stack(exact[1]), rtol=1e-10)
    for name, state in network.weights.items():
        np.testing.assert_allclose(state.value, exact[0][name], rtol=1e-10)


def in_loop(step: Callable[[Any, Any], Any], xs: Any, ys: Any) -> Any:
    return transform.for_loop(step, xs, ys)


def in_jit(step: Callable[[Any, Any], Any], xs: Any, ys: Any) -> Any:
    return jnp.stack([*map(bo.jit(step), xs, ys)])


@pytest.mark.parametrize('run', [in_loop, in_jit])
@pytest.mark.parametrize('minimizes', [False, True], ids=['grad', 'minimize'])
def test_truncated_backpropagation_equals_optax(run: Callable[..., Any], minimizes: bool) -> None:
    """Each chunk of a sequence makes an update, and the hidden state goes on without a gradient."""
    network = Network()
    optimizer = bo.Adam(lr=0.01).register_trainable_weights(network.weights)

    def step(xs: Any, ys: Any) -> Any:
        if minimizes:
            return optimizer.minimize(network.loss, xs, ys)
        grads, loss = transform.grad(network.loss, network.weights, return_value=True)(xs, ys)
        optimizer.update(grads)
        return loss

    xs, ys = INPUTS.reshape(-1, CHUNK, 2), TARGETS.reshape(-1, CHUNK)
    losses = run(step, xs, ys)
    assert_trained(network, losses, by_optax(optax.adam(0.01), [*zip(xs, ys, strict=True)], keeps_h=True))


def remat_by_brainstate(network: Network) -> Callable[[Any, Any], Any]:
    return transform.checkpoint(network.loss)


def remat_of_every_step(network: Network) -> Callable[[Any, Any], Any]:
    """Backpropagation by brainstate's loop that stores only some of the hidden states."""
    outputs = lambda xs: transform.checkpointed_for_loop(network, xs, base=4)  # noqa: E731
    return lambda xs, ys: jnp.mean((outputs(xs) - ys) ** 2)


def remat_by_jax(network: Network) -> Callable[[Any, Any], Any]:
    """``jax.checkpoint`` of a function of arrays, which the loss gives the values of the States."""

    def loss(xs: Any, ys: Any) -> Any:
        weights = {name: state.value for name, state in network.weights.items()}
        value, network.h.value = jax.checkpoint(plain_loss)(weights, network.h.value, xs, ys)
        return value

    return loss


@pytest.mark.parametrize('remat', [remat_by_brainstate, remat_of_every_step, remat_by_jax])
@pytest.mark.parametrize('how', ['eager', 'jit', 'grad'])
def test_gradient_checkpointing_equals_optax(remat: Callable[[Network], Any], how: str) -> None:
    network = Network()
    optimizer = bo.Adam(lr=0.01).register_trainable_weights(network.weights)
    loss = remat(network)

    def step() -> Any:
        network.h.value = jnp.zeros(4)
        if how != 'grad':
            return optimizer.minimize(loss, INPUTS, TARGETS)
        grads, value = transform.grad(loss, network.weights, return_value=True)(INPUTS, TARGETS)
        optimizer.update(grads)
        return value

    compiled = step if how == 'eager' else bo.jit(step)
    losses = jnp.stack([compiled() for _ in range(5)])
    assert_trained(network, losses, by_optax(optax.adam(0.01), [(INPUTS, TARGETS)] * 5, keeps_h=False))
