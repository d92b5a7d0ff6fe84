"""Checkpoints: everything that the next update depends on, as plain numbers and NumPy arrays by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import NamedTuple

import brainunit
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.tree_util import DictKey, keystr, tree_flatten_with_path
from jax.typing import ArrayLike

from braintools_optim.core import Core
from braintools_optim.options.fields import fields_of
from braintools_optim.options.hyperparameters import Hyperparameters, Packed, is_flag, values_of
from braintools_optim.options.types import Tree
from braintools_optim.saving.description import Difference, differing, fixed_arguments
from braintools_optim.saving.form import FORMAT, canonical, check_form, check_format, plain
from braintools_optim.saving.imports import unchanged_by_errors
from braintools_optim.saving.reading import Reading
from braintools_optim.settings import OptionValues
from braintools_optim.step.stages import StageOptions
from braintools_optim.step.state import OptimizerState, merge_slots, without
from braintools_optim.weights.predicates import Predicate, selected

__all__ = ['UNFIT', 'fitted_state', 'load_state_dict', 'reset', 'state_dict', 'weights']

UNFIT = 'The state_dict does not fit this optimizer, which is unchanged.'
Treatment = dict[str, str | bool | list[int]]
"""The unit and the shape of a weight, and whether the weight is frozen, decays and is constrained."""
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
        'arguments': fixed_arguments(core),
        'param_groups': [described(core, i) for i in range(len(core.groups))],
        'weights': weights(core),
        'opt_state': states.pop('opt_state', {}),
        'states': states,
    }


def load_state_dict(
    core: Core, state_dict: Mapping[str, Tree], strict: bool = True, rename: Mapping[str, str] | None = None
) -> list[str]:
    """Load a :func:`state_dict` and return descriptions of misfits; with ``strict``, raise if there are any."""
    fitted = fitted_state(core, state_dict, rename)
    if fitted.problems and strict:
        raise ValueError(f'{UNFIT} {"; ".join(fitted.problems)}')
    with unchanged_by_errors(core):
        for name, own in core.named_states().items():
            value = fitted.values[name]
            own.value = Packed.of(value) if isinstance(own.value, Packed) else value
        core.settings.overridden = fitted.overridden
    return fitted.problems


class FittedState(NamedTuple):
    """The values that a state_dict gives to an optimizer."""

    values: dict[str, Tree]
    """The values of all States, by name."""
    overridden: list[set[str]]
    """The names of the options that each group overrides."""
    problems: list[str]
    """Descriptions of the parts that do not fit and stay as they are."""


def fitted_state(core: Core, state_dict: Mapping[str, Tree], rename: Mapping[str, str] | None = None) -> FittedState:
    """Compare a :func:`state_dict` with an optimizer, and change nothing."""
    core.registered('load_state_dict')
    core.refuse_evaluating('A checkpoint')
    state = canonical(state_dict)
    check_format(state)
    check_form(state)
    core.replace_lost_state()
    old_names = names_there(state['weights'], core.weights.keys, rename or {})
    state = with_names(state, {old: new for new, old in old_names.items()})
    others, problems = other_groups(core, state), differences(core, state)
    values = values_from(core, state, old_names, others, problems)
    overridden = list(core.settings.overridden)
    for i, group in enumerate(state['param_groups']):
        if f'groups.{i}.' not in others:
            overridden[i] = set(group['own']) & values_of(core.settings.options.groups[i]).keys()
    return FittedState(values, overridden, problems)


def values_from(
    core: Core, state: Mapping[str, Tree], old_names: Mapping[str, str], others: tuple[str, ...], problems: list[str]
) -> dict[str, Tree]:
    """Return the values of all States, by name; misfits are added to ``problems`` and stay as they are here."""
    ours, theirs = weights(core), state['weights']
    names = {n: old for n, old in old_names.items() if n in ours and ours[n]['unit'] == theirs[n]['unit']}
    reshaped = {n for n in names if theirs[n].get('shape', ours[n]['shape']) != ours[n]['shape']}
    saved = {'opt_state': state['opt_state'], **state['states']}
    values: dict[str, Tree] = {}
    for name, own in core.named_states().items():
        reading = Reading(core, name, saved.pop(name, {}), problems)
        if name == 'opt_state':
            values[name] = optimizer_state_from(core, reading, names, reshaped)
        elif name == 'settings.values':
            values[name] = options_from(core, reading, others)
        else:
            values[name] = from_arrays(reading, keyed(core, name, own.value))
    problems += [f'{name}: not here' for name in saved]
    return values


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
    """Return the unit and shape of each weight, which its slots depend on, and how the weight is treated."""
    frozen, policy = core.settings.frozen, core.policy
    return {
        name: {
            'unit': str(brainunit.get_unit(w)),
            'shape': list(w.shape),
            'frozen': name in frozen,
            'decays': name not in policy.undecayed,
            'constrained': name in policy.constraints,
        }
        for name, w in core.weights.named().items()
    }


# differences


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


def differences(core: Core, state: Mapping[str, Tree]) -> list[str]:
    """Describe the differences that no array shows: in algorithm, fixed arguments, groups, units and flags."""
    ours = [described(core, i) for i in range(len(core.groups))]
    theirs, schedule = state['param_groups'], core.settings.lr_scheduler
    pairs: list[Difference] = [
        ('optimizer', state['optimizer'], core.name),
        ('schedule', state['schedule'], type(schedule).__name__),
        ('base_lrs', list(state['base_lrs']), list(schedule.base_lrs)),
        ('param_groups', len(theirs), len(ours)),
    ]
    arguments = differing('', state.get('arguments', {}), plain(fixed_arguments(core)))
    pairs += [found for found in arguments if found[0] != 'schedule']  # the class of the schedule is compared above
    owner = core.settings.owner if state['optimizer'] == core.name else StageOptions
    defaults = {name: own.default for name, own in fields_of(owner).items()}
    for i, (there, here) in enumerate(zip(theirs, ours, strict=False)):
        pairs.append((f'param_groups.{i}.params', sorted(there['params']), sorted(here['params'])))
        flags = {name for options in (there, here) for name, value in options.items() if is_flag(value)}
        # an option that the file does not know counts as its default
        pairs += [(f'param_groups.{i}.{n}', there.get(n, defaults.get(n)), here.get(n)) for n in sorted(flags)]
    for name, here in weights(core).items():
        there = {**here, **state['weights'].get(name, here)}
        pairs += [(f'{what} of {name}', there[what], here[what]) for what in here]
    return [f'{what}: {there!r} there, {here!r} here' for what, there, here in pairs if there != here]


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


def from_arrays(reading: Reading, tree: Tree, left_out: tuple[str, ...] = ()) -> Tree:
    """Return ``tree`` with the leaves that were saved, except the leaves whose names begin with ``left_out``."""
    for name in [name for name in reading.left if name.startswith(left_out)]:
        del reading.left[name]

    def take(path: Iterable[object], leaf: jax.Array) -> jax.Array:
        name = named(path)
        return leaf if name.startswith(left_out) else reading.take(name, leaf)

    restored = jax.tree_util.tree_map_with_path(take, tree)
    reading.finish()
    return restored


def options_from(core: Core, reading: Reading, others: tuple[str, ...]) -> OptionValues:
    """Return the options that were saved, or the present ones if the rule refuses the combination."""
    settings = core.settings
    values: OptionValues = from_arrays(reading, settings.options, others)
    try:
        for hp in values.groups:
            core.check_options(Hyperparameters(settings.as_plain(hp)))
    except (TypeError, ValueError) as error:
        reading.problems.append(str(error))
        return settings.options
    return values


def optimizer_state_from(
    core: Core, reading: Reading, old_names: Mapping[str, str], reshaped: Set[str]
) -> OptimizerState:
    """Return the optimizer state that was saved: for each weight all of its state or none of it.

    Under a rule that couples weights this holds for each group. A part of a state, such as a count without the moments
    that it counts, would be worse than none.
    """
    names = set(core.weights.keys)
    state = with_slots_there(core, reading.arrays, old_names)
    parts = keyed(core, 'opt_state', state)
    trees = {n: f'tree.{i}' for i in map(int, state.groups) for n in core.groups[i].keys}
    found, misfits = [], {trees.get(name, name) for name in reshaped}
    for path, leaf in tree_flatten_with_path(parts)[0]:
        first = 2 if path[0] == DictKey('tree') else 1  # 'tree', group, ..., weight; or slot, weight
        places = [i for i in range(first, len(path)) if getattr(path[i], 'key', None) in names]
        whose, name = named(path[:2]), named(path)
        if places:
            at = places[-1]
            weight: str = path[at].key
            whose = trees.get(weight, weight)
            name = named((*path[:at], DictKey(old_names[weight]), *path[at + 1 :])) if weight in old_names else ''
        before = len(reading.problems)
        found.append((whose, leaf, reading.take(name, leaf, named(path))))
        if len(reading.problems) > before:
            misfits.add(whose)
    reading.finish()
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


# starting again


def reset(core: Core, predicate: Predicate | None = None) -> None:
    """Clear the optimizer state of the weights that ``predicate`` chooses, or of all."""
    core.registered('reset')
    core.refuse_evaluating('A reset')
    core.replace_lost_state()
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
        core.clear_metrics()
    core.registered('reset').value = state
