"""ReduceLROnPlateau."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.record_schedules import torch_plateau
from tables.schedules import EPOCHS, PLATEAUS, Plateau

import braintools_optim as bo
from braintools_optim import schedulers as s

RECORDS = np.load(Path(__file__).parents[1] / 'golden' / 'schedules.npz')
EVERY = np.arange(EPOCHS)
every_plateau = pytest.mark.parametrize('case', PLATEAUS, ids=lambda case: case.name)
needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')


def assert_equal_rates(ours: Any, exact: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=tolerance * np.max(np.abs(exact)))


def plateau_paths(case: Plateau, metrics: np.ndarray) -> np.ndarray:
    def run(sequence: Any) -> Any:
        schedule = s.ReduceLROnPlateau(0.1, **dict(case.options))

        def follow(metric: Any) -> Any:
            schedule.step(metric)
            return schedule()

        return brainstate.transform.for_loop(follow, sequence)

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(metrics)))


@every_plateau
def test_plateau_equals_torch(case: Plateau) -> None:
    metrics, exact = case.metrics(), RECORDS[f'{case.name}/rates']
    assert np.mean(exact[:, -1] < 0.1) > 0.5
    np.testing.assert_allclose(plateau_paths(case, metrics), exact, rtol=1e-12)
    schedule = s.ReduceLROnPlateau(0.1, **dict(case.options))
    for metric, rate in zip(metrics[0, :20], exact[0], strict=False):
        schedule.step(metric=metric)
        np.testing.assert_allclose(schedule(), rate, rtol=1e-12)


@needs_torch
@every_plateau
def test_recorded_plateaus_equal_torch(case: Plateau) -> None:
    np.testing.assert_array_equal(RECORDS[f'{case.name}/rates'], torch_plateau(case))


def test_plateau_of_negative_metrics() -> None:
    """The relative threshold is a fraction of the metric's size, for negative metrics too."""
    low, high = (Plateau((('mode', mode), ('patience', 2), ('threshold', 0.1)), True) for mode in ('min', 'max'))
    metrics = low.metrics()
    np.testing.assert_array_equal(plateau_paths(high, -metrics), plateau_paths(low, metrics))
    np.testing.assert_array_equal(plateau_paths(low, -metrics), plateau_paths(high, metrics))
    schedule = s.ReduceLROnPlateau(1.0, factor=0.5, patience=0)
    schedule.step(-1.0)
    schedule.step(-1.0)
    assert schedule() == 0.5


def test_plateau_of_nan() -> None:
    schedule = s.ReduceLROnPlateau(1.0, factor=0.5, patience=1)
    for _ in range(2):
        schedule.step(jnp.nan)
    assert (schedule(), schedule.best.value) == (0.5, np.inf)
    schedule.step(3.0)
    schedule.step(np.nan)
    assert (schedule(), schedule.best.value, schedule.num_bad_epochs.value) == (0.5, 3.0, 1)


def test_plateau_of_groups() -> None:
    schedule = s.ReduceLROnPlateau([0.4, 0.2], factor=0.5, patience=0, min_lr=[0.05, 0.15])
    rates = []
    for _ in range(5):
        schedule.step(1.0)
        rates.append(schedule.get_lr())
    np.testing.assert_allclose(rates, [[0.4, 0.2], [0.2, 0.15], [0.1, 0.15], [0.05, 0.15], [0.05, 0.15]], rtol=1e-12)
    assert s.ReduceLROnPlateau(0.4, min_lr=[0.1, 0.2]).get_lr() == [0.4, 0.4]


@pytest.mark.parametrize('how', ['eager', 'jit', 'for_loop'])
def test_plateau_applies_the_reported_rate(how: str) -> None:
    case = Plateau((('mode', 'min'), ('factor', 0.5), ('patience', 3), ('threshold_mode', 'rel'), ('threshold', 0.1)))
    metrics = Plateau(case.options, positive=True).metrics()[0]
    weight = brainstate.ParamState(jnp.zeros(()))
    optimizer = bo.SGD(lr=s.ReduceLROnPlateau(0.1, **dict(case.options))).register_trainable_weights({'w': weight})

    def epoch(metric: Any) -> Any:
        before = weight.value
        optimizer.update({'w': jnp.ones(())})
        optimizer.lr.step(metric)
        return before - weight.value, optimizer.current_lr

    if how == 'for_loop':
        applied, reported = brainstate.transform.for_loop(epoch, jnp.asarray(metrics))
    else:
        run = brainstate.transform.jit(epoch) if how == 'jit' else epoch
        applied, reported = np.array([run(jnp.asarray(metric)) for metric in metrics], float).T
    exact = RECORDS[f'{case.name}/rates'][0]
    assert_equal_rates(reported, exact, 1e-12)
    assert_equal_rates(applied, np.array([0.1, *exact[:-1]]), 1e-12)


def test_plateau_around_a_schedule() -> None:
    inner = s.SequentialLR([s.LinearLR(0.4, 0.25, 1.0, 3), s.ExponentialLR(0.4, 0.5)], [4])
    curve = np.asarray(inner.lr_at(EVERY))
    schedule = s.ReduceLROnPlateau(inner, factor=0.5, patience=1, min_lr=0.01)
    assert schedule() == curve[0]
    for epoch, metric in enumerate([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], 1):
        schedule.step(metric)
        factor = 1.0 if epoch < 3 else 0.5 if epoch < 6 else 0.25
        assert_equal_rates(schedule(), factor * curve[epoch], 1e-12)
    schedule.step(epoch=9)
    assert_equal_rates(schedule(), 0.01, 1e-12)  # min_lr, or the schedule's rate if that is lower
    schedule.step(epoch=12)
    assert_equal_rates(schedule(), curve[12], 1e-12)


def test_assigned_rate_is_reduced_from_there() -> None:
    schedule = s.ReduceLROnPlateau(0.4, factor=0.5, patience=0, min_lr=0.15)
    for _ in range(4):
        schedule.step(1.0)
    assert schedule() == 0.15
    schedule.set_rate(1.0)
    assert schedule() == 1.0
    schedule.step(1.0)
    assert schedule() == 0.5
    schedule.set_rate(0.0)
    assert schedule() == 0.0


def test_state_dict_of_plateau() -> None:
    schedule, fresh = (s.ReduceLROnPlateau([0.4, 0.2], factor=0.5, patience=1, cooldown=2) for _ in range(2))
    for metric in (1.0, 1.0, 1.0, 0.5):
        schedule.step(metric)
    state = json.loads(json.dumps(schedule.state_dict()))
    assert {'best': 0.5, 'num_bad_epochs': 0, 'cooldown_counter': 1, 'last_epoch': 4}.items() <= state.items()
    fresh.load_state_dict(state)
    for _ in range(9):
        assert fresh.state_dict() == schedule.state_dict()
        fresh.step(1.0)
        schedule.step(1.0)


NAN, INF = float('nan'), float('inf')


def test_plateau_loads_a_state_dict_completely_or_not() -> None:
    """The loaded values differ from the present ones, so a partial load would show."""
    good = {'last_epoch': 5, 'best': 0.5, 'num_bad_epochs': 2, 'cooldown_counter': 1, 'reduction': [0.1]}
    for changes, error, match in [
        ({'last_epoch': -2}, ValueError, 'Invalid last_epoch=-2'),
        ({'last_epoch': None}, TypeError, 'Invalid last_epoch=None'),
        ({'manual': {}}, ValueError, r"Invalid manual=\{\} of a state_dict. Must have 'rate' and 'reference'"),
        ({'manual': 3}, ValueError, 'Invalid manual=3'),
        ({'manual': {'rate': NAN, 'reference': 1.0}}, ValueError, 'Invalid rate=nan'),
        ({'manual': {'rate': 'x', 'reference': 1.0}}, TypeError, "Invalid rate='x'"),
        ({'best': 'x'}, TypeError, "Invalid best='x'"),
        ({'num_bad_epochs': -1}, ValueError, 'Invalid num_bad_epochs=-1'),
        ({'cooldown_counter': 0.5}, TypeError, r'Invalid cooldown_counter=0\.5'),
        ({'reduction': [0.1, 0.2]}, ValueError, r'Invalid reduction=\[0\.1, 0\.2\]. Must be 1 numbers'),
        ({'reduction': 0.1}, TypeError, r'Invalid reduction=0\.1'),
    ]:
        schedule = bo.ReduceLROnPlateau(0.1)
        before = schedule.state_dict()
        with pytest.raises(error, match=match):
            schedule.load_state_dict({**good, **changes})
        assert schedule.state_dict() == before
    schedule.load_state_dict(good)
    assert schedule.state_dict()['reduction'] == [pytest.approx(0.1)]


@pytest.mark.parametrize('metric', ['x', None, {}, [1.0, 2.0], jnp.ones(2), 1 * u.mV])
def test_wrong_metrics_are_refused(metric: Any) -> None:
    schedule = bo.ReduceLROnPlateau(0.1)
    with pytest.raises((TypeError, ValueError), match='metric'):
        schedule.step(metric)
    assert int(schedule.last_epoch.value) == 0
