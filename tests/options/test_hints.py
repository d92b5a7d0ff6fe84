"""Calls that are right in another library raise an error that names the call to make here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax.numpy as jnp
import numpy as np
import pytest
from models import FOUR_LEAVES, all_values, assert_same, four_gradients, four_leaves, gradients_by_name

import braintools_optim as bo

MODULE = brainstate.nn.Linear(2, 2)
STATES = MODULE.states(brainstate.ParamState)
STATE = brainstate.ParamState(jnp.ones(2))
TO_REGISTER = r'Weights go to register_trainable_weights\.'
FROM_MODULE = r'Give the States of the module: model\.states\(brainstate\.ParamState\)'


@pytest.mark.parametrize(
    ('call', 'error', 'hint'),
    [
        (lambda: bo.Adam(learning_rate=0.1), TypeError, "no option .'learning_rate'.*Did you mean 'lr'"),
        (lambda: bo.Adam(weigth_decay=0.1), TypeError, "Did you mean 'weight_decay'"),
        (lambda: bo.Adam(grad_clip=1.0), TypeError, "Did you mean 'grad_clip_norm'"),
        (lambda: bo.Adam(clipvalue=1.0), TypeError, "Did you mean 'grad_clip_value'"),
        (lambda: bo.SGD(b1=0.9), TypeError, r"no option \['b1'\]\. Must be among"),  # SGD has no betas
        (lambda: bo.Adam(params=STATES), TypeError, TO_REGISTER),
        (lambda: bo.Adam(STATES), TypeError, TO_REGISTER),
        (lambda: bo.Adam(STATES, lr=0.1), TypeError, TO_REGISTER),
        (lambda: bo.Adam([STATE], lr=0.1), TypeError, TO_REGISTER),
        (lambda: bo.Adam(STATE), TypeError, TO_REGISTER),
        (lambda: bo.Adam(MODULE), TypeError, TO_REGISTER),
        (lambda: bo.StepLR(bo.Adam(0.1)), TypeError, r'An optimizer takes its schedule, .* Adam\(lr=StepLR'),
        (lambda: bo.StepLR(bo.Adam(0.1), step_size=30), TypeError, 'An optimizer takes its schedule'),
        (lambda: bo.Adam(lr=bo.StepLR), TypeError, r'StepLR is a class. Give an instance: StepLR\(\.\.\.\)'),
        (lambda: bo.Adam().register_trainable_weights(MODULE), TypeError, FROM_MODULE),
        (lambda: bo.Adam().register_trainable_weights({'a': MODULE}), TypeError, f'a is Linear.*{FROM_MODULE}'),
        (lambda: bo.Adam().zero_grad(), AttributeError, "no attribute 'zero_grad'. There are no gradients to reset"),
        (lambda: bo.Adam().init(STATES), AttributeError, r'register_trainable_weights\(states\) takes the place'),
        (lambda: bo.Adam().update({'w': jnp.ones(2)}), ValueError, r'must be called before update\.'),
        (lambda: bo.Adam().step({'w': jnp.ones(2)}), ValueError, r'must be called before step\.'),
        (lambda: bo.Adam().minimize(lambda: 0.0), ValueError, r'must be called before minimize\.'),
    ],
)
def test_error_names_the_call_to_make(call: Callable[[], Any], error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=re.compile(hint, re.DOTALL)):
        call()


def test_whole_number_as_learning_rate_of_a_schedule_warns() -> None:
    with pytest.warns(UserWarning, match='CosineAnnealingLR has the learning rate 100: .* T_max is the second'):
        bo.CosineAnnealingLR(100)
    assert bo.CosineAnnealingLR(100.0)() == 100.0
    assert bo.StepLR(1)() == bo.SGD(lr=2).current_lr - 1 == 1


def test_loss_with_a_unit_is_refused_by_name() -> None:
    v = brainstate.ParamState(jnp.array(-60.0) * u.mV)
    optimizer = bo.SGD(0.1).register_trainable_weights({'v': v})
    with pytest.raises(TypeError, match=r'Invalid loss_fn\..*without a unit, not one in mV\^2'):
        optimizer.minimize(lambda: (v.value + 65 * u.mV) ** 2)
    optimizer.minimize(lambda: ((v.value + 65 * u.mV) / u.mV) ** 2)
    assert v.value == -61 * u.mV


@pytest.mark.parametrize('way', ['update', 'minimize', 'jit'])
def test_deleted_array_is_named(way: str) -> None:
    w, free = brainstate.ParamState(jnp.ones(2)), brainstate.ParamState(jnp.ones(3))
    optimizer = bo.SGD(0.1, momentum=0.9).register_trainable_weights({'cell': {'w': w, 'free': free}})
    optimizer.donate_weights = True
    gradients = {'cell': {'w': jnp.ones(2), 'free': jnp.ones(3)}}
    loss = lambda: (w.value**2).sum()  # noqa: E731
    jitted = bo.jit(lambda: optimizer.update(gradients))
    run = {'update': lambda: optimizer.update(gradients), 'minimize': lambda: optimizer.minimize(loss), 'jit': jitted}
    old = w.value
    run[way]()
    assert old.is_deleted()
    new, w.value = w.value, old
    name = r'cell\.w' if way == 'update' else r'a ParamState of shape \(2,\)'
    with pytest.raises(RuntimeError, match=f'The array of {name} has been deleted'):
        run[way]()
    w.value = new
    run[way]()


def test_gradients_may_be_keyed_by_the_names_of_the_weights() -> None:
    usual, named = four_leaves(), four_leaves()
    bo.Adam(0.1).register_trainable_weights(usual).update(four_gradients(0))
    optimizer = bo.Adam(0.1).register_trainable_weights(named)
    optimizer.update({name: gradients_by_name(0)[name] for name in optimizer.weight_names})
    assert_same(all_values(usual), all_values(named))
    before = all_values(named)
    without = {name: g for name, g in gradients_by_name(1).items() if name != 'a.bias'}
    with pytest.raises(KeyError, match=r'missing or None: a\.bias(?!.*not registered)'):
        optimizer.update(without)
    with pytest.raises(KeyError, match=r'missing or None: a\.bias(?!.*not registered)'):
        optimizer.update({**without, 'a.bias': None})
    with pytest.raises(ValueError, match=r'The gradients of a\.weight are given twice'):
        optimizer.update({**four_gradients(1), ('a.weight',): jnp.ones((2, 2))})
    with pytest.raises((TypeError, ValueError), match=r'a\.bias'):
        optimizer.update({**without, 'a.bias': jnp.ones(3)})
    assert_same(before, all_values(named))


def test_string_beside_tuples_as_keys_of_gradients() -> None:
    usual, mixed = four_leaves(), four_leaves()
    bo.Adam(0.1).register_trainable_weights(usual).update(four_gradients(0))
    optimizer = bo.Adam(0.1).register_trainable_weights(mixed)
    with pytest.raises(KeyError, match='not registered: x'):
        optimizer.update({**four_gradients(0), 'x': jnp.ones(2)})
    gradients = four_gradients(0)
    gradients['b'] = gradients.pop(('b',))
    optimizer.update(gradients)
    assert_same(all_values(usual), all_values(mixed))
    assert optimizer.step_count.value == 1


def test_values_are_shown() -> None:
    schedule = bo.StepLR(0.1, step_size=2, gamma=0.5)
    schedule.step()
    assert repr(schedule.last_epoch) == 'Epoch(1)'
    optimizer = bo.Adam(schedule, weight_decay=0.1, betas=(0.8, 0.999), grad_clip_norm=1.0)
    optimizer.register_trainable_weights(four_leaves())
    assert repr(optimizer) == (
        'Adam(lr=StepLR(0.1, step_size=2, gamma=0.5; epoch 1, lr 0.1), '
        'betas=(0.8, 0.999), weight_decay=0.1, grad_clip_norm=1.0)'
    )
    assert set(FOUR_LEAVES) == set(optimizer.weight_names)
    assert np.shape(schedule.last_epoch.value) == ()
