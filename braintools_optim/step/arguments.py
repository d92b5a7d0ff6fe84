"""Checks of the constructor's arguments that concern single weights or the stages, and cannot be assigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from braintools_optim.constraints import Projection, as_constraint
from braintools_optim.options.types import OptionValue
from braintools_optim.step.rule import Rule
from braintools_optim.step.stage import Stage
from braintools_optim.weights.predicates import Predicate, check_predicate
from braintools_optim.weights.units import norm_scales

__all__ = [
    'check_axes',
    'check_constraints',
    'check_dtype',
    'check_groups',
    'check_metrics',
    'check_no_decay',
    'check_norm_unit',
    'check_stages',
]


def check_predicates(name: str, value: object) -> Mapping[Predicate, OptionValue] | None:
    """Return a dict with predicates as keys, or None."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f'Invalid {name}={value!r}. Must be a dict whose keys choose weights.')
    for predicate in value or {}:
        check_predicate(predicate)
    return value


def check_groups(name: str, value: object) -> Mapping[Predicate, Mapping[str, OptionValue] | Rule] | None:
    """Return the options or the optimizers of groups by predicate, or None."""
    groups = check_predicates(name, value)
    for predicate, options in (groups or {}).items():
        if not isinstance(options, (Mapping, Rule)):
            raise TypeError(
                f'Invalid groups[{predicate!r}]={options!r}. Must be a dict of options or an unregistered optimizer.'
            )
    return groups


def check_constraints(name: str, value: object) -> Mapping[Predicate, Projection] | None:
    """Return constraints by predicate, or None."""
    constraints = check_predicates(name, value)
    for constraint in (constraints or {}).values():
        as_constraint(constraint)
    return constraints


def check_no_decay(name: str, value: object) -> object:
    """Return a predicate, or None."""
    if value is not None:
        check_predicate(value)
    return value


def check_norm_unit(name: str, value: object) -> object:
    """Return ``'own'``, units or None."""
    norm_scales({}, value)
    return value


def check_axes(name: str, value: object) -> object:
    """Return the name of an axis of a mesh, several names, or None."""
    allowed = 'a str' if name == 'shard_memory_over' else 'a str or a tuple of str'
    several = isinstance(value, tuple) and bool(value) and all(isinstance(axis, str) for axis in value)
    if not (value is None or isinstance(value, str) or (several and 'tuple' in allowed)):
        raise TypeError(f'Invalid {name}={value!r}. Must be {allowed}, the name of an axis of a mesh.')
    return value


def check_dtype(name: str, value: OptionValue) -> OptionValue:
    """Return a floating-point dtype, or None."""
    if value is None:
        return None
    try:
        is_float = jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise TypeError(f'Invalid {name}={value!r}. Must be a floating-point dtype.')
    return value


def check_metrics(name: str, value: object) -> object:
    """Return True, False or ``'weights'``."""
    if value is not True and value is not False and value != 'weights':
        raise TypeError(f"Invalid {name}={value!r}. Must be True, False or 'weights'.")
    return value


def check_stages(name: str, value: object) -> tuple[Stage, ...]:
    """Return a tuple of stages."""
    if not isinstance(value, Sequence) or not all(isinstance(stage, Stage) for stage in value):
        raise TypeError(f'Invalid {name}={value!r}. Must be a sequence of Stage.')
    return tuple(value)
