"""Several optimizers on one model, compared with optax on plain arrays."""

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
Arrays = dict[str, Any]
START = {'w': np.array([1.0, -2.0]), 'v': np.array([0.5, 1.5, -1.0])}
STEPS = 20

EVERYWHERE = pytest.mark.parametrize(
    'run',
    [
        lambda step: [step(jnp.asarray(t)) for t in range(STEPS)],
        lambda step: [*map(bo.jit(step), jnp.arange(STEPS))],
        lambda step: transform.for_loop(step, jnp.arange(STEPS)),
    ],
    ids=['eager', 'jit', 'for_loop'],
)


def model() -> dict[str, brainstate.ParamState]:
    return {name: brainstate.ParamState(jnp.asarray(value)) for name, value in START.items()}


def applied(tx: optax.GradientTransformation, grads: Any, state: Any, weights: Arrays) -> tuple[Arrays, Any]:
    """Return new weights and a new state."""
    updates, state = tx.update(grads, state, weights)
    return optax.apply_updates(weights, updates), state


def assert_equal(states: dict[str, brainstate.ParamState], exact: Arrays) -> None:
    for name, state in states.items():
        np.testing.assert_allclose(state.value, exact[name], rtol=1e-11)
        assert np.abs(state.value - START[name]).max() > 1e-3


def joint(weights: Arrays, t: Any) -> Any:
    """A loss of both weights, another one at each step."""
    return jnp.sum(weights['w'] ** 2) * jnp.sum((weights['v'] - jnp.sin(t)) ** 2)


def values(states: dict[str, brainstate.ParamState]) -> Arrays:
    return {name: state.value for name, state in states.items()}


@EVERYWHERE
def test_two_optimizers_on_different_weights(run: Callable[[Any], Any]) -> None:
    states = model()
    slow = bo.Adam(0.01, grad_clip_norm=1.0).register_trainable_weights({'w': states['w']})
    fast = bo.SGD(0.001, momentum=0.9).register_trainable_weights({'v': states['v']})

    def step(t: Any) -> None:
        grads = transform.grad(lambda: joint(values(states), t), states)()
        slow.update({'w': grads['w']})
        fast.update({'v': grads['v']})

    run(step)
    assert slow.step_count.value == fast.step_count.value == STEPS

    clip = optax.stateless(
        lambda g, _: jax.tree.map(lambda x: x * jnp.minimum(1.0, 1 / (optax.tree.norm(g) + 1e-6)), g)
    )
    chains = {'w': optax.chain(clip, optax.adam(0.01)), 'v': optax.sgd(0.001, momentum=0.9)}
    exact: Arrays = {name: {name: jnp.asarray(value)} for name, value in START.items()}
    opt_states = {name: tx.init(exact[name]) for name, tx in chains.items()}
    for t in range(STEPS):
        grads = jax.grad(joint)({name: exact[name][name] for name in START}, t)
        for name, tx in chains.items():
            exact[name], opt_states[name] = applied(tx, {name: grads[name]}, opt_states[name], exact[name])
    assert_equal(states, {name: exact[name][name] for name in START})


def generated(weights: Arrays, t: Any) -> Any:
    return weights['w'] * jnp.cos(t + jnp.arange(2.0))


def judged(weights: Arrays, t: Any) -> Any:
    """The loss of the discriminator ``v``, which the generator ``w`` maximizes."""
    score = lambda x: jnp.tanh(weights['v'][0] * x + weights['v'][1]) * weights['v'][2]  # noqa: E731
    return jnp.mean(score(generated(weights, t))) - jnp.mean(score(jnp.array([0.3, 0.8])))


@EVERYWHERE
def test_adversaries_take_turns(run: Callable[[Any], Any]) -> None:
    """The generator sees the discriminator's new weights in the same step."""
    states = model()
    discriminator = bo.Adam(0.02).register_trainable_weights({'v': states['v']})
    generator = bo.Adam(0.01, maximize=True).register_trainable_weights({'w': states['w']})

    def step(t: Any) -> None:
        discriminator.minimize(lambda: judged(values(states), t))
        generator.minimize(lambda: judged(values(states), t))

    run(step)

    weights: Arrays = {name: jnp.asarray(value) for name, value in START.items()}
    chains = {'v': optax.adam(0.02), 'w': optax.adam(0.01)}
    opt_states = {name: tx.init(weights[name]) for name, tx in chains.items()}
    for t in range(STEPS):
        for name, sign in (('v', 1.0), ('w', -1.0)):
            gradient = sign * jax.grad(judged)(weights, t)[name]
            weights[name], opt_states[name] = applied(chains[name], gradient, opt_states[name], weights[name])
    assert_equal(states, weights)


@EVERYWHERE
def test_two_optimizers_take_turns_on_the_same_weights(run: Callable[[Any], Any]) -> None:
    states = model()
    first = bo.Adam(0.01, metrics=True).register_trainable_weights(states)
    second = bo.SGD(0.001, momentum=0.9, nesterov=True).register_trainable_weights(states)
    other = lambda weights, t: jnp.sum((weights['w'] - 1.0) ** 2) + jnp.sum(weights['v'] ** 4)  # noqa: E731

    def step(t: Any) -> None:
        first.minimize(lambda: joint(values(states), t))
        second.update(transform.grad(lambda: other(values(states), t), states)())

    run(step)

    weights: Arrays = {name: jnp.asarray(value) for name, value in START.items()}
    turns = [(optax.adam(0.01), joint), (optax.sgd(0.001, momentum=0.9, nesterov=True), other)]
    opt_states = [tx.init(weights) for tx, _ in turns]
    for t in range(STEPS):
        for i, (tx, loss) in enumerate(turns):
            weights, opt_states[i] = applied(tx, jax.grad(loss)(weights, t), opt_states[i], weights)
    assert_equal(states, weights)


@EVERYWHERE
def test_cond_chooses_between_two_optimizers(run: Callable[[Any], Any]) -> None:
    """Both branches update the same weights, and only the optimizer that is chosen counts."""
    states = model()
    even = bo.Adam(0.01).register_trainable_weights(states)
    odd = bo.SGD(0.001, momentum=0.9).register_trainable_weights(states)

    def step(t: Any) -> None:
        grads = transform.grad(lambda: joint(values(states), t), states)()
        transform.cond(t % 2 == 0, lambda: even.update(grads), lambda: odd.update(grads))

    run(step)
    assert even.step_count.value == odd.step_count.value == STEPS // 2

    weights: Arrays = {name: jnp.asarray(value) for name, value in START.items()}
    chains = [optax.adam(0.01), optax.sgd(0.001, momentum=0.9)]
    opt_states = [tx.init(weights) for tx in chains]
    for t in range(STEPS):
        i = t % 2
        weights, opt_states[i] = applied(chains[i], jax.grad(joint)(weights, t), opt_states[i], weights)
    assert_equal(states, weights)


@EVERYWHERE
def test_cond_around_an_update_leaves_everything_as_it_was(run: Callable[[Any], Any]) -> None:
    """The branch without an update changes neither the weights nor the moments, counts and schedule."""
    states = model()
    schedule = bo.ExponentialLR(0.01, gamma=0.9)
    optimizer = bo.Adam(schedule).register_trainable_weights(states)

    def update(t: Any) -> Any:
        loss = optimizer.minimize(lambda: joint(values(states), t))
        schedule.step()
        return loss

    def step(t: Any) -> Any:
        return transform.cond(t % 3 != 1, lambda: update(t), lambda: jnp.asarray(-1.0))

    losses = run(step)

    weights: Arrays = {name: jnp.asarray(value) for name, value in START.items()}
    tx = optax.adam(lambda count: 0.01 * 0.9**count)
    state, expected = tx.init(weights), []
    for t in range(STEPS):
        if t % 3 == 1:
            expected.append(-1.0)
            continue
        loss, grads = jax.value_and_grad(joint)(weights, t)
        expected.append(float(loss))
        weights, state = applied(tx, grads, state, weights)
    assert_equal(states, weights)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
