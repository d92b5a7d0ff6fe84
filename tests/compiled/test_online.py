"""An update at every step of a loop over time, with clipping and a schedule inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations

import braintools_optim as bo

transform = brainstate.transform
LENGTH, CLIP = 10_000, 0.5
TEACHER = np.array([1.0, -2.0, 0.5])


def stream(length: int) -> tuple[jax.Array, jax.Array]:
    """Return inputs and the outputs of a linear teacher."""
    x = np.random.default_rng(0).normal(size=(length, 3))
    return jnp.asarray(x), jnp.asarray(x @ TEACHER + 0.3)


def loss_of(weights: Any, x: Any, y: Any) -> Any:
    return (x @ weights['w'] + weights['b'] - y) ** 2 / 2


def learner(length: int) -> tuple[Callable[[Any, Any], Any], dict[str, brainstate.ParamState]]:
    """Return a step of online learning, and the weights that it updates."""
    states = {'w': brainstate.ParamState(jnp.zeros(3)), 'b': brainstate.ParamState(jnp.zeros(()))}
    schedule = bo.CosineAnnealingLR(0.01, T_max=length)
    optimizer = bo.Adam(lr=schedule, grad_clip_norm=CLIP).register_trainable_weights(states)

    def step(x: Any, y: Any) -> Any:
        error = x @ states['w'].value + states['b'].value - y
        optimizer.update({'w': error * x, 'b': error})
        schedule.step()
        return error**2 / 2

    return step, states


def by_optax(xs: Any, ys: Any) -> tuple[Any, Any]:
    """Return the losses and the last weights of the same training by optax in a scan."""
    clip = optax.stateless(
        lambda g, _: jax.tree.map(lambda x: x * jnp.minimum(1.0, CLIP / (optax.tree.norm(g) + 1e-6)), g)
    )
    tx = optax.chain(clip, optax.adam(optax.cosine_decay_schedule(0.01, len(xs))))
    weights = {'w': jnp.zeros(3), 'b': jnp.zeros(())}

    def step(carry: Any, xy: Any) -> Any:
        weights, state = carry
        loss, grads = jax.value_and_grad(loss_of)(weights, *xy)
        updates, state = tx.update(grads, state, weights)
        return (optax.apply_updates(weights, updates), state), loss

    (weights, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, (xs, ys)))((weights, tx.init(weights)))
    return losses, weights


def looped(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda xs, ys: transform.for_loop(step, xs, ys)


def scanned(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda xs, ys: transform.scan(lambda carry, xy: (carry, step(*xy)), None, (xs, ys))[1]


def test_ten_thousand_updates_are_one_compiled_loop_and_equal_optax() -> None:
    xs, ys = stream(LENGTH)
    step, states = learner(LENGTH)
    learn = bo.jit(looped(step))
    with compilations(1):
        losses = jax.block_until_ready(learn(xs, ys))
    assert losses[-100:].mean() < 1e-6 * losses[:100].mean()
    exact, weights = by_optax(xs, ys)
    np.testing.assert_allclose(losses, exact, rtol=1e-9, atol=1e-15)
    for name, state in states.items():
        np.testing.assert_allclose(state.value, weights[name], rtol=1e-12)


@pytest.mark.parametrize('loop', [looped, scanned])
@pytest.mark.parametrize('jit', [transform.jit, bo.jit], ids=['jit', 'donating jit'])
def test_loop_equals_eager_updates_and_continues(jit: Any, loop: Any) -> None:
    xs, ys = stream(30)
    step, states = learner(30)
    eager = [step(x, y) for x, y in zip(xs, ys, strict=True)]
    again, looping = learner(30)
    learn = jit(loop(again))
    losses = learn(xs[:15], ys[:15])
    with compilations(0):
        more = learn(xs[15:], ys[15:])
    np.testing.assert_allclose(jnp.concatenate([losses, more]), jnp.stack(eager), rtol=1e-12)
    for name, state in states.items():
        np.testing.assert_allclose(looping[name].value, state.value, rtol=1e-12)
