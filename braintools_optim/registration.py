"""Registration: taking hold of weights, by group, and letting go of them for a while."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import brainunit
import jax.numpy as jnp

from braintools_optim.constraints import bound
from braintools_optim.evaluation import refuse_inside
from braintools_optim.groups import Group
from braintools_optim.metrics import first_metrics
from braintools_optim.options import Hyperparameters
from braintools_optim.selection import Predicate, check_predicate, selected
from braintools_optim.settings import OptimState
from braintools_optim.states import inside_transformation
from braintools_optim.step import NOT_SLOTS, Memory, init_memory, merge_memory
from braintools_optim.treatment import Treatment
from braintools_optim.units import norm_scales
from braintools_optim.weights import Weights

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['add_groups', 'set_frozen', 'treated']


def add_groups(optimizer: Optimizer, weights: Weights, groups: list[Group], overrides: list[dict[str, Any]]) -> None:
    """Take hold of further weights, those of ``groups``, with options of their own; all or, if one is wrong, none."""
    refuse_inside(optimizer, 'Registering weights')
    groups, overrides = optimizer._parted(weights, groups, overrides)
    options, add_options = optimizer.settings.added(overrides)
    for own in options:
        optimizer._admit(Hyperparameters(own))
    named = weights.named()
    fresh = {key: named[key] for key in weights.keys[len(optimizer.weight_names) :]}
    treatment, frozen = treated(optimizer, fresh), set(optimizer.settings.frozen)
    for predicate, freezing in optimizer._freezing:
        (frozen.update if freezing else frozen.difference_update)(selected(predicate, fresh))
    memories = []
    for index, (group, own) in enumerate(zip(groups, options, strict=True), len(optimizer._groups)):
        leaves = {key: fresh[key] for key in group.keys}
        memories.append(first_memory(optimizer, str(index), leaves, own, treatment, frozen))
    memory = functools.reduce(merge_memory, memories)
    weights.settle()
    add_options()
    if optimizer.opt_state is None:
        optimizer.opt_state = OptimState(memory)
    else:
        optimizer.opt_state.value = merge_memory(optimizer.opt_state.value, memory)
    optimizer._weights, optimizer._groups = weights, [*optimizer._groups, *groups]
    optimizer._treatment = treatment
    optimizer._compile()
    if frozen != optimizer.settings.frozen:
        optimizer.settings.freeze(frozen)
    if optimizer.metrics_state is not None:
        optimizer.metrics_state.value = first_metrics(len(optimizer._groups))


def treated(optimizer: Optimizer, fresh: Mapping[str, Any]) -> Treatment:
    """The treatment of an optimizer's weights and of further ones."""
    old, units = optimizer._treatment, {key: brainunit.get_unit(w) for key, w in fresh.items()}
    patterns = [(f'constraints[{p!r}]', p) for p in optimizer.constraints or {}] + [
        (f'no_decay={optimizer.no_decay!r}', optimizer.no_decay)
    ]
    for option, pattern in patterns:
        if isinstance(pattern, str) and not selected(pattern, {**optimizer._weights.named(), **fresh}):
            warnings.warn(f'No weight is chosen by {option}. There are: {", ".join(fresh)}.', stacklevel=4)
    excluded = [] if optimizer.no_decay is None else selected(optimizer.no_decay, fresh)
    constraints = {**old.constraints, **bound(optimizer.constraints or {}, fresh)}
    scales = {**old.norm_scales, **norm_scales(units, optimizer.norm_unit)}
    return replace(old, undecayed=old.undecayed.union(excluded), constraints=constraints, norm_scales=scales)


def first_memory(
    optimizer: Optimizer,
    group: str,
    leaves: Mapping[str, Any],
    options: dict[str, Any],
    treatment: Treatment,
    frozen: Set[str] = frozenset(),
) -> Memory:
    """The memory of some weights of a group before their first update."""
    units = {key: brainunit.get_unit(w) for key, w in leaves.items()}
    arrays = {key: jnp.asarray(brainunit.get_mantissa(w)) for key, w in leaves.items()}
    return init_memory(optimizer, group, arrays, Hyperparameters(options), treatment, units, frozen)


def set_frozen(optimizer: Optimizer, predicate: Predicate, freezing: bool) -> None:
    """Leave weights as they are from now on, or no longer; what was never updated has no memory meanwhile."""
    if inside_transformation():
        raise ValueError('Weights cannot be frozen inside a transformation: it decides what is compiled.')
    check_predicate(predicate)
    named = optimizer._weights.named()
    names = selected(predicate, named)
    if named and not names:
        raise ValueError(f'No weight is chosen by {predicate!r}. There are: {", ".join(named)}.')
    optimizer._freezing.append((predicate, freezing))
    if optimizer.opt_state is None:
        return
    memory, counts = dict(optimizer.opt_state.value), dict(zip(named, optimizer.opt_state.value['step'], strict=True))
    for index, group in enumerate(optimizer._groups):
        leaves = {key: named[key] for key in group.keys if key in names and counts[key] == 0}
        own = first_memory(optimizer, str(index), leaves, optimizer.settings.plain(index), optimizer._treatment)
        for slot in own.keys() - NOT_SLOTS:
            others = {key: value for key, value in memory[slot].items() if key not in leaves}
            memory[slot] = others if freezing else others | own[slot]
    optimizer.opt_state.value = memory
    frozen = optimizer.settings.frozen
    optimizer.settings.freeze(frozen.union(names) if freezing else frozen.difference(names))
