"""What a schedule draws is what it gives."""

from __future__ import annotations

import numpy as np
import pytest

import braintools_optim as bo


def test_a_schedule_draws_its_rate_and_its_momentum() -> None:
    schedule = bo.OneCycleLR(0.1, 20, cycle_momentum=True)
    rate_axes = schedule.plot(epochs=25)
    (line,) = rate_axes.get_lines()
    np.testing.assert_allclose(line.get_ydata(), schedule.lr_at(np.arange(26)))
    momentum_axes = next(ax for ax in rate_axes.figure.axes if ax is not rate_axes)
    np.testing.assert_allclose(momentum_axes.get_lines()[0].get_ydata(), schedule.momentum_at(np.arange(26)))
    assert bo.StepLR(0.1).plot(ax=rate_axes) is rate_axes
    with pytest.raises(ValueError, match='does not cycle'):
        bo.StepLR(0.1).momentum_at(0)


def test_a_part_is_not_stepped() -> None:
    inner = bo.CosineAnnealingLR(0.1, 10)
    bo.WarmupScheduler(inner, 2)
    for change in (inner.step, lambda: inner.step(epoch=3), lambda: inner.set_rate(0.5)):
        with pytest.raises(ValueError, match='part of another schedule'):
            change()


def test_an_epoch_may_be_some_updates() -> None:
    epochs = np.arange(50)
    for schedule in (bo.StepLR(0.1, 2, 0.5), bo.CosineAnnealingLR(0.1, 4), bo.WarmupScheduler(0.1, 3)):
        expected = schedule.lr_at(epochs / 10)
        np.testing.assert_allclose(bo.PerUpdate(schedule, 10).lr_at(epochs), expected, rtol=1e-12)
