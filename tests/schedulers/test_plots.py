"""Plots of schedules."""

from __future__ import annotations

import numpy as np
import pytest

import braintools_optim as bo


def test_plot_draws_rate_and_momentum() -> None:
    schedule = bo.OneCycleLR(0.1, 20, cycle_momentum=True)
    rate_axes = schedule.plot(epochs=25)
    (line,) = rate_axes.get_lines()
    np.testing.assert_allclose(line.get_ydata(), schedule.lr_at(np.arange(26)))
    momentum_axes = next(ax for ax in rate_axes.figure.axes if ax is not rate_axes)
    np.testing.assert_allclose(momentum_axes.get_lines()[0].get_ydata(), schedule.momentum_at(np.arange(26)))
    assert bo.StepLR(0.1).plot(ax=rate_axes) is rate_axes
    with pytest.raises(ValueError, match='does not cycle'):
        bo.StepLR(0.1).momentum_at(0)
