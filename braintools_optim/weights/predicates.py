"""Predicates: the choice of weights by their dotted names, by their unit, or by a function of name and weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import brainunit
import numpy as np

from braintools_optim.options.types import ArrayOrQuantity

__all__ = ['Predicate', 'check_predicate', 'matches', 'selected', 'usual_exclusions']

Predicate: TypeAlias = str | brainunit.Unit | type[float] | Callable[[str, ArrayOrQuantity], bool]
"""A pattern for the last parts of a dotted name (``'bias'``, ``'layers.*.weight'``), a unit such as ``u.ms`` for the
weights of its dimension, ``float`` for those without a unit, or ``(name, weight) -> bool``."""
ALLOWED = 'a pattern for names, a unit, float, or a function (name, weight)'

NOT_SYNAPTIC = re.compile(
    r'(\w+_)?(bias|scale|gamma|beta|tau\d*|v_?th|threshold)(_\w+)?|([a-z]+_?)?norm\d*|[bl]n\d*', re.IGNORECASE
)


def matches(predicate: Predicate, name: str, weight: ArrayOrQuantity) -> bool:
    """Return whether a predicate chooses a weight."""
    check_predicate(predicate)
    if isinstance(predicate, str):
        return fnmatchcase(name, predicate) or fnmatchcase(name, f'*.{predicate}')
    if isinstance(predicate, brainunit.Unit):
        return bool(brainunit.get_dim(weight) == predicate.dim)
    if isinstance(predicate, type):  # float
        return bool(brainunit.get_dim(weight) == brainunit.UNITLESS.dim)
    answer = predicate(name, weight)
    if np.ndim(answer):
        raise TypeError(f'Invalid predicate {predicate!r}. Must return True or False; for {name} it is {answer!r}.')
    return bool(answer)


def check_predicate(predicate: object) -> None:
    """Raise unless an object can choose weights."""
    if isinstance(predicate, type) and predicate is not float:
        raise TypeError(f'Invalid predicate {predicate!r}. Must be {ALLOWED}.')
    if not isinstance(predicate, (str, brainunit.Unit)) and not callable(predicate):
        raise TypeError(f'Invalid predicate {predicate!r}. Must be {ALLOWED}.')


def selected(predicate: Predicate, weights: Mapping[str, ArrayOrQuantity]) -> list[str]:
    """Return the names of the weights that a predicate chooses."""
    return [name for name, weight in weights.items() if matches(predicate, name, weight)]


def usual_exclusions(name: str, weight: ArrayOrQuantity) -> bool:
    """Choose weights that are usually not decayed: vectors and scalars, biases, norms, time constants and thresholds.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> [usual_exclusions(name, jnp.ones((2, 2))) for name in ('layers.0.weight', 'tau')]
    [False, True]
    """
    return weight.ndim < 2 or any(NOT_SYNAPTIC.fullmatch(part) for part in name.split('.'))
