"""GroupSpec: what a further group is given, a dict of options or an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate

from braintools_optim.options.fields import fields_of
from braintools_optim.options.types import OptionValue, Tree
from braintools_optim.settings import GroupOptions, as_plain
from braintools_optim.step.gradients import check_transform
from braintools_optim.step.group import Group
from braintools_optim.step.policy import Treatment
from braintools_optim.step.rule import Rule
from braintools_optim.weights.predicates import Predicate

__all__ = ['GroupSpec', 'GroupValue', 'group_spec', 'torch_groups']

GroupValue = Mapping[str, OptionValue] | Rule | None
"""What a group is given: options, an unregistered optimizer, or nothing."""
OF_THE_WHOLE = (
    'norm_unit',
    'loss_scale',
    'groups',
    'state_dtype',
    'master_weights',
    'stages',
    'average',
    'on_spike',
    'norm_axis_name',
    'shard_memory_over',
    'accumulate_steps',
    'accumulate',
)
"""The arguments of an optimizer that concern all groups together and are no options."""


@dataclass(frozen=True)
class GroupSpec:
    """A further group, with its options and the treatment of its weights."""

    group: Group
    options: GroupOptions
    treatment: Treatment


def group_spec(optimizer: Rule, keys: list[str], params: Tree, value: GroupValue) -> GroupSpec:
    """Return a group of an optimizer that is given options, or an optimizer of its own."""
    if isinstance(value, Rule):
        check_group_optimizer(value, optimizer)
        inner: Any = value
        treatment = Treatment(inner.no_decay, inner.constraints or {}, None, inner.gradient_transform)
        return GroupSpec(Group(keys, params, value), GroupOptions({}, inner.settings), treatment)
    options = dict(value or {})
    no_decay, freeze = (everything_if(options.pop(name, None)) for name in ('no_decay', 'freeze'))
    constraints: Any = options.pop('constraints', None) or {}
    constraints = constraints if isinstance(constraints, Mapping) else {'*': constraints}
    transform = check_transform('gradient_transform', options.pop('gradient_transform', None))
    treatment = Treatment(no_decay, constraints, freeze, transform)
    return GroupSpec(Group(keys, params, optimizer), GroupOptions(options), treatment)


def everything_if(chosen: Any) -> Predicate | None:
    """Return a predicate for True, False or a predicate."""
    predicate: Predicate | None = {True: '*', False: None}[chosen] if isinstance(chosen, bool) else chosen
    return predicate


def check_group_optimizer(rule: Rule, whole: Rule) -> None:
    """Raise unless an optimizer can be that of a group of another one."""
    inner: Any = rule
    name, outer = type(rule).__name__, type(whole).__name__
    for one in (rule, whole):
        if not one.works_per_group:
            raise ValueError(
                f'Invalid {name} as the optimizer of a group of {outer}. {type(one).__name__} needs all weights '
                f'together: it can neither be the optimizer of a group nor have groups with other optimizers.'
            )
    if getattr(whole, 'average', None) is not None and rule.has_evaluation:
        raise ValueError(f'Invalid {name} as the optimizer of a group under average=. It has evaluation weights.')
    if inner.opt_state is not None:
        raise ValueError(f'Invalid {name} as the optimizer of a group. Must not have registered weights.')
    fields, settings = fields_of(type(rule)), inner.settings
    fixed = {n: getattr(inner, n) for n in OF_THE_WHOLE} | {'metrics': inner.metrics_state is not None}
    given = {n: value for n, value in fixed.items() if n in fields and value != fields[n].default}
    shared = as_plain(settings.owner, settings.options.shared) | settings.schedules.get('shared', {})
    given |= {n: value for n, value in shared.items() if n in settings.changed}
    if given:
        option, value = next(iter(given.items()))
        raise ValueError(
            f'Invalid {option}={value!r} of the {name} of a group. It concerns all groups: give it to {outer}.'
        )


def torch_groups(params: Tree) -> list[dict[str, OptionValue]] | None:
    """Return the groups of torch's form, dicts with the weights under ``'params'``; None for any other tree."""
    entries = [params] if isinstance(params, Mapping) else params
    if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
        return None
    if not entries or not all('params' in entry for entry in entries):
        return None
    if entries[0] is params and isinstance(params['params'], brainstate.State):  # a weight of this name
        return None
    return [dict(entry) for entry in entries]
