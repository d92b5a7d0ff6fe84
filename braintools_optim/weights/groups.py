"""Groups: parameters that share hyperparameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from braintools_optim.options.types import ArrayOrQuantity, OptionValue, Tree
from braintools_optim.weights.predicates import Predicate, selected

__all__ = ['Group', 'divide_by_predicates']


@dataclass(frozen=True)
class Group:
    """The names of the leaves of a group, and the States or tree that were registered."""

    keys: list[str]
    params: Tree


def divide_by_predicates(
    weights: Mapping[str, ArrayOrQuantity], groups: Mapping[Predicate, Mapping[str, OptionValue]]
) -> list[tuple[list[str], Mapping[str, OptionValue]]]:
    """Return the leaf names and options of each group. The first group holds all weights that no predicate chooses."""
    rest = dict(weights)
    parts = []
    for predicate, options in groups.items():
        names = selected(predicate, rest)
        if not names:
            warnings.warn(f'No weight is chosen by groups[{predicate!r}]. There are: {", ".join(rest)}.', stacklevel=3)
            continue
        parts.append((names, options))
        rest = {name: w for name, w in rest.items() if name not in names}
    return [(list(rest), {}), *parts]
