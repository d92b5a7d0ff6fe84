"""Plot every schedule with ``schedule.plot()``, and write the part of the page that shows the plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plots import save

import braintools_optim as optim

SCHEDULES = [
    'ConstantLR(0.1, factor=0.25, total_iters=20)',
    'StepLR(0.1, step_size=30, gamma=0.5)',
    'MultiStepLR(0.1, milestones=[20, 50, 80], gamma=0.5)',
    'PiecewiseConstantSchedule(boundaries=[30, 60], values=[0.1, 0.05, 0.01])',
    'ExponentialLR(0.1, gamma=0.96)',
    'ExponentialDecayLR(0.1, decay_steps=20, decay_rate=0.5, staircase=True)',
    'LinearLR(0.1, start_factor=0.1, total_iters=40)',
    'PolynomialLR(0.1, total_iters=80, power=2.0)',
    'CosineAnnealingLR(0.1, T_max=80, eta_min=0.01)',
    'CosineAnnealingLR(0.1, T_max=40, periodic=True)',
    'CosineAnnealingWarmRestarts(0.1, T_0=15, T_mult=2)',
    'CosineAnnealingWarmRestarts(0.1, T_0=25, decay=0.6)',
    'SWALR(0.1, swa_lr=0.05, anneal_epochs=30)',
    'CyclicLR(0.01, max_lr=0.1, step_size_up=10, step_size_down=20, mode="triangular2")',
    'OneCycleLR(0.1, total_steps=100, cycle_momentum=True)',
    'WarmupScheduler(0.1, warmup_epochs=20)',
    'WarmupScheduler(CosineAnnealingLR(0.1, T_max=80), warmup_epochs=20)',
    'WarmupCosineSchedule(0.1, warmup_steps=20, total_steps=100)',
    'WarmupStableDecay(0.1, warmup_steps=10, stable_steps=50, decay_steps=40)',
    'InverseSquareRootLR(0.1, warmup_steps=10)',
    'LambdaLR(0.1, lambda epoch: 1 / (1 + epoch / 20))',
    'MultiplicativeLR(0.1, lambda epoch: 0.97)',
    'SequentialLR([ConstantLR(0.03, factor=1.0), ExponentialLR(0.1, gamma=0.95)], milestones=[30])',
    'ChainedScheduler([LinearLR(0.1, total_iters=20), ExponentialLR(0.1, gamma=0.97)])',
    'PerUpdate(StepLR(0.1, step_size=2, gamma=0.5), steps_per_epoch=15)',
]


def write(folder: Path) -> None:
    """Write ``folder/gallery/schedules.md`` and its plots."""
    pictures = folder / 'gallery'
    pictures.mkdir(exist_ok=True)
    page = ['::::{grid} 1 2 2 2', ':gutter: 2', '']
    for i, expression in enumerate(SCHEDULES):
        figure = Figure(figsize=(5, 2.4), layout='constrained')
        eval(expression, vars(optim)).plot(ax=figure.add_subplot())
        page += card(figure, pictures / f'{i:02}.png', expression)
    figure = Figure(figsize=(5, 2.4), layout='constrained')
    draw_plateau(figure.add_subplot())
    page += card(figure, pictures / 'plateau.png', 'ReduceLROnPlateau(0.1, factor=0.5, patience=5)')
    (pictures / 'schedules.md').write_text('\n'.join([*page, '::::', '']))


def card(figure: Figure, path: Path, expression: str) -> list[str]:
    """Save a plot, and return the lines of the card that shows it."""
    for ax in figure.axes:
        ax.set_xlabel('calls of step()')
        as_stairs(ax)
    save(figure, path)
    name = expression.partition('(')[0]
    return [
        ':::{grid-item-card}',
        ':class-card: schedule',
        '',
        f'{{class}}`~braintools_optim.{name}`',
        '',
        f'![{expression}]({path.name})',
        '',
        '```py',
        *folded(expression),
        '```',
        ':::',
        '',
    ]


def folded(expression: str) -> list[str]:
    """Return an expression in lines that fit a card."""
    lines, line = [], ''
    for part in expression.replace(', ', ',\n').split('\n'):
        if line and len(line) + len(part) > 42:
            lines, line = [*lines, line.rstrip()], '    '
        line += part + ' '
    return [*lines, line.rstrip()]


def as_stairs(ax: Axes) -> None:
    """Draw a curve that jumps as stairs: between two calls of ``step()`` the rate stays as it is."""
    for line in ax.lines:
        rates = np.asarray(line.get_ydata())
        changes = np.abs(np.diff(rates))
        if (changes > 0.05 * np.ptp(rates)).any() and (changes == 0).any():
            line.set_drawstyle('steps-post')


def draw_plateau(ax: Axes) -> None:
    """Plot the learning rate of ReduceLROnPlateau for a noisy loss that levels off."""
    schedule = optim.ReduceLROnPlateau(0.1, factor=0.5, patience=5)
    losses = np.exp(-np.arange(101) / 15) + 0.05 * np.random.default_rng(0).random(101)
    rates = []
    for loss in losses:
        rates.append(schedule())
        schedule.step(loss)
    ax.plot(rates, color='C0')
    ax.set(ylabel='learning rate', ylim=(0, None))
    twin = ax.twinx()
    twin.plot(losses, color='C1', linestyle='--')
    twin.set_ylabel('loss', color='C1')
