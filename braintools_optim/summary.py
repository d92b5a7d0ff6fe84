"""Summary: what ``print(optimizer)`` shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['summary']

HEADER: tuple[str, ...] = ('group', 'weights', 'parameters', 'own options', 'frozen', 'not decayed', 'constrained')
SHOWN = 3  # names of weights of a group


def summary(optimizer: Optimizer) -> str:
    """A line for the optimizer, and one for each group: its weights, their number, its own options, exceptions."""
    head = f'{type(optimizer).__name__}: lr {optimizer.current_lr:g} ({type(optimizer.lr_scheduler).__name__})'
    groups = range(len(optimizer.param_groups))
    if not groups:
        return f'{head}, no weights registered'
    rows = [HEADER, *(row(optimizer, group) for group in groups)]
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    lines = zip(*[[cell.ljust(max(map(len, column))) for cell in column] for column in kept], strict=True)
    return '\n'.join([head, *('  '.join(cells).rstrip() for cells in lines)])


def row(optimizer: Optimizer, group: int) -> tuple[str, ...]:
    keys, weights = optimizer.group_names(group), optimizer._weights.named()
    names = ', '.join(keys) if len(keys) <= SHOWN else f'{", ".join(keys[:SHOWN])}, ... ({len(keys)} in all)'
    treatment = optimizer._treatment

    def count(chosen: Any) -> str:
        number = sum(key in chosen for key in keys)
        return f'{number} of {len(keys)}' if number else ''

    return (
        str(group),
        names or '(none)',
        f'{sum(math.prod(weights[key].shape) for key in keys):,}',
        differing(optimizer, group),
        count(optimizer.settings.frozen),
        count(treatment.undecayed),
        count(treatment.constraints),
    )


def differing(optimizer: Optimizer, group: int) -> str:
    """The options that a group has of its own."""
    options = optimizer.settings.plain(group)
    return ', '.join(f'{name}={options[name]}' for name in sorted(optimizer.settings.own[group]))
