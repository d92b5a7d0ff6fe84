"""Settings: the options of an optimizer and of its groups in one State, and the schedules that drive them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import brainstate
import jax
from brainstate.graph import Node
from jax.core import Tracer

from braintools_optim.compiled.access import inside_transformation
from braintools_optim.options.fields import fields_of
from braintools_optim.options.hyperparameters import Decay, Hyperparameters, Packed, values_of
from braintools_optim.options.hyperparameters import replace as with_values
from braintools_optim.options.kinds import RATE, Kind, MissingKeyError, Scalar, Schedulable, as_number, is_on
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import Options, OptionValue, Tree
from braintools_optim.schedulers.base import LRScheduler, Position
from braintools_optim.schedulers.function import OptaxSchedule, as_scheduler

__all__ = ['OptimState', 'OptionValues', 'Settings']

Schedules = dict[str, dict[str, LRScheduler]]  # by part and option


class Positions(TypedDict):
    """The positions of all schedules: the learning rate's, and those of options by part and name."""

    lr: Position
    options: dict[str, dict[str, Position]]


Check = Callable[[Hyperparameters, Hyperparameters], None]  # of the options before and after a change


class OptimState(brainstate.LongTermState):
    """A State of an optimizer, such as the optimizer state, the update count or the options."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['shared', 'defaults', 'groups'],
    meta_fields=['frozen', 'schedule_changes'],
)
@dataclass(frozen=True)
class OptionValues:
    """The options by part. A function that is compiled already is compiled anew when a flag or a meta field changes."""

    shared: Hyperparameters
    """The options that concern all groups together."""
    defaults: Hyperparameters
    """The options of groups that do not override them."""
    groups: list[Hyperparameters]
    """The options of each group."""
    frozen: frozenset[str] = frozenset()
    """The names of the parameters that are not updated."""
    schedule_changes: int = 0
    """How often the schedules were replaced: a compiled function must not keep using a replaced schedule."""


@functools.cache
def kinds_of(owner: type) -> Mapping[str, Kind]:
    """Return the kinds of the hyperparameters of a class by name, the learning rate's included."""
    fields = {name: own.kind for name, own in fields_of(owner).items() if not (own.kind.fixed or own.init_only)}
    return {**fields, 'lr': RATE}


@functools.cache
def shared_names(owner: type) -> frozenset[str]:
    """Return the names of the options that concern all groups together."""
    return frozenset(name for name, own in fields_of(owner).items() if own.over_all)


class Settings(Node):
    """The options in one State, by part, and the schedules that drive some of them.

    Flags, frozen names and the number of replaced schedules belong to the structure of the State's value: functions
    that are compiled already are compiled anew when they change. Numbers are leaves and change without compilation.
    """

    def __init__(self, owner: type, lr: Schedulable, options: Options, step_count: OptimState):
        self.owner = owner
        self.step_count = step_count
        self.overridden: list[set[str]] = []  # for each group, the names of the options that it overrides
        self.schedules: Schedules = {}
        over_all = shared_names(owner)
        shared, shared_schedules = self.split({name: x for name, x in options.items() if name in over_all})
        defaults, schedules = self.split({name: x for name, x in options.items() if name not in over_all})
        values = OptionValues(self.as_leaves(shared), self.as_leaves(defaults), [])
        self.values = OptimState(Packed.of(values))
        self.lr_scheduler = self.admit(lr)
        self.commit(values, {'shared': shared_schedules, 'defaults': schedules})

    # forms of options

    def split(self, options: Options) -> tuple[Options, dict[str, LRScheduler]]:
        """Return checked options, in which the base rates of schedules replace the schedules, and the schedules."""
        kinds, checked, schedules = kinds_of(self.owner), {}, {}
        for name, value in options.items():
            if callable(value) and kinds[name].schedulable:
                schedule: OptionValue = value
                schedules[name] = as_scheduler(schedule)
                value = schedules[name].base_lrs[0]
            checked[name] = kinds[name].check(name, value)
        return checked, schedules

    def as_leaves(self, options: Options) -> Hyperparameters:
        """Return checked options in the form that the State holds."""
        kinds = kinds_of(self.owner)
        return Hyperparameters({name: kinds[name].to_leaf(value) for name, value in options.items()})

    def as_plain(self, hp: Hyperparameters) -> Options:
        """Return options as Python numbers and flags."""
        kinds = kinds_of(self.owner)
        return {name: kinds[name].from_leaf(leaf) for name, leaf in values_of(hp).items()}

    # what the next update reads

    @property
    def options(self) -> OptionValues:
        """The options by part, before schedules drive them."""
        options: OptionValues = self.values.value.tree
        return options

    def sources(self) -> list[brainstate.State]:
        """Return the States that the present rates of all schedules depend on."""
        sources: list[brainstate.State] = [*self.lr_scheduler.sources().values()]
        for own in self.schedules.values():
            for schedule in own.values():
                sources += schedule.sources().values()
        return sources

    def positions(self, values: Iterable[Tree] | None = None) -> Positions:
        """Return the positions of all schedules, from these values of their States or else from the States."""
        remaining = iter([state.value for state in self.sources()] if values is None else values)

        def of(schedule: LRScheduler) -> Position:
            return {name: next(remaining) for name in schedule.sources()}

        lr = of(self.lr_scheduler)
        options = {part: {n: of(schedule) for n, schedule in own.items()} for part, own in self.schedules.items()}
        return {'lr': lr, 'options': options}

    def part(self, values: OptionValues, positions: Positions, part: str | int) -> Hyperparameters:
        """Return the options of a part, or of a group by its number, as schedules drive them; read no State."""
        group = part if isinstance(part, int) else None
        hp: Hyperparameters = getattr(values, str(part)) if group is None else values.groups[group]
        kinds, driven = kinds_of(self.owner), {}
        for where in [str(part)] if group is None else ['defaults', str(group)]:
            for name, schedule in self.schedules.get(where, {}).items():
                if where != 'defaults' or group is None or name not in self.overridden[group]:
                    driven[name] = kinds[name].to_leaf(schedule.rate(positions['options'][where][name]))
        if part != 'shared' and getattr(self.lr_scheduler, 'cycle_momentum', False):
            momentum = self.lr_scheduler.momentum_at(positions['lr']['epoch'], group or 0)
            if 'momentum' in values_of(hp):
                driven |= {'momentum': momentum} if hp.momentum is not None else {}  # None in a group without momentum
            else:
                driven['betas'] = (Decay.of(momentum), *hp.betas[1:])
        if group is not None:
            driven['lr'] = hp.lr_scale * self.lr_scheduler.rate(positions['lr'], hp.lr, group)
        return with_values(hp, **driven)

    @explicit_transfers
    def plain(self, part: str | int) -> Options:
        """Return the present options of a part as Python numbers and flags."""
        return self.as_plain(self.part(self.options, self.positions(), part))

    def read(self, name: str) -> OptionValue:
        """Return the present value of an option of the optimizer."""
        return self.plain('shared' if name in shared_names(self.owner) else 'defaults')[name]

    # changes

    def added(self, groups: Sequence[Options]) -> tuple[list[Options], Callable[[], None]]:
        """Return all options of further groups, given those that they override, and a function that adds the groups."""
        values, schedules = self.options, dict(self.schedules)
        every, overridden = [], []
        for index, overrides in enumerate(groups, len(self.overridden)):
            options = {**self.as_plain(values.defaults), 'lr': self.lr_scheduler.base_lr_of(index)}
            if unknown := overrides.keys() - options.keys():
                raise TypeError(f'Unknown options of a group: {sorted(unknown)}. Must be among {sorted(options)}.')
            if 'lr' in overrides:
                refuse_own_rate(self.lr_scheduler)
            own, schedules[str(index)] = self.split(dict(overrides))
            every.append(options | own)
            overridden.append(set(own))

        def add() -> None:
            self.overridden = [*self.overridden, *overridden]
            self.commit(replace(values, groups=[*values.groups, *map(self.as_leaves, every)]), schedules)

        return every, add

    @explicit_transfers
    def set(self, name: str, value: OptionValue, group: int | None, check: Check) -> None:
        """Change an option of one group, or of all groups that do not override it, from the next update on."""
        values, over_all = self.options, name in shared_names(self.owner)
        if name not in values_of(values.shared if over_all else values.defaults) or (over_all and group is not None):
            raise MissingKeyError(f'{name!r} is no option. Must be among {sorted(values_of(values.defaults))}.')
        options, schedules = self.split({name: value})

        def changed(hp: Hyperparameters) -> Hyperparameters:
            if not over_all:
                before = self.as_plain(hp)
                check(Hyperparameters(before), Hyperparameters(before | options))
            return with_values(hp, **values_of(self.as_leaves(options)))

        if over_all:
            values = replace(values, shared=changed(values.shared))
        elif group is None:
            values = replace(values, defaults=changed(values.defaults))
        chosen = [
            i == group or (group is None and not over_all and name not in x) for i, x in enumerate(self.overridden)
        ]
        groups = [changed(hp) if c else hp for c, hp in zip(chosen, values.groups, strict=True)]
        where = ('shared' if over_all else 'defaults') if group is None else str(group)
        others = {n: s for n, s in self.schedules.get(where, {}).items() if n != name}
        # a compiled function would keep using the schedule that drives this option by default
        renewed = group is not None and name in self.schedules.get('defaults', {})
        if group is not None:
            self.overridden = [x | {name} if i == group else x for i, x in enumerate(self.overridden)]
        self.commit(replace(values, groups=groups), {**self.schedules, where: {**others, **schedules}}, renewed)

    @explicit_transfers
    def follow(self, lr: Schedulable) -> None:
        """Follow another schedule of the learning rate from now on."""
        scheduler = self.admit(lr)
        if any('lr' in own for own in self.overridden):
            refuse_own_rate(scheduler)
        self.lr_scheduler = scheduler
        values = self.options
        groups = [
            hp if 'lr' in own else with_values(hp, lr=RATE.to_leaf(self.lr_scheduler.base_lr_of(i)))
            for i, (own, hp) in enumerate(zip(self.overridden, values.groups, strict=True))
        ]
        self.commit(replace(values, groups=groups), dict(self.schedules), renewed=True)

    def admit(self, lr: Schedulable) -> LRScheduler:
        """Return the schedule of a learning rate; raise if the optimizer lacks the momentum that it cycles."""
        scheduler = as_scheduler(lr)
        if getattr(scheduler, 'cycle_momentum', False):
            options = self.as_plain(self.options.defaults)
            if options.keys().isdisjoint({'momentum', 'betas'}):
                raise ValueError('Invalid cycle_momentum=True. This optimizer has neither momentum nor betas.')
            if not is_on(options.get('momentum', 1.0)):
                raise ValueError('Invalid cycle_momentum=True with momentum=0. Give the optimizer a momentum above 0.')
        if isinstance(scheduler, OptaxSchedule):
            scheduler.follow(self.step_count)
        return scheduler

    def commit(self, values: OptionValues, schedules: Schedules, renewed: bool = False) -> None:
        """Write the options, and count the change if schedules are replaced."""
        for schedule in (s for own in schedules.values() for s in own.values()):
            if isinstance(schedule, OptaxSchedule) and schedule.last_epoch is not self.step_count:
                schedule.follow(self.step_count)
        if renewed or schedules != self.schedules:
            values = replace(values, schedule_changes=values.schedule_changes + 1)
        self.schedules = schedules
        self.values.value = Packed.of(values)

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the parameters that are not updated."""
        frozen: frozenset[str] = self.values.value.flags.frozen
        return frozen

    def freeze(self, names: Iterable[str]) -> None:
        """Freeze these parameters and no others."""
        self.commit(replace(self.options, frozen=frozenset(names)), self.schedules)

    # learning rates

    @explicit_transfers
    def lr_of(self, group: int) -> Scalar:
        """Return the rate that a group applies."""
        if not self.overridden:
            return self.lr_scheduler()
        rate: Scalar = as_number(self.part(self.options, self.positions(), group).lr)
        return rate

    @explicit_transfers
    def set_lr(self, value: Scalar) -> None:
        """Set the rate of the schedule so that the first group applies ``value``."""
        scale = as_number(self.options.groups[0].lr_scale) if self.overridden else 1.0
        refusal = f'Invalid lr={value!r}. The first group has an lr_scale of 0: no rate gives it.'
        self.lr_scheduler.set_rate(quotient(RATE.check('lr', value), scale, refusal))

    @explicit_transfers
    def set_lr_of(self, group: int, value: Scalar, check: Check) -> None:
        """Set the rate that a group applies; for a single group, set the rate of the schedule."""
        if len(self.overridden) == 1:
            self.set_lr(value)
            return
        hp = self.options.groups[group]
        scheduled = as_number(self.lr_scheduler.rate(self.lr_scheduler.position(), hp.lr, group))
        refusal = f'Invalid lr={value!r} of group {group}. The schedule stands at zero: no factor gives it.'
        self.set('lr_scale', quotient(RATE.check('lr', value), scheduled, refusal), group, check)


def refuse_own_rate(scheduler: LRScheduler) -> None:
    """Raise if a schedule cannot drive a group that has a separate learning rate."""
    if not scheduler.uses_base_lr:
        raise ValueError(
            f'A group cannot have an lr of its own under {type(scheduler).__name__}: '
            f'give it an lr_scale, or list the base rates of all groups in the schedule.'
        )


def quotient(value: Scalar, by: Scalar, refusal: str) -> Scalar:
    """Return ``value / by``; raise if ``by`` is 0, unless a transformation only probes the function."""
    if not isinstance(by, Tracer) and by == 0:
        if not inside_transformation():
            raise ValueError(refusal)
        return value
    return value / by
