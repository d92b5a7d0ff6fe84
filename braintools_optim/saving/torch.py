"""Optimizer states of torch.optim, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import brainunit
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from braintools_optim.core import Core, check_options
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.kinds import as_number
from braintools_optim.options.types import Options, Tree
from braintools_optim.saving.imports import (
    as_array,
    refuse_other_algorithms,
    registered,
    set_slots,
    take_rate,
    unchanged_by_errors,
)
from braintools_optim.saving.whole import whole
from braintools_optim.settings import split_schedules
from braintools_optim.step.counterparts import TorchCounterpart

__all__ = ['load_torch_state_dict', 'torch_state_dict']

Array = npt.NDArray[np.generic]
ADDED_LATER = {'maximize', 'decoupled_weight_decay'}
"""The options that a state_dict of an old release of torch lacks."""


def load_torch_state_dict(core: Core, state_dict: Mapping[str, Tree], names: Sequence[str]) -> None:
    """Load a ``state_dict`` of torch.optim; ``names`` are the weights in the order of torch's parameters."""
    counterpart = counterpart_of(core)
    if not isinstance(state_dict, Mapping) or not {'state', 'param_groups'} <= state_dict.keys():
        raise ValueError("Invalid state_dict. Must be torch's, with 'state' and 'param_groups'.")
    check_names(core, names)
    ids = [i for group in state_dict['param_groups'] for i in group['params']]
    if len(ids) != len(names):
        raise ValueError(f'Invalid names of {len(names)} weights. Must be {len(ids)}, as many as torch has parameters.')
    name_of = dict(zip(ids, names, strict=True))
    found: dict[str, dict[str, Array]] = {}
    counts = {}
    with unchanged_by_errors(core):
        for theirs, i in matched_groups(core, state_dict['param_groups'], name_of):
            take_options(core, i, counterpart, theirs)
            take_rate(core, i, theirs['lr'])
            for key in theirs['params']:
                entries = state_dict['state'].get(key, {})
                slots = {slot: as_array(x) for slot, x in entries.items() if x is not None}
                counts[name_of[key]] = int(slots.pop('step', bool(slots)))  # SGD does not count
                slots = counterpart.from_torch(slots, as_number(as_array(theirs['lr'])))
                for slot, x in slots.items():
                    found.setdefault(slot, {})[name_of[key]] = x
        set_slots(core, found, counts)
        if counterpart.counts:
            core.step_count.value = core.beside_weights(jnp.asarray(max(counts.values()), jnp.int32))


def torch_state_dict(
    core: Core, names: Sequence[str], tensor: Callable[[Array], object] = np.asarray
) -> dict[str, Tree]:
    """Return the optimizer state, options and learning rates as a ``state_dict`` of torch.optim."""
    counterpart = counterpart_of(core)
    check_names(core, names)
    counts = dict(zip(core.weights.keys, core.state.step.tolist(), strict=True))
    place = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, object]] = {}
    groups = []
    for i, group in enumerate(core.groups):
        options = core.settings.plain(i)
        refuse_unknown_to_torch(core, counterpart, options)
        torch_options = {counterpart.renamed.get(name, name): options[name] for name in counterpart.options}
        if 'beta2_decay' in torch_options:
            torch_options['beta2_decay'] = -abs(torch_options['beta2_decay'])
        groups.append({'lr': options['lr'], **torch_options, 'params': sorted(place[name] for name in group.keys)})
        for name in group.keys:
            arrays = {slot: x[name] for slot, x in core.state.slots.items() if name in x}
            slots = {slot: np.array(whole(x, f'{slot}.{name}')) for slot, x in arrays.items()}
            slots = counterpart.to_torch(slots, counts[name], options)
            if counterpart.counts:
                slots['step'] = np.array(counts[name], np.float32)
            elif not counts[name]:
                slots = {}
            if slots:
                state[place[name]] = {slot: tensor(x) for slot, x in slots.items()}
    return {'state': dict(sorted(state.items())), 'param_groups': groups}


def counterpart_of(core: Core) -> TorchCounterpart:
    """Return the counterpart of an optimizer in torch; raise if there is none."""
    counterpart = vars(type(core.rule)).get('torch_counterpart')
    if not isinstance(counterpart, TorchCounterpart):
        raise ValueError(f'{core.name} has no counterpart in torch.optim.')
    refuse_other_algorithms(core, "torch's optimizer")
    return counterpart


def check_names(core: Core, names: Sequence[str]) -> None:
    """Raise unless ``names`` are the names of the registered weights, each once."""
    registered(core)
    ours = core.weights.keys
    problems = [f'missing: {sorted(set(ours) - set(names))}'] if set(ours) - set(names) else []
    problems += [f'not registered: {sorted(set(names) - set(ours))}'] if set(names) - set(ours) else []
    problems += ['some are there twice'] if len(set(names)) < len(names) else []
    if problems:
        raise ValueError(f'Invalid names. Must be those of the weights, each once. {"; ".join(problems)}')


def matched_groups(
    core: Core, groups: Sequence[Mapping[str, Tree]], name_of: Mapping[int, str]
) -> Iterator[tuple[Mapping[str, Tree], int]]:
    """Return each group of torch with the place of the group here that has the same weights."""
    ours = [set(group.keys) for group in core.groups]
    theirs = [{name_of[key] for key in group['params']} for group in groups]
    if sorted(map(sorted, ours)) != sorted(map(sorted, theirs)):
        raise ValueError(f'The groups differ: {[*map(sorted, theirs)]} there, {[*map(sorted, ours)]} here.')
    return ((group, ours.index(names)) for group, names in zip(groups, theirs, strict=True))


def take_options(core: Core, group: int, counterpart: TorchCounterpart, theirs: Mapping[str, Tree]) -> None:
    """Set the options of a group to those of torch's group."""
    here, settings = core.settings.plain(group), core.settings
    refuse_unknown_to_torch(core, counterpart, here)
    options: Options = {}
    for name in counterpart.options:
        torch_name = counterpart.renamed.get(name, name)
        if torch_name in theirs:
            value = theirs[torch_name]
            if name == 'eps' and isinstance(value, (list, tuple)) and value[0] is None:  # the eps of the dtype
                value = (least_eps(core, group), value[1])
            plain = tuple(map(as_number, value)) if isinstance(value, (list, tuple)) else value
            plain = as_number(as_array(plain)) if hasattr(plain, 'detach') else plain
            options |= split_schedules(settings.owner, {name: plain})[0]
        elif name not in ADDED_LATER:
            raise ValueError(f"The state_dict's groups have no {torch_name!r}. Must be those of torch's {core.name}.")
    if 'decay_rate' in options and abs(options['decay_rate']) == abs(here['decay_rate']):
        del options['decay_rate']  # its sign does not matter
    options = {name: value for name, value in options.items() if value != here[name]}
    before, after = Hyperparameters(here), Hyperparameters(here | options)
    rule = core.groups[group].rule
    if core.initial_slots(rule, before).keys() == core.initial_slots(rule, after).keys():
        check_options(rule, after)  # the values of the slots before the first update do not matter now
    else:
        core.check_change(group, before, after)
    alone = len(core.groups) == 1
    for name, value in options.items():
        everywhere = alone and name not in settings.overridden[group]
        settings.set(name, value, None if everywhere else group, lambda group, before, after: None)


def refuse_unknown_to_torch(core: Core, counterpart: TorchCounterpart, options: Options) -> None:
    """Raise if an option has a value that torch's optimizer does not support."""
    for name, value in counterpart.fixed.items():
        if options[name] != value:
            raise ValueError(f"Invalid {name}={options[name]!r}. Must be {value!r}, as in torch's {core.name}.")


def least_eps(core: Core, group: int) -> float:
    """Return the machine epsilon of the dtype of the weights of a group."""
    named = core.weights.named()
    kinds = {jnp.result_type(brainunit.get_mantissa(named[name])) for name in core.groups[group].keys}
    if len(kinds) > 1:
        raise ValueError(f'Invalid eps=None of torch, the epsilon of the dtype: weights are {sorted(map(str, kinds))}.')
    return float(jnp.finfo(kinds.pop()).eps)  # type: ignore[no-untyped-call]
