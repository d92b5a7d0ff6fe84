"""What is easily forgotten is noticed: a schedule that is never stepped, and States that are no weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import brainstate
import jax.numpy as jnp
import pytest
from helpers import registered

import braintools_optim as bo

G = {'w': jnp.ones(2)}


def warned(lr: Any, way: str = 'update', each: Callable[[bo.Optimizer], Any] = lambda o: None, calls: int = 250) -> Any:
    """Return the texts of the warnings of some eager updates."""
    optimizer = bo.SGD(lr)
    w = registered(optimizer, w=jnp.ones(2))['w']
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(calls):
            optimizer.update(G) if way == 'update' else optimizer.minimize(lambda: jnp.sum(w.value))
            each(optimizer)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize('way', ['update', 'minimize'])
def test_warmup_that_is_never_stepped(way: str) -> None:
    (text,) = warned(bo.WarmupScheduler(0.1, 5), way)
    assert text == (
        '100 updates had the learning rate 0, because the WarmupScheduler was never stepped. '
        'Call optimizer.lr.step() after each update or epoch.'
    )
    assert len(warned(bo.SequentialLR([bo.WarmupScheduler(0.1, 5), bo.ConstantLR(0.1)], [5]))) == 1
    assert warned(bo.WarmupScheduler(0.1, 5), way, calls=99) == []


@pytest.mark.parametrize(
    ('lr', 'each'),
    [
        (lambda: bo.WarmupScheduler(0.1, 5), lambda o: o.lr.step()),
        (lambda: bo.WarmupScheduler(0.1, 5, warmup_start_lr=0.01), lambda o: None),
        (lambda: bo.WarmupScheduler(0.1, 5), lambda o: setattr(o, 'lr', 0.1)),
        (lambda: bo.WarmupScheduler(0.1, 5).lr_at, lambda o: None),
        (lambda: 0.0, lambda o: None),
        (lambda: bo.StepLR(0.1), lambda o: setattr(o, 'lr', 0.0)),
    ],
    ids=['stepped', 'starts above 0', 'rate by hand', 'function of the count', 'constant 0', '0 by hand'],
)
def test_other_schedules_do_not_warn(lr: Any, each: Any) -> None:
    assert warned(lr(), each=each, calls=120) == []


def test_states_that_are_not_weights_are_named() -> None:
    norm = brainstate.nn.BatchNorm1d((4, 3))
    optimizer = bo.SGD(0.1)
    with pytest.warns(UserWarning, match='These States are not ParamStates') as caught:
        optimizer.register_trainable_weights(norm.states())
    (warning,) = caught
    assert warning.filename == __file__
    listed = str(warning.message).partition('trained: ')[2].partition('. Register')[0]
    assert [entry.partition(' (')[0] for entry in listed.split('; ')] == ['running_mean', 'running_var']
    cell = brainstate.nn.LSTMCell(2, 3)
    cell.init_state()
    with pytest.warns(UserWarning, match=r'c \(HiddenState\); h \(HiddenState\)'):
        bo.SGD(0.1).register_trainable_weights(cell.states())
    with pytest.warns(UserWarning, match=r'trained: mean \(State\)\. Register'):
        optimizer.add_param_group({'mean': brainstate.State(jnp.zeros(2)), 'v': brainstate.ParamState(jnp.zeros(2))})


def test_weights_alone_do_not_warn() -> None:
    class Conductance(brainstate.ParamState):
        pass

    model = brainstate.nn.Sequential(brainstate.nn.Linear(2, 4), brainstate.nn.BatchNorm1d((4, 3)))
    optimizer = bo.SGD(0.1).register_trainable_weights(model.states(brainstate.ParamState))
    optimizer.add_param_group({'g': Conductance(jnp.ones(2))})
