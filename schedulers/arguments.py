"""Checks of the arguments that only schedules take: names, growing sequences, lists with an entry for each group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from jax.core import Tracer

from braintools_optim.options import Range, validate

__all__ = ['validate_choice', 'validate_each', 'validate_increasing', 'validate_per_group', 'validate_within']


def validate_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """``value`` if it is one of the ``allowed``."""
    if value not in allowed:
        raise ValueError(f'Invalid {name}={value!r}. Must be one of {", ".join(map(repr, allowed))}.')
    return str(value)


def validate_within(name: str, value: Any, allowed: Range) -> Any:
    """``value`` as a number, where a class allows less than its name does elsewhere."""
    number = validate(name, value)
    if not isinstance(number, Tracer) and number not in allowed:
        raise ValueError(f'Invalid {name}={value!r}. Must be {allowed}.')
    return number


def validate_each(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """Several numbers, each as :func:`validate` gives it."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f'Invalid {name}={values!r}. Must be a sequence of numbers.')
    return tuple(validate(name, value) for value in values)


def validate_increasing(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """Several numbers, each above the one before."""
    numbers = validate_each(name, values)
    if any(not before < after for before, after in pairwise(numbers)):
        raise ValueError(f'Invalid {name}={list(numbers)}. Must be increasing.')
    return numbers


def validate_per_group(**options: Any) -> list[list[Any]]:
    """Options that may be one value or a list with one for each parameter group, as lists of the same length."""
    lists = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in options.items()}
    first, most = max(lists.items(), key=lambda item: len(item[1]))
    for name, values in lists.items():
        if len(values) not in (1, len(most)):
            raise ValueError(f'Invalid {name}={values!r}. Must be one value or {len(most)}, as many as {first} has.')
    return [values * (len(most) // len(values)) for values in lists.values()]
