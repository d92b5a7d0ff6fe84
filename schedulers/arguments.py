"""Kinds of the arguments of schedules, and the expansion of arguments that may have one value per parameter group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from jax.core import Tracer

from braintools_optim.options.kinds import (
    AT_LEAST_ONE,
    AT_LEAST_ZERO,
    BELOW_ONE,
    POSITIVE_AND_FINITE,
    UNIT,
    Choice,
    Flag,
    Kind,
    Number,
    Range,
)
from braintools_optim.options.types import OptionValue

__all__ = [
    'COUNT',
    'FLAG',
    'FRACTION',
    'FRACTION_BELOW_ONE',
    'NON_NEGATIVE',
    'PERIOD',
    'POSITIVE',
    'POSITIVE_FRACTION',
    'Each',
    'OneOf',
    'expand_per_group',
]

FLAG = Flag()
NON_NEGATIVE = Number(AT_LEAST_ZERO)
POSITIVE = Number(POSITIVE_AND_FINITE)
FRACTION = Number(UNIT)
FRACTION_BELOW_ONE = Number(BELOW_ONE)
POSITIVE_FRACTION = Number(Range(0, 1, low_open=True))
COUNT = Number(AT_LEAST_ZERO, integer=True)
PERIOD = Number(AT_LEAST_ONE, integer=True)


@dataclass(frozen=True)
class OneOf(Choice):
    """One of several names. The error message lists the names without the parentheses of a tuple."""

    def check(self, name: str, value: object) -> str:
        if value not in self.values:
            raise ValueError(f'Invalid {name}={value!r}. Must be one of {", ".join(map(repr, self.values))}.')
        return str(value)


@dataclass(frozen=True)
class Each(Kind):
    """A sequence of any length whose entries are numbers of the same kind, strictly increasing if so declared."""

    entry: Number
    increasing: bool = False

    def check(self, name: str, value: object) -> tuple[OptionValue, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f'Invalid {name}={value!r}. Must be a sequence of numbers.')
        numbers = tuple(self.entry.check(name, number) for number in value)
        known = [pair for pair in pairwise(numbers) if not any(isinstance(number, Tracer) for number in pair)]
        if self.increasing and any(not before < after for before, after in known):
            raise ValueError(f'Invalid {name}={list(numbers)}. Must be increasing.')
        return numbers


def expand_per_group(**arguments: object) -> list[list[OptionValue]]:
    """Expand arguments that are one value, or a list with one value per parameter group, to lists of equal length."""
    lists = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in arguments.items()}
    longest_name, longest = max(lists.items(), key=lambda item: len(item[1]))
    for name, values in lists.items():
        if len(values) not in (1, len(longest)):
            raise ValueError(
                f'Invalid {name}={values!r}. Must be one value or {len(longest)}, as many as {longest_name} has.'
            )
    return [values * (len(longest) // len(values)) for values in lists.values()]
