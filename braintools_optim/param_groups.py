"""Parameter groups: what a further group is given, and groups as torch shows them, which read and assign."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate

from braintools_optim.options.fields import fields_of
from braintools_optim.options.kinds import MissingKeyError, Scalar
from braintools_optim.options.number import ReadsAsNumber
from braintools_optim.options.types import OptionValue, Tree
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.settings import Check, GroupOptions, Settings, as_plain
from braintools_optim.step.gradients import check_transform
from braintools_optim.step.group import Group
from braintools_optim.step.policy import Treatment
from braintools_optim.step.rule import Rule
from braintools_optim.weights.predicates import Predicate

__all__ = ['GroupRate', 'GroupSpec', 'GroupValue', 'ParamGroup', 'group_spec', 'torch_groups']

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
    given = {n: getattr(inner, n) for n in OF_THE_WHOLE} | as_plain(settings.owner, settings.options.shared)
    given |= {'metrics': inner.metrics_state is not None} | settings.schedules.get('shared', {})
    for option, value in given.items():
        if option in fields and value is not fields[option].default and value != fields[option].default:
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


class ParamGroup(MutableMapping[str, OptionValue]):
    """A parameter group. ``group['weight_decay']`` reads an option, and assigning it acts on the next update."""

    def __init__(self, settings: Settings, group: Group, index: int, check: Check):
        self._settings, self._group, self._index, self._check = settings, group, index, check

    @property
    def algorithm(self) -> str:
        """The name of the group's optimizer, such as ``'AdamW'``."""
        return type(self._group.rule).__name__

    def __getitem__(self, name: str) -> OptionValue:
        if name == 'lr':
            return GroupRate(self._settings, self._index, self._check)
        if name == 'params':
            return self._group.params
        options = self._settings.plain(self._index)
        if name not in options:
            raise MissingKeyError(f'{name!r} is no option of a group. Must be among {sorted(options)}.')
        return options[name]

    def __setitem__(self, name: str, value: OptionValue) -> None:
        if name == 'lr' and not callable(value):
            self['lr'].value = value.as_number() if isinstance(value, GroupRate) else value
        elif name == 'params':
            raise MissingKeyError("The 'params' of a group are fixed; add_param_group adds weights.")
        else:
            self._settings.set(name, value, self._index, self._check)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f'A hyperparameter cannot be deleted: {name!r}.')

    def __iter__(self) -> Iterator[str]:
        return iter(('params', *self._settings.plain(self._index)))

    def __len__(self) -> int:
        return 1 + len(self._settings.plain(self._index))

    def __repr__(self) -> str:
        options = self._settings.plain(self._index)
        shown = ', '.join(f'{name}={value!r}' for name, value in options.items() if name != 'lr')
        return f'ParamGroup({self.algorithm}: {", ".join(self._group.keys)}; lr={self["lr"].value}, {shown})'


class GroupRate(ReadsAsNumber):
    """The learning rate that a group applies, which reads as a number; assigning ``.value`` acts on the next update."""

    def __init__(self, settings: Settings, index: int, check: Check):
        self._settings, self._index, self._check = settings, index, check

    @property
    def scheduler(self) -> LRScheduler:
        """The schedule that drives the group."""
        return self._settings.lr_schedule_of(self._index)

    @property
    def value(self) -> Scalar:
        """The rate that the next update applies to the group."""
        return self._settings.lr_of(self._index)

    @value.setter
    def value(self, value: Scalar) -> None:
        self._settings.set_lr_of(self._index, value, self._check)

    def as_number(self) -> Scalar:
        """Return the rate that the next update applies to the group."""
        return self.value

    def __repr__(self) -> str:
        return f'GroupRate({self.value})'
