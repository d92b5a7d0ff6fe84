"""Draw the paths of the optimizers (``python -m benchmarks.paths``), a picture for each family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plots import save

from benchmarks.paths import FAMILIES, PROBLEMS

LIMITS = {'Rosenbrock': ((-2.2, 2.0), (-0.9, 2.6)), 'noisy valley': ((-7.0, 4.5), (-1.6, 3.6))}
BEST = {'Rosenbrock': (1, 1), 'noisy valley': (2, 1)}


def write(folder: Path) -> None:
    """Write ``folder/gallery/optimizers.md`` and its pictures."""
    result = json.loads((folder.parent / 'benchmarks' / 'results' / 'paths.json').read_text())
    page = []
    for number, (family, makers) in enumerate(FAMILIES.items()):
        figure = Figure(figsize=(9, 3.6), layout='constrained')
        for ax, problem in zip(figure.subplots(1, 2), PROBLEMS, strict=True):
            draw(ax, problem, {name: result['paths'][problem][name] for name in makers})
        file = folder / 'gallery' / f'paths{number}.png'
        save(figure, file)
        page += [f'### {family}', '', f'![{family}: {", ".join(makers)}]({file.name})', '']
    (folder / 'gallery' / 'optimizers.md').write_text('\n'.join(page))


def draw(ax: Axes, problem: str, found: dict[str, dict[str, Any]]) -> None:
    """Draw the paths of a family over the contours of a function."""
    (left, right), (low, high) = LIMITS[problem]
    x, y = np.meshgrid(np.linspace(left, right, 300), np.linspace(low, high, 300))
    loss = np.log10(np.asarray(PROBLEMS[problem].loss(x, y)) + 1e-3)
    ax.contour(x, y, loss, levels=14, colors='#808080', linewidths=0.5, alpha=0.5)
    for i, (name, run) in enumerate(found.items()):
        points = np.array(run['path'])
        label = f'{name}, lr {run["rate"]:g}: {run["loss"]:.1g}'
        ax.plot(*points.T, '.-', color=f'C{i}', linewidth=1, markersize=2.5, alpha=0.9, label=label)
        ax.plot(*points[-1], 'o', color=f'C{i}', markersize=5)
    ax.plot(*BEST[problem], '*', color='#808080', markersize=11)
    ax.set(title=problem, xlim=(left, right), ylim=(low, high), xticks=[], yticks=[])
    ax.legend(frameon=False, fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2, labelcolor='#808080')
