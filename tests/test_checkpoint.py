"""Save, load into a fresh optimizer, go on: the next step is the same step, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resuming

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


def test_runs_go_on_in_another_process(tmp_path: Path) -> None:
    """Every optimizer and schedule, one group and three, eager and compiled, float32 and bfloat16, to the bit."""
    for what in ('run', 'resume'):
        command = [sys.executable, resuming.__file__, what, str(tmp_path)]
        path = os.pathsep.join([str(Path(bo.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, 'PYTHONPATH': path}
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f'{name} goes on' for name, _ in resuming.runs()]


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
