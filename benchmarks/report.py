"""Format results as Markdown tables for the terminal and the docs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ['gpu_table', 'save', 'scale_tables', 'tables']

Result = dict[str, Any]
MIB = 2**20
GB = 10**9


def save(result: Result, path: Path, machine: str) -> None:
    """Write a result to a JSON file; in a folder, the file is named after the date and the machine."""
    if not path.suffix:
        path.mkdir(exist_ok=True)
        path /= f'{result["date"]}-{machine}.json'
    path.write_text(json.dumps(result, indent=1) + '\n')
    print(f'saved to {path}')


def tables(result: Result) -> list[str]:
    """Return the lines of all tables."""
    versions = ', '.join(f'{name} {number}' for name, number in result['versions'].items() if number)
    lines = [f'Measured on {result["date"]}: {result["machine"]}; {versions}.', '']
    lines += [
        '## Update',
        '',
        'Time of an update of Adam in float32, in milliseconds: the median of interleaved repetitions. A leaf is one '
        'parameter array. "ours" is this library, "donating" is this library with `donate_weights`, and "by hand" is '
        'the same mathematics on plain lists of arrays under `jax.jit`, with all buffers donated and without States. '
        'The slowest combinations are not measured (-).',
        '',
    ]
    peers = list(dict.fromkeys(peer for row in result['steps'] for peer in row['ms']))
    missing = sorted({peer for row in result['steps'] for peer in row['missing']})
    lines += table(['', *peers], [[label_of(row), *cells(row['ms'], peers)] for row in result['steps']])
    lines += [f'Not measured, because not installed: {", ".join(missing)} (`pip install .[benchmarks]`).', ''] * bool(
        missing
    )
    lines += [
        '## Train step',
        '',
        'Time of a gradient and an update with clipping, in milliseconds. "optax by hand" passes plain arrays through '
        '`jax.jit`. "optax in States" stores the same arrays in States, to show the cost of dispatch in brainstate. '
        '"with metrics" is the step with the donating jit and the metrics of each weight.',
        '',
    ]
    peers = list(result['train'][0]['ms'])
    lines += table(['', *peers], [[row['what'], *cells(row['ms'], peers)] for row in result['train']])
    return [
        *lines,
        *in_a_loop(result),
        *on_devices(result),
        *sweep(result),
        *first_update(result),
        *memory(result),
        *scaling(result),
    ]


def in_a_loop(result: Result) -> list[str]:
    if 'in a loop' not in result:  # recorded before this was measured
        return []
    lines = [
        '## Update in a loop',
        '',
        'Time of one of many updates with clipping in one compiled loop, in microseconds. The gradient is the weight.',
        '',
    ]
    rows, peers = result['in a loop'], list(result['in a loop'][0]['ms'])
    body = [
        [f'{row["leaves"]} leaves of {row["side"]}x{row["side"]}', *(f'{1e3 * row["ms"][peer]:.2f}' for peer in peers)]
        for row in rows
    ]
    return lines + table(['', *peers], body)


def on_devices(result: Result) -> list[str]:
    if 'on devices' not in result:
        return []
    rows = result['on devices']
    lines = [
        '## Update on several devices',
        '',
        f'Time of an update with clipping in milliseconds, on {rows[0]["devices"]} devices that share the CPU. '
        'Replicated weights lie on all devices, and split weights are divided among them. "by hand" is `jax.jit` with '
        'the same layout.',
        '',
    ]
    peers = list(rows[0]['ms'])
    body = [
        [f'{row["leaves"]} leaves of {row["side"]}x{row["side"]}, {row["place"]}', *cells(row['ms'], peers)]
        for row in rows
    ]
    return lines + table(['', *peers], body)


def sweep(result: Result) -> list[str]:
    if 'sweep' not in result:
        return []
    row = result['sweep']
    lines = [
        '## Sweep',
        '',
        f'Time in seconds of {row["members"]} trainings of a small spiking network with {row["updates"]} updates each, '
        'compilation included. The last figure is extrapolated from three trainings.',
        '',
    ]
    body = [[name, f'{s:.1f}', f'{s / row["s"]["sweep"]:.1f}'] for name, s in row['s'].items()]
    return lines + table(['', 'seconds', 'times the sweep'], body)


def first_update(result: Result) -> list[str]:
    lines = [
        '## First update',
        '',
        'Time in seconds for leaves of about 64x64, with clipping. The ratio is ours to optax.',
        '',
    ]
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
        f'Memory of a train step in MiB. The weights take {rows["weights"] / MIB:.0f} MiB, and the two slots of Adam '
        'twice as much.',
        '',
    ]
    kinds = [name for name in rows if name != 'weights']
    body = [[name, *(f'{rows[name][what] / MIB:.0f}' for what in ('planned', 'resident'))] for name in kinds]
    lines += table(['', 'planned by XLA', 'peak resident'], body)
    return [
        *lines,
        f'The temporary memory of an update is {100 * result["temporary memory"]:.2f}% of the size of the weights.',
        '',
    ]


def scaling(result: Result) -> list[str]:
    lines = ['## Scaling', '', 'Time of an update with clipping in milliseconds, with all buffers donated.', '']
    rows = [*result['by leaves'], *result['by weights']]
    peers = list(rows[0]['ms'])
    body = [[f'{row["leaves"]:,}', f'{row["weights"]:,}', *cells(row['ms'], peers)] for row in rows]
    return lines + table(['leaves', 'weights', *peers], body)


def label_of(row: dict[str, Any]) -> str:
    return f'{row["what"]}, {"clipped" if row["clip"] else "not clipped"}'


def cells(times: dict[str, float], peers: Sequence[str]) -> list[str]:
    return [f'{times[peer]:.3f}' if peer in times else '-' for peer in peers]


def gpu_table(result: Result) -> list[str]:
    """Return the lines of the table for a GPU, with the time that the memory traffic alone would take."""
    peers = list(dict.fromkeys(peer for row in result['rows'] for peer in row['ms']))
    body = []
    for row in result['rows']:
        least, ms = row['least ms'], row['ms']
        shown = ['-' if ms[peer] is None else f'{ms[peer]:.3f}' for peer in peers]
        what = [f'{row["leaves"]:,}', f'{row["weights"]:,}', 'yes' if row['clip'] else 'no']
        body.append([*what, f'{least:.3f}', f'{least / ms["donating"]:.0%}', *shown])
    missing = 'torch is not measured, because it cannot use the device.'
    return [
        f'Measured on {result["date"]}: {result["device"]}, jax {result["jax"]}. '
        f'The measured memory bandwidth is {result["bandwidth"] / 1e9:.0f} GB/s.',
        'Time of an update of Adam in milliseconds. "at bandwidth" is the time that the memory traffic alone would '
        'take, and "reached" is that time divided by the time of "donating".',
        *[missing] * any(None in row['ms'].values() for row in result['rows']),
        '',
        *table(['leaves', 'weights', 'clipped', 'at bandwidth', 'reached', *peers], body),
    ]


def scale_tables(result: Result) -> list[str]:
    """Return the lines of a table for each quantity: without ZeRO-1, and with ZeRO-1 on each number of devices."""
    rows = result['scale']
    devices = list(dict.fromkeys(row['devices'] for row in rows))
    found = {(row['model'], row['optimizer'], row['devices'], row['ZeRO-1']): row for row in rows}
    head = ['weights, optimizer', 'without ZeRO-1', *(f'ZeRO-1 on {n}' for n in devices)]
    weights = {row['model']: f'{row["weights"] / GB:.3g}' for row in rows}
    *sizes, last = weights.values()
    lines = [f'The weights take {", ".join(sizes)} or {last} GB of each device, and the gradients as much.', '']
    for title, quantity in SCALE.items():
        body = []
        for model, name, number in dict.fromkeys((row['model'], row['optimizer'], row['number']) for row in rows):
            cells = [found[model, name, devices[0], False], *(found[model, name, n, True] for n in devices)]
            body.append([f'{number / 1e9:.2g} billion, {name}', *(gigabytes(quantity(cell)) for cell in cells)])
        lines += [f'{title}, in GB:', '', *table(head, body)]
    return lines


def gigabytes(number: float) -> str:
    return f'{number / GB:.3g}' if number >= GB / 1000 else '< 0.001'


SCALE: dict[str, Callable[[dict[str, Any]], float]] = {
    'Optimizer state of each device': lambda row: row['state'],
    'Temporary memory of an update on each device': lambda row: row['temporary'],
    'Sent by each device in a step': lambda row: row['moved for gradients'] + row['moved in the update'],
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    line = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    shown = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in [head, line, *rows]]
    return ['| ' + ' | '.join(row) + ' |' for row in shown] + ['']
