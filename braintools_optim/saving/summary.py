"""Summary: the table that ``print(optimizer)`` shows."""

from __future__ import annotations

import math
from collections.abc import Container

from braintools_optim.core import Core
from braintools_optim.options.fields import fields_of, signature_of
from braintools_optim.options.types import Options
from braintools_optim.settings import as_plain

__all__ = ['one_line', 'summary']

COUNTED = ('frozen', 'not decayed', 'constrained')
HEADER: tuple[str, ...] = ('group', 'algorithm', 'lr', 'weights', 'parameters', 'own options', *COUNTED)
WIDTH = 24
"""The width up to which names of weights are shown for a group."""


def summary(core: Core) -> str:
    """Return a line for the optimizer and one for each group: weights, their number, overridden options, exceptions."""
    head = f'{core.name}: lr {core.settings.lr_of(0):g} ({type(core.settings.lr_scheduler).__name__})'
    if not core.groups:
        return f'{head}, no weights registered'
    rows = [HEADER, *(row(core, group) for group in range(len(core.groups)))]
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    lines = zip(*[[cell.ljust(max(map(len, column))) for cell in column] for column in kept], strict=True)
    return '\n'.join([head, *('  '.join(cells).rstrip() for cells in lines)])


def one_line(core: Core) -> str:
    """Return the class, the schedule of the learning rate, and the options that are not at their defaults."""
    settings, fields = core.settings, fields_of(type(core.rule))
    options = {**settings.plain('defaults'), **settings.plain('shared')}
    names = dict.fromkeys([*signature_of(fields).parameters, *fields])  # in the order of the constructor
    changed = [name for name in names if name in options and options[name] != fields[name].default]
    shown = ''.join(f', {name}={options[name]!r}' for name in changed)
    return f'{core.name}(lr={settings.lr_scheduler!r}{shown})'


def row(core: Core, group: int) -> tuple[str, ...]:
    """Return the cells of one group."""
    keys, weights = core.groups[group].keys, core.weights.named()
    shown = max([i for i in range(len(keys) + 1) if len(', '.join(keys[:i])) <= WIDTH] + [1])
    names = ', '.join(keys[:shown]) + (f', ... ({len(keys)} in all)' if shown < len(keys) else '')

    def count(chosen: Container[str]) -> str:
        number = sum(key in chosen for key in keys)
        return f'{number} of {len(keys)}' if number else ''

    rule, several = core.groups[group].rule, len(core.groups) > 1
    return (
        str(group),
        '' if rule is core.rule else type(rule).__name__,
        f'{core.settings.lr_of(group):g}' if several else '',
        names or '(none)',
        f'{sum(math.prod(weights[key].shape) for key in keys):,}',
        own_options(core, group),
        count(core.settings.frozen),
        count(core.policy.undecayed),
        count(core.policy.constraints),
    )


def own_options(core: Core, group: int) -> str:
    """Return the options of a group as they were given: a schedule by its name, a rate as the base rate."""
    settings = core.settings
    options: Options = as_plain(settings.owners[group], settings.options.groups[group])
    driven = {name: type(schedule).__name__ for name, schedule in settings.schedules.get(str(group), {}).items()}
    given = {name: driven.get(name, options[name]) for name in sorted(settings.overridden[group])}
    return ', '.join(f'{name}={value}' for name, value in given.items())
