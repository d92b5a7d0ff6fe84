"""Checkpoints: all that the next update depends on, as plain numbers and NumPy arrays by path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import brainstate
import brainunit
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, keystr, tree_flatten_with_path

from braintools_optim import files
from braintools_optim.evaluation import refuse_inside
from braintools_optim.metrics import first_metrics
from braintools_optim.options import Packed, is_flag
from braintools_optim.registration import first_memory
from braintools_optim.rule import TreeRule
from braintools_optim.selection import Predicate, selected
from braintools_optim.settings import HIDDEN
from braintools_optim.step import COUNTS, NOT_SLOTS

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['FORMAT', 'load', 'load_state_dict', 'reset', 'save', 'state_dict']

FORMAT = 1
PARTS = {'optimizer', 'schedule', 'base_lrs', 'param_groups', 'weights', 'opt_state', 'states'}
Arrays = dict[str, np.ndarray[Any, Any]]


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """All that the next update depends on but the weights, by path.

    Nested dicts and lists of strings, numbers and NumPy arrays, which later updates do not touch.
    """
    refuse_inside(optimizer, 'A checkpoint')
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
        'weights': weights(optimizer),
        'opt_state': states.pop('opt_state', {}),
        'states': states,
    }


def load_state_dict(
    optimizer: Optimizer, state_dict: Mapping[str, Any], strict: bool = True, rename: Mapping[str, str] | None = None
) -> list[str]:
    """Go on from where :meth:`state_dict` was taken.

    Parameters
    ----------
    state_dict : mapping
        Of an optimizer that was built alike. The memory goes to the weights of the same names.
    strict : bool, default True
        If False, what fits is loaded, and what does not is returned: of a weight all its memory or none,
        of a group its own options if it has the same weights.
    rename : dict from str to str, optional
        The names here of weights that have other names there.

    Raises
    ------
    ValueError
        That lists all differences in names, shapes, dtypes, units and flags; nothing has changed then.
    """
    if optimizer.opt_state is None:
        raise ValueError('register_trainable_weights must be called before load_state_dict.')
    refuse_inside(optimizer, 'A checkpoint')
    check_format(state_dict)
    check_form(state_dict)
    old_names = names_there(state_dict['weights'], optimizer.weight_names, rename or {})
    state = with_names(state_dict, {old: new for new, old in old_names.items()})
    problems = [f'{what}: {there!r} there, {here!r} here' for what, there, here in differences(optimizer, state)]
    ours, theirs = weights(optimizer), state['weights']
    old_names = {n: old for n, old in old_names.items() if n in ours and ours[n]['unit'] == theirs[n]['unit']}
    saved, values = {'opt_state': state['opt_state'], **state['states']}, {}
    others = other_groups(optimizer, state)
    for name, own in named_states(optimizer).items():
        arrays = saved.pop(name, {})
        if name == 'opt_state':
            values[name] = memory_from(optimizer, arrays, old_names, problems)
        else:
            here = keyed(optimizer, name, own.value)
            values[name] = from_arrays(here, arrays, name, problems, others if name == 'settings.values' else ())
    problems += [f'{name}: not here' for name in saved]
    if problems and strict:
        raise ValueError('The state_dict does not fit this optimizer, which is unchanged. ' + '; '.join(problems))
    for name, own in named_states(optimizer).items():
        own.value = Packed.of(values[name]) if isinstance(own.value, Packed) else values[name]
    for i, group in enumerate(state['param_groups']):
        if f'groups.{i}.' not in others:
            optimizer.settings.own[i] = set(group['own']) & optimizer.settings.plain(i).keys()
    return problems


def save(optimizer: Optimizer, path: str | os.PathLike[str]) -> None:
    """Write the :meth:`state_dict` to an ``.npz``, ``.safetensors`` or ``.msgpack`` file, whole or not at all.

    See :func:`braintools_optim.files.save`, which writes other trees, such as the weights, likewise.
    """
    files.save(path, state_dict(optimizer))


def load(
    optimizer: Optimizer, path: str | os.PathLike[str], strict: bool = True, rename: Mapping[str, str] | None = None
) -> list[str]:
    """Go on from where :meth:`save` was called, as :meth:`load_state_dict` does.

    Raises
    ------
    ValueError
        If the file is none of ours, or not whole, or does not fit; nothing has changed then.
    """
    return load_state_dict(optimizer, files.load(path), strict, rename)


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


def check_form(state: Mapping[str, Any]) -> None:
    """Refuse what is no state_dict, before anything is compared."""
    kinds: list[tuple[str, Any, type]] = [
        ('base_lrs', state['base_lrs'], Sequence),
        ('param_groups', state['param_groups'], Sequence),
        ('opt_state', state['opt_state'], Mapping),
        ('states', state['states'], Mapping),
        ('weights', state['weights'], Mapping),
    ]
    if isinstance(state['states'], Mapping):
        kinds += [(f'states.{name}', arrays, Mapping) for name, arrays in state['states'].items()]
    if isinstance(state['param_groups'], Sequence):
        for i, group in enumerate(state['param_groups']):
            kinds.append((f'param_groups.{i}', group, Mapping))
            if isinstance(group, Mapping):
                kinds += [(f'param_groups.{i}.{name}', group.get(name), Sequence) for name in ('params', 'own')]
    for name, value, kind in kinds:
        if not isinstance(value, kind) or isinstance(value, str):
            raise ValueError(f'Invalid {name}={value!r} of a state_dict. Must be a {kind.__name__.lower()}.')
    for i, group in enumerate(state['param_groups']):
        if unknown := [name for name in group['params'] if name not in state['weights']]:
            raise ValueError(f'Invalid param_groups.{i}.params={unknown!r} of a state_dict. Must be among its weights.')


def named_states(optimizer: Optimizer) -> dict[str, brainstate.State]:
    """All States of the optimizer, those of its schedules too, by path."""
    found: Any = brainstate.graph.states(optimizer)
    return {'.'.join(map(str, path)): state for path, state in found.items()}


def keyed(optimizer: Optimizer, name: str, value: Any) -> Any:
    """A State's value with the counts of updates by weight, and options by name, not by position."""
    if isinstance(value, Packed):
        return value.tree
    if name != 'opt_state':
        return value
    return {**value, 'step': dict(zip(optimizer.weight_names, value['step'], strict=True))}


def described(optimizer: Optimizer, group: int) -> dict[str, Any]:
    """The weights and the options of a group."""
    options = {**optimizer.settings.plain('shared'), **optimizer.settings.plain(group)}
    lists = {n: list(x) if isinstance(x, tuple) else x for n, x in options.items() if n not in HIDDEN}
    return {'params': list(optimizer.group_names(group)), 'own': sorted(optimizer.settings.own[group]), **lists}


def weights(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """What each weight is to the optimizer; its memory is in its unit."""
    frozen, treatment = optimizer.settings.frozen, optimizer._treatment
    return {
        name: {
            'unit': str(brainunit.get_unit(w)),
            'frozen': name in frozen,
            'decays': name not in treatment.undecayed,
            'constrained': name in treatment.constraints,
        }
        for name, w in optimizer._weights.named().items()
    }


# what does not fit


def names_there(theirs: Iterable[str], ours: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """What the weights there are called, by what they are called here."""
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


def with_names(state: Mapping[str, Any], new_names: Mapping[str, str]) -> dict[str, Any]:
    """A state_dict with the weights' names here, but for those of the arrays."""
    groups = [{**group, 'params': [new_names[name] for name in group['params']]} for group in state['param_groups']]
    return {**state, 'param_groups': groups, 'weights': {new_names[n]: w for n, w in state['weights'].items()}}


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
    for name, here in weights(optimizer).items():
        there = state['weights'].get(name, here)
        pairs += [(f'{what} of {name}', there[what], here[what]) for what in here]
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
    left, names = dict(arrays), set(optimizer.weight_names)
    memory = with_slots_there(optimizer, arrays, old_names)
    trees = {n: f'tree.{i}' for i in map(int, memory.get('tree', ())) for n in optimizer.group_names(i)}
    found, misfits = [], set()
    for path, leaf in tree_flatten_with_path(memory)[0]:
        first = 2 if path[0] == DictKey('tree') else 1  # 'tree', group, ..., weight; or slot, weight
        places = [i for i in range(first, len(path)) if getattr(path[i], 'key', None) in names]
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


def with_slots_there(optimizer: Optimizer, arrays: Mapping[str, Any], old_names: Mapping[str, str]) -> dict[str, Any]:
    """The memory here, of frozen weights what there is there: none if they were never updated."""
    memory: dict[str, Any] = keyed(optimizer, 'opt_state', optimizer.opt_state.value)  # type: ignore[union-attr]
    slots, named = memory.keys() - NOT_SLOTS, optimizer._weights.named()
    for i in range(len(optimizer.param_groups)):
        frozen = optimizer.settings.frozen.intersection(optimizer.group_names(i), old_names)
        remembered = {n: named[n] for n in frozen if any(f'{slot}.{old_names[n]}' in arrays for slot in slots)}
        fresh = first_memory(optimizer, str(i), remembered, optimizer.settings.plain(i), optimizer._treatment)
        for slot in slots:
            kept = {n: x for n, x in memory[slot].items() if n not in frozen or n in remembered}
            memory[slot] = fresh.get(slot, {}) | kept
    return memory


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


# to begin anew


def reset(optimizer: Optimizer, predicate: Predicate | None = None) -> None:
    """Forget the memory and the counts of updates, of all weights or of those that ``predicate`` chooses.

    Weights, options, constraints and schedules stay as they are. Without a predicate ``step_count``, what was
    skipped and the metrics begin anew, too; so does a schedule that was given as a function of that count.

    Parameters
    ----------
    predicate : str or callable, optional
        A pattern for the last parts of a dotted name, or a function ``(name, weight) -> bool``.

    Raises
    ------
    ValueError
        If no weight is chosen, or only some of those that a rule such as :class:`LBFGS` remembers together.
    """
    if optimizer.opt_state is None:
        raise ValueError('register_trainable_weights must be called before reset.')
    refuse_inside(optimizer, 'A reset')
    named = optimizer._weights.named()
    names = set(named if predicate is None else selected(predicate, named))
    if not names:
        raise ValueError(f'No weight is chosen by {predicate!r}. There are: {", ".join(named)}.')
    memory = dict(optimizer.opt_state.value)
    for i in range(len(optimizer.param_groups)):
        own = {name: named[name] for name in optimizer.group_names(i) if name in names}
        if own and isinstance(optimizer, TreeRule) and len(own) < len(optimizer.group_names(i)):
            together = ', '.join(optimizer.group_names(i))
            raise ValueError(f'{type(optimizer).__name__} remembers {together} together. Must be reset all or none.')
        frozen, options = optimizer.settings.frozen, optimizer.settings.plain(i)
        fresh = first_memory(optimizer, str(i), own, options, optimizer._treatment, frozen) if own else {}
        for slot in fresh.keys() - COUNTS - {'constraint'}:
            memory[slot] = {key: x for key, x in memory[slot].items() if key not in own} | fresh[slot]
    memory['step'] = jnp.where(np.array([name in names for name in named]), 0, memory['step'])
    if predicate is None:
        memory['skipped'] = jnp.zeros_like(memory['skipped'])
        optimizer.step_count.value = jnp.zeros_like(optimizer.step_count.value)
        if optimizer.metrics_state is not None:
            optimizer.metrics_state.value = first_metrics(len(optimizer.param_groups))
    optimizer.opt_state.value = memory
