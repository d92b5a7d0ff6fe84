"""The learning rate as a number, a function or a schedule."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import optax
import pytest
from one_weight import moved, one_weight

import braintools_optim as bo

NAN = float('nan')


def test_assigned_rate_moves_all_groups_in_proportion() -> None:
    opt = bo.SGD(bo.StepLR(0.1, 1, 0.5))
    a, b = (brainstate.ParamState(jnp.asarray(0.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, lr=0.4)
    opt.param_groups[0]['lr'] = 0.2
    assert opt.get_last_lr() == [0.2, 0.4]
    opt.current_lr = 0.1
    assert opt.get_last_lr() == [0.1, 0.2]
    opt.lr_apply(lambda lr: 3 * lr)
    assert opt.get_last_lr() == [pytest.approx(0.3), pytest.approx(0.6)]
    opt.param_groups[0]['lr_scale'] = 0.0
    with pytest.raises(ValueError, match='lr_scale of 0'):
        opt.lr = 0.1


def test_callable_follows_the_update_count() -> None:
    opt = bo.SGD(optax.linear_schedule(1.0, 0.0, 4))
    w = one_weight(opt)
    for expected in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        assert opt.current_lr == expected
        assert moved(opt, w) == pytest.approx(expected)
    with pytest.raises(TypeError, match='cannot be stepped'):
        opt.lr.step()
    with pytest.raises(ValueError, match='one optimizer'):
        bo.SGD(opt.lr)
    with pytest.raises(ValueError, match='lr_scale'):
        opt.add_param_group({'v': brainstate.ParamState(jnp.zeros(1))}, lr=0.1)


def test_lr_at_of_a_schedule_follows_the_update_count() -> None:
    opt = bo.SGD(bo.StepLR(1.0, 2, 0.5).lr_at)
    w = one_weight(opt)
    assert [moved(opt, w) for _ in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_assigned_rate_rescales_the_schedule() -> None:
    schedule = bo.StepLR(1.0, 1, 0.5)
    opt = bo.SGD(schedule)
    w = one_weight(opt)
    opt.lr = 0.25
    assert opt.current_lr == float(opt.lr) == schedule.current_lrs.value[0] == moved(opt, w) == 0.25
    schedule.step()
    assert opt.current_lr == moved(opt, w) == 0.125
    brainstate.transform.jit(lambda rate: setattr(opt, 'lr', rate))(0.5)
    assert opt.current_lr == moved(opt, w) == 0.5
    schedule.step()
    assert opt.current_lr == moved(opt, w) == 0.25
    for wrong in (-1.0, NAN):
        with pytest.raises(ValueError, match='Invalid lr'):
            opt.lr = wrong
    assert opt.current_lr == 0.25


def test_rate_assigned_where_the_schedule_is_zero() -> None:
    opt = bo.SGD(bo.WarmupScheduler(1.0, 4))
    w = one_weight(opt)
    opt.lr = 0.5
    assert opt.current_lr == moved(opt, w) == 0.5
    opt.lr.step()
    assert opt.current_lr == moved(opt, w) == 0.25
    opt.lr = 0.0
    assert moved(opt, w) == 0.0


def test_two_optimizers_share_a_schedule() -> None:
    schedule = bo.StepLR(1.0, 1, 0.5)
    opts = [bo.SGD(schedule), bo.SGD(schedule)]
    weights = [one_weight(opt) for opt in opts]
    schedule.step()
    assert [opt.current_lr for opt in opts] == [moved(o, w) for o, w in zip(opts, weights, strict=True)] == [0.5, 0.5]


def test_methods_of_a_schedule() -> None:
    schedule = bo.StepLR(0.1, 2, 0.5, last_epoch=-1)
    assert schedule.get_lr() == schedule.get_last_lr() == [0.1]
    assert schedule() == 0.1
    assert schedule(4) == pytest.approx(0.025)
    schedule.step_epoch()
    schedule.step(epoch=4)
    assert int(schedule.last_epoch.value) == 4
    assert schedule.get_lr() == [pytest.approx(0.025)]
    schedule.apply(lambda lr: lr * 2)
    restored = bo.StepLR(0.1, 2, 0.5)
    restored.load_state_dict(schedule.state_dict())
    assert restored.get_lr() == schedule.get_lr() == [pytest.approx(0.05)]
    opt = bo.SGD(1.0)
    schedule.attach_optimizer(opt)
    assert opt.lr is opt.lr_scheduler is schedule
    with pytest.raises(TypeError, match='OptaxOptimizer'):
        schedule.attach_optimizer('x')
    with pytest.raises(ValueError, match='gamma of a schedule is fixed'):
        schedule.gamma = 0.9
    with pytest.raises(TypeError, match='Invalid epoch'):
        schedule.step(epoch='now')
    assert repr(schedule) == 'StepLR(0.1, step_size=2, gamma=0.5; epoch 4, lr 0.05)'


def test_plateau_lists_the_base_rates_of_groups() -> None:
    opt = bo.SGD(bo.ReduceLROnPlateau([0.1, 1.0], factor=0.1, patience=0, min_lr=0.01))
    a, b, c = (brainstate.ParamState(jnp.asarray(0.0)) for _ in range(3))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b})
    opt.add_param_group({'c': c}, lr=0.5)
    assert opt.get_last_lr() == pytest.approx([0.1, 1.0, 0.5])
    for _ in range(6):
        opt.lr.step(1.0)
    assert opt.get_last_lr() == pytest.approx([0.01, 0.01, 0.01])
