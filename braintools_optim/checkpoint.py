"""Checkpoints: all that the next update depends on, as plain numbers and NumPy arrays by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import brainstate
import brainunit
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, keystr, tree_flatten_with_path

from braintools_optim.options import is_flag
from braintools_optim.units import is_quantity

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['FORMAT', 'load_state_dict', 'state_dict']

FORMAT = 1
PARTS = {'optimizer', 'schedule', 'base_lrs', 'param_groups', 'units', 'opt_state', 'states'}
Arrays = dict[str, np.ndarray[Any, Any]]


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Nested dicts and lists of strings, numbers and NumPy arrays, which later updates do not touch."""
    states = {name: to_arrays(keyed(optimizer, name, s.value)) for name, s in named_states(optimizer).items()}
    return {
        'format': FORMAT,
        'optimizer': type(optimizer).__name__,
        'step_count': int(optimizer.step_count.value),
        'lr': optimizer.current_lr,
        'base_lr': optimizer.base_lr,
        'schedule': type(optimizer.lr_scheduler).__name__,
        'base_lrs': list(optimizer.lr_scheduler.base_lrs),
        'param_groups': [described(optimizer, i) for i in range(len(optimizer.param_groups))],
        'units': units(optimizer),
        'opt_state': states.pop('opt_state', {}),
        'states': states,
    }


def load_state_dict(
    optimizer: Optimizer, state: Mapping[str, Any], strict: bool = True, rename: Mapping[str, str] | None = None
) -> list[str]:
    """Go on from where ``state`` was taken. What does not fit is an error, or without ``strict`` is returned."""
    if optimizer.opt_state is None:
        raise ValueError('register_trainable_weights must be called before load_state_dict.')
    check_format(state)
    old_names = names_there(state['param_groups'], optimizer.weight_names, rename or {})
    new_names = {old: new for new, old in old_names.items()}
    state = {
        **state,
        'param_groups': [{**g, 'params': [new_names[n] for n in g['params']]} for g in state['param_groups']],
        'units': {new_names.get(name, name): unit for name, unit in state['units'].items()},
    }
    problems = [f'{what}: {there!r} there, {here!r} here' for what, there, here in differences(optimizer, state)]
    same_unit = {name for name, unit in units(optimizer).items() if state['units'].get(name) == unit}
    old_names = {new: old for new, old in old_names.items() if new in same_unit}
    saved, values = {'opt_state': state['opt_state'], **state['states']}, {}
    for name, own in named_states(optimizer).items():
        there = saved.pop(name, {})
        if name == 'opt_state':
            values[name] = memory_from(optimizer, there, old_names, problems)
        else:
            left_out = other_groups(optimizer, state) if name == 'settings.values' else ()
            values[name] = from_arrays(own.value, there, name, problems, left_out)
    problems += [f'{name}: not here' for name in saved]
    if problems and strict:
        raise ValueError('The state_dict does not fit this optimizer, which is unchanged. ' + '; '.join(problems))
    for name, own in named_states(optimizer).items():
        own.value = values[name]
    for i, group in enumerate(state['param_groups'][: len(optimizer.settings.own)]):
        if f'groups.{i}.' not in other_groups(optimizer, state):
            optimizer.settings.own[i] = set(group['own']) & optimizer.settings.plain(i).keys()
    return problems


def check_format(state: Any) -> None:
    """Raise unless this is a state_dict of ours, with a word on whose it is."""
    is_mapping = isinstance(state, Mapping)
    if is_mapping and state.get('format') == FORMAT:
        if missing := PARTS - state.keys():
            raise ValueError(f'The state_dict lacks {sorted(missing)}.')
        return
    found, hint = state.get('format') if is_mapping else type(state).__name__, ''
    if is_mapping and {'state', 'param_groups'} <= state.keys():
        hint = " This one is torch's: load_torch_state_dict(state_dict, names) takes it."
    elif is_mapping and {'opt_state', 'step_count'} <= state.keys():
        hint = ' This one is of braintools.optim: load_braintools_state_dict(state_dict) takes it.'
    elif isinstance(state, tuple):
        hint = " If it is optax's, load_optax_state(state) takes it."
    raise ValueError(f'Invalid format={found!r} of a state_dict. Must be {FORMAT}: one of this library.{hint}')


def named_states(optimizer: Optimizer) -> dict[str, brainstate.State]:
    """All States of the optimizer, those of its schedules too, by path."""
    found: Any = brainstate.graph.states(optimizer)
    return {'.'.join(map(str, path)): state for path, state in found.items()}


def keyed(optimizer: Optimizer, name: str, value: Any) -> Any:
    """A State's value with the counts of updates by weight, not by position."""
    if name != 'opt_state':
        return value
    return {**value, 'step': dict(zip(optimizer.weight_names, value['step'], strict=True))}


def described(optimizer: Optimizer, group: int) -> dict[str, Any]:
    options = {**optimizer.settings.plain('shared'), **optimizer.settings.plain(group)}
    del options['schedules']  # how often a schedule was exchanged
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return {'params': list(optimizer.group_names(group)), 'own': sorted(optimizer.settings.own[group]), **lists}


def units(optimizer: Optimizer) -> dict[str, str]:
    """The unit of each weight, in which its memory is."""
    values = [state.value for state in optimizer.param_states.unique_states]
    leaves = jax.tree.leaves(values, is_leaf=is_quantity)
    return {n: str(brainunit.get_unit(leaf)) for n, leaf in zip(optimizer.weight_names, leaves, strict=True)}


# what does not fit


def names_there(groups: Iterable[Mapping[str, Any]], ours: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """What the weights there are called, by what they are called here."""
    theirs, ours = [name for group in groups for name in group['params']], list(ours)
    for unknown, known, where in (
        (rename.keys() - set(theirs), theirs, 'there'),
        (set(rename.values()) - set(ours), ours, 'here'),
    ):
        if unknown:
            raise ValueError(f'Invalid rename: there is no {sorted(unknown)} {where}. Must be among {sorted(known)}.')
    old_names: dict[str, str] = {}
    for old in theirs:
        new = rename.get(old, old)
        if new in old_names:
            raise ValueError(f'Invalid rename: both {old_names[new]!r} and {old!r} would be {new!r}.')
        old_names[new] = old
    return old_names


def differences(optimizer: Optimizer, state: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What no array shows: the algorithm, the weights of each group, units and flags."""
    ours = [described(optimizer, i) for i in range(len(optimizer.param_groups))]
    theirs = state['param_groups']
    pairs = [
        ('optimizer', state['optimizer'], type(optimizer).__name__),
        ('schedule', state['schedule'], type(optimizer.lr_scheduler).__name__),
        ('base_lrs', list(state['base_lrs']), list(optimizer.lr_scheduler.base_lrs)),
        ('param_groups', len(theirs), len(ours)),
    ]
    for i, (there, here) in enumerate(zip(theirs, ours, strict=False)):
        pairs.append((f'param_groups.{i}.params', sorted(there['params']), sorted(here['params'])))
        flags = {name for options in (there, here) for name, value in options.items() if is_flag(value)}
        pairs += [(f'param_groups.{i}.{name}', there.get(name), here.get(name)) for name in sorted(flags)]
    units_there = state['units']
    pairs += [(f'unit of {n}', units_there[n], unit) for n, unit in units(optimizer).items() if n in units_there]
    return [pair for pair in pairs if pair[1] != pair[2]]


def other_groups(optimizer: Optimizer, state: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of the options of groups that have not the same weights there and here."""
    theirs = [set(group['params']) for group in state['param_groups']]
    ours = [set(optimizer.group_names(i)) for i in range(len(optimizer.param_groups))]
    both = range(min(len(theirs), len(ours)))
    return tuple(f'groups.{i}.' for i in range(max(len(theirs), len(ours))) if i not in both or theirs[i] != ours[i])


# arrays


def named(path: Iterable[Any]) -> str:
    return keystr(tuple(path), simple=True, separator='.')


def to_arrays(tree: Any) -> Arrays:
    """The leaves of a tree as NumPy arrays of their own, by path."""
    return {named(path): np.array(leaf) for path, leaf in tree_flatten_with_path(tree)[0]}


def from_arrays(
    tree: Any, arrays: Mapping[str, Any], where: str, problems: list[str], left_out: tuple[str, ...] = ()
) -> Any:
    """``tree`` with the leaves that ``arrays`` has; what does not fit stays, and is added to ``problems``."""
    left = {name: x for name, x in arrays.items() if not name.startswith(left_out)}

    def take(path: Any, leaf: Any) -> Any:
        name = named(path)
        return leaf if name.startswith(left_out) else taken(left, name, leaf, f'{where}.{name}', problems)

    restored = jax.tree_util.tree_map_with_path(take, tree)
    problems += [f'{where}.{name}: not here' for name in left]
    return restored


def memory_from(
    optimizer: Optimizer, arrays: Mapping[str, Any], old_names: Mapping[str, str], problems: list[str]
) -> Any:
    """The memory that ``arrays`` has: of each weight (under a tree rule, of each group) all of it, or none.

    Part of a memory, such as a count without the moments that it counts, would be worse than none.
    """
    left, weights = dict(arrays), set(optimizer.weight_names)
    memory = keyed(optimizer, 'opt_state', optimizer.opt_state.value)  # type: ignore[union-attr]
    trees = {n: f'tree.{i}' for i in map(int, memory.get('tree', ())) for n in optimizer.group_names(i)}
    found, misfits = [], set()
    for path, leaf in tree_flatten_with_path(memory)[0]:
        first = 2 if path[0] == DictKey('tree') else 1  # 'tree', group, ..., weight; or slot, weight
        places = [i for i in range(first, len(path)) if getattr(path[i], 'key', None) in weights]
        whose, name = named(path[:2]), named(path)
        if places:
            at, weight = places[-1], path[places[-1]].key
            whose = trees.get(weight, weight)
            name = named((*path[:at], DictKey(old_names[weight]), *path[at + 1 :])) if weight in old_names else ''
        before = len(problems)
        found.append((whose, leaf, taken(left, name, leaf, f'opt_state.{named(path)}', problems)))
        if len(problems) > before:
            misfits.add(whose)
    problems += [f'opt_state.{name}: not here' for name in left]
    chosen = [here if whose in misfits else there for whose, here, there in found]
    value = jax.tree.unflatten(jax.tree.structure(memory), chosen)
    return {**value, 'step': jnp.stack([value['step'][key] for key in optimizer.weight_names])}


def taken(left: dict[str, Any], name: str, leaf: Any, label: str, problems: list[str]) -> Any:
    """The array of that name out of ``left`` if it fits, and otherwise ``leaf``."""
    if name not in left:
        problems.append(f'{label}: not there')
        return leaf
    there, here = np.array(left.pop(name)), jnp.asarray(leaf)
    if (there.shape, there.dtype) != (here.shape, here.dtype):
        kinds = [f'{x.dtype}{list(x.shape)}' for x in (there, here)]
        problems.append(f'{label}: {kinds[0]} there, {kinds[1]} here')
        return leaf
    return jax.device_put(there, here.sharding) if here.committed else jnp.asarray(there)
