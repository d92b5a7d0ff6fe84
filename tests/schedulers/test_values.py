"""Schedules have the right values at every epoch, traced or not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.record_schedules import torch_schedule
from helpers import thinned
from tables.schedules import CASES, DISTINCT, EPOCHS, Case, expected, half

import braintools_optim as bo
from braintools_optim import schedulers as s

RECORDS = np.load(Path(__file__).parents[1] / 'golden' / 'schedules.npz')
EVERY = np.arange(EPOCHS)
distinct_case = pytest.mark.parametrize('case', DISTINCT, ids=lambda case: case.name)
every_case = pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')


def curves(case: Case) -> np.ndarray:
    schedule = case.build()
    return np.stack([schedule.lr_at(EVERY, group=group) for group in range(len(case.base))])


def assert_equal_rates(ours: Any, exact: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=tolerance * np.max(np.abs(exact)))


@every_case
def test_values_in_float64(case: Case) -> None:
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
def test_recorded_schedules_equal_torch(case: Case) -> None:
    rates, momentums = torch_schedule(case)
    assert_equal_rates(RECORDS[f'{case.name}/rates'], rates, 1e-14)
    assert_equal_rates(RECORDS[f'{case.name}/momenta'], momentums, 1e-14)


@pytest.mark.parametrize(
    'case', [case for case in CASES if getattr(case.build(), 'cycle_momentum', False)], ids=lambda case: case.name
)
def test_cycled_momentum_equals_torch(case: Case) -> None:
    schedule, exact = case.build(), RECORDS[f'{case.name}/momenta']
    ours = np.stack([jax.jit(schedule.momentum_at, static_argnums=1)(EVERY, g) for g in range(len(case.base))])
    assert_equal_rates(ours, exact, 1e-12)


def test_momentum_at_without_cycled_momentum_is_refused() -> None:
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
def test_values_equal_optax(ours: s.LRScheduler, theirs: Callable[[Any], Any] | None) -> None:
    if theirs is None:
        theirs = optax.join_schedules([s.LambdaLR(0.1, half).lr_at, s.StepLR(0.1, 3).lr_at], [9])
    assert_equal_rates(ours.lr_at(EVERY), np.array([theirs(jnp.asarray(e)) for e in EVERY]), 1e-6)


@thinned(CASES)
def test_lr_at_of_an_array_equals_single_epochs(case: Case) -> None:
    schedule = case.build()
    curve = schedule.lr_at(EVERY)
    assert schedule.lr_at(7).shape == ()
    assert_equal_rates([schedule(epoch) for epoch in EVERY[::25]], curve[::25], 1e-14)
    assert_equal_rates(schedule.lr_at(EVERY.tolist()), curve, 0.0)
    assert_equal_rates(jax.jit(schedule.lr_at)(EVERY.astype(np.int32)), curve, 1e-14)
    assert_equal_rates(jax.jit(jax.vmap(schedule.lr_at))(EVERY.astype(float)), curve, 1e-14)


@distinct_case
def test_values_and_derivatives_are_finite(case: Case) -> None:
    schedule = case.build()
    epochs = jnp.concatenate([jnp.arange(0, 2 * EPOCHS, 0.5), jnp.array([1e6])])
    assert np.isfinite(jax.jit(schedule.lr_at)(epochs)).all()
    with_base = jax.jit(jax.vmap(jax.grad(schedule.lr_at, argnums=1), in_axes=(0, None)))
    assert np.isfinite(with_base(EVERY.astype(float), schedule.base_lrs[0])).all()
    if 'MultiplicativeLR' not in case.name:  # a loop over epochs has no derivative
        assert np.isfinite(jax.jit(jax.vmap(jax.grad(schedule.lr_at)))(EVERY.astype(float))).all()


def test_base_rate_of_a_group_scales_the_schedule() -> None:
    for schedule in (
        s.CyclicLR(0.1, 0.5, 8),
        s.OneCycleLR(0.5, 40),
        s.SequentialLR([s.LinearLR(0.1, 0.5), s.ExponentialLR(0.4), s.CyclicLR(0.2, 0.3, 4)], [10, 20]),
        s.ChainedScheduler([s.StepLR(0.1, 3), s.CosineAnnealingLR(7.0, 30, 0.5)]),
        s.WarmupScheduler(s.SequentialLR([s.StepLR(0.1, 3), s.PolynomialLR(0.3)], [4]), 3),
    ):
        whole = schedule.lr_at(EVERY)
        assert_equal_rates(schedule.lr_at(EVERY, 3 * schedule.base_lrs[0]), 3 * np.asarray(whole), 1e-14)


def test_parts_of_a_schedule_may_be_functions() -> None:
    """A part made of a function keeps its proportion to the base rate of the group."""
    schedule = s.SequentialLR([s.StepLR([0.5, 1.0], 2, 0.5), s.OptaxSchedule(optax.linear_schedule(1.0, 0.0, 4))], [3])
    assert schedule.lr_at([0, 2, 3, 4, 9]).tolist() == [0.5, 0.25, 1.0, 0.75, 0.0]
    assert schedule.lr_at([0, 2, 3, 4, 9], group=1).tolist() == [1.0, 0.5, 2.0, 1.5, 0.0]


def test_sequence_that_starts_at_zero() -> None:
    schedule = s.SequentialLR([s.ConstantLR(0.0), s.StepLR(0.5, 1, 0.5)], [2])
    assert schedule.lr_at([0, 2, 3]).tolist() == [0.0, 0.5, 0.25]


def test_every_schedule_is_in_the_table() -> None:
    built = {type(case.build()).__name__ for case in CASES} | {'ReduceLROnPlateau'}
    assert built == set(s.__all__) - {'LRScheduler', 'OptaxSchedule'}


def test_per_update_divides_the_epoch() -> None:
    epochs = np.arange(50)
    for schedule in (bo.StepLR(0.1, 2, 0.5), bo.CosineAnnealingLR(0.1, 4), bo.WarmupScheduler(0.1, 3)):
        expected = schedule.lr_at(epochs / 10)
        np.testing.assert_allclose(bo.PerUpdate(schedule, 10).lr_at(epochs), expected, rtol=1e-12)
