"""Draw the results of ``python -m benchmarks.board``: accuracies, updates and time to the target, and the rates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plots import save

from benchmarks.board import CLIPPED, CLIPPING, N_SEEDS, OPTIMIZERS, RATES, RESULTS, TASKS, TIMED, WARMUPS

Board = dict[str, dict[str, dict[str, Any]]]
Rows = list[str]
Table = np.ndarray
RATE_LABELS = [
    f'{rate:.0e}'.replace('e-0', 'e-').replace('e+00', '') if i % 2 == 0 else '' for i, rate in enumerate(RATES)
]


def write(folder: Path) -> None:
    """Write the pictures and tables of both pages to ``folder/gallery``."""
    result = json.loads(RESULTS.read_text())
    write_optimizers(result['board'], result['targets'], folder / 'gallery')
    write_clipping(result['board'], result['targets'], folder / 'gallery')
    (folder / 'gallery' / 'norms.md').write_text('\n'.join(norms(result['gradient norms'])))


# the page on optimizers


def write_optimizers(board: Board, targets: dict[str, float], gallery: Path) -> None:
    rows = sorted(trained(board, OPTIMIZERS), key=lambda row: -accuracies(board, [row]).mean())
    figure, (left, right) = panels(len(rows), 2)
    draw(left, accuracies(board, rows), by_points, rows, 'accuracy on test samples (%)', '{:.1f}'.format)
    columns = with_targets(targets)
    draw(right, updates_to_target(board, rows), by_factor, rows, 'updates to the target', whole, columns)
    save(figure, gallery / 'board.png')
    (gallery / 'board.md').write_text('\n'.join(numbers(board, rows)))

    figure, (left, right) = panels(len(rows), 2, width_ratios=(1, 4))
    rows.sort(key=lambda row: slowness(board, row))
    draw(left, relative_times(board, rows), by_factor, rows, 'an update', '{:.1f}'.format, ['SGD: 1'])
    draw(right, times_to_target(board, rows), by_factor, rows, 'time to the target (ms)', whole, columns)
    save(figure, gallery / 'board_time.png')

    rows.sort(key=lambda row: -accuracies(board, [row]).mean())
    figure, (ax,) = panels(len(rows), 1)
    title = 'mean accuracy over the tasks (%) by learning rate'
    draw(ax, by_rate(board, rows), by_most_points, rows, title, whole, RATE_LABELS)
    save(figure, gallery / 'board_rates.png')


def slowness(board: Board, row: str) -> tuple[int, float]:
    """Return how many targets are missed, and on the other tasks the mean factor to the fastest optimizer."""
    fastest = times_to_target(board, trained(board, OPTIMIZERS)).min(axis=0)
    factors = times_to_target(board, [row])[0] / fastest
    reached = np.isfinite(factors)
    return int((~reached).sum()), float(factors[reached].mean()) if reached.any() else np.inf


# the page on clipping and warm-ups


def write_clipping(board: Board, targets: dict[str, float], gallery: Path) -> None:
    columns = with_targets(targets)
    clipping = ['no clipping', 'norm 1', *[name for name in CLIPPING if name != 'no clipping']]
    warmups = ['no warm-up', 'warm-up 5%', *[name for name in WARMUPS if name != 'no warm-up']]
    for name, rows in (('clipping', clipping), ('warmup', warmups)):
        chosen = {optimizer: [key(optimizer, row) for row in rows] for optimizer in CLIPPED}
        pictures: list[tuple[str, Callable[[Board, Rows], Table], Shades, Show, Rows]] = [
            ('', accuracies, by_points, '{:.1f}'.format, list(TASKS)),
            ('_updates', updates_to_target, by_factor, whole, columns),
            ('_rates', by_rate, by_most_points, whole, RATE_LABELS),
        ]
        for suffix, table, shades, show, labels in pictures:
            figure, axes = panels(len(rows), len(chosen))
            for ax, (optimizer, keys) in zip(axes, chosen.items(), strict=True):
                draw(ax, table(board, keys), shades, rows, optimizer, show, labels)
            save(figure, gallery / f'{name}{suffix}.png')
        lines = numbers(board, [row for keys in chosen.values() for row in keys])
        (gallery / f'{name}.md').write_text('\n'.join(lines))


def key(optimizer: str, row: str) -> str:
    """Return the name under which a choice is recorded: the norm 1 and a warm-up of 5% are those of all optimizers."""
    return optimizer if row in ('norm 1', 'warm-up 5%') else f'{optimizer}, {row}'


# tables of numbers, a row for each choice


def trained(board: Board, choices: Iterable[str]) -> Rows:
    """Return those choices of which there are results on all tasks."""
    return [choice for choice in choices if all(choice in board[task] for task in TASKS)]


def each(board: Board, rows: Rows, number: Callable[[dict[str, Any]], float]) -> Table:
    """Return a number of each choice on each task."""
    return np.array([[number(board[task][row]) for task in TASKS] for row in rows])


def accuracies(board: Board, rows: Rows) -> Table:
    return each(board, rows, lambda result: 100 * float(np.mean(result['accuracy'])))


def updates_to_target(board: Board, rows: Rows) -> Table:
    """Return the medians over the seeds, infinite if most seeds never reach the target."""
    return each(
        board, rows, lambda result: float(np.median([np.inf if u is None else u for u in result['updates to target']]))
    )


def relative_times(board: Board, rows: Rows) -> Table:
    """Return the time of an update of each optimizer over that of SGD, in one column."""
    times = [board[TIMED][row]['ms'] for row in rows]
    return np.array([[ms['update'] / ms['update of SGD']] for ms in times])


def times_to_target(board: Board, rows: Rows) -> Table:
    """Return milliseconds, from the time of an update relative to SGD's and the median of all times of SGD."""
    of_sgd = np.median([board[TIMED][row]['ms']['update of SGD'] for row in trained(board, OPTIMIZERS)])
    return updates_to_target(board, rows) * relative_times(board, rows) * of_sgd


def by_rate(board: Board, rows: Rows) -> Table:
    """Return the mean accuracy over the tasks for each learning rate."""
    return np.array([np.mean([board[task][row]['accuracy by rate'] for task in TASKS], axis=0) * 100 for row in rows])


def numbers(board: Board, rows: Rows) -> list[str]:
    """Return the rates that were chosen, and the accuracies with their standard errors, as a table of a page."""
    lines = [f'| | {" | ".join(TASKS)} |', f'|---|{"---:|" * len(TASKS)}']
    for row in rows:
        cells = []
        for task in TASKS:
            accuracy = 100 * np.array(board[task][row]['accuracy'])
            error = accuracy.std(ddof=1) / np.sqrt(N_SEEDS)
            cells.append(f'{board[task][row]["rate"]:.2g}: {accuracy.mean():.1f} ± {error:.1f}')
        lines.append(f'| {row} | {" | ".join(cells)} |')
    return [*lines, '']


def norms(quantiles: dict[str, list[float]]) -> list[str]:
    """Return the norms of the gradients, as a table of a page."""
    lines = ['| task | 5% below | 50% below | 95% below |', '|---|---:|---:|---:|']
    return [*lines, *(f'| {task} | {" | ".join(f"{x:g}" for x in quantiles[task])} |' for task in TASKS), '']


# colours, from 0 for the worst to 1 for the best

Shades = Callable[[Table], Table]
Show = Callable[[float], str]


def by_points(table: Table, span: float = 10.0) -> Table:
    """Return how near a percentage is to the best of its column."""
    return np.clip(1 - (table.max(axis=0) - table) / span, 0, 1)


def by_most_points(table: Table) -> Table:
    """Return how near a percentage is to the best of the whole table."""
    return np.clip(1 - (table.max() - table) / 60, 0, 1)


def by_factor(table: Table) -> Table:
    """Return how near a time is to the shortest of its column, up to the fourfold."""
    return np.clip(1 - np.log(table / table.min(axis=0)) / np.log(4), 0, 1)


def whole(value: float) -> str:
    return f'{value:.0f}' if np.isfinite(value) else 'never'


# drawing


def with_targets(targets: dict[str, float]) -> Rows:
    return [f'{task}\n{targets[task]:.0%}' for task in TASKS]


def panels(rows: int, columns: int, width_ratios: Sequence[float] | None = None) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(9, 0.8 + 0.27 * rows), layout='constrained')
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False, width_ratios=width_ratios)[0]


def draw(
    ax: Axes, table: Table, shades: Shades, rows: Rows, title: str, show: Show, columns: Rows | None = None
) -> None:
    """Draw numbers as a table with coloured cells."""
    shade = shades(table)
    ax.imshow(shade, cmap='viridis', aspect='auto', vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(table):
        color = '#fefefe' if shade[y, x] < 0.6 else '#111111'
        ax.text(x, y, show(value), ha='center', va='center', fontsize=8, color=color)
    ax.set_xticks(range(table.shape[1]), columns or list(TASKS), fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    ax.set_title(title, fontsize=10)
