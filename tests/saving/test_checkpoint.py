"""A state_dict loads into a new optimizer, or is refused as a whole."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from internals import OPTIONS_PATH, set_update_counts, update_counts
from training import build, train

import braintools_optim as bo


def test_state_dict_is_plain_and_independent() -> None:
    opt, states = build(lambda: bo.Adam(0.1))
    train(opt, states, 0, 2)
    saved = opt.state_dict()
    assert {'step_count', 'lr', 'base_lr', 'param_groups', 'opt_state'} <= saved.keys()
    assert (saved['step_count'], saved['lr'], saved['base_lr']) == (2, 0.1, 0.1)
    assert saved['opt_state']['exp_avg.a.x'].shape == (2, 2)
    assert saved['opt_state']['step.a.x'] == 2
    before = json.dumps(saved, default=lambda x: x.tolist())
    train(opt, states, 2, 3)
    assert json.dumps(saved, default=lambda x: x.tolist()) == before


def test_loading_matches_weights_by_name() -> None:
    opt, states = build(lambda: bo.Adam(0.1))
    train(opt, states, 0, 2)
    set_update_counts(opt, {name: i for i, name in enumerate(opt.weight_names)})
    again = bo.Adam(0.1).register_trainable_weights(dict(reversed(states.items())))
    again.load_state_dict(opt.state_dict())
    assert update_counts(again) == {
        'a.x': 0, 'a.y': 1, 'b.x': 2, 'b.y': 3, 'c.x': 4, 'c.y': 5
    }  # fmt: skip


WRONG = [
    (lambda: bo.RAdam(0.1), r"optimizer: 'Adam' there, 'RAdam' here"),
    (lambda: bo.Adam(0.1, amsgrad=True), r'param_groups\.0\.amsgrad: False there.*max_exp_avg_sq.*: not there'),
    (lambda: bo.Adam(0.1, grad_clip_norm=1.0), r'param_groups\.0\.grad_clip_norm: None there'),
    (lambda: bo.Adam(bo.WarmupScheduler(0.1), weight_decay=bo.StepLR(0.1)), r'weight_decay.last_epoch.*: not there'),
]


@pytest.mark.parametrize(('make', 'match'), WRONG)
def test_mismatch_is_refused_as_a_whole(make: Callable[[], bo.Optimizer], match: str) -> None:
    opt, states = build(lambda: bo.Adam(0.1))
    train(opt, states, 0, 2)
    other, others = build(make)
    train(other, others, 0, 1)
    before = other.state_dict()
    with pytest.raises(ValueError, match=match):
        other.load_state_dict(opt.state_dict())
    assert jax.tree.all(jax.tree.map(np.array_equal, before, other.state_dict()))
    problems = other.load_state_dict(opt.state_dict(), strict=False)
    assert problems
    assert int(other.step_count.value) == 2


def test_shapes_dtypes_and_formats_are_checked() -> None:
    opt, _ = build(lambda: bo.Adam(0.1))
    good = opt.state_dict()
    wrong = {**good, 'opt_state': {**good['opt_state'], 'exp_avg.a.x': np.zeros(3, np.float16)}}
    with pytest.raises(ValueError, match=r'exp_avg\.a\.x: float16\[3\] there, float32\[2, 2\] here'):
        opt.load_state_dict(wrong)
    for foreign in ({}, {'format': 99}, None):
        with pytest.raises(ValueError, match='Invalid format'):
            opt.load_state_dict(foreign)
    with pytest.raises(ValueError, match='must be called before'):
        bo.Adam(0.1).load_state_dict(good)


def test_schedules_and_base_rates_are_compared() -> None:
    opt, _ = build(lambda: bo.SGD(bo.StepLR(0.1)))
    for make, match in [
        (lambda: bo.SGD(bo.StepLR(0.2)), r'base_lrs: \[0\.1\] there, \[0\.2\] here'),
        (lambda: bo.SGD(bo.CosineAnnealingLR(0.1)), "schedule: 'StepLR' there, 'CosineAnnealingLR' here"),
    ]:
        other, _ = build(make)
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"lacks \['opt_state', 'states'\]"):
        opt.load_state_dict({k: v for k, v in opt.state_dict().items() if k not in ('states', 'opt_state')})


def test_options_of_groups_are_saved() -> None:
    opt, _ = build(lambda: bo.SGD(0.1), groups=3)
    other, states = build(lambda: bo.SGD(0.1))
    other = bo.SGD(0.1).register_trainable_weights({'a': states['a']})
    other.add_param_group({'b': states['b']})
    other.add_param_group({'c': states['c']}, maximize=True)
    with pytest.raises(ValueError, match='weight_decay'):  # a decay of 0 is not part of the compiled step
        other.load_state_dict(opt.state_dict())
    other.param_groups[1]['weight_decay'] = 0.2
    other.load_state_dict(opt.state_dict())
    other.lr = bo.StepLR(1.0)
    assert other.get_last_lr() == [1.0, 0.3, 0.5]


def test_plateau_loads_all_or_nothing() -> None:
    plateau = bo.ReduceLROnPlateau(0.1)
    with pytest.raises(KeyError, match='num_bad_epochs'):
        plateau.load_state_dict({'last_epoch': 7, 'current_lrs': [0.1], 'best': 1.0})
    assert int(plateau.last_epoch.value) == 0


def test_slots_in_another_unit_are_refused() -> None:
    def in_unit(unit: Any) -> bo.Optimizer:
        weights = {'v': brainstate.ParamState({'rest': jnp.ones(2) * unit}), 'w': brainstate.ParamState(jnp.ones(2))}
        return bo.Adam(0.1).register_trainable_weights(weights)

    saved = in_unit(u.mV).state_dict()
    assert [w['unit'] for w in saved['weights'].values()] == ['mV', '1']
    saved['opt_state'] |= {'exp_avg.v.rest': np.full(2, 7.0), 'exp_avg.w': np.full(2, 8.0)}
    for other, name in [(u.volt, 'V'), (u.mA, 'mA'), (u.UNITLESS, '1')]:
        opt = in_unit(other)
        with pytest.raises(ValueError, match=rf"unit of v\.rest: 'mV' there, '{name}' here"):
            opt.load_state_dict(saved)
        assert any('unit of v.rest' in problem for problem in opt.load_state_dict(saved, strict=False))
        assert opt.opt_state.value['exp_avg']['v.rest'].tolist() == [0.0, 0.0]
        assert opt.opt_state.value['exp_avg']['w'].tolist() == [8.0, 8.0]
    opt = in_unit(u.nA * u.Mohm)  # equal to mV
    opt.load_state_dict(saved)
    assert opt.opt_state.value['exp_avg']['v.rest'].tolist() == [7.0, 7.0]


RULES = {'rule': lambda: bo.Adam(0.1), 'tree': lambda: bo.OptaxOptimizer(optax.adam(0.1))}


def test_all_differences_are_in_one_error() -> None:
    opt, states = build(lambda: bo.Adam(0.1), groups=3)
    other = bo.RMSprop(bo.ExponentialLR(0.2), centered=True).register_trainable_weights({'a': states['a']})
    other.add_param_group({'b': states['b'], 'd': brainstate.ParamState(jnp.ones(2))})
    with pytest.raises(ValueError, match='does not fit') as caught:
        other.load_state_dict(opt.state_dict())
    for part in (
        "optimizer: 'Adam' there, 'RMSprop' here",
        "schedule: 'ConstantLR' there, 'ExponentialLR' here",
        'base_lrs: [0.1] there, [0.2] here',
        'param_groups: 3 there, 2 here',
        "param_groups.1.params: ['b.x', 'b.y'] there, ['b.x', 'b.y', 'd'] here",
        'param_groups.0.centered: None there, True here',
        'opt_state.square_avg.d: not there',
        'opt_state.step.d: not there',
        'opt_state.exp_avg.c.x: not here',
        f'{OPTIONS_PATH}.groups.0.betas.0.value: not here',
        f'{OPTIONS_PATH}.groups.0.alpha.value: not there',
    ):
        assert part in str(caught.value)


def test_schedule_assigned_during_the_run_is_compared() -> None:
    opt, states = build(lambda: bo.SGD(0.1))
    opt.lr = bo.StepLR(0.3, 2, 0.5)
    train(opt, states, 0, 3)
    again, _ = build(lambda: bo.SGD(bo.StepLR(0.3, 2, 0.5)))
    again.load_state_dict(opt.state_dict())
    assert again.current_lr == opt.current_lr == 0.15


@pytest.mark.parametrize('make', RULES.values(), ids=RULES)
def test_loading_compiles_nothing_and_keeps_the_given_dict(make: Callable[[], bo.Optimizer]) -> None:
    opt, states = build(make, groups=3)
    train(opt, states, 0, 2)
    saved = opt.state_dict()
    before = pickle.dumps(saved)
    gradients = {name: jax.tree.map(jnp.ones_like, state.value) for name, state in states.items()}
    opt.load_state_dict(saved)
    opt.update(gradients)
    with compilations(0):
        opt.load_state_dict(saved)
        for _ in range(2):
            opt.update(gradients)
    assert pickle.dumps(saved) == before  # the loaded arrays are not donated


def test_foreign_states_are_refused_with_the_function_to_use() -> None:
    opt, _ = build(lambda: bo.Adam(0.1))
    for foreign, hint in [
        ({'state': {}, 'param_groups': []}, r"torch's: load_torch_state_dict\(state_dict, names\)"),
        ({'opt_state': (), 'step_count': 3, 'lr': 0.1}, r'braintools\.optim: load_braintools_state_dict'),
        (optax.adam(0.1).init(jnp.ones(2)), r"optax's, load_optax_state\(state\)"),
    ]:
        with pytest.raises(ValueError, match=f'Invalid format=.*{hint}'):
            opt.load_state_dict(foreign)


def test_frozen_and_undecayed_weights_are_compared() -> None:
    opt, states = build(lambda: bo.Adam(0.1, no_decay='y'))
    train(opt, states, 0, 1)
    opt.freeze('a.x')
    other, _ = build(lambda: bo.Adam(0.1))
    with pytest.raises(ValueError, match=r'frozen of a\.x: True there, False here; decays of a\.y: False there, True'):
        other.load_state_dict(opt.state_dict())


def test_frozen_weights_resume() -> None:
    """Frozen weights resume with the slots that they had when they were frozen, if any."""
    opt, states = build(lambda: bo.Adam(0.1))
    opt.freeze('b.*')
    train(opt, states, 0, 1)
    opt.freeze('a.*')
    train(opt, states, 1, 2)
    saved = opt.state_dict()
    for trained in (False, True):
        again, others = build(lambda: bo.Adam(0.1))
        if trained:
            train(again, others, 0, 1)
        for name in 'ab':
            again.freeze(f'{name}.*')
        assert again.load_state_dict(saved) == []
        assert jax.tree.all(jax.tree.map(np.array_equal, saved, again.state_dict()))
    for one, weights in ((opt, states), (again, others)):
        one.unfreeze('*')
        for name, state in weights.items():
            state.value = jax.tree.map(lambda x, name=name: jnp.full_like(x, ord(name)), state.value)
        train(one, weights, 2, 4)
    for name in states:
        jax.tree.map(np.testing.assert_array_equal, states[name].value, others[name].value)


def test_run_with_an_assigned_schedule_resumes() -> None:
    w = {'w': brainstate.ParamState(jnp.ones(2))}
    exchanged, fresh = bo.SGD(0.1).register_trainable_weights(w), bo.SGD(bo.StepLR(0.2)).register_trainable_weights(w)
    exchanged.lr = bo.StepLR(0.2)
    assert fresh.load_state_dict(exchanged.state_dict()) == []
