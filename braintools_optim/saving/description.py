"""Descriptions of schedules and fixed arguments, which a checkpoint depends on and no array shows."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence

import brainstate
import brainunit
import jax
import numpy as np
from brainstate.graph import Node

from braintools_optim.core import Core
from braintools_optim.options.types import OptionValue, Tree
from braintools_optim.saving.trees import without_key
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.settings import Settings, as_plain, kinds_of
from braintools_optim.step.rule import Rule

__all__ = ['Difference', 'described', 'differing', 'fixed_arguments']

Difference = tuple[str, Tree, Tree]
"""The name of an entry that differs, its value in the file, and its value here."""
KIND = 'kind'
"""The entry of a description that holds the name of a class."""
RECORDED = frozenset({'groups', 'no_decay', 'constraints', 'muon', 'state_dtype', 'master_weights', 'metrics'})
"""Arguments whose effect on each weight a checkpoint records anyway, in its groups, flags and slots."""
LARGEST = 64  # the most entries of an array whose values a description holds


def fixed_arguments(core: Core) -> dict[str, Tree]:
    """Return descriptions of the schedules and of the arguments that cannot be assigned."""
    schedule = described(core.settings.lr_scheduler)
    schedule.pop('base_lr', None)  # base_lrs are compared separately
    return {'schedule': schedule, **option_schedules(core.settings), **arguments_of(core.rule)}


def option_schedules(settings: Settings) -> dict[str, Tree]:
    """Return descriptions of the schedules that drive other options, by part and option."""
    return {
        f'{part}.{name}': described(schedule)
        for part, driven in settings.schedules.items()
        for name, schedule in driven.items()
    }


def arguments_of(rule: Rule) -> dict[str, Tree]:
    """Return descriptions of the arguments of an optimizer's constructor that are kept and are no options."""
    kept = vars(rule)
    settings: Settings = kept['settings']
    left_out = {*kinds_of(settings.owner), *RECORDED}
    names = [name for name in inspect.signature(type(rule)).parameters if name in kept and name not in left_out]
    return {name: described(kept[name]) for name in names}


def described(x: OptionValue) -> Tree:
    """Return plain numbers, strings, lists and dicts that tell two arguments apart.

    All functions have the same description, because their names say little and their code cannot be compared.
    """
    if isinstance(x, brainunit.Quantity):
        return {KIND: str(x.unit), 'mantissa': described(x.mantissa)}
    x = without_key(x)
    if isinstance(x, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(x)
        return array.tolist() if array.size <= LARGEST and array.dtype.kind in 'biuf' else f'{array.dtype}{array.shape}'
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, (brainunit.Unit, np.dtype)):
        return str(x)
    if isinstance(x, Rule):
        return described_optimizer(x)
    if isinstance(x, Node):
        return {KIND: type(x).__name__, **arguments_of_node(x)}
    if isinstance(x, Mapping):
        return {str(name): described(value) for name, value in x.items()}
    if callable(x):
        return 'a function'
    if isinstance(x, (Sequence, set, frozenset)):
        return [described(value) for value in (x if isinstance(x, Sequence) else sorted(x, key=repr))]
    if dataclasses.is_dataclass(x):
        fields = {field.name: described(getattr(x, field.name)) for field in dataclasses.fields(x)}
        return {KIND: type(x).__name__, **fields}
    return f'a {type(x).__name__}'


def described_optimizer(rule: Rule) -> Tree:
    """Return the description of an optimizer inside another one: with its options, which are fixed there."""
    settings: Settings = vars(rule)['settings']
    values, owner = settings.options, settings.owner
    options = as_plain(owner, values.defaults) | as_plain(owner, values.shared)
    return {
        KIND: type(rule).__name__,
        **{name: described(value) for name, value in options.items()},
        'schedule': described(settings.lr_scheduler),
        **option_schedules(settings),
        **arguments_of(rule),
    }


def arguments_of_node(node: Node) -> dict[str, Tree]:
    """Return descriptions of the arguments that a schedule or a loss scale has kept, and of the schedules inside."""
    kept = {name: value for name, value in vars(node).items() if not isinstance(value, brainstate.State)}
    found = {}
    for name in inspect.signature(type(node).__init__).parameters:
        attribute = name if name in kept else f'{name}s'  # base_lrs, for example, are given as base_lr
        if attribute in kept:
            found[name] = described(kept.pop(attribute))
    parts = {name: value for name, value in kept.items() if isinstance(value, LRScheduler)}
    return found | {name: described(part) for name, part in parts.items()}


def differing(where: str, there: Tree, here: Tree) -> list[Difference]:
    """Return the innermost parts of two descriptions that differ. A part that the file does not know is accepted."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        if there.get(KIND) != here.get(KIND):
            return [(where, there.get(KIND), here.get(KIND))]
        return [
            found
            for name in there
            if name != KIND
            for found in differing(f'{where}.{name}' if where else name, there[name], here.get(name))
        ]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = zip(there, here, strict=True)
        if any(isinstance(entry, Mapping) for entry in there):
            return [found for i, (a, b) in enumerate(pairs) for found in differing(f'{where}.{i}', a, b)]
    return [] if there == here else [(where, named(there), named(here))]


def named(x: Tree) -> Tree:
    """Return the name of the class that a description is of, or a plain value unchanged."""
    return x.get(KIND, x) if isinstance(x, Mapping) else x
