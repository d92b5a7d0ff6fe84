"""Every numeric option of every optimizer and schedule can be swept: members equal runs with Python numbers."""

from __future__ import annotations

import inspect
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import thinned
from internals import numeric_options
from tables.optimizers import ROWS, row_of

import braintools_optim as bo
from braintools_optim import schedulers as s


def train(optimizer: bo.Optimizer) -> dict[str, Any]:
    """Return the weights after three updates."""
    w = {'a': brainstate.ParamState(jnp.linspace(0.5, 2.0, 6).reshape(2, 3)), 'b': brainstate.ParamState(-jnp.ones(2))}
    optimizer.register_trainable_weights(w)
    for _ in range(3):
        optimizer.minimize(lambda: jnp.sum(w['a'].value ** 2) + jnp.sum((w['b'].value - 1) ** 4))
    return {'weights': jnp.concatenate([state.value.ravel() for state in w.values()])}


@thinned([row.optimizer for row in ROWS if row.optimizer is not bo.SAM], 'optimizer', one_in=8)
def test_options_of_optimizers(optimizer: type[bo.Optimizer]) -> None:
    """All of them at once: values near their defaults, tuples by their entries."""
    required, defaults = row_of(optimizer).required, numeric_options(optimizer)
    names = [(name, i) for name, value in defaults.items() for i in range(np.size(value))]

    def build(numbers: Any) -> bo.Optimizer:
        given = dict(zip(names, numbers, strict=True))
        options = {
            name: tuple(given[name, i] for i in range(len(value))) if isinstance(value, tuple) else given[name, 0]
            for name, value in defaults.items()
        }
        return optimizer(**{**required(), **options})

    numbers = [
        x if isinstance(x, int) or np.isinf(x) else 0.97 * x
        for value in defaults.values()
        for x in np.ravel(value).tolist()
    ]
    options = {f'{i:02}': [x] for i, x in enumerate(numbers)}
    swept = bo.sweep(lambda **options: train(build([options[name] for name in sorted(options)])), **options)
    expected = brainstate.transform.jit(lambda: train(build(numbers)))()
    np.testing.assert_allclose(swept['weights'][0], expected['weights'], rtol=1e-9)


SCHEDULES: list[tuple[type[s.LRScheduler], dict[str, Any]]] = [
    (s.ConstantLR, {'factor': 0.5, 'total_iters': 7}),
    (s.StepLR, {'step_size': 7, 'gamma': 0.3}),
    (s.MultiStepLR, {'milestones': [3, 20, 21], 'gamma': 0.3}),
    (s.ExponentialLR, {'gamma': 0.9}),
    (s.LinearLR, {'start_factor': 0.2, 'end_factor': 0.9, 'total_iters': 13}),
    (s.PolynomialLR, {'total_iters': 49, 'power': 0.5}),
    (s.CosineAnnealingLR, {'T_max': 40, 'eta_min': 0.01}),
    (s.CosineAnnealingWarmRestarts, {'T_0': 7, 'T_mult': 2, 'eta_min': 0.01, 'decay': 0.5}),
    (s.CosineAnnealingWarmRestarts, {'T_0': 7, 'T_mult': 1}),
    (s.CyclicLR, {'max_lr': 0.5, 'step_size_up': 8, 'step_size_down': 3}),
    (s.OneCycleLR, {'max_lr': 0.5, 'total_steps': 40, 'pct_start': 0.3, 'div_factor': 20.0, 'final_div_factor': 100.0}),
    (s.OneCycleLR, {'epochs': 8, 'steps_per_epoch': 5}),
    (s.WarmupScheduler, {'warmup_epochs': 6, 'warmup_start_lr': 0.02}),
    (s.WarmupScheduler, {'warmup_epochs': 0}),
    (s.WarmupCosineSchedule, {'warmup_steps': 10, 'total_steps': 50, 'warmup_start_lr': 0.01, 'eta_min': 0.02}),
    (s.WarmupStableDecay, {'warmup_steps': 10, 'stable_steps': 20, 'decay_steps': 20}),
    (s.InverseSquareRootLR, {'warmup_steps': 16, 'warmup_start_lr': 0.01}),
    (s.ExponentialDecayLR, {'decay_steps': 7, 'decay_rate': 0.9, 'transition_begin': 5, 'end_value': 0.06}),
    (s.PiecewiseConstantSchedule, {'boundaries': [5, 30], 'values': [0.3, 0.0, 0.7]}),
]
AT = np.arange(60)


@pytest.mark.parametrize(('schedule', 'options'), SCHEDULES, ids=lambda x: getattr(x, '__name__', ''))
def test_options_of_schedules(schedule: type[s.LRScheduler], options: dict[str, Any]) -> None:
    base = {'base_lr': 0.1} if 'base_lr' in inspect.signature(schedule).parameters else {}
    flat = {
        f'{name}_{i}': x for name, value in (base | options).items() for i, x in enumerate(np.ravel(value).tolist())
    }

    def rates(**numbers: Any) -> dict[str, Any]:
        given = {
            name: [numbers[f'{name}_{i}'] for i in range(len(x))] if isinstance(x, list) else numbers[f'{name}_0']
            for name, x in (base | options).items()
        }
        return {'rates': schedule(**given).lr_at(AT)}

    found = bo.sweep(rates, **{name: [x, x] for name, x in flat.items()})['rates']
    np.testing.assert_allclose(found, [rates(**flat)['rates']] * 2, rtol=1e-9, atol=1e-12)


def test_options_of_plateau() -> None:
    def reduced(**options: Any) -> dict[str, Any]:
        schedule = s.ReduceLROnPlateau(0.1, **options)

        def step(metric: Any) -> Any:
            schedule.step(metric)
            return schedule()

        return {'rates': brainstate.transform.for_loop(step, jnp.array([1.0] * 4 + [0.5] * 8))}

    options = {'factor': 0.5, 'patience': 2, 'threshold': 0.1, 'cooldown': 1, 'min_lr': 0.01, 'eps': 1e-8}
    found = bo.sweep(reduced, **{name: [x] for name, x in options.items()})['rates'][0]
    np.testing.assert_allclose(found, reduced(**options)['rates'], rtol=1e-12)
    assert len(set(found.tolist())) > 2
