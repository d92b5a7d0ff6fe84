"""All that the tests use of the library besides its public names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import braintools_optim as bo
from braintools_optim import buffers, donation
from braintools_optim.buffers import IN_PLACE, QUICKLY, block_for, compiler_options, is_known
from braintools_optim.options import to_leaf
from braintools_optim.precision import from_working, round_stochastically, to_working
from braintools_optim.rule import TreeRule
from braintools_optim.rules.adam import sma_length
from braintools_optim.shared_options import SHARED
from braintools_optim.states import is_as_known, is_plain, may_touch, read, write
from braintools_optim.weights import flatten_states

__all__ = [
    'IN_PLACE',
    'LR_SCHEDULE_PATH',
    'OPTIONS_ATTRIBUTE',
    'OPTIONS_PATH',
    'QUICKLY',
    'SHARED',
    'STATE_PATHS',
    'TreeRule',
    'block_for',
    'buffers',
    'compiler_options',
    'configuration',
    'donation',
    'flatten_states',
    'from_working',
    'group_state',
    'is_as_known',
    'is_known',
    'is_plain',
    'master_copies',
    'may_touch',
    'option_schedule_path',
    'option_schedules',
    'own_options',
    'place_slot',
    'read',
    'round_stochastically',
    'set_update_counts',
    'slots_of',
    'sma_length',
    'state_leaves',
    'to_leaf',
    'to_working',
    'update_counts',
    'weights_by_name',
    'write',
]

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
    return optimizer.settings.own


def configuration(optimizer: bo.Optimizer) -> list[Any]:
    """Return all that an optimizer keeps besides its States, to be compared."""
    settings = optimizer.settings
    attributes = {name: value for name, value in vars(optimizer).items() if not name.startswith('_')}
    return [settings.own, settings.schedules, list(optimizer._freezing), attributes]


def weights_by_name(optimizer: bo.Optimizer) -> dict[str, Any]:
    """Return the values of the registered weights, leaf by leaf."""
    return optimizer._weights.named()


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
    optimizer.opt_state.value = {**value, 'step': step}


def place_slot(optimizer: bo.Optimizer, slot: str, name: str, sharding: Any) -> None:
    """Move one slot of one weight to another sharding."""
    value = optimizer.opt_state.value
    optimizer.opt_state.value = {**value, slot: {**value[slot], name: jax.device_put(value[slot][name], sharding)}}


def state_leaves(optimizer: bo.Optimizer, without_skips: bool = False) -> list[Any]:
    """Return the arrays of the optimizer state, with or without the count of skipped updates."""
    value = {slot: x for slot, x in optimizer.opt_state.value.items() if not (without_skips and slot == 'skipped')}
    return jax.tree.leaves(value)
