"""Plot every schedule with ``schedule.plot()``, and write the page that shows the plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import braintools_optim as optim

SCHEDULES = [
    'ConstantLR(0.1, factor=0.25, total_iters=20)',
    'StepLR(0.1, step_size=30, gamma=0.5)',
    'MultiStepLR(0.1, milestones=[20, 50, 80], gamma=0.5)',
    'ExponentialLR(0.1, gamma=0.96)',
    'ExponentialDecayLR(0.1, decay_steps=20, decay_rate=0.5, staircase=True)',
    'LinearLR(0.1, start_factor=0.1, total_iters=40)',
    'PolynomialLR(0.1, total_iters=80, power=2.0)',
    'CosineAnnealingLR(0.1, T_max=80, eta_min=0.01)',
    'CosineAnnealingLR(0.1, T_max=40, periodic=True)',
    'CosineAnnealingWarmRestarts(0.1, T_0=15, T_mult=2)',
    'CosineAnnealingWarmRestarts(0.1, T_0=25, decay=0.6)',
    'CyclicLR(0.01, max_lr=0.1, step_size_up=10, step_size_down=20, mode="triangular2")',
    'OneCycleLR(0.1, total_steps=100, cycle_momentum=True)',
    'LambdaLR(0.1, lambda epoch: 1 / (1 + epoch / 20))',
    'MultiplicativeLR(0.1, lambda epoch: 0.97)',
    'PiecewiseConstantSchedule(boundaries=[30, 60], values=[0.1, 0.05, 0.01])',
    'WarmupScheduler(0.1, warmup_epochs=20)',
    'WarmupScheduler(CosineAnnealingLR(0.1, T_max=80), warmup_epochs=20)',
    'WarmupCosineSchedule(0.1, warmup_steps=20, total_steps=100)',
    'WarmupStableDecay(0.1, warmup_steps=10, stable_steps=50, decay_steps=40)',
    'InverseSquareRootLR(0.1, warmup_steps=10)',
    'SequentialLR([ConstantLR(0.03, factor=1.0), ExponentialLR(0.1, gamma=0.95)], milestones=[30])',
    'ChainedScheduler([LinearLR(0.1, total_iters=20), ExponentialLR(0.1, gamma=0.97)])',
    'PerUpdate(StepLR(0.1, step_size=2, gamma=0.5), steps_per_epoch=15)',
]


def write(folder: Path) -> None:
    """Write the page ``folder/schedules.md``, and its plots to ``folder/gallery``."""
    pictures = folder / 'gallery'
    pictures.mkdir(exist_ok=True)
    page = ['# Schedules', '', 'The learning rate of each schedule over 100 epochs, drawn by `schedule.plot()`.', '']
    names = vars(optim)
    for i, expression in enumerate(SCHEDULES):
        figure = Figure(figsize=(6, 2.4), layout='constrained')
        eval(expression, names).plot(ax=figure.add_subplot())
        page += show(figure, pictures / f'{i:02}.png', expression)
    figure = Figure(figsize=(6, 2.4), layout='constrained')
    draw_plateau(figure)
    page += show(figure, pictures / 'plateau.png', 'ReduceLROnPlateau(0.1, factor=0.5, patience=5)')
    (folder / 'schedules.md').write_text('\n'.join(page))


def show(figure: Figure, path: Path, expression: str) -> list[str]:
    """Save a plot, and return the lines of the section that shows it."""
    for ax in figure.axes:
        ax.spines['top'].set_visible(False)
        ax.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    return [
        f'## {expression.partition("(")[0]}',
        '',
        '```',
        expression,
        '```',
        '',
        f'![{expression}](gallery/{path.name})',
        '',
    ]


def draw_plateau(figure: Figure) -> None:
    """Plot the learning rate of ReduceLROnPlateau for a noisy loss that levels off."""
    schedule = optim.ReduceLROnPlateau(0.1, factor=0.5, patience=5)
    losses = np.exp(-np.arange(101) / 15) + 0.05 * np.random.default_rng(0).random(101)
    rates = []
    for loss in losses:
        rates.append(schedule())
        schedule.step(loss)
    ax = figure.add_subplot()
    ax.plot(rates, color='C0')
    ax.set(xlabel='epoch', ylabel='learning rate', ylim=(0, None))
    twin = ax.twinx()
    twin.plot(losses, color='C1', linestyle='--')
    twin.set_ylabel('loss', color='C1')
