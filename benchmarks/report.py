"""A result as tables in Markdown, for the terminal and the docs; every number comes from the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ['gpu_table', 'keep', 'tables']

Result = dict[str, Any]
MIB = 2**20


def keep(result: Result, place: Path, machine: str) -> None:
    """Write a result to a file, or to one in a folder that is named after date and machine."""
    if not place.suffix:
        place.mkdir(exist_ok=True)
        place /= f'{result["date"]}-{machine}.json'
    place.write_text(json.dumps(result, indent=1) + '\n')
    print(f'kept in {place}')


def tables(result: Result) -> list[str]:
    """The lines of all tables."""
    versions = ', '.join(f'{name} {number}' for name, number in result['versions'].items() if number)
    lines = [f'Measured on {result["date"]}: {result["machine"]}; {versions}.', '']
    lines += [
        '## An update',
        '',
        'Milliseconds of an update of Adam, float32, the median of interleaved repetitions. "Donating" is ours with '
        '`donate_weights`; "by hand" is the same mathematics on plain lists of arrays under `jax.jit`, all donated, '
        'without States. What takes longest is left out (-).',
        '',
    ]
    peers = list(dict.fromkeys(peer for row in result['steps'] for peer in row['ms']))
    missing = sorted({peer for row in result['steps'] for peer in row['missing']})
    lines += table(['', *peers], [[named(row), *cells(row['ms'], peers)] for row in result['steps']])
    lines += [f'Not installed, and so not measured: {", ".join(missing)} (`pip install .[benchmarks]`).', ''] * bool(
        missing
    )
    lines += ['## A train step', '', 'Milliseconds of a gradient and an update with clipping.', '']
    lines += [
        '"In States" has the arrays of "by hand" in States: what of it is brainstate\'s dispatch.',
        '',
    ]
    peers = list(result['train'][0]['ms'])
    lines += table(['', *peers], [[row['what'], *cells(row['ms'], peers)] for row in result['train']])
    return [*lines, *first(result), *memory(result), *growth(result)]


def first(result: Result) -> list[str]:
    lines = ['## Until the first update', '', 'Seconds, leaves of 64x64 and nearly so, with clipping.', '']
    rows = []
    for row in result['first step']:
        for what, label in (('tracing', 'trace and lower the step'), ('all', 'from gradients to new weights')):
            ours, optax = (row['s'][peer][what] for peer in ('ours', 'optax'))
            name = f'{label}, {row["leaves"]} leaves of {row["shapes"]} shape{"s" * (row["shapes"] > 1)}'
            rows.append([name, f'{ours:.3f}', f'{optax:.3f}', f'{ours / optax:.2f}'])
    return lines + table(['', 'ours', 'optax', 'ratio'], rows)


def memory(result: Result) -> list[str]:
    rows = result['memory']
    lines = [
        '## Memory',
        '',
        f'MiB of a train step; the weights are {rows["weights"] / MIB:.0f} MiB, two slots twice that.',
        '',
    ]
    kinds = [name for name in rows if name != 'weights']
    body = [[name, *(f'{rows[name][what] / MIB:.0f}' for what in ('planned', 'resident'))] for name in kinds]
    lines += table(['', 'planned by XLA', 'resident at most'], body)
    return [*lines, f'Temporary memory of an update: {100 * result["temporary memory"]:.2f}% of the weights.', '']


def growth(result: Result) -> list[str]:
    lines = ['## How it grows', '', 'Milliseconds of an update with clipping, all buffers donated.', '']
    rows = [*result['by leaves'], *result['by weights']]
    peers = list(rows[0]['ms'])
    body = [[f'{row["leaves"]:,}', f'{row["weights"]:,}', *cells(row['ms'], peers)] for row in rows]
    return lines + table(['leaves', 'weights', *peers], body)


def named(row: dict[str, Any]) -> str:
    return f'{row["what"]}, {"clipped" if row["clip"] else "not clipped"}'


def cells(times: dict[str, float], peers: Sequence[str]) -> list[str]:
    return [f'{times[peer]:.3f}' if peer in times else '-' for peer in peers]


def gpu_table(result: Result) -> list[str]:
    """The lines of a GPU's table, with the time that the memory traffic alone would take."""
    peers = list(dict.fromkeys(peer for row in result['rows'] for peer in row['ms']))
    body = []
    for row in result['rows']:
        least, ms = row['least ms'], row['ms']
        shown = ['-' if ms[peer] is None else f'{ms[peer]:.3f}' for peer in peers]
        what = [f'{row["leaves"]:,}', f'{row["weights"]:,}', 'yes' if row['clip'] else 'no']
        body.append([*what, f'{least:.3f}', f'{least / ms["donating"]:.0%}', *shown])
    missing = 'torch does not see the device, and so is not measured.'
    return [
        f'Measured on {result["date"]}: {result["device"]}, jax {result["jax"]}. '
        f'Its memory is read and written at {result["bandwidth"] / 1e9:.0f} GB/s.',
        'Milliseconds of an update of Adam, and what the memory traffic alone would take.',
        *[missing] * any(None in row['ms'].values() for row in result['rows']),
        '',
        *table(['leaves', 'weights', 'clipped', 'at bandwidth', 'reached', *peers], body),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    line = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    shown = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in [head, line, *rows]]
    return ['| ' + ' | '.join(row) + ' |' for row in shown] + ['']
