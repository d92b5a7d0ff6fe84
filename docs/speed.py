"""Write the page on speed from the latest recorded results (``make bench OUTPUT=benchmarks/results``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from plots import save

from benchmarks.report import gpu_table, tables


def write(folder: Path) -> None:
    """Write the page ``folder/speed.md``, and its plot to ``folder/gallery``."""
    files = sorted((folder.parent / 'benchmarks' / 'results').glob('*.json'))
    results = [json.loads(file.read_text()) for file in files]
    page = ['# Speed', '']
    if not results:
        page += ['No results are recorded. `make bench` runs the benchmarks and prints the results.', '']
    for result in [result for result in results if 'steps' in result][-1:]:
        figure = Figure(figsize=(7, 2.8), layout='constrained')
        draw(figure, result)
        save(figure, folder / 'gallery' / 'speed.png')
        page += [*tables(result), '![Update time by number of leaves and by number of weights](gallery/speed.png)', '']
    for result in [result for result in results if 'bandwidth' in result][-1:]:
        page += ['## On a GPU', '', *gpu_table(result)]
    page += ['To repeat the measurements, run `make bench`, or `make gpu` on a GPU.', '']
    (folder / 'speed.md').write_text('\n'.join(page))


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """Plot the time of an update against the number of leaves and the number of weights."""
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, rows, x in ((left, result['by leaves'], 'leaves'), (right, result['by weights'], 'weights')):
        for peer in rows[0]['ms']:
            ax.loglog([row[x] for row in rows], [row['ms'][peer] for row in rows], marker='o', label=peer)
        ax.set_xlabel(f'{x} in 4 leaves' if x == 'weights' else x)
        ax.spines['right'].set_visible(False)
    left.set_ylabel('time of an update (ms)')
    left.legend()
