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
        figure = Figure(figsize=(9, 4), layout='constrained')
        draw(figure, result)
        save(figure, folder / 'gallery' / 'speed.png')
        page += ['![Time of an update by each library, and by the number of weights](gallery/speed.png)', '']
        page += tables(result)
    for result in [result for result in results if 'bandwidth' in result][-1:]:
        page += ['## On a GPU', '', *gpu_table(result)]
    page += ['To repeat the measurements, run `make bench`, or `make gpu` on a GPU.', '']
    (folder / 'speed.md').write_text('\n'.join(page))


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """Plot the time of an update by each library, and the time against the number of weights."""
    left, right = figure.subplots(1, 2)
    rows = [row for row in result['steps'] if row['clip']]
    peers = [peer for peer in rows[0]['ms'] if peer != 'by hand']
    for i, peer in enumerate(peers):
        at = [y + (i - len(peers) / 2) * 0.13 for y, row in enumerate(rows) if peer in row['ms']]
        left.barh(at, [row['ms'][peer] for row in rows if peer in row['ms']], height=0.12, color=f'C{i}', label=peer)
    left.set(xscale='log', xlabel='update of Adam with clipping (ms)', yticks=range(len(rows)))
    left.set_yticklabels([row['what'].replace(' of ', '\nof ') for row in rows])
    left.invert_yaxis()
    rows = result['by weights']
    for peer in rows[0]['ms']:
        times = [row['ms'][peer] for row in rows]
        right.loglog([row['weights'] for row in rows], times, marker='o', label=peer, color=f'C{peers.index(peer)}')
    right.set(xlabel='weights in 4 leaves', ylabel='update of Adam with clipping (ms)')
    for ax in (left, right):
        ax.spines['right'].set_visible(False)
    left.legend(frameon=False, fontsize=8)
