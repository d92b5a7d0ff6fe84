"""Save, load into a fresh optimizer, go on: the next step is the same step, to the bit."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import resuming
from compiling import compilations

import braintools_optim as bo


def build(make: Callable[[], bo.Optimizer], values: Any = None, groups: int = 1) -> tuple[bo.Optimizer, dict[str, Any]]:
    values = values or {
        name: {'x': np.full((2, 2), 1.5, np.float32), 'y': np.float32(i)} for i, name in enumerate('abc')
    }
    states = {name: brainstate.ParamState(jax.tree.map(jnp.asarray, value)) for name, value in values.items()}
    opt = make()
    if groups == 1:
        opt.register_trainable_weights(states)
    else:
        opt.register_trainable_weights({'a': states['a']})
        opt.add_param_group({'b': states['b']}, lr=0.3, weight_decay=0.1)
        opt.add_param_group({'c': states['c']}, lr_scale=0.5, maximize=True)
    return opt, states


def train(opt: bo.Optimizer, states: dict[str, Any], first: int, last: int) -> None:
    for t in range(first, last):
        opt.update(jax.tree.map(lambda w, t=t: jnp.sin(w + t).astype(w.dtype), {k: s.value for k, s in states.items()}))
        opt.lr.step()


def run(script: Any, *arguments: Any, **environment: str) -> list[str]:
    """The lines that another process prints."""
    path = os.pathsep.join([str(Path(bo.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, script.__file__ if hasattr(script, '__file__') else str(script), *map(str, arguments)]
    env = {**os.environ, **environment, 'PYTHONPATH': path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_runs_go_on_in_another_process(tmp_path: Path) -> None:
    """Every optimizer and schedule, one group and three, eager and compiled, float32 and bfloat16, to the bit."""
    run(resuming, 'run', tmp_path)
    assert run(resuming, 'resume', tmp_path) == [f'{name} goes on' for name, _ in resuming.runs()]


def test_on_two_devices(tmp_path: Path) -> None:
    flags = '--xla_force_host_platform_device_count=2'
    assert run(Path(__file__).with_name('sharded.py'), tmp_path, XLA_FLAGS=flags) == ['done 2']


def test_a_state_dict_is_plain_and_apart() -> None:
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


def test_loading_matches_by_path() -> None:
    opt, states = build(lambda: bo.Adam(0.1))
    train(opt, states, 0, 2)
    opt.opt_state.value = {**opt.opt_state.value, 'step': jnp.arange(6, dtype=jnp.int32)}
    again = bo.Adam(0.1).register_trainable_weights(dict(reversed(states.items())))
    again.load_state_dict(opt.state_dict())
    assert dict(zip(again.weight_names, again.opt_state.value['step'].tolist(), strict=True)) == {
        'a.x': 0, 'a.y': 1, 'b.x': 2, 'b.y': 3, 'c.x': 4, 'c.y': 5
    }  # fmt: skip


WRONG = [
    (lambda: bo.RAdam(0.1), r"optimizer: 'Adam' there, 'RAdam' here"),
    (lambda: bo.Adam(0.1, amsgrad=True), r'param_groups\.0\.amsgrad: False there.*max_exp_avg_sq.*: not there'),
    (lambda: bo.Adam(0.1, grad_clip_norm=1.0), r'param_groups\.0\.grad_clip_norm: None there'),
    (lambda: bo.Adam(bo.WarmupScheduler(0.1), weight_decay=bo.StepLR(0.1)), r'weight_decay.last_epoch.*: not there'),
]


@pytest.mark.parametrize(('make', 'match'), WRONG)
def test_what_does_not_fit_is_refused_as_a_whole(make: Callable[[], bo.Optimizer], match: str) -> None:
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


def test_what_is_a_groups_own_is_saved() -> None:
    opt, _ = build(lambda: bo.SGD(0.1), groups=3)
    other, states = build(lambda: bo.SGD(0.1))
    other = bo.SGD(0.1).register_trainable_weights({'a': states['a']})
    other.add_param_group({'b': states['b']})
    other.add_param_group({'c': states['c']}, maximize=True)
    with pytest.raises(ValueError, match='weight_decay'):  # 0 there is left out of the step, and 0.1 is not
        other.load_state_dict(opt.state_dict())
    other.param_groups[1]['weight_decay'] = 0.2
    other.load_state_dict(opt.state_dict())
    other.lr = bo.StepLR(1.0)
    assert other.get_last_lr() == [1.0, 0.3, 0.5]


def test_a_schedule_loads_all_or_nothing() -> None:
    plateau = bo.ReduceLROnPlateau(0.1)
    with pytest.raises(KeyError, match='num_bad_epochs'):
        plateau.load_state_dict({'last_epoch': 7, 'current_lrs': [0.1], 'best': 1.0})
    assert int(plateau.last_epoch.value) == 0


def test_a_memory_in_another_unit_is_refused() -> None:
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
    opt = in_unit(u.nA * u.Mohm)  # which is mV
    opt.load_state_dict(saved)
    assert opt.opt_state.value['exp_avg']['v.rest'].tolist() == [7.0, 7.0]


RULES = {'rule': lambda: bo.Adam(0.1), 'tree': lambda: bo.OptaxOptimizer(optax.adam(0.1))}


@pytest.mark.parametrize('make', RULES.values(), ids=RULES)
def test_weights_are_renamed(make: Callable[[], bo.Optimizer]) -> None:
    """Also to each other's names, to the name of a part of the memory, and to a name that is the end of another."""
    names = {'a': 'b', 'b': 'a', 'c': 'mu', 'd': 'e.d', 'e.f': 'f'}
    opt = make().register_trainable_weights({name: brainstate.ParamState(jnp.zeros(2)) for name in names})
    opt.update({name: jnp.full(2, float(i)) for i, name in enumerate(names, 1)})
    opt.opt_state.value = {**opt.opt_state.value, 'step': jnp.arange(5, dtype=jnp.int32)}
    saved = opt.state_dict()
    again = make().register_trainable_weights(
        {name: brainstate.ParamState(jnp.zeros(2)) for name in ('e.d', 'mu', 'f', 'a', 'b')}
    )
    with pytest.raises(ValueError, match=r"params: \['a', 'b', 'c', 'd', 'e\.f'\] there"):
        again.load_state_dict(saved)
    assert again.load_state_dict(saved, rename=names) == []
    found = again.state_dict()['opt_state']
    new_key = {f'.{old}': f'.{new}' for old, new in names.items()}
    for key, value in saved['opt_state'].items():
        old = max((end for end in new_key if key.endswith(end)), key=len, default='')
        np.testing.assert_array_equal(found[key.removesuffix(old) + new_key.get(old, '')], value)
    assert found.keys() != saved['opt_state'].keys()


def test_what_cannot_be_renamed() -> None:
    opt, _ = build(lambda: bo.Adam(0.1))
    before, saved = opt.state_dict(), opt.state_dict()
    for rename, match in [
        ({'z': 'a.x'}, r"there is no \['z'\] there. Must be among \['a\.x', 'a\.y'"),
        ({'a.x': 'z'}, r"there is no \['z'\] here"),
        ({'a.x': 'b.x'}, r"both 'a\.x' and 'b\.x' would be 'b\.x'"),
    ]:
        for strict in (True, False):
            with pytest.raises(ValueError, match=f'Invalid rename: {match}'):
                opt.load_state_dict(saved, strict, rename)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))


def test_all_differences_are_one_error() -> None:
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
        'settings.values.groups.0.betas.0.value: not here',
        'settings.values.groups.0.alpha.value: not there',
    ):
        assert part in str(caught.value)


def test_what_fits_is_loaded() -> None:
    """Of each weight all the memory or none, of each group its own options if it has the same weights."""
    opt, states = build(lambda: bo.Adam(0.1), groups=3)
    train(opt, states, 0, 4)
    opt.betas = (0.5, 0.6)
    values = {name: jax.tree.map(np.asarray, state.value) for name, state in states.items()}
    values['a']['x'] = np.ones((3, 3), np.float32)  # another shape; and b and d are in one group here, c in none
    values['d'] = np.ones(2, np.float32)
    others = {name: brainstate.ParamState(jax.tree.map(jnp.asarray, value)) for name, value in values.items()}
    other = bo.Adam(0.2).register_trainable_weights({'a': others['a']})
    other.add_param_group({'b': others['b'], 'd': others['d']}, lr=0.9)
    problems = other.load_state_dict(opt.state_dict(), strict=False)
    memory, saved = other.state_dict()['opt_state'], opt.state_dict()['opt_state']
    assert {key for key in memory if np.any(memory[key])} == {
        f'{slot}.{leaf}' for slot in ('step', 'exp_avg', 'exp_avg_sq') for leaf in ('a.y', 'b.x', 'b.y')
    }
    assert all(np.array_equal(memory[key], saved[key]) for key in memory if np.any(memory[key]))
    assert 'opt_state.exp_avg.a.x: float32[2, 2] there, float32[3, 3] here' in problems
    assert not any('exp_avg.b.x' in problem for problem in problems)
    assert other.param_groups[0]['betas'] == (0.5, 0.6)
    assert other.get_last_lr() == [0.1, 0.9]
    assert (other.param_groups[1]['weight_decay'], other.param_groups[1]['betas']) == (0.0, (0.9, 0.999))
    train(other, {name: others[name] for name in 'abd'}, 0, 1)  # it is whole
    assert other.load_state_dict(other.state_dict()) == []


@pytest.mark.parametrize('make', RULES.values(), ids=RULES)
def test_fewer_groups_there(make: Callable[[], bo.Optimizer]) -> None:
    opt, states = build(make)
    opt = make().register_trainable_weights({'a': states['a']})
    opt.update({'a': {'x': jnp.ones((2, 2), jnp.float32), 'y': jnp.float32(1)}})
    other, others = build(make, groups=3)
    assert other.load_state_dict(opt.state_dict(), strict=False)
    memory = other.state_dict()['opt_state']
    assert [int(memory[f'step.{name}.x']) for name in 'abc'] == [1, 0, 0]
    train(other, others, 0, 1)


def test_a_schedule_exchanged_on_the_way_is_no_difference() -> None:
    opt, states = build(lambda: bo.SGD(0.1))
    opt.lr = bo.StepLR(0.3, 2, 0.5)
    train(opt, states, 0, 3)
    again, _ = build(lambda: bo.SGD(bo.StepLR(0.3, 2, 0.5)))
    again.load_state_dict(opt.state_dict())
    assert again.current_lr == opt.current_lr == 0.15


@pytest.mark.parametrize('make', RULES.values(), ids=RULES)
def test_loading_compiles_nothing_and_keeps_what_was_given(make: Callable[[], bo.Optimizer]) -> None:
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
    assert pickle.dumps(saved) == before  # the memory's buffers are reused, what was loaded is not


def test_states_of_others_are_told_where_to_go() -> None:
    opt, _ = build(lambda: bo.Adam(0.1))
    for foreign, hint in [
        ({'state': {}, 'param_groups': []}, r"torch's: load_torch_state_dict\(state_dict, names\)"),
        ({'opt_state': (), 'step_count': 3, 'lr': 0.1}, r'braintools\.optim: load_braintools_state_dict'),
        (optax.adam(0.1).init(jnp.ones(2)), r"optax's, load_optax_state\(state\)"),
    ]:
        with pytest.raises(ValueError, match=f'Invalid format=.*{hint}'):
            opt.load_state_dict(foreign)


@pytest.mark.parametrize('optimizer', [bo.Adam, bo.ASGD, functools.partial(bo.OptaxOptimizer, None)])
def test_reset_forgets_what_is_remembered(optimizer: Callable[..., bo.Optimizer]) -> None:
    opt, states = build(lambda: optimizer(bo.StepLR(0.1, 2, 0.5), weight_decay=0.1, metrics=True), groups=3)
    train(opt, states, 0, 3)
    opt.reset()
    saved, values = opt.state_dict(), {name: jax.tree.map(np.array, state.value) for name, state in states.items()}
    new, _ = build(lambda: optimizer(bo.StepLR(0.1, 2, 0.5), weight_decay=0.1, metrics=True), values, groups=3)
    assert opt.lr.last_epoch.value == 3
    new.lr.step(3)
    assert jax.tree.all(jax.tree.map(np.array_equal, saved, new.state_dict()))
    with compilations(0):
        opt.update({name: jax.tree.map(np.ones_like, value) for name, value in values.items()})


def test_reset_of_some() -> None:
    opt, states = build(lambda: bo.Adam(0.1, grokfast=1.0, on_nonfinite='skip'), groups=3)
    with pytest.raises(ValueError, match=r"No weight is chosen by 'z'. There are: a\.x, a\.y"):
        opt.reset('z')
    train(opt, states, 0, 2)
    before = opt.state_dict()['opt_state']
    opt.reset('b.*')
    opt.reset(lambda name, weight: name.startswith('c') and weight.ndim == 0)
    after = opt.state_dict()['opt_state']
    forgotten = ('.b.x', '.b.y', '.c.y')
    for key, x in after.items():
        np.testing.assert_array_equal(x, 0 * x if key.endswith(forgotten) else before[key])
    assert int(opt.step_count.value) == 2
    with pytest.raises(ValueError, match='must be called before reset'):
        bo.Adam(0.1).reset()


def test_reset_of_what_is_remembered_together() -> None:
    opt, states = build(lambda: bo.OptaxOptimizer(optax.adam(0.1)), groups=3)
    train(opt, states, 0, 2)
    before = opt.state_dict()
    with pytest.raises(ValueError, match=r'OptaxOptimizer remembers b\.x, b\.y together. Must be reset all or none'):
        opt.reset('b.x')
    assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    opt.reset('b.*')
    memory = opt.opt_state.value
    assert [int(memory['tree'][i][0].count) for i in '012'] == [2, 0, 2]
    assert memory['step'].tolist() == [2, 2, 0, 0, 2, 2]


def test_reset_of_frozen_weights_and_of_a_function_of_the_count() -> None:
    opt, states = build(lambda: bo.Adam(optax.linear_schedule(1.0, 0.0, 10)))
    train_of = lambda: opt.update({name: jax.tree.map(jnp.ones_like, s.value) for name, s in states.items()})  # noqa: E731
    train_of()
    opt.freeze('a.*')
    opt.reset('a.*')
    assert 'exp_avg.a.x' not in opt.state_dict()['opt_state']
    assert opt.current_lr == pytest.approx(0.9)
    opt.unfreeze('a.*')
    assert not np.any(opt.state_dict()['opt_state']['exp_avg.a.x'])
    opt.reset()
    assert opt.current_lr == 1.0
    train_of()


def test_what_was_frozen_or_not_decayed_is_compared() -> None:
    opt, states = build(lambda: bo.Adam(0.1, no_decay='y'))
    train(opt, states, 0, 1)
    opt.freeze('a.x')
    other, _ = build(lambda: bo.Adam(0.1))
    with pytest.raises(ValueError, match=r'frozen of a\.x: True there, False here; decays of a\.y: False there, True'):
        other.load_state_dict(opt.state_dict())


def test_frozen_weights_resume() -> None:
    """With the memory that they had when they were frozen, or without if they had none."""
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
