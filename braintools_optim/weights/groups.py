"""Division of weights into groups by predicates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

import brainunit

from braintools_optim.options.types import ArrayOrQuantity
from braintools_optim.weights.predicates import Predicate, selected

__all__ = ['divide_by_predicates']

T = TypeVar('T')


def divide_by_predicates(
    weights: Mapping[str, ArrayOrQuantity], groups: Mapping[Predicate, T]
) -> list[tuple[list[str], T | None]]:
    """Return the leaf names and the value of each group. The first group holds all weights that no predicate chooses.

    The value of the first group is None.
    """
    rest = dict(weights)
    parts: list[tuple[list[str], T | None]] = []
    for predicate, value in groups.items():
        names = selected(predicate, rest)
        if not names:
            there = ', '.join(f'{name} ({brainunit.get_unit(w)})' for name, w in rest.items())
            warnings.warn(f'No weight is chosen by groups[{predicate!r}]. There are: {there}.', stacklevel=4)
            continue
        parts.append((names, value))
        rest = {name: w for name, w in rest.items() if name not in names}
    return [(list(rest), None), *parts]
