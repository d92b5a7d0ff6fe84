"""Schedules that are parts of another schedule: the checks that they must pass."""

from __future__ import annotations

from collections.abc import Iterable

from jax.core import Tracer

from braintools_optim.options.kinds import Scalar
from braintools_optim.schedulers.base import LRScheduler

__all__ = ['as_part', 'as_parts', 'base_lrs_of']


def as_part(name: str, schedule: object) -> LRScheduler:
    """Mark ``schedule`` as a part of another schedule and return it.

    Raise unless the rate is a function of the epoch alone and the schedule is at epoch 0, with no rate set by hand.
    """
    if not isinstance(schedule, LRScheduler):
        raise TypeError(f'Invalid {name}={schedule!r}. Must be an LRScheduler.')
    if type(schedule).rate is not LRScheduler.rate:
        raise ValueError(
            f'Invalid {name}={schedule!r}. Must be a function of the epoch alone. '
            f'{type(schedule).__name__} can contain another schedule, but cannot be a part of one.'
        )
    if schedule.cycle_momentum:
        raise ValueError(f'Invalid {name}={schedule!r}. Must not cycle the momentum. Only the outermost schedule can.')
    position = schedule.position()
    epoch, manual = schedule.epoch_at(position), position['manual']
    moved = (epoch != 0) | (manual['rate'] != manual['reference'])
    if not isinstance(moved, Tracer) and moved:
        raise ValueError(
            f'Invalid {name}={schedule!r}. Must be at epoch 0, with a rate that was not set by hand. '
            'The outer schedule holds the epoch and the rate.'
        )
    object.__setattr__(schedule, 'is_part', True)  # allowed after construction here only
    return schedule


def as_parts(name: str, schedules: object) -> tuple[LRScheduler, ...]:
    """Return at least one schedule, each marked as a part; raise if their numbers of base rates do not match."""
    if not isinstance(schedules, Iterable):
        raise TypeError(f'Invalid {name}={schedules!r}. Must be a sequence of LRScheduler.')
    parts = tuple(as_part(f'{name}[{i}]', schedule) for i, schedule in enumerate(schedules))
    if not parts:
        raise ValueError(f'Invalid {name}={schedules!r}. Must contain at least one LRScheduler.')
    lengths = [len(part.base_lrs) for part in parts]
    if len({*lengths} - {1}) > 1:
        raise ValueError(f'Invalid {name} with {lengths} base rates. Must have the same number of base rates, or one.')
    return parts


def base_lrs_of(parts: tuple[LRScheduler, ...]) -> list[Scalar]:
    """Return the base rates of the first part, repeated for as many parameter groups as any part has base rates."""
    return [parts[0].base_lr_of(group) for group in range(max(len(part.base_lrs) for part in parts))]
