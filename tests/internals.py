"""All that the tests use of the library besides its public names."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import braintools_optim as bo
from braintools_optim.compiled import buffers, plan
from braintools_optim.compiled.access import is_as_known, is_plain, may_access_directly, read, write
from braintools_optim.compiled.buffers import IN_PLACE, QUICKLY, block_for, compiler_options, is_known
from braintools_optim.options.fields import fields_of
from braintools_optim.options.kinds import BELOW_ONE, Number, Numbers
from braintools_optim.rules.adam import sma_length
from braintools_optim.step.rule import GroupRule
from braintools_optim.weights.precision import from_working, round_stochastically, to_working
from braintools_optim.weights.unique_states import flatten_states

__all__ = [
    'IN_PLACE',
    'LR_SCHEDULE_PATH',
    'OPTIONS_ATTRIBUTE',
    'OPTIONS_PATH',
    'QUICKLY',
    'SHARED',
    'STATE_PATHS',
    'GroupRule',
    'as_decay',
    'block_for',
    'buffers',
    'compiler_options',
    'configuration',
    'flatten_states',
    'from_working',
    'group_state',
    'is_as_known',
    'is_known',
    'is_plain',
    'master_copies',
    'may_access_directly',
    'numeric_options',
    'option_schedule_path',
    'option_schedules',
    'own_options',
    'place_slot',
    'plan',
    'read',
    'replays',
    'round_stochastically',
    'set_update_counts',
    'slots_of',
    'sma_length',
    'state_leaves',
    'to_working',
    'update_counts',
    'weights_by_name',
    'write',
]

SHARED = {
    name: own.default for name, own in fields_of(bo.Optimizer).items() if own.init and not own.last and name != 'lr'
}
"""The options that every optimizer takes by keyword, with their defaults."""
NO_SLOTS = ('step', 'skipped', 'tree', 'master')
STATE_PATHS = {'opt_state', 'settings.step_count', 'settings.values'}
"""The paths of an optimizer's States in brainstate's graph, besides those of its schedules."""
OPTIONS_PATH = 'settings.values'
"""The path of the State that holds the options."""
OPTIONS_ATTRIBUTE = ('settings', 'Settings')
"""The attribute of an optimizer that holds its options, and its class."""
LR_SCHEDULE_PATH = 'settings.lr_scheduler'


def option_schedule_path(option: str) -> tuple[str, ...]:
    """Return the path in brainstate's graph of the schedule that drives an option of the whole optimizer."""
    return ('settings', 'schedules', 'defaults', option)


def option_schedules(optimizer: bo.Optimizer, group: int) -> list[bo.LRScheduler]:
    """Return the schedules that drive the options of one group."""
    return list(optimizer.settings.schedules[str(group)].values())


def own_options(optimizer: bo.Optimizer) -> list[set[str]]:
    """Return, for each group, the names of the options that it does not share with the optimizer."""
    return optimizer.settings.overridden


def configuration(optimizer: bo.Optimizer) -> list[Any]:
    """Return all that an optimizer keeps besides its States, to be compared."""
    settings = optimizer.settings
    attributes = {name: value for name, value in vars(optimizer).items() if not name.startswith('_')}
    return [settings.overridden, settings.schedules, list(optimizer._core.freezing), attributes]


def weights_by_name(optimizer: bo.Optimizer) -> dict[str, Any]:
    """Return the values of the registered weights, leaf by leaf."""
    return optimizer._core.weights.named()


def as_decay(beta: Any) -> bo.Decay:
    """Return a decay rate in the form in which a rule reads it."""
    return Number(BELOW_ONE, decay=True).to_leaf(beta)


# the optimizer state


def slots_of(optimizer: bo.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the slots by their names, each with the arrays of the weights by theirs."""
    return {slot: leaves for slot, leaves in optimizer.opt_state.value.items() if slot not in NO_SLOTS}


def group_state(optimizer: bo.Optimizer, group: int = 0) -> Any:
    """Return the state that a rule keeps of all weights of one group together."""
    return optimizer.opt_state.value['tree'][str(group)]


def master_copies(optimizer: bo.Optimizer) -> dict[str, Any]:
    """Return the copies of weights in full precision, by name."""
    return optimizer.opt_state.value.get('master', {})


def update_counts(optimizer: bo.Optimizer) -> dict[str, int]:
    """Return how often each weight has been updated."""
    return dict(zip(optimizer.weight_names, optimizer.opt_state.value['step'].tolist(), strict=True))


def set_update_counts(optimizer: bo.Optimizer, counts: dict[str, int]) -> None:
    """Change how often each weight is said to have been updated."""
    value, dtype = optimizer.opt_state.value, optimizer.opt_state.value['step'].dtype
    step = jnp.asarray([counts[name] for name in optimizer.weight_names], dtype)
    optimizer.opt_state.value = dataclasses.replace(value, step=step)


def place_slot(optimizer: bo.Optimizer, slot: str, name: str, sharding: Any) -> None:
    """Move one slot of one weight to another sharding."""
    value = optimizer.opt_state.value
    moved = {**value.slots[slot], name: jax.device_put(value.slots[slot][name], sharding)}
    optimizer.opt_state.value = dataclasses.replace(value, slots={**value.slots, slot: moved})


def state_leaves(optimizer: bo.Optimizer, without_skips: bool = False) -> list[Any]:
    """Return the arrays of the optimizer state, with or without the count of skipped updates."""
    value = {slot: x for slot, x in optimizer.opt_state.value.items() if not (without_skips and slot == 'skipped')}
    return jax.tree.leaves(value)


def replays(optimizer: bo.Optimizer) -> Any:
    """Return the functions that ``minimize`` of an optimizer has compiled, by the structures of their traces."""
    return optimizer._updater.replays.known


OPTIONAL_NUMBERS = {
    'adamw_lr': 0.01,
    'eps_root': 1e-8,
    'shampoo_beta': 0.9,
    'beta3': 0.9,
    'init_eta': 0.1,
    'max_eval': 4,
    'grad_clip_norm': 1.5,
    'grad_clip_value': 0.5,
    'grokfast': 2.5,
    'grad_clip_adaptive': 0.15,
}
"""Values of numeric options that are None by default."""


def numeric_options(optimizer: type[bo.Optimizer]) -> dict[str, Any]:
    """Return a value of each numeric argument of an optimizer that may be traced; those of all optimizers for Adam."""
    found = {}
    for name, field in fields_of(optimizer).items():
        kind = getattr(field.kind, 'checked', None)
        kind = getattr(kind, '__self__', field.kind)
        is_own = name not in SHARED or optimizer is bo.Adam
        if field.init and is_own and isinstance(kind, (Number, Numbers)) and not getattr(kind, 'static', False):
            value = OPTIONAL_NUMBERS.get(name) if field.default is None else field.default
            found |= {} if value is None else {name: value}
    return found
