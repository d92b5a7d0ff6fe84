"""Wrong arguments of schedules are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tables.schedules import damp, half

from braintools_optim import schedulers as s

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
    (lambda: s.LinearLR(total_iters=-1), ValueError, 'Invalid total_iters=-1. Must be >= 1.'),
    (lambda: s.PolynomialLR(total_iters=0), ValueError, 'Invalid total_iters=0. Must be >= 1.'),
    (lambda: s.PolynomialLR(power=-1.0), ValueError, 'Invalid power=-1.0. Must be >= 0.'),
    (lambda: s.ExponentialDecayLR(decay_steps=0), ValueError, 'Invalid decay_steps=0. Must be > 0.'),
    (lambda: s.ExponentialDecayLR(decay_rate=0.0), ValueError, 'Invalid decay_rate=0.0. Must be > 0.'),
    (lambda: s.ExponentialDecayLR(transition_begin=-1), ValueError, 'Invalid transition_begin=-1. Must be >= 0.'),
    (lambda: s.ExponentialDecayLR(end_value=-1.0), ValueError, 'Invalid end_value=-1.0. Must be >= 0.'),
    (lambda: s.ExponentialDecayLR(staircase=1), TypeError, 'Invalid staircase=1. Must be a bool.'),
    (lambda: s.LambdaLR(0.1, 0.5), TypeError, 'Invalid lr_lambda=0.5. Must be callable.'),
    (lambda: s.LambdaLR([0.1, 0.2], [half] * 3), ValueError, 'Invalid base_lr=.*Must be one value or 3'),
    (
        lambda: s.PiecewiseConstantSchedule(values=[1.0]),
        ValueError,
        r'Invalid values=\[1.0\]. Must be 3 rates',
    ),
    (lambda: s.PiecewiseConstantSchedule(boundaries=[2, 1]), ValueError, 'Invalid boundaries=.*increasing'),
    (lambda: s.PiecewiseConstantSchedule(values=[1.0, -1.0, 0.0]), ValueError, 'Invalid values=-1.0. Must be >= 0.'),
    (lambda: s.CosineAnnealingLR(T_max=0), ValueError, 'Invalid T_max=0. Must be > 0.'),
    (lambda: s.CosineAnnealingLR(T_max=np.inf), ValueError, 'Invalid T_max=inf. Must be finite and > 0.'),
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
    (lambda: s.WarmupCosineSchedule(0.1, 10, 0), ValueError, 'Invalid total_steps=0. Must be > 10.'),
    (lambda: s.WarmupStableDecay(decay='no'), ValueError, "Invalid decay='no'. Must be one of 'linear',"),
    (lambda: s.WarmupStableDecay(decay_steps=0), ValueError, 'Invalid decay_steps=0. Must be > 0.'),
    (lambda: s.InverseSquareRootLR(warmup_steps=-1), ValueError, 'Invalid warmup_steps=-1. Must be >= 0.'),
    (lambda: s.SequentialLR([], []), ValueError, r'Invalid schedulers=\[\]. Must contain at least one'),
    (lambda: s.SequentialLR([s.StepLR()], [3]), ValueError, r'Invalid milestones=\[3\]. Must be 0 epochs, one fewer'),
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
    (
        lambda: s.ChainedScheduler([s.StepLR(), s.StepLR(0.0)]),
        ValueError,
        r'Invalid schedulers\[1\]=.*base rates > 0',
    ),
    (lambda: s.ChainedScheduler([s.CyclicLR(cycle_momentum=True)]), ValueError, 'Must not cycle the momentum'),
    (lambda: s.ChainedScheduler(s.StepLR()), TypeError, 'Must be a sequence of LRScheduler'),
    (lambda: s.ReduceLROnPlateau(mode='minimize'), ValueError, "Invalid mode='minimize'. Must be one of 'min', 'max'."),
    (lambda: s.ReduceLROnPlateau(threshold_mode='relative'), ValueError, "Invalid threshold_mode='relative'.*'rel'"),
    (lambda: s.ReduceLROnPlateau(factor=1.0), ValueError, r'Invalid factor=1.0. Must be in \[0, 1\).'),
    (lambda: s.ReduceLROnPlateau(factor=1.5), ValueError, r'Invalid factor=1.5. Must be in \[0, 1\).'),
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
def test_wrong_arguments_of_schedules_are_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
