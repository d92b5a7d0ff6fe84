"""Checkpoints: all that the next update depends on, as plain numbers and NumPy arrays by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.options import is_flag

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['FORMAT', 'load_state_dict', 'state_dict']

FORMAT = 1
Arrays = dict[str, np.ndarray[Any, Any]]


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Nested dicts of strings, numbers and NumPy arrays, which later updates do not touch."""
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
        'opt_state': states.pop('opt_state', {}),
        'states': states,
    }


def load_state_dict(optimizer: Optimizer, state: Mapping[str, Any], strict: bool = True) -> list[str]:
    """Go on from where ``state`` was taken. What does not fit is an error, or without ``strict`` is returned."""
    if optimizer.opt_state is None:
        raise ValueError('register_trainable_weights must be called before load_state_dict.')
    if not isinstance(state, Mapping) or state.get('format') != FORMAT:
        found = state.get('format') if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f'Invalid format={found!r} of a state_dict. Must be {FORMAT}: one of this library.')
    if missing := {'optimizer', 'schedule', 'base_lrs', 'param_groups', 'opt_state', 'states'} - state.keys():
        raise ValueError(f'The state_dict lacks {sorted(missing)}.')
    problems = [f'{what}: {there!r} there, {here!r} here' for what, there, here in differences(optimizer, state)]
    saved = {'opt_state': state['opt_state'], **state['states']}
    values = {}
    for name, own in named_states(optimizer).items():
        value = from_arrays(keyed(optimizer, name, own.value), saved.pop(name, {}), name, problems)
        if name == 'opt_state':
            value['step'] = jnp.stack([value['step'][key] for key in optimizer.weight_names])
        values[name] = value
    problems += [f'{name}: not here' for name in saved]
    if problems and strict:
        raise ValueError('The state_dict does not fit this optimizer, which is unchanged. ' + '; '.join(problems))
    for name, own in named_states(optimizer).items():
        own.value = values[name]
    optimizer.settings.own = [set(group['own']) for group in state['param_groups']][: len(optimizer.settings.own)]
    return problems


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
    return {'params': list(optimizer.group_names(group)), 'own': sorted(optimizer.settings.own[group]), **options}


def differences(optimizer: Optimizer, state: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What no array shows: the algorithm, the weights of each group, and flags."""
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
    return [pair for pair in pairs if pair[1] != pair[2]]


def to_arrays(tree: Any) -> Arrays:
    """The leaves of a tree as NumPy arrays of their own, by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='.'): np.array(leaf) for path, leaf in leaves}


def from_arrays(tree: Any, arrays: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """``tree`` with the leaves that ``arrays`` has; what does not fit stays, and is added to ``problems``."""
    left = dict(arrays)

    def take(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator='.')
        if name not in left:
            problems.append(f'{where}.{name}: not there')
            return leaf
        there, here = np.asarray(left.pop(name)), jnp.asarray(leaf)
        if (there.shape, there.dtype) != (here.shape, here.dtype):
            kinds = [f'{x.dtype}{list(x.shape)}' for x in (there, here)]
            problems.append(f'{where}.{name}: {kinds[0]} there, {kinds[1]} here')
            return leaf
        return jnp.asarray(there)

    restored = jax.tree_util.tree_map_with_path(take, tree)
    problems += [f'{where}.{name}: not here' for name in left]
    return restored
