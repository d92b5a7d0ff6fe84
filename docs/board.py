"""Draw the results of ``python -m benchmarks.board``: accuracies, updates to the target, and the choice of the rate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plots import save

from benchmarks.board import CHOICES, N_SEEDS, OPTIMIZERS, RATES, RESULTS, TASKS

Board = dict[str, dict[str, dict[str, Any]]]
Rows = list[str]


def write(folder: Path) -> None:
    """Write the pictures and tables to ``folder/gallery``, of what was trained on all tasks."""
    result = json.loads(RESULTS.read_text())
    board: Board = result['board']
    targets, gallery = result['targets'], folder / 'gallery'
    for name, choices in (('board', list(OPTIMIZERS)), ('clipping', ['Adam', 'SGD', *CHOICES])):
        trained = [choice for choice in choices if all(choice in board[task] for task in TASKS)]
        rows = sorted(trained, key=lambda choice: -mean_accuracy(board, choice))
        figure = Figure(figsize=(9, 0.8 + 0.27 * len(rows)), layout='constrained')
        left, right = figure.subplots(1, 2, sharey=True)
        accuracies = [[100 * np.mean(board[task][row]['accuracy']) for task in TASKS] for row in rows]
        heat_map(left, accuracies, rows, 'accuracy on test samples (%)', '{:.1f}'.format)
        columns = [f'{task}\n{targets[task]:.0%}' for task in TASKS]
        updates = [[updates_to_target(board[task][row]) for task in TASKS] for row in rows]
        heat_map(right, updates, rows, 'updates to the target', shown_updates, columns, reverse=True)
        save(figure, gallery / f'{name}.png')
        figure = Figure(figsize=(9, 0.8 + 0.27 * len(rows)), layout='constrained')
        by_rate = [np.mean([board[task][row]['accuracy by rate'] for task in TASKS], axis=0) * 100 for row in rows]
        labels = [f'{rate:.0e}' if i % 2 == 0 else '' for i, rate in enumerate(RATES)]
        ax = figure.add_subplot()
        heat_map(
            ax,
            by_rate,
            rows,
            'mean accuracy over the tasks (%) by learning rate',
            '{:.0f}'.format,
            labels,
            ranks_columns=False,
        )
        save(figure, gallery / f'{name}_rates.png')
        (gallery / f'{name}.md').write_text('\n'.join(table(board, rows)))


def mean_accuracy(board: Board, row: str) -> float:
    return float(np.mean([board[task][row]['accuracy'] for task in TASKS]))


def updates_to_target(result: dict[str, Any]) -> float:
    """Return the median over the seeds, infinite if most seeds never reach the target."""
    return float(np.median([np.inf if u is None else u for u in result['updates to target']]))


def shown_updates(updates: float) -> str:
    return f'{updates:.0f}' if np.isfinite(updates) else 'never'


def heat_map(
    ax: Axes,
    values: Iterable[Iterable[float]],
    rows: Rows,
    title: str,
    show: Callable[[float], str],
    columns: Rows | None = None,
    reverse: bool = False,
    ranks_columns: bool = True,
) -> None:
    """Draw numbers in a table whose colours rank the numbers of each column, or of the whole table."""
    table = np.array([list(row) for row in values])
    filled = np.where(np.isfinite(table), table, np.nanmax(np.where(np.isfinite(table), table, np.nan)) * 1.2)
    axis = 0 if ranks_columns else None
    low, high = filled.min(axis=axis, keepdims=True), filled.max(axis=axis, keepdims=True)
    scale = (filled - low) / np.maximum(high - low, 1e-9)
    ax.imshow(1 - scale if reverse else scale, cmap='viridis', aspect='auto', vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(table):
        dark = (1 - scale if reverse else scale)[y, x] < 0.6
        ax.text(x, y, show(value), ha='center', va='center', fontsize=8, color='#fefefe' if dark else '#111111')
    ax.set_xticks(range(table.shape[1]), columns or list(TASKS), fontsize=9)
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    ax.set_title(title, fontsize=10)


def table(board: Board, rows: Rows) -> list[str]:
    """Return the rates that were chosen, as a table."""
    lines = [f'| | {" | ".join(TASKS)} |', f'|---|{"---:|" * len(TASKS)}']
    for row in rows:
        cells = []
        for task in TASKS:
            accuracy = 100 * np.array(board[task][row]['accuracy'])
            error = accuracy.std(ddof=1) / np.sqrt(N_SEEDS)
            cells.append(f'{board[task][row]["rate"]:g}: {accuracy.mean():.1f} ± {error:.1f}')
        lines.append(f'| {row} | {" | ".join(cells)} |')
    return [*lines, '']
