"""Uses that are legitimate although they are rare: None in a State, freezing before the first update, odd names."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo


def test_state_may_hold_none() -> None:
    w = brainstate.ParamState({'w': jnp.ones(2), 'b': None})
    optimizer = bo.SGD(0.5).register_trainable_weights({'layer': w})
    optimizer.update({'layer': {'w': jnp.ones(2), 'b': None}})
    assert w.value['w'].tolist() == [0.5, 0.5]
    assert w.value['b'] is None
    optimizer.minimize(lambda: w.value['w'].sum())
    assert w.value['w'].tolist() == [0.0, 0.0]


@pytest.mark.parametrize('name', ['', 'two\nlines', 'a.b'])
def test_weights_of_any_name_can_be_frozen(name: str) -> None:
    w, v = (brainstate.ParamState(jnp.zeros(())) for _ in range(2))
    optimizer = bo.SGD(1.0).register_trainable_weights({'group': {name: w}, 'v': v} if name else w)
    optimizer.freeze(lambda own, weight: own != 'v')
    optimizer.update({'group': {name: jnp.ones(())}, 'v': jnp.ones(())} if name else jnp.ones(()))
    assert float(w.value) == 0.0
    assert float(v.value) == (-1.0 if name else 0.0)


@pytest.mark.parametrize('cls', [bo.ScheduleFreeSGD, bo.ScheduleFreeAdamW, bo.ASGD])
def test_frozen_weights_are_evaluated_as_they_are(cls: Any) -> None:
    weights = {name: brainstate.ParamState(jnp.full(2, 3.0)) for name in 'ab'}
    optimizer = cls().register_trainable_weights(weights)
    optimizer.freeze('a')
    optimizer.update({'b': jnp.ones(2)})
    with optimizer.eval_weights():
        assert weights['a'].value.tolist() == [3.0, 3.0]
    optimizer.unfreeze('a')
    optimizer.update({name: jnp.ones(2) for name in 'ab'})


@pytest.mark.parametrize('cls', [bo.Prodigy, bo.DAdaptAdamW, bo.DoG, bo.Adam])
def test_grokfast_with_a_weight_frozen_before_its_first_update(cls: Any) -> None:
    weights = {name: brainstate.ParamState(jnp.full(2, 3.0)) for name in 'ab'}
    optimizer = cls(grokfast=1.0).register_trainable_weights(weights)
    optimizer.freeze('a')
    optimizer.update({'b': jnp.ones(2)})
    assert weights['a'].value.tolist() == [3.0, 3.0]


def test_registration_inside_a_transformation_is_refused() -> None:
    weights = {name: brainstate.ParamState(jnp.zeros(2)) for name in 'ab'}
    optimizer = bo.SGD(1.0).register_trainable_weights({'a': weights['a']})
    for act in (
        lambda: optimizer.add_param_group({'b': weights['b']}),
        lambda: optimizer.register_trainable_weights({'b': weights['b']}),
    ):
        with pytest.raises(ValueError, match='cannot be registered inside a transformation'):
            brainstate.transform.jit(act)()
    optimizer.update({'a': jnp.ones(2)})
    assert weights['a'].value.tolist() == [-1.0, -1.0]


def test_callable_rate_is_refused_for_groups_with_their_own_rate() -> None:
    weights = {name: brainstate.ParamState(jnp.zeros(2)) for name in 'ab'}
    optimizer = bo.SGD(0.1).register_trainable_weights({'a': weights['a']})
    optimizer.add_param_group({'b': weights['b']}, lr=0.5)
    before = optimizer.get_last_lr()
    with pytest.raises(ValueError, match='A group cannot have an lr of its own under OptaxSchedule'):
        optimizer.lr = lambda count: 0.1 / (1 + count)
    assert optimizer.get_last_lr() == before


def test_optax_transformation_keeps_rates_and_scheduled_options() -> None:
    optimizer = bo.SGD(bo.StepLR(1.0, step_size=2, gamma=0.5), weight_decay=bo.StepLR(0.5, step_size=1, gamma=0.0))
    optimizer.lr = 0.25  # by hand: the schedule goes on in proportion
    tx = bo.to_optax(optimizer)
    params = {'w': jnp.ones(())}
    state, moves = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update({'w': jnp.ones(())}, state, params)
        moves.append(float(updates['w']))
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moves, [-0.25 * 1.5, -0.25, -0.125], rtol=1e-12)


def test_loss_scale_never_becomes_zero() -> None:
    w = brainstate.ParamState(jnp.zeros(2))
    optimizer = bo.SGD(1.0, loss_scale=bo.DynamicLossScale(1.0)).register_trainable_weights({'w': w})

    def skip(_: Any) -> None:
        optimizer.update({'w': jnp.full(2, jnp.inf)})

    with pytest.warns(RuntimeWarning, match='updates in a row'):  # noqa: PT031
        brainstate.transform.for_loop(skip, jnp.arange(400))
        optimizer.update({'w': jnp.zeros(2)})
    assert np.isfinite(w.value).all()
