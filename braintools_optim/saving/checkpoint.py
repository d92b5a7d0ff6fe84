"""Checkpoints: everything that the next update depends on, as plain numbers and NumPy arrays by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import brainunit
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.tree_util import DictKey, keystr, tree_flatten_with_path
from jax.typing import ArrayLike

from braintools_optim.core import Core
from braintools_optim.options.fields import fields_of
from braintools_optim.options.hyperparameters import Packed, is_flag
from braintools_optim.options.types import Tree
from braintools_optim.step.metrics import first_metrics
from braintools_optim.step.stages import StageOptions
from braintools_optim.step.state import OptimizerState, merge_slots, without
from braintools_optim.weights.predicates import Predicate, selected

__all__ = ['FORMAT', 'load_state_dict', 'reset', 'state_dict', 'weights']

FORMAT = 1
PARTS = {'optimizer', 'schedule', 'base_lrs', 'param_groups', 'weights', 'opt_state', 'states'}
Treatment = dict[str, str | bool]
"""The unit of a weight, and whether the weight is frozen, decays and is constrained."""
Arrays = dict[str, npt.NDArray[np.generic]]


def state_dict(core: Core) -> dict[str, Tree]:
    """Return everything that the next update depends on except the weights."""
    core.refuse_evaluating('A checkpoint')
    states = {name: to_arrays(keyed(core, name, s.value)) for name, s in core.named_states().items()}
    schedule = core.settings.lr_scheduler
    return {
        'format': FORMAT,
        'optimizer': core.name,
        'step_count': int(core.step_count.value),
        'lr': core.settings.lr_of(0),
        'base_lr': schedule.base_lrs[0],
        'schedule': type(schedule).__name__,
        'base_lrs': list(schedule.base_lrs),
        'param_groups': [described(core, i) for i in range(len(core.groups))],
        'weights': weights(core),
        'opt_state': states.pop('opt_state', {}),
        'states': states,
    }


def load_state_dict(
    core: Core, state_dict: Mapping[str, Tree], strict: bool = True, rename: Mapping[str, str] | None = None
) -> list[str]:
    """Load a :func:`state_dict`, and return what does not fit; with ``strict``, raise if anything does not fit."""
    core.registered('load_state_dict')
    core.refuse_evaluating('A checkpoint')
    check_format(state_dict)
    check_form(state_dict)
    old_names = names_there(state_dict['weights'], core.weights.keys, rename or {})
    state = with_names(state_dict, {old: new for new, old in old_names.items()})
    problems = [f'{what}: {there!r} there, {here!r} here' for what, there, here in differences(core, state)]
    ours, theirs = weights(core), state['weights']
    old_names = {n: old for n, old in old_names.items() if n in ours and ours[n]['unit'] == theirs[n]['unit']}
    saved, values = {'opt_state': state['opt_state'], **state['states']}, {}
    others = other_groups(core, state)
    for name, own in core.named_states().items():
        arrays = saved.pop(name, {})
        if name == 'opt_state':
            values[name] = optimizer_state_from(core, arrays, old_names, problems)
        else:
            here = keyed(core, name, own.value)
            values[name] = from_arrays(here, arrays, name, problems, others if name == 'settings.values' else ())
    problems += [f'{name}: not here' for name in saved]
    if problems and strict:
        raise ValueError('The state_dict does not fit this optimizer, which is unchanged. ' + '; '.join(problems))
    for name, own in core.named_states().items():
        own.value = Packed.of(values[name]) if isinstance(own.value, Packed) else values[name]
    for i, group in enumerate(state['param_groups']):
        if f'groups.{i}.' not in others:
            core.settings.overridden[i] = set(group['own']) & core.settings.plain(i).keys()
    return problems


def check_format(state: Tree) -> None:
    """Raise unless this is a state_dict of this library, with a hint if it is that of another library."""
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


def check_form(state: Mapping[str, Tree]) -> None:
    """Raise if parts of a state_dict have wrong types, before anything is compared."""
    kinds: list[tuple[str, object, type]] = [
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


def keyed(core: Core, name: str, value: Tree) -> Tree:
    """Return the value of a State with update counts by weight and options by name instead of by position."""
    if isinstance(value, Packed):
        return value.tree
    if name != 'opt_state':
        return value
    parts = {**value.parts(), 'step': dict(zip(core.weights.keys, value.step, strict=True))}
    return jax.tree.map(lambda x: x.parts() if is_state(x) else x, parts, is_leaf=is_state)


def is_state(x: object) -> bool:
    """Return whether ``x`` is an optimizer state, such as that of the base optimizer of :class:`Lookahead`."""
    return isinstance(x, OptimizerState)


def described(core: Core, group: int) -> dict[str, Tree]:
    """Return the weights and the options of a group."""
    options = {**core.settings.plain('shared'), **core.settings.plain(group)}
    lists = {name: list(x) if isinstance(x, tuple) else x for name, x in options.items()}
    return {'params': list(core.groups[group].keys), 'own': sorted(core.settings.overridden[group]), **lists}


def weights(core: Core) -> dict[str, Treatment]:
    """Return the unit of each weight, in which its slots are, and how the weight is treated."""
    frozen, policy = core.settings.frozen, core.policy
    return {
        name: {
            'unit': str(brainunit.get_unit(w)),
            'frozen': name in frozen,
            'decays': name not in policy.undecayed,
            'constrained': name in policy.constraints,
        }
        for name, w in core.weights.named().items()
    }


# what does not fit


def names_there(theirs: Iterable[str], ours: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the weights in the file by their names here."""
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


def with_names(state: Mapping[str, Tree], new_names: Mapping[str, str]) -> dict[str, Tree]:
    """Return a state_dict with the names of the weights here, except in the names of arrays."""
    groups = [{**group, 'params': [new_names[name] for name in group['params']]} for group in state['param_groups']]
    return {**state, 'param_groups': groups, 'weights': {new_names[n]: w for n, w in state['weights'].items()}}


def differences(core: Core, state: Mapping[str, Tree]) -> list[tuple[str, object, object]]:
    """Return the differences that no array shows: the algorithm, the weights of each group, units and flags."""
    ours = [described(core, i) for i in range(len(core.groups))]
    theirs, schedule = state['param_groups'], core.settings.lr_scheduler
    pairs = [
        ('optimizer', state['optimizer'], core.name),
        ('schedule', state['schedule'], type(schedule).__name__),
        ('base_lrs', list(state['base_lrs']), list(schedule.base_lrs)),
        ('param_groups', len(theirs), len(ours)),
    ]
    defaults = {name: own.default for name, own in fields_of(StageOptions).items()}
    for i, (there, here) in enumerate(zip(theirs, ours, strict=False)):
        pairs.append((f'param_groups.{i}.params', sorted(there['params']), sorted(here['params'])))
        flags = {name for options in (there, here) for name, value in options.items() if is_flag(value)}
        # an option of every optimizer that the file does not know counts as its default
        pairs += [(f'param_groups.{i}.{n}', there.get(n, defaults.get(n)), here.get(n)) for n in sorted(flags)]
    for name, here in weights(core).items():
        there = state['weights'].get(name, here)
        pairs += [(f'{what} of {name}', there[what], here[what]) for what in here]
    return [pair for pair in pairs if pair[1] != pair[2]]


def other_groups(core: Core, state: Mapping[str, Tree]) -> tuple[str, ...]:
    """Return the paths of the options of groups whose weights differ between the file and the optimizer."""
    theirs = [set(group['params']) for group in state['param_groups']]
    ours = [set(group.keys) for group in core.groups]
    both = range(min(len(theirs), len(ours)))
    return tuple(f'groups.{i}.' for i in range(max(len(theirs), len(ours))) if i not in both or theirs[i] != ours[i])


# arrays


def named(path: Iterable[object]) -> str:
    """Return the dotted name of a path."""
    return keystr(tuple(path), simple=True, separator='.')


def to_arrays(tree: Tree) -> Arrays:
    """Return copies of the leaves of a tree as NumPy arrays, by path."""
    return {named(path): np.array(leaf) for path, leaf in tree_flatten_with_path(tree)[0]}


def from_arrays(
    tree: Tree, arrays: Mapping[str, ArrayLike], where: str, problems: list[str], left_out: tuple[str, ...] = ()
) -> Tree:
    """Return ``tree`` with the leaves in ``arrays``. A leaf that does not fit stays, and is added to ``problems``."""
    left = {name: x for name, x in arrays.items() if not name.startswith(left_out)}

    def take(path: Iterable[object], leaf: jax.Array) -> jax.Array:
        name = named(path)
        return leaf if name.startswith(left_out) else taken(left, name, leaf, f'{where}.{name}', problems)

    restored = jax.tree_util.tree_map_with_path(take, tree)
    problems += [f'{where}.{name}: not here' for name in left]
    return restored


def optimizer_state_from(
    core: Core, arrays: Mapping[str, ArrayLike], old_names: Mapping[str, str], problems: list[str]
) -> OptimizerState:
    """Return the optimizer state that ``arrays`` holds: for each weight all of its state or none of it.

    Under a rule that couples weights this holds for each group. A part of a state, such as a count without the moments
    that it counts, would be worse than none.
    """
    left, names = dict(arrays), set(core.weights.keys)
    state = with_slots_there(core, arrays, old_names)
    parts = keyed(core, 'opt_state', state)
    trees = {n: f'tree.{i}' for i in map(int, state.groups) for n in core.groups[i].keys}
    found, misfits = [], set()
    for path, leaf in tree_flatten_with_path(parts)[0]:
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
    value = jax.tree.unflatten(jax.tree.structure(parts), chosen)
    value['step'] = jnp.stack([value['step'][key] for key in core.weights.keys])
    value = jax.tree.map(
        lambda x, new: x.with_parts(new) if is_state(x) else new, state.parts(), value, is_leaf=is_state
    )
    return state.with_parts(value)


def with_slots_there(core: Core, arrays: Mapping[str, ArrayLike], old_names: Mapping[str, str]) -> OptimizerState:
    """Return the present state, in which frozen weights have slots only if they have slots in ``arrays``."""
    state, weights = core.state, core.weights.named()
    names = [*map(state.part_name, state.slots), *state.stage_slots]
    for i, group in enumerate(core.groups):
        frozen = core.settings.frozen.intersection(group.keys, old_names)
        saved = {n: weights[n] for n in frozen if any(f'{name}.{old_names[n]}' in arrays for name in names)}
        fresh = core.first_state(str(i), saved, core.settings.plain(i))
        removed = [name for name in frozen if name not in saved]
        state = replace(
            state,
            slots=merge_slots(fresh.slots, without(state.slots, removed)),
            stage_slots=merge_slots(fresh.stage_slots, without(state.stage_slots, removed)),
        )
    return state


def taken(left: dict[str, ArrayLike], name: str, leaf: jax.Array, label: str, problems: list[str]) -> jax.Array:
    """Remove the array of a name from ``left``, and return it if it fits, ``leaf`` otherwise."""
    if name not in left:
        problems.append(f'{label}: not there')
        return leaf
    there, here = np.array(left.pop(name)), jnp.asarray(leaf)
    if (there.shape, there.dtype) != (here.shape, here.dtype):
        kinds = [f'{x.dtype}{list(x.shape)}' for x in (there, here)]
        problems.append(f'{label}: {kinds[0]} there, {kinds[1]} here')
        return leaf
    return jax.device_put(there, here.sharding) if here.committed else jnp.asarray(there)


# starting again


def reset(core: Core, predicate: Predicate | None = None) -> None:
    """Clear the optimizer state of the weights that ``predicate`` chooses, or of all."""
    core.registered('reset')
    core.refuse_evaluating('A reset')
    weights = core.weights.named()
    names = set(weights if predicate is None else selected(predicate, weights))
    if not names:
        raise ValueError(f'No weight is chosen by {predicate!r}. There are: {", ".join(weights)}.')
    state = core.state
    for i, group in enumerate(core.groups):
        own = {name: weights[name] for name in group.keys if name in names}
        if own and core.rule.couples_parameters and len(own) < len(group.keys):
            together = ', '.join(group.keys)
            raise ValueError(f'{core.name} remembers {together} together. Must be reset all or none.')
        if own:
            fresh = core.first_state(str(i), own, core.settings.plain(i), frozen=core.settings.frozen)
            state = replace(
                state,
                slots=merge_slots(without(state.slots, list(own)), fresh.slots),
                stage_slots=merge_slots(without(state.stage_slots, list(own)), fresh.stage_slots),
                groups={**state.groups, **fresh.groups},
            )
    chosen = np.array([name in names for name in weights])
    state = replace(state, step=jnp.where(chosen, 0, state.step))
    if predicate is None:
        state = replace(state, skipped=jnp.zeros_like(state.skipped))
        core.step_count.value = jnp.zeros_like(core.step_count.value)
        if core.metrics_state is not None:
            core.metrics_state.value = first_metrics(len(core.groups))
    core.registered('reset').value = state
