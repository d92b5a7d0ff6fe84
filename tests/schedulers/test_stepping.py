"""Stepping, saving and assigning the rate of a schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from tables.schedules import CASES, DISTINCT, Case, expected

import braintools_optim as bo
from braintools_optim import schedulers as s

RECORDS = np.load(Path(__file__).parents[1] / 'golden' / 'schedules.npz')
distinct_case = pytest.mark.parametrize('case', DISTINCT, ids=lambda case: case.name)
every_case = pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)


def assert_equal_rates(ours: Any, exact: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=tolerance * np.max(np.abs(exact)))


@every_case
def test_step_to_an_epoch_equals_single_steps(case: Case) -> None:
    stepped, sent, begun = case.build(), case.build(), case.build()
    for _ in range(9):
        stepped.step()
    sent.step(epoch=9)
    begun.last_epoch.value = jnp.asarray(9, jnp.int32)
    assert stepped.last_epoch.value == sent.last_epoch.value == 9
    assert stepped.get_lr() == sent.get_lr() == sent.get_last_lr() == sent.current_lrs.value == begun.get_lr()
    assert_equal_rates(stepped.get_lr(), expected(case, RECORDS)[: len(stepped.base_lrs), 9], 1e-12)


@distinct_case
def test_state_dict_round_trip(case: Case) -> None:
    schedule, fresh = case.build(), case.build()
    for _ in range(7):
        schedule.step()
    schedule.set_rate(0.05)
    schedule.step()
    fresh.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    for _ in range(30):
        np.testing.assert_allclose(fresh.get_lr(), schedule.get_lr(), rtol=1e-14)
        fresh.step()
        schedule.step()


@pytest.mark.parametrize('mult', [1, 2, 3])
def test_restarts_equal_torch(mult: int) -> None:
    stepped, sent = (s.CosineAnnealingWarmRestarts(0.1, 3, mult) for _ in range(2))
    current, length = 0, 3
    for epoch in range(1, 60):
        current += 1
        if current == length:
            current, length = 0, length * mult
        stepped.step()
        sent.step(epoch=epoch)
        for schedule in (stepped, sent):
            assert (schedule.T_cur.value, schedule.T_i.value) == (current, length)
            assert type(schedule.T_cur.value) is type(schedule.T_i.value) is int
    assert sent.state_dict()['T_cur'] == current
    assert sent.state_dict()['T_i'] == length


def test_fractional_epochs_of_warm_restarts() -> None:
    schedule, fresh = (s.CosineAnnealingWarmRestarts(1.0, 2, 2) for _ in range(2))
    weight = brainstate.ParamState(jnp.zeros(()))
    optimizer = bo.SGD(lr=schedule).register_trainable_weights({'w': weight})
    schedule.step(epoch=2.5)
    assert (schedule.last_epoch.value, schedule.T_cur.value, schedule.T_i.value) == (2, 0.5, 4)
    rate = (1 + np.cos(np.pi * 0.5 / 4)) / 2
    assert_equal_rates(schedule(), rate, 1e-14)
    optimizer.update({'w': jnp.ones(())})
    assert_equal_rates(weight.value, -rate, 1e-14)
    fresh.load_state_dict(schedule.state_dict())
    for one in (schedule, fresh):
        one.step()  # stays between two epochs
        assert (one.last_epoch.value, one.T_cur.value) == (3, 1.5)
    schedule.set_rate(0.5)
    assert schedule() == 0.5
    go_to = brainstate.transform.jit(lambda epoch: schedule.step(epoch=epoch))
    go_to(7.25)
    assert (schedule.last_epoch.value, schedule.T_cur.value, schedule.T_i.value) == (7, 1.25, 8)
    with pytest.raises(ValueError, match='epoch'):
        schedule.step(epoch=-0.5)


moved, by_hand, plateau = s.StepLR(), s.StepLR(), s.ReduceLROnPlateau()


@pytest.mark.parametrize('case', DISTINCT, ids=lambda case: case.name)
@pytest.mark.parametrize('jitted', [False, True])
def test_assigned_rate_acts_at_once_and_rescales_the_rest(case: Case, jitted: bool) -> None:
    schedule = case.build()
    optimizer = bo.SGD(schedule)
    w = brainstate.ParamState(jnp.asarray(0.0))
    optimizer.register_trainable_weights({'w': w})
    wrap = brainstate.transform.jit if jitted else lambda f: f
    move = wrap(lambda: optimizer.update({'w': jnp.asarray(-1.0)}))
    halve = wrap(lambda: optimizer.lr_apply(lambda lr: lr / 2))

    def moved() -> float:
        before = float(w.value)
        move()
        return float(w.value) - before

    for _ in range(3):
        schedule.step()
    scheduled = np.asarray(schedule.lr_at(np.arange(8)), np.float64)
    halve()
    assert moved() == pytest.approx(scheduled[3] / 2, rel=1e-12, abs=1e-15)
    wrap(lambda rate: setattr(optimizer, 'lr', rate))(0.125)
    assert moved() == pytest.approx(0.125, rel=1e-12)
    for epoch in range(4, 8):
        schedule.step()
        rest = 0.125 * scheduled[epoch] / scheduled[3] if scheduled[3] else (scheduled[epoch] or 0.125)
        assert optimizer.current_lr == pytest.approx(rest, rel=1e-12, abs=1e-15)
        assert moved() == pytest.approx(rest, rel=1e-12, abs=1e-13)


def test_parts_of_a_schedule_cannot_be_stepped() -> None:
    inner = bo.CosineAnnealingLR(0.1, 10)
    bo.WarmupScheduler(inner, 2)
    for change in (inner.step, lambda: inner.step(epoch=3), lambda: inner.set_rate(0.5)):
        with pytest.raises(ValueError, match='part of another schedule'):
            change()
