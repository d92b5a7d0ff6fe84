"""Checkpoints: everything that the next update depends on, as plain numbers and NumPy arrays by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

import brainunit
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.tree_util import DictKey, keystr, tree_flatten_with_path
from jax.typing import ArrayLike

from braintools_optim.core import Core, check_options
from braintools_optim.options.fields import fields_of
from braintools_optim.options.hyperparameters import Hyperparameters, Packed, is_flag, values_of
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import Tree
from braintools_optim.saving.arrays import check_alike
from braintools_optim.saving.description import Difference, differing, fixed_arguments
from braintools_optim.saving.form import FORMAT, canonical, check_form, check_format, plain
from braintools_optim.saving.former import upgraded
from braintools_optim.saving.imports import unchanged_by_errors
from braintools_optim.saving.reading import Reading
from braintools_optim.saving.trees import is_key, without_key
from braintools_optim.saving.whole import whole
from braintools_optim.settings import OptionValues, as_plain
from braintools_optim.step.stages import StageOptions
from braintools_optim.step.state import OptimizerState, merge_slots, without
from braintools_optim.weights.predicates import Predicate, selected

__all__ = ['UNFIT', 'fitted_state', 'load_state_dict', 'reset', 'state_dict', 'weights']

UNFIT = 'The state_dict does not fit this optimizer, which is unchanged.'
Treatment = dict[str, str | bool | list[int]]
"""The unit and the shape of a weight, and whether the weight is frozen, decays and is constrained."""
Arrays = dict[str, npt.NDArray[np.generic]]


@explicit_transfers
def state_dict(core: Core) -> dict[str, Tree]:
    """Return everything that the next update depends on except the weights."""
    core.refuse_evaluating('A checkpoint')
    states = {name: to_arrays(keyed(core, name, s.value), name) for name, s in core.named_states().items()}
    schedule = core.settings.lr_scheduler
    return {
        'format': FORMAT,
        'optimizer': core.name,
        'algorithms': algorithms(core),
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


@explicit_transfers
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
        core.settings.spread(core.policy.layout)
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
    state = upgraded(state)
    core.replace_lost_state()
    check_alike(state, [own.value for own in core.named_states().values()])
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
        if isinstance(own.value, Packed):
            later = defaults_of_later_options(own.value.tree, list(reading.left))
            reading.left |= {path: array for path, array in later.items() if not path.startswith(others)}
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


def algorithms(core: Core) -> list[str]:
    """Return the name of the algorithm of each group that has its own, and '' for all others."""
    return ['' if group.rule is core.rule else type(group.rule).__name__ for group in core.groups]


def algorithms_there(state: Mapping[str, Tree]) -> list[str]:
    """Return the :func:`algorithms` of the groups of a state_dict."""
    return list(state.get('algorithms', [''] * len(state['param_groups'])))


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
    kinds = zip(algorithms_there(state), algorithms(core), strict=False)
    for i, (there, here, (kind, own_kind)) in enumerate(zip(theirs, ours, kinds, strict=False)):
        pairs.append((f'param_groups.{i}.params', sorted(there['params']), sorted(here['params'])))
        pairs.append((f'param_groups.{i}.algorithm', kind or state['optimizer'], own_kind or core.name))
        owner = core.settings.owners[i] if pairs[-1][1] == pairs[-1][2] else StageOptions
        defaults = {name: own.default for name, own in fields_of(owner).items()}
        flags = {name for options in (there, here) for name, value in options.items() if is_flag(value)}
        # an option that the file does not know counts as its default
        pairs += [(f'param_groups.{i}.{n}', there.get(n, defaults.get(n)), here.get(n)) for n in sorted(flags)]
    for name, here in weights(core).items():
        there = {**here, **state['weights'].get(name, here)}
        pairs += [(f'{what} of {name}', there[what], here[what]) for what in here]
    return [f'{what}: {there!r} there, {here!r} here' for what, there, here in pairs if there != here]


def other_groups(core: Core, state: Mapping[str, Tree]) -> tuple[str, ...]:
    """Return the paths of the options of groups whose weights or algorithms differ from those of the file."""
    there = zip(state['param_groups'], algorithms_there(state), strict=False)
    theirs = [(set(group['params']), algorithm) for group, algorithm in there]
    ours = [(set(group.keys), algorithm) for group, algorithm in zip(core.groups, algorithms(core), strict=True)]
    both = range(min(len(theirs), len(ours)))
    return tuple(f'groups.{i}.' for i in range(max(len(theirs), len(ours))) if i not in both or theirs[i] != ours[i])


# arrays


def named(path: Iterable[object]) -> str:
    """Return the dotted name of a path."""
    return keystr(tuple(path), simple=True, separator='.')


def to_arrays(tree: Tree, where: str) -> Arrays:
    """Return copies of the leaves of a tree as NumPy arrays, by path; ``where`` is the name of the tree."""
    leaves = [(named(path), without_key(leaf)) for path, leaf in tree_flatten_with_path(tree)[0]]
    return {name: np.array(whole(leaf, f'{where}.{name}')) for name, leaf in leaves}


def taken(reading: Reading, name: str, leaf: Tree, label: str | None = None) -> Tree:
    """Return the array that was saved in the place of ``leaf``."""
    array = reading.take(name, without_key(leaf), label)
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if is_key(leaf) else array


def from_arrays(reading: Reading, tree: Tree, left_out: tuple[str, ...] = ()) -> Tree:
    """Return ``tree`` with the leaves that were saved, except the leaves whose names begin with ``left_out``."""
    for name in [name for name in reading.left if name.startswith(left_out)]:
        del reading.left[name]

    def take(path: Iterable[object], leaf: jax.Array) -> jax.Array:
        name = named(path)
        return leaf if name.startswith(left_out) else taken(reading, name, leaf)

    restored = jax.tree_util.tree_map_with_path(take, tree)
    reading.finish()
    return restored


def options_from(core: Core, reading: Reading, others: tuple[str, ...]) -> OptionValues:
    """Return the options that were saved, or the present ones if the rule refuses the combination."""
    settings = core.settings
    values: OptionValues = from_arrays(reading, settings.options, others)
    try:
        for group, owner, hp in zip(core.groups, settings.owners, values.groups, strict=True):
            check_options(group.rule, Hyperparameters(as_plain(owner, hp)))
    except (TypeError, ValueError) as error:
        reading.problems.append(str(error))
        return settings.options
    return values


def defaults_of_later_options(options: Tree, saved: Sequence[str]) -> Arrays:
    """Return the defaults of the stages' numbers that a file does not know, because its version did not have them."""
    found: Arrays = {}
    for path, _ in tree_flatten_with_path(options)[0]:
        parts = named(path).split('.')
        at = 2 if parts[0] == 'groups' else 1
        stem, option = '.'.join(parts[: at + 1]), ''.join(parts[at : at + 1])
        fields, is_known = fields_of(StageOptions), any(f'{name}.'.startswith(f'{stem}.') for name in saved)
        if option in fields and not is_known:
            default = to_arrays(fields[option].kind.to_leaf(fields[option].default), option)
            found |= {'.'.join(filter(None, [stem, name])): array for name, array in default.items()}
    return found


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
        found.append((whose, leaf, taken(reading, name, leaf, named(path))))
        if len(reading.problems) > before:
            misfits.add(whose)
    reading.finish()
    chosen = [here if whose in misfits else there for whose, here, there in found]
    value = jax.tree.unflatten(jax.tree.structure(parts), chosen)
    counts = [value['step'][key] for key in core.weights.keys]
    value['step'] = jnp.stack(counts) if counts else state.step
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
        fresh = core.restarted(i, saved)
        removed = [name for name in frozen if name not in saved]
        state = replace(
            state,
            slots=merge_slots(fresh.slots, without(state.slots, removed)),
            stage_slots=merge_slots(fresh.stage_slots, without(state.stage_slots, removed)),
        )
    return state


# starting again


@explicit_transfers
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
        if own and group.rule.couples_parameters and len(own) < len(group.keys):
            together = ', '.join(group.keys)
            raise ValueError(f'{type(group.rule).__name__} remembers {together} together. Must be reset all or none.')
        if own:
            fresh = core.restarted(i, own, core.settings.frozen)
            state = replace(
                state,
                slots=merge_slots(without(state.slots, list(own)), fresh.slots),
                stage_slots=merge_slots(without(state.stage_slots, list(own)), fresh.stage_slots),
                groups={**state.groups, **fresh.groups},
            )
    chosen = np.array([name in names for name in weights])
    state = replace(state, step=jnp.where(chosen, 0, state.step))
    if predicate is None:
        state = replace(state, skipped=jnp.zeros_like(state.skipped), running=core.first_running())
        core.step_count.value = jnp.zeros_like(core.step_count.value)
        core.clear_metrics()
    core.registered('reset').value = state
