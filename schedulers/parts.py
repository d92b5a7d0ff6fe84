"""What may be a part of another schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jax.core import Tracer

from braintools_optim.schedulers.base import LRScheduler

__all__ = ['as_part', 'as_parts', 'base_lrs_of']


def as_part(name: str, schedule: Any) -> LRScheduler:
    """A schedule whose rate is a function of the epoch alone, at its epoch 0."""
    if not isinstance(schedule, LRScheduler):
        raise TypeError(f'Invalid {name}={schedule!r}. Must be an LRScheduler.')
    if type(schedule).rate is not LRScheduler.rate:
        raise ValueError(
            f'Invalid {name}={schedule!r}. Must be a function of the epoch alone: '
            f'{type(schedule).__name__} can be around another schedule, not inside.'
        )
    if getattr(schedule, 'cycle_momentum', False):
        raise ValueError(f'Invalid {name}={schedule!r}. Must not cycle the momentum, which only the outermost can.')
    position = schedule.position()
    epoch, manual = schedule.epoch_at(position), position['manual']
    moved = (epoch != 0) | (manual['rate'] != manual['reference'])
    if not isinstance(moved, Tracer) and moved:
        raise ValueError(
            f'Invalid {name}={schedule!r}. Must be at epoch 0, its rate not set by hand: '
            'the schedule around it has an epoch and a rate of its own.'
        )
    schedule.is_part = True  # its own clock counts for nothing now, and refuses to be stepped
    return schedule


def as_parts(name: str, schedules: Iterable[Any]) -> tuple[LRScheduler, ...]:
    """Several of them, at least one, for the same number of parameter groups (or for any)."""
    if not isinstance(schedules, Iterable):
        raise TypeError(f'Invalid {name}={schedules!r}. Must be a sequence of LRScheduler.')
    parts = tuple(as_part(f'{name}[{i}]', schedule) for i, schedule in enumerate(schedules))
    if not parts:
        raise ValueError(f'Invalid {name}={schedules!r}. Must be at least one.')
    lengths = [len(part.base_lrs) for part in parts]
    if len({*lengths} - {1}) > 1:
        raise ValueError(f'Invalid {name}: they have {lengths} base rates. Must have the same number, or one.')
    return parts


def base_lrs_of(parts: tuple[LRScheduler, ...]) -> list[Any]:
    """The first one's base rates, as many as any has."""
    return [parts[0].base_lr_of(group) for group in range(max(len(part.base_lrs) for part in parts))]
