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
from braintools_optim.step.stages import StageOptions
from braintools_optim.weights.sharding import Layout, beside

__all__ = [
    'GroupOptions',
    'OptimState',
    'OptionValues',
    'Settings',
    'as_plain',
    'kinds_of',
    'split_schedules',
]

Schedules = dict[str, dict[str, LRScheduler]]  # by part and option


class Positions(TypedDict):
    """The positions of all schedules: the learning rate's, and those of options by part and name."""

    lr: Position
    options: dict[str, dict[str, Position]]


Check = Callable[[int | None, Hyperparameters, Hyperparameters], None]
"""A check of the options of a group, or of the defaults, before and after a change."""


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


def split_schedules(owner: type, options: Options) -> tuple[Options, dict[str, LRScheduler]]:
    """Return checked options, in which the base rates of schedules replace the schedules, and the schedules."""
    kinds, checked, schedules = kinds_of(owner), {}, {}
    for name, value in options.items():
        if callable(value) and kinds[name].schedulable:
            schedule: OptionValue = value
            schedules[name] = as_scheduler(schedule)
            value = schedules[name].base_lrs[0]
        checked[name] = kinds[name].check(name, value)
    return checked, schedules


def as_leaves(owner: type, options: Options) -> Hyperparameters:
    """Return checked options of a class in the form that the State holds."""
    kinds = kinds_of(owner)
    return Hyperparameters({name: kinds[name].to_leaf(value) for name, value in options.items()})


def as_plain(owner: type, hp: Hyperparameters) -> Options:
    """Return options of a class as Python numbers and flags."""
    kinds = kinds_of(owner)
    return {name: kinds[name].from_leaf(leaf) for name, leaf in values_of(hp).items()}


@dataclass(frozen=True)
class GroupOptions:
    """The options of a further group: those that override, and the settings of the group's own optimizer if any."""

    overrides: Options
    own: Settings | None = None
    follows: bool = False
    """Whether the schedule of the whole drives the group, although the group has its own optimizer."""


@functools.cache
def stage_names() -> frozenset[str]:
    """Return the names of the options of stages that a group with its own optimizer has from the whole by default."""
    return frozenset(name for name, own in fields_of(StageOptions).items() if own.init and not own.over_all)


class Settings(Node):
    """The options in one State, by part, and the schedules that drive some of them.

    Flags, frozen names and the number of replaced schedules belong to the structure of the State's value: functions
    that are compiled already are compiled anew when they change. Numbers are leaves and change without compilation.
    """

    def __init__(self, owner: type, lr: Schedulable, options: Options, step_count: OptimState):
        self.owner = owner
        self.step_count = step_count
        self.owners: list[type] = []  # for each group, the class whose options the group has
        self.separate: list[bool] = []  # for each group, whether it has its own optimizer
        self.overridden: list[set[str]] = []  # for each group, the names of the options that it overrides
        self.schedules: Schedules = {}
        self.layout = Layout()  # the devices that hold the options
        self.is_part = False  # whether these are the options of a group of another optimizer
        over_all = shared_names(owner)
        shared, shared_schedules = split_schedules(owner, {n: x for n, x in options.items() if n in over_all})
        defaults, schedules = split_schedules(owner, {n: x for n, x in options.items() if n not in over_all})
        values = OptionValues(as_leaves(owner, shared), as_leaves(owner, defaults), [])
        self.values = OptimState(Packed.of(values))
        given = {**shared, **defaults, **shared_schedules, **schedules}
        self.changed = {name for name, value in given.items() if self.is_changed(name, value)}
        self.lr_scheduler = self.admit(lr, defaults)
        self.commit(values, {'shared': shared_schedules, 'defaults': schedules})

    def is_changed(self, name: str, value: OptionValue) -> bool:
        """Return whether a value differs from the default of an option; a traced value counts as different."""
        default = fields_of(self.owner)[name].default
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(value))
        return value is not default and (traced or bool(value != default))

    def spread(self, layout: Layout) -> None:
        """Put the options and the positions of the schedules on all devices of the weights.

        jax would copy them in every call otherwise. Each of several processes keeps numbers of its own, which this
        process alone can read and assign.
        """
        if layout.shardings and jax.process_count() == 1:
            self.layout = layout
            self.place()

    def place(self) -> None:
        """Put the options and the positions of the schedules where the layout says."""
        for state in (self.values, *self.sources()) if self.layout.shardings else ():
            state.value = beside(state.value, {}, self.layout)

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

    def owner_of(self, part: str | int) -> type:
        """Return the class whose options a part or a group has."""
        return self.owners[part] if isinstance(part, int) else self.owner

    def inherits(self, group: int, name: str) -> bool:
        """Return whether a group has the value that an option has by default."""
        shares = not self.separate[group] or name in stage_names()
        return shares and name not in self.overridden[group]

    def lr_schedule_of(self, part: str | int) -> LRScheduler:
        """Return the schedule of the learning rate of a part or a group."""
        return self.schedules.get(str(part), {}).get('lr', self.lr_scheduler)

    def part(self, values: OptionValues, positions: Positions, part: str | int) -> Hyperparameters:
        """Return the options of a part, or of a group by its number, as schedules drive them; read no State."""
        group = part if isinstance(part, int) else None
        hp: Hyperparameters = getattr(values, str(part)) if group is None else values.groups[group]
        owner, driven = self.owner_of(part), {}
        for where in [str(part)] if group is None else ['defaults', str(part)]:
            for name, schedule in self.schedules.get(where, {}).items():
                if name != 'lr' and (group is None or where != 'defaults' or self.inherits(group, name)):
                    driven[name] = kinds_of(owner)[name].to_leaf(schedule.rate(positions['options'][where][name]))
        if part != 'shared':
            driven |= self.driven_by_rate(hp, positions, part)
        return with_values(hp, **driven)

    def driven_by_rate(self, hp: Hyperparameters, positions: Positions, part: str | int) -> Options:
        """Return the options that the schedule of the learning rate drives: the rate, and the momentum if cycled."""
        schedule, place = self.lr_schedule_of(part), part if isinstance(part, int) else 0
        driven: Options = {}
        position = positions['lr']
        if schedule is not self.lr_scheduler:
            position, place = positions['options'][str(part)]['lr'], 0
        if schedule.cycle_momentum:
            momentum = schedule.momentum_at(position['epoch'], place)
            if 'momentum' in values_of(hp):
                driven |= {'momentum': momentum} if hp.momentum is not None else {}  # None in a group without momentum
            else:
                driven['betas'] = (Decay.of(momentum), *hp.betas[1:])
        if isinstance(part, int):
            driven['lr'] = hp.lr_scale * schedule.rate(position, hp.lr, place)
        return driven

    @explicit_transfers
    def plain(self, part: str | int) -> Options:
        """Return the present options of a part as Python numbers and flags."""
        return as_plain(self.owner_of(part), self.part(self.options, self.positions(), part))

    def read(self, name: str) -> OptionValue:
        """Return the present value of an option of the optimizer."""
        return self.plain('shared' if name in shared_names(self.owner) else 'defaults')[name]

    # changes

    def added(self, groups: Sequence[GroupOptions]) -> tuple[list[Options], Callable[[], None]]:
        """Return all options of further groups, given those that they override, and a function that adds the groups."""
        self.refuse_part()
        values, schedules = self.options, dict(self.schedules)
        every, overridden, owners, rates = [], [], [], {}
        for index, group in enumerate(groups, len(self.owners)):
            source = group.own or self
            options = as_plain(source.owner, source.options.defaults) | {'lr': self.lr_scheduler.base_lr_of(index)}
            if unknown := group.overrides.keys() - options.keys():
                raise TypeError(f'Unknown options of a group: {sorted(unknown)}. Must be among {sorted(options)}.')
            overrides = group.overrides if group.own is None else group.own.as_overrides(group)
            if group.own is not None:
                options |= {n: x for n, x in as_plain(self.owner, values.defaults).items() if n in stage_names()}
            own, driven = split_schedules(source.owner, overrides)
            if 'lr' in driven:
                self.admit(driven['lr'], options | own)
            elif 'lr' in own:
                rates[index] = own['lr']
            every.append(options | own)
            overridden.append(set(own))
            owners.append(source.owner)
            schedules[str(index)] = driven
        admit_rates = self.lr_scheduler.admitted(rates)

        def add() -> None:
            admit_rates()
            for group in groups:
                if group.own is not None:
                    group.own.is_part = True
            self.owners = [*self.owners, *owners]
            self.separate = [*self.separate, *(group.own is not None for group in groups)]
            self.overridden = [*self.overridden, *overridden]
            leaves = [as_leaves(owner, options) for owner, options in zip(owners, every, strict=True)]
            self.commit(replace(values, groups=[*values.groups, *leaves]), schedules)

        return every, add

    def as_overrides(self, group: GroupOptions) -> Options:
        """Return the options and schedules of a group that has these settings, where they are not the defaults."""
        options = as_plain(self.owner, self.options.defaults)
        found = {name: value for name, value in options.items() if name in self.changed}
        found |= self.schedules.get('defaults', {})
        if not group.follows:
            schedule = self.lr_scheduler
            found['lr'] = schedule.detached() if isinstance(schedule, OptaxSchedule) else schedule
        return found | group.overrides

    @explicit_transfers
    def set(self, name: str, value: OptionValue, group: int | None, check: Check) -> None:
        """Change an option of one group, or of all groups that do not override it, from the next update on."""
        values, over_all = self.options, name in shared_names(self.owner)
        owner = self.owner if group is None else self.owners[group]
        known = values_of(values.shared if over_all else values.defaults if group is None else values.groups[group])
        if name not in known or (over_all and group is not None):
            raise MissingKeyError(f'{name!r} is no option. Must be among {sorted(known)}.')
        options, schedules = split_schedules(owner, {name: value})
        if 'lr' in schedules and group is not None:
            self.admit(schedules['lr'], as_plain(owner, values.groups[group]))

        leaves = values_of(as_leaves(owner, options))

        def changed(hp: Hyperparameters, group: int | None) -> Hyperparameters:
            before = as_plain(self.owner if group is None else self.owners[group], hp)
            check(group, Hyperparameters(before), Hyperparameters(before | options))
            return with_values(hp, **leaves)

        if over_all:
            values = replace(values, shared=with_values(values.shared, **leaves))
        elif group is None:
            values = replace(values, defaults=changed(values.defaults, None))
        everywhere = group is None and not over_all
        chosen = [i == group or (everywhere and self.inherits(i, name)) for i in range(len(self.owners))]
        groups = [changed(hp, i) if c else hp for i, (c, hp) in enumerate(zip(chosen, values.groups, strict=True))]
        where = ('shared' if over_all else 'defaults') if group is None else str(group)
        others = {n: s for n, s in self.schedules.get(where, {}).items() if n != name}
        # a compiled function would keep using the schedule that drives this option by default
        renewed = group is not None and name in self.schedules.get('defaults', {})
        if group is not None:
            self.overridden = [x | {name} if i == group else x for i, x in enumerate(self.overridden)]
        self.commit(replace(values, groups=groups), {**self.schedules, where: {**others, **schedules}}, renewed)
        if group is None:
            is_changed = self.is_changed(name, (schedules or options)[name])
            self.changed = self.changed | {name} if is_changed else self.changed - {name}

    @explicit_transfers
    def follow(self, lr: Schedulable) -> None:
        """Follow another schedule of the learning rate from now on."""
        self.refuse_part()
        values = self.options
        scheduler = self.admit(as_scheduler(lr), as_plain(self.owner, values.defaults))
        separate = [self.lr_schedule_of(i) is not self.lr_scheduler for i in range(len(self.owners))]
        groups, rates = list(values.groups), {}
        for i, (hp, own) in enumerate(zip(values.groups, self.overridden, strict=True)):
            if 'lr' in own and not separate[i]:
                rates[i] = as_number(hp.lr)
            elif not separate[i]:
                groups[i] = with_values(hp, lr=RATE.to_leaf(scheduler.base_lr_of(i)))
        scheduler.admitted(rates)()
        self.lr_scheduler = scheduler
        self.commit(replace(values, groups=groups), dict(self.schedules), renewed=True)

    def admit(self, lr: Schedulable, options: Options) -> LRScheduler:
        """Return the schedule of a learning rate; raise if the options lack the momentum that the schedule cycles."""
        scheduler = as_scheduler(lr)
        if scheduler.cycle_momentum:
            if options.keys().isdisjoint({'momentum', 'betas'}):
                raise ValueError('Invalid cycle_momentum=True. This optimizer has neither momentum nor betas.')
            if not is_on(options.get('momentum', 1.0)):
                raise ValueError('Invalid cycle_momentum=True with momentum=0. Give the optimizer a momentum above 0.')
        if isinstance(scheduler, OptaxSchedule) and scheduler.last_epoch is not self.step_count:
            scheduler.follow(self.step_count)
        return scheduler

    def commit(self, values: OptionValues, schedules: Schedules, renewed: bool = False) -> None:
        """Write the options, and count the change if schedules are replaced."""
        self.refuse_part()
        for schedule in (s for own in schedules.values() for s in own.values()):
            if isinstance(schedule, OptaxSchedule) and schedule.last_epoch is not self.step_count:
                schedule.follow(self.step_count)
        if renewed or schedules != self.schedules:
            values = replace(values, schedule_changes=values.schedule_changes + 1)
        self.schedules = schedules
        self.values.value = Packed.of(values)
        self.place()

    def refuse_part(self) -> None:
        """Raise if these are the options of a group of another optimizer."""
        if self.is_part:
            raise ValueError(
                f'This {self.owner.__name__} is the optimizer of a group. Assign to an entry of param_groups instead.'
            )

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
        if not self.owners:
            return self.lr_scheduler()
        rate: Scalar = as_number(self.part(self.options, self.positions(), group).lr)
        return rate

    @explicit_transfers
    def set_lr(self, value: Scalar) -> None:
        """Set the rate of the schedule of the first group so that the first group applies ``value``."""
        scale = as_number(self.options.groups[0].lr_scale) if self.owners else 1.0
        refusal = f'Invalid lr={value!r}. The first group has an lr_scale of 0: no rate gives it.'
        self.lr_schedule_of(0).set_rate(quotient(RATE.check('lr', value), scale, refusal))

    @explicit_transfers
    def set_lr_of(self, group: int, value: Scalar, check: Check) -> None:
        """Set the rate that a group applies: that of its own schedule, if it has one or if there is no other group."""
        hp, schedule = self.options.groups[group], self.lr_schedule_of(group)
        if len(self.owners) == 1:
            self.set_lr(value)
        elif schedule is not self.lr_scheduler:
            refusal = f'Invalid lr={value!r}. Group {group} has an lr_scale of 0: no rate gives it.'
            schedule.set_rate(quotient(RATE.check('lr', value), as_number(hp.lr_scale), refusal))
        else:
            scheduled = as_number(schedule.rate(schedule.position(), hp.lr, group))
            refusal = f'Invalid lr={value!r} of group {group}. The schedule stands at zero: no factor gives it.'
            self.set('lr_scale', quotient(RATE.check('lr', value), scheduled, refusal), group, check)


def quotient(value: Scalar, by: Scalar, refusal: str) -> Scalar:
    """Return ``value / by``; raise if ``by`` is 0, unless a transformation only probes the function."""
    if not isinstance(by, Tracer) and by == 0:
        if not inside_transformation():
            raise ValueError(refusal)
        return value
    return value / by
