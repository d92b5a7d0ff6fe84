"""Schedules are what they should be at every epoch, traced or not, and what an optimizer applies."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.record_schedules import torch_plateau, torch_schedule
from schedule_table import CASES, DISTINCT, EPOCHS, PLATEAUS, STEPS, Case, Plateau, damp, expected, half
from table import thinned

import braintools_optim as bo
from braintools_optim import schedulers as s

RECORDS = np.load(Path(__file__).parent / 'golden' / 'schedules.npz')
EVERY = np.arange(EPOCHS)
distinct_case = pytest.mark.parametrize('case', DISTINCT, ids=lambda case: case.name)
every_case = pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
every_plateau = pytest.mark.parametrize('case', PLATEAUS, ids=lambda case: case.name)
needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')


def curves(case: Case) -> np.ndarray:
    schedule = case.build()
    return np.stack([schedule.lr_at(EVERY, group=group) for group in range(len(case.base))])


def assert_equal_rates(ours: Any, exact: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=tolerance * np.max(np.abs(exact)))


# values


@every_case
def test_values(case: Case) -> None:
    assert_equal_rates(curves(case), expected(case, RECORDS), 1e-12)


@every_case
@pytest.mark.usefixtures('float32')
def test_values_in_float32(case: Case) -> None:
    ours = curves(case)
    assert ours.dtype == np.float32
    exact = expected(case, RECORDS)
    assert np.max(np.abs(ours - exact)) <= 1e-6 * np.max(exact)


@needs_torch
@pytest.mark.parametrize('case', [case for case in CASES if case.torch is not None], ids=lambda case: case.name)
def test_the_records_are_torchs(case: Case) -> None:
    rates, momentums = torch_schedule(case)
    assert_equal_rates(RECORDS[f'{case.name}/rates'], rates, 1e-14)
    assert_equal_rates(RECORDS[f'{case.name}/momenta'], momentums, 1e-14)


@pytest.mark.parametrize(
    'case', [case for case in CASES if getattr(case.build(), 'cycle_momentum', False)], ids=lambda case: case.name
)
def test_momentum(case: Case) -> None:
    schedule, exact = case.build(), RECORDS[f'{case.name}/momenta']
    ours = np.stack([jax.jit(schedule.momentum_at, static_argnums=1)(EVERY, g) for g in range(len(case.base))])
    assert_equal_rates(ours, exact, 1e-12)


def test_momentum_that_is_not_cycled() -> None:
    with pytest.raises(ValueError, match='cycle_momentum=True'):
        s.CyclicLR().momentum_at(0)


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (s.ExponentialDecayLR(0.1, 7, 0.9, 5, True, 0.06), optax.exponential_decay(0.1, 7, 0.9, 5, True, 0.06)),
        (s.ExponentialDecayLR(0.1, 7, 1.1, 5), optax.exponential_decay(0.1, 7, 1.1, 5)),
        (s.PolynomialLR(0.1, 30, 3.0), optax.polynomial_schedule(0.1, 0.0, 3.0, 30)),
        (s.WarmupCosineSchedule(0.1, 10, 50, 0.01), optax.warmup_cosine_decay_schedule(0.01, 0.1, 10, 50)),
        (s.SequentialLR([s.LambdaLR(0.1, half), s.StepLR(0.1, 3)], [9]), None),
    ],
)
def test_optax_has_the_same(ours: s.LRScheduler, theirs: Callable[[Any], Any] | None) -> None:
    if theirs is None:
        theirs = optax.join_schedules([s.LambdaLR(0.1, half).lr_at, s.StepLR(0.1, 3).lr_at], [9])
    assert_equal_rates(ours.lr_at(EVERY), np.array([theirs(jnp.asarray(e)) for e in EVERY]), 1e-6)


# one pure function


@thinned(CASES)
def test_a_curve_is_its_points(case: Case) -> None:
    schedule = case.build()
    curve = schedule.lr_at(EVERY)
    assert schedule.lr_at(7).shape == ()
    assert_equal_rates([schedule(epoch) for epoch in EVERY[::25]], curve[::25], 1e-14)
    assert_equal_rates(schedule.lr_at(EVERY.tolist()), curve, 0.0)
    assert_equal_rates(jax.jit(schedule.lr_at)(EVERY.astype(np.int32)), curve, 1e-14)
    assert_equal_rates(jax.jit(jax.vmap(schedule.lr_at))(EVERY.astype(float)), curve, 1e-14)


@distinct_case
def test_numbers_and_derivatives_are_finite_everywhere(case: Case) -> None:
    schedule = case.build()
    epochs = jnp.concatenate([jnp.arange(0, 2 * EPOCHS, 0.5), jnp.array([1e6])])
    assert np.isfinite(jax.jit(schedule.lr_at)(epochs)).all()
    with_base = jax.jit(jax.vmap(jax.grad(schedule.lr_at, argnums=1), in_axes=(0, None)))
    assert np.isfinite(with_base(EVERY.astype(float), schedule.base_lrs[0])).all()
    if 'MultiplicativeLR' not in case.name:  # a loop over epochs has no derivative by their number
        assert np.isfinite(jax.jit(jax.vmap(jax.grad(schedule.lr_at)))(EVERY.astype(float))).all()


@every_case
def test_going_to_an_epoch_is_stepping_there(case: Case) -> None:
    stepped, sent, begun = case.build(), case.build(), case.build()
    for _ in range(9):
        stepped.step()
    sent.step(epoch=9)
    begun.last_epoch.value = jnp.asarray(9, jnp.int32)
    assert stepped.last_epoch.value == sent.last_epoch.value == 9
    assert stepped.get_lr() == sent.get_lr() == sent.get_last_lr() == sent.current_lrs.value == begun.get_lr()
    assert_equal_rates(stepped.get_lr(), expected(case, RECORDS)[: len(stepped.base_lrs), 9], 1e-12)


@distinct_case
def test_state_dict(case: Case) -> None:
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


# an optimizer


def trained(case: Case) -> tuple[bo.SGD, brainstate.ParamState]:
    weight = brainstate.ParamState(jnp.zeros(()))
    return bo.SGD(lr=case.build()).register_trainable_weights({'w': weight}), weight


def one_epoch(optimizer: bo.SGD, weight: brainstate.ParamState) -> tuple[Any, Any]:
    """An update along a gradient of 1, and a step of the schedule: the rate that is reported and the weight."""
    reported = optimizer.current_lr
    optimizer.update({'w': jnp.ones(())})
    optimizer.lr.step()
    return reported, weight.value


@distinct_case
@pytest.mark.parametrize('how', ['eager', 'jit', 'for_loop'])
def test_applied_is_reported_is_expected(case: Case, how: str) -> None:
    optimizer, weight = trained(case)
    if how == 'for_loop':
        reported, path = brainstate.transform.for_loop(lambda _: one_epoch(optimizer, weight), jnp.arange(STEPS))
    else:
        run = brainstate.transform.jit(one_epoch, static_argnums=(0, 1)) if how == 'jit' else one_epoch
        pairs = [run(optimizer, weight) for _ in range(STEPS)]
        reported, path = np.array(pairs, float).T
    exact = expected(case, RECORDS)[0, :STEPS]
    assert_equal_rates(reported, exact, 1e-12)
    assert_equal_rates(-np.diff(path, prepend=0.0), exact, 1e-12)


@pytest.mark.parametrize('case', [case for case in CASES if len(case.base) > 1], ids=lambda case: case.name)
def test_groups_follow_their_own_curves(case: Case) -> None:
    weights = [brainstate.ParamState(jnp.zeros(())) for _ in case.base]
    schedule = case.build()
    vars(schedule).pop('cycle_momentum', None)  # without momentum the movement is the rate
    optimizer = bo.SGD(lr=schedule).register_trainable_weights({'0': weights[0]})
    optimizer.add_param_group({'1': weights[1]})

    def epoch(_: Any) -> Any:
        before = [w.value for w in weights]
        optimizer.update({'0': jnp.ones(()), '1': jnp.ones(())})
        optimizer.lr.step()
        return optimizer.lr.lr_at(0), [b - w.value for b, w in zip(before, weights, strict=True)]

    _, applied = brainstate.transform.for_loop(epoch, jnp.arange(STEPS))
    assert_equal_rates(np.stack(applied), expected(case, RECORDS)[:, :STEPS], 1e-12)


def test_a_group_with_a_rate_of_its_own_keeps_its_proportion() -> None:
    for schedule in (
        s.CyclicLR(0.1, 0.5, 8),
        s.OneCycleLR(0.5, 40),
        s.SequentialLR([s.LinearLR(0.1, 0.5), s.ExponentialLR(0.4), s.CyclicLR(0.2, 0.3, 4)], [10, 20]),
        s.ChainedScheduler([s.StepLR(0.1, 3), s.CosineAnnealingLR(7.0, 30, 0.5)]),
        s.WarmupScheduler(s.SequentialLR([s.StepLR(0.1, 3), s.PolynomialLR(0.3)], [4]), 3),
    ):
        whole = schedule.lr_at(EVERY)
        assert_equal_rates(schedule.lr_at(EVERY, 3 * schedule.base_lrs[0]), 3 * np.asarray(whole), 1e-14)


def test_parts_may_be_functions() -> None:
    """A schedule made of a function keeps its proportion to the others."""
    schedule = s.SequentialLR([s.StepLR([0.5, 1.0], 2, 0.5), s.OptaxSchedule(optax.linear_schedule(1.0, 0.0, 4))], [3])
    assert schedule.lr_at([0, 2, 3, 4, 9]).tolist() == [0.5, 0.25, 1.0, 0.75, 0.0]
    assert schedule.lr_at([0, 2, 3, 4, 9], group=1).tolist() == [1.0, 0.5, 2.0, 1.5, 0.0]


def test_a_sequence_from_zero_has_no_proportion_to_keep() -> None:
    schedule = s.SequentialLR([s.ConstantLR(0.0), s.StepLR(0.5, 1, 0.5)], [2])
    assert schedule.lr_at([0, 2, 3]).tolist() == [0.0, 0.5, 0.25]


# cosine with restarts


@pytest.mark.parametrize('mult', [1, 2, 3])
def test_restarts_are_where_torch_has_them(mult: int) -> None:
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


def test_an_epoch_between_two() -> None:
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
        one.step()  # goes on between
        assert (one.last_epoch.value, one.T_cur.value) == (3, 1.5)
    schedule.set_rate(0.5)
    assert schedule() == 0.5
    go_to = brainstate.transform.jit(lambda epoch: schedule.step(epoch=epoch))
    go_to(7.25)
    assert (schedule.last_epoch.value, schedule.T_cur.value, schedule.T_i.value) == (7, 1.25, 8)
    with pytest.raises(ValueError, match='epoch'):
        schedule.step(epoch=-0.5)


# reduction on a plateau


def plateau_paths(case: Plateau, metrics: np.ndarray) -> np.ndarray:
    def run(sequence: Any) -> Any:
        schedule = s.ReduceLROnPlateau(0.1, **dict(case.options))

        def follow(metric: Any) -> Any:
            schedule.step(metric)
            return schedule()

        return brainstate.transform.for_loop(follow, sequence)

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(metrics)))


@every_plateau
def test_plateau(case: Plateau) -> None:
    metrics, exact = case.metrics(), RECORDS[f'{case.name}/rates']
    assert np.mean(exact[:, -1] < 0.1) > 0.5
    np.testing.assert_allclose(plateau_paths(case, metrics), exact, rtol=1e-12)
    schedule = s.ReduceLROnPlateau(0.1, **dict(case.options))
    for metric, rate in zip(metrics[0, :20], exact[0], strict=False):
        schedule.step(metric=metric)
        np.testing.assert_allclose(schedule(), rate, rtol=1e-12)


@needs_torch
@every_plateau
def test_the_records_of_plateaus_are_torchs(case: Plateau) -> None:
    np.testing.assert_array_equal(RECORDS[f'{case.name}/rates'], torch_plateau(case))


def test_plateau_of_negative_metrics() -> None:
    """A metric below 0 must be better by a share of its size, as one above 0 must be."""
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
def test_plateau_applies_what_it_reports(how: str) -> None:
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
    assert_equal_rates(schedule(), 0.01, 1e-12)  # min_lr, and below it what the schedule itself is
    schedule.step(epoch=12)
    assert_equal_rates(schedule(), curve[12], 1e-12)


def test_a_rate_set_by_hand_is_reduced_from_there() -> None:
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


# what is refused

moved, by_hand, plateau = s.StepLR(), s.StepLR(), s.ReduceLROnPlateau()
moved.step()
by_hand.set_rate(0.5)

REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: s.StepLR(-1.0), ValueError, 'Invalid base_lr=-1.0. Must be >= 0.'),
    (lambda: s.StepLR(0.1, float('inf')), TypeError, 'Invalid step_size=inf. Must be an integer.'),
    (lambda: s.StepLR([]), ValueError, r'Invalid base_lr=\[\]'),
    (lambda: s.StepLR(last_epoch=-2), ValueError, 'Invalid last_epoch=-2. Must be >= -1.'),
    (lambda: s.StepLR(step_size=0), ValueError, 'Invalid step_size=0. Must be >= 1.'),
    (lambda: s.StepLR(step_size=1.5), TypeError, 'Invalid step_size=1.5. Must be an integer.'),
    (lambda: s.StepLR(gamma=-0.1), ValueError, 'Invalid gamma=-0.1. Must be >= 0.'),
    (lambda: s.StepLR(gamma='x'), TypeError, "Invalid gamma='x'. Must be a number."),
    (lambda: s.StepLR().step(epoch=-1), ValueError, 'Invalid epoch=-1. Must be >= 0.'),
    (lambda: s.StepLR().step(epoch=1.5), TypeError, 'Invalid epoch=1.5. Must be an integer.'),
    (lambda: s.StepLR().attach_optimizer('x'), TypeError, 'OptaxOptimizer'),
    (lambda: s.MultiStepLR(milestones=[3, 2]), ValueError, r'Invalid milestones=\[3, 2\]. Must be increasing.'),
    (lambda: s.MultiStepLR(milestones=[2, 2]), ValueError, 'increasing'),
    (lambda: s.MultiStepLR(milestones=[-1, 2]), ValueError, 'Invalid milestones=-1. Must be >= 0.'),
    (lambda: s.MultiStepLR(milestones=3), TypeError, 'Invalid milestones=3. Must be a sequence of numbers.'),
    (lambda: s.ConstantLR(factor=1.5), ValueError, r'Invalid factor=1.5. Must be in \[0, 1\].'),
    (lambda: s.ConstantLR(total_iters=-1), ValueError, 'Invalid total_iters=-1. Must be >= 0.'),
    (lambda: s.LinearLR(start_factor=0.0), ValueError, r'Invalid start_factor=0.0. Must be in \(0, 1\].'),
    (lambda: s.LinearLR(end_factor=1.1), ValueError, r'Invalid end_factor=1.1. Must be in \[0, 1\].'),
    (lambda: s.LinearLR(total_iters=0), ValueError, 'Invalid total_iters=0. Must be >= 1.'),
    (lambda: s.PolynomialLR(total_iters=0), ValueError, 'Invalid total_iters=0. Must be >= 1.'),
    (lambda: s.PolynomialLR(power=-1.0), ValueError, 'Invalid power=-1.0. Must be >= 0.'),
    (lambda: s.ExponentialDecayLR(decay_steps=0), ValueError, 'Invalid decay_steps=0. Must be > 0.'),
    (lambda: s.ExponentialDecayLR(decay_rate=0.0), ValueError, 'Invalid decay_rate=0.0. Must be > 0.'),
    (lambda: s.ExponentialDecayLR(transition_begin=-1), ValueError, 'Invalid transition_begin=-1. Must be >= 0.'),
    (lambda: s.ExponentialDecayLR(end_value=-1.0), ValueError, 'Invalid end_value=-1.0. Must be >= 0.'),
    (lambda: s.ExponentialDecayLR(staircase=1), TypeError, 'Invalid staircase=1. Must be a bool.'),
    (lambda: s.LambdaLR(0.1, 0.5), TypeError, 'Invalid lr_lambda=0.5. Must be callable.'),
    (lambda: s.LambdaLR([0.1, 0.2], [half] * 3), ValueError, 'Invalid base_lr=.*Must be one value or 3'),
    (lambda: s.PiecewiseConstantSchedule(values=[1.0]), ValueError, r'Invalid values=\[1.0\].*the 2 boundaries'),
    (lambda: s.PiecewiseConstantSchedule(boundaries=[2, 1]), ValueError, 'Invalid boundaries=.*increasing'),
    (lambda: s.PiecewiseConstantSchedule(values=[1.0, -1.0, 0.0]), ValueError, 'Invalid values=-1.0. Must be >= 0.'),
    (lambda: s.CosineAnnealingLR(T_max=0), ValueError, 'Invalid T_max=0. Must be > 0.'),
    (lambda: s.CosineAnnealingLR(eta_min=-0.1), ValueError, 'Invalid eta_min=-0.1. Must be >= 0.'),
    (lambda: s.CosineAnnealingLR(periodic=1), TypeError, 'Invalid periodic=1. Must be a bool.'),
    (lambda: s.CosineAnnealingWarmRestarts(T_0=0), ValueError, 'Invalid T_0=0. Must be >= 1.'),
    (lambda: s.CosineAnnealingWarmRestarts(T_mult=0), ValueError, 'Invalid T_mult=0. Must be >= 1.'),
    (lambda: s.CosineAnnealingWarmRestarts(T_mult=1.5), TypeError, 'Invalid T_mult=1.5. Must be an integer.'),
    (lambda: s.CosineAnnealingWarmRestarts(decay=1.5), ValueError, r'Invalid decay=1.5. Must be in \[0, 1\].'),
    (lambda: s.CyclicLR(step_size_up=0), ValueError, 'Invalid step_size_up=0. Must be > 0.'),
    (lambda: s.CyclicLR(step_size_down=0), ValueError, 'Invalid step_size_down=0. Must be > 0.'),
    (lambda: s.CyclicLR(max_lr=-1.0), ValueError, 'Invalid max_lr=-1.0. Must be >= 0.'),
    (lambda: s.CyclicLR([0.1, 0.2], [0.3, 0.4, 0.5]), ValueError, r'Invalid base_lr=\[0.1, 0.2\].*3.*max_lr'),
    (lambda: s.CyclicLR(mode='nope'), ValueError, "Invalid mode='nope'. Must be one of 'triangular',"),
    (lambda: s.CyclicLR(scale_fn=damp, scale_mode='nope'), ValueError, "Invalid scale_mode='nope'.*'cycle'"),
    (lambda: s.CyclicLR(scale_fn=1.0), TypeError, 'Invalid scale_fn=1.0. Must be callable.'),
    (lambda: s.CyclicLR(base_momentum=1.0), ValueError, r'Invalid base_momentum=1.0. Must be in \[0, 1\).'),
    (lambda: s.OneCycleLR(), ValueError, 'total_steps.*epochs and steps_per_epoch'),
    (lambda: s.OneCycleLR(epochs=3), ValueError, 'total_steps.*epochs and steps_per_epoch'),
    (lambda: s.OneCycleLR(epochs=0, steps_per_epoch=5), ValueError, 'Invalid epochs=0. Must be >= 1.'),
    (lambda: s.OneCycleLR(total_steps=0), ValueError, 'Invalid total_steps=0. Must be >= 1.'),
    (lambda: s.OneCycleLR(total_steps=9, pct_start=0.0), ValueError, r'Invalid pct_start=0.0. Must be in \(0, 1\).'),
    (lambda: s.OneCycleLR(total_steps=9, pct_start=1.0), ValueError, r'Invalid pct_start=1.0. Must be in \(0, 1\).'),
    (lambda: s.OneCycleLR(total_steps=9, anneal_strategy='no'), ValueError, "Invalid anneal_strategy='no'.*'cos'"),
    (lambda: s.OneCycleLR(total_steps=9, div_factor=0), ValueError, 'Invalid div_factor=0. Must be > 0.'),
    (lambda: s.OneCycleLR(total_steps=9, final_div_factor=0), ValueError, 'Invalid final_div_factor=0. Must be > 0.'),
    (lambda: s.WarmupScheduler(warmup_epochs=-1), ValueError, 'Invalid warmup_epochs=-1. Must be >= 0.'),
    (lambda: s.WarmupScheduler(warmup_start_lr=-1.0), ValueError, 'Invalid warmup_start_lr=-1.0. Must be >= 0.'),
    (lambda: s.WarmupScheduler(plateau), ValueError, 'Invalid base_lr=.*function of the epoch alone'),
    (lambda: s.WarmupCosineSchedule(0.1, 10, 10), ValueError, 'Invalid total_steps=10. Must be > 10.'),
    (lambda: s.WarmupStableDecay(decay='no'), ValueError, "Invalid decay='no'. Must be one of 'linear',"),
    (lambda: s.WarmupStableDecay(decay_steps=0), ValueError, 'Invalid decay_steps=0. Must be > 0.'),
    (lambda: s.InverseSquareRootLR(warmup_steps=-1), ValueError, 'Invalid warmup_steps=-1. Must be >= 0.'),
    (lambda: s.SequentialLR([], []), ValueError, r'Invalid schedulers=\[\]. Must be at least one.'),
    (lambda: s.SequentialLR([s.StepLR()], [3]), ValueError, r'Invalid milestones=\[3\]. Must be 0, one less'),
    (lambda: s.SequentialLR([s.StepLR()] * 3, [3, 2]), ValueError, 'Invalid milestones=.*increasing'),
    (
        lambda: s.SequentialLR([s.StepLR(), 0.1], [3]),
        TypeError,
        r'Invalid schedulers\[1\]=0.1. Must be an LRS',
    ),
    (lambda: s.SequentialLR([s.StepLR(), plateau], [3]), ValueError, r'Invalid schedulers\[1\]=.*epoch alone'),
    (lambda: s.SequentialLR([moved, s.StepLR()], [3]), ValueError, r'Invalid schedulers\[0\]=.*at epoch 0'),
    (lambda: s.SequentialLR([by_hand, s.StepLR()], [3]), ValueError, r'Invalid schedulers\[0\]=.*not set by hand'),
    (lambda: s.ChainedScheduler([s.StepLR([0.1] * 2), s.StepLR([0.1] * 3)]), ValueError, r'\[2, 3\] base rates'),
    (lambda: s.ChainedScheduler([s.StepLR(), s.StepLR(0.0)]), ValueError, r'Invalid schedulers\[1\]=.*above 0'),
    (lambda: s.ChainedScheduler([s.CyclicLR(cycle_momentum=True)]), ValueError, 'Must not cycle the momentum'),
    (lambda: s.ChainedScheduler(s.StepLR()), TypeError, 'Must be a sequence of LRScheduler'),
    (lambda: s.ReduceLROnPlateau(mode='minimize'), ValueError, "Invalid mode='minimize'. Must be one of 'min', 'max'."),
    (lambda: s.ReduceLROnPlateau(threshold_mode='relative'), ValueError, "Invalid threshold_mode='relative'.*'rel'"),
    (lambda: s.ReduceLROnPlateau(factor=1.0), ValueError, r'Invalid factor=1.0. Must be in \[0, 1\).'),
    (lambda: s.ReduceLROnPlateau(patience=-1), ValueError, 'Invalid patience=-1. Must be >= 0.'),
    (lambda: s.ReduceLROnPlateau(patience=1.5), TypeError, 'Invalid patience=1.5. Must be an integer.'),
    (lambda: s.ReduceLROnPlateau(threshold=-1.0), ValueError, 'Invalid threshold=-1.0. Must be >= 0.'),
    (lambda: s.ReduceLROnPlateau(cooldown=-1), ValueError, 'Invalid cooldown=-1. Must be >= 0.'),
    (lambda: s.ReduceLROnPlateau(eps=-1.0), ValueError, 'Invalid eps=-1.0. Must be >= 0.'),
    (lambda: s.ReduceLROnPlateau([0.1, 0.2], min_lr=[0.0] * 3), ValueError, 'Invalid base_lr=.*min_lr'),
    (lambda: s.ReduceLROnPlateau(min_lr=-1.0), ValueError, 'Invalid min_lr=-1.0. Must be >= 0.'),
    (lambda: s.ReduceLROnPlateau(moved), ValueError, 'Invalid base_lr=.*at epoch 0'),
    (lambda: plateau.step(), TypeError, 'metric'),
    (lambda: plateau.step(np.ones(2)), ValueError, r'Invalid metric of shape \(2,\)'),
]


@pytest.mark.parametrize(('make', 'error', 'message'), REFUSED)
def test_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_table_has_every_schedule() -> None:
    built = {type(case.build()).__name__ for case in CASES} | {'ReduceLROnPlateau'}
    assert built == set(s.__all__) - {'LRScheduler', 'OptaxSchedule'}


@pytest.mark.parametrize('case', DISTINCT, ids=lambda case: case.name)
@pytest.mark.parametrize('jitted', [False, True])
def test_a_rate_set_by_hand_acts_at_once_and_rescales_the_rest(case: Case, jitted: bool) -> None:
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
