"""The stages of an update: their order, stages that users add, and gradient centralization."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo


def weights() -> dict[str, brainstate.ParamState]:
    rng = np.random.default_rng(0)
    shapes = {'matrix': (4, 3), 'kernel': (2, 3, 5), 'bias': (3,), 'scale': ()}
    return {name: brainstate.ParamState(jnp.asarray(rng.normal(size=shape))) for name, shape in shapes.items()}


def slopes(t: int) -> dict[str, Any]:
    rng = np.random.default_rng(100 + t)
    return {name: jnp.asarray(rng.normal(size=w.value.shape)) for name, w in weights().items()}


def test_centralization_is_that_of_optax_in_the_layout_of_jax() -> None:
    """optax takes the mean over all axes but the first, where torch has the outputs; here they are the last axis."""
    states = weights()
    optimizer = bo.Adam(0.1, centralize=True).register_trainable_weights(states)
    swapped = {name: jnp.moveaxis(w.value, -1, 0) if w.value.ndim else w.value for name, w in states.items()}
    tx = optax.chain(optax.centralize(), optax.adam(0.1))
    state = tx.init(swapped)
    for t in range(3):
        optimizer.update(slopes(t))
        g = {name: jnp.moveaxis(x, -1, 0) if x.ndim else x for name, x in slopes(t).items()}
        updates, state = tx.update(g, state)
        swapped = optax.apply_updates(swapped, updates)
    for name, w in states.items():
        expected = jnp.moveaxis(swapped[name], 0, -1) if w.value.ndim else swapped[name]
        np.testing.assert_allclose(w.value, expected, rtol=1e-12)


def test_centralization_may_differ_between_groups_and_be_assigned() -> None:
    w = {name: brainstate.ParamState(jnp.zeros((2, 1))) for name in 'ab'}
    optimizer = bo.SGD(1.0, groups={'a': {'centralize': True}}).register_trainable_weights(w)
    g = {name: jnp.array([[1.0], [3.0]]) for name in 'ab'}
    optimizer.update(g)
    assert w['a'].value.tolist() == [[1.0], [-1.0]]
    assert w['b'].value.tolist() == [[-1.0], [-3.0]]
    optimizer.centralize = True  # the option of group a is its own
    optimizer.update(g)
    assert w['b'].value.tolist() == [[0.0], [-4.0]]


def test_stages_of_a_user_see_gradient_and_direction() -> None:
    halve = bo.Stage(lambda leaf: leaf.with_gradient(leaf.gradient / 2))
    double = bo.Stage(lambda leaf: leaf.with_direction(leaf.direction * 2), after_direction=True)
    off = bo.Stage(lambda leaf: leaf.with_gradient(leaf.gradient * 0), is_on=lambda leaf: False)
    for stages, moved in (([halve], -1.0), ([double], -4.0), ([halve, double], -2.0), ([off], -2.0)):
        w = brainstate.ParamState(jnp.zeros(()))
        bo.SGD(1.0, stages=stages).register_trainable_weights({'w': w}).update({'w': jnp.array(2.0)})
        assert float(w.value) == moved


def test_stage_with_a_slot_is_saved_and_loaded() -> None:
    def add_last(leaf: bo.Leaf) -> bo.Leaf:
        return leaf.with_gradient(leaf.gradient + leaf.stage_slots['last']).with_slot('last', leaf.gradient)

    def build() -> tuple[bo.Optimizer, brainstate.ParamState]:
        w = brainstate.ParamState(jnp.zeros(2))
        stage = bo.Stage(add_last, slot='last', init=lambda w, hp: jnp.zeros_like(w))
        return bo.SGD(1.0, stages=[stage]).register_trainable_weights({'w': w}), w

    optimizer, w = build()
    for g in (1.0, 10.0):
        optimizer.update({'w': jnp.full(2, g)})
    assert w.value.tolist() == [-12.0, -12.0]  # 1, then 10 + 1
    again, v = build()
    again.load_state_dict(optimizer.state_dict())
    again.update({'w': jnp.zeros(2)})
    assert v.value.tolist() == [-10.0, -10.0]


@pytest.mark.parametrize('wrong', [1, [1], 'x', None])
def test_stages_must_be_stages(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r'Invalid stages=.*\. Must be a sequence of Stage'):
        bo.SGD(stages=wrong)
