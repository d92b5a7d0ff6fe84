"""Settings: the options of an optimizer and of its groups, and the schedules that drive them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import brainstate
from brainstate.graph import Node
from jax.core import Tracer

from braintools_optim.options import (
    Decay,
    Hyperparameters,
    MissingKeyError,
    Packed,
    as_number,
    is_on,
    to_leaf,
    validate,
)
from braintools_optim.schedulers.base import LRScheduler, Position
from braintools_optim.schedulers.function import OptaxSchedule, as_scheduler
from braintools_optim.states import inside_transformation

__all__ = ['OptimState', 'Settings', 'frozen_names']

Options = dict[str, Any]
HIDDEN = ('schedules', 'frozen')  # flags that are no options: how often schedules changed, the names of frozen weights
Schedules = dict[str, dict[str, LRScheduler]]  # by part and option
Check = Callable[[Hyperparameters, Hyperparameters], None]  # of the options before and after a change


class OptimState(brainstate.LongTermState):
    """A State that an optimizer owns: its memory, its counter, its options."""


class Settings(Node):
    """Options in one State, by part: those shared by all groups together, the defaults, and each group's.

    Flags, and which schedules there are, belong to the structure of the State's value: functions that
    are compiled already are compiled anew when they change. Numbers are leaves, and change without that.
    """

    def __init__(self, lr: Any, shared: Options, defaults: Options, kinds: Mapping[str, Any], step_count: OptimState):
        self.step_count = step_count
        self.own: list[set[str]] = []  # of each group, the names of the options that are its own
        self.schedules: Schedules = {}
        shared, shared_schedules = split(shared, {})
        defaults, default_schedules = split(defaults, kinds)
        values = {
            'shared': Hyperparameters.as_leaves({**shared, **dict.fromkeys(HIDDEN, '')}),
            'defaults': Hyperparameters.as_leaves(defaults),
            'groups': [],
        }
        self.values = OptimState(Packed.of(values))
        self.lr_scheduler = self._admitted(lr)
        self._commit(values, {'shared': shared_schedules, 'defaults': default_schedules})

    # what the next update takes

    @property
    def options(self) -> dict[str, Any]:
        """The options by part, as schedules find them."""
        options: dict[str, Any] = self.values.value.tree
        return options

    def sources(self) -> list[brainstate.State]:
        """The States that the present rates of all schedules depend on."""
        sources: list[brainstate.State] = [*self.lr_scheduler.sources().values()]
        for own in self.schedules.values():
            for schedule in own.values():
                sources += schedule.sources().values()
        return sources

    def positions(self, values: Iterable[Any] | None = None) -> dict[str, Any]:
        """Where all schedules stand, given the values of these States if they are not to be read."""
        remaining = iter([state.value for state in self.sources()] if values is None else values)

        def of(schedule: LRScheduler) -> Position:
            return {name: next(remaining) for name in schedule.sources()}

        lr = of(self.lr_scheduler)
        options = {part: {n: of(schedule) for n, schedule in own.items()} for part, own in self.schedules.items()}
        return {'lr': lr, 'options': options}

    def part(self, values: Mapping[str, Any], positions: Mapping[str, Any], part: str | int) -> Hyperparameters:
        """The options of a part (a group by its number), as schedules drive them; a pure function of the values."""
        group = part if isinstance(part, int) else None
        hp: Hyperparameters = values[str(part)] if group is None else values['groups'][group]
        driven: Options = {}
        for where in [str(part)] if group is None else ['defaults', str(group)]:
            for name, schedule in self.schedules.get(where, {}).items():
                if where != 'defaults' or group is None or name not in self.own[group]:
                    driven[name] = to_leaf(name, schedule.rate(positions['options'][where][name]))
        if part != 'shared' and getattr(self.lr_scheduler, 'cycle_momentum', False):
            momentum = self.lr_scheduler.momentum_at(positions['lr']['epoch'], group or 0)
            if 'momentum' in hp.values():
                driven['momentum'] = momentum
            else:
                driven['betas'] = (Decay.of(momentum), *hp.betas[1:])
        if group is not None:
            driven['lr'] = hp.lr_scale * self.lr_scheduler.rate(positions['lr'], hp.lr, group)
        return hp.with_values(**driven)

    def plain(self, part: str | int) -> Options:
        """The present options of a part as Python numbers and flags."""
        return self.part(self.options, self.positions(), part).plain().values()

    def find(self, name: str) -> str | None:
        """The part that an option of the whole optimizer belongs to; None if there is no such option."""
        values = self.values.value.flags if 'values' in self.__dict__ else {}  # the graph is putting this together
        parts = [p for p in ('shared', 'defaults') if p in values and name in values[p].values()]
        return parts[0] if parts and name not in HIDDEN else None

    # changes

    def added(self, groups: Sequence[Options]) -> tuple[list[Options], Callable[[], None]]:
        """The options of further groups with these of their own; and what adds them."""
        values, schedules = self.options, dict(self.schedules)
        every, owned = [], []
        for index, overrides in enumerate(groups, len(self.own)):
            options = {**values['defaults'].plain().values(), 'lr': self.lr_scheduler.base_lr_of(index)}
            if unknown := overrides.keys() - options.keys():
                raise TypeError(f'Unknown options of a group: {sorted(unknown)}. Must be among {sorted(options)}.')
            if 'lr' in overrides and not self.lr_scheduler.uses_base_lr:
                raise ValueError(
                    f'A group cannot have an lr of its own under {type(self.lr_scheduler).__name__}: '
                    f'give it an lr_scale, or list the base rates of all groups in the schedule.'
                )
            own, schedules[str(index)] = split(overrides, options)
            every.append(options | own)
            owned.append(set(own))

        def add() -> None:
            self.own = [*self.own, *owned]
            self._commit({**values, 'groups': [*values['groups'], *map(Hyperparameters.as_leaves, every)]}, schedules)

        return every, add

    def set(self, name: str, value: Any, group: int | None, check: Check) -> None:
        """Change an option, of one group or of all that have not their own, from the next update on."""
        values, part = self.options, self.find(name)
        if part is None or (part == 'shared' and group is not None):
            raise MissingKeyError(f'{name!r} is no option. Must be among {sorted(values["defaults"].values())}.')
        options, schedules = split({name: value}, values[part].plain().values())

        def changed(hp: Hyperparameters) -> Hyperparameters:
            if part != 'shared' and not isinstance(value, Tracer):
                check(hp.plain(), hp.plain().with_values(**options))
            return hp.with_values(**Hyperparameters.as_leaves(options).values())

        if group is None:
            values = {**values, part: changed(values[part])}
        chosen = [
            i == group or (group is None and part != 'shared' and name not in own) for i, own in enumerate(self.own)
        ]
        values['groups'] = [changed(hp) if c else hp for c, hp in zip(chosen, values['groups'], strict=True)]
        where = part if group is None else str(group)
        others = {n: s for n, s in self.schedules.get(where, {}).items() if n != name}
        # a compiled function would go on with the schedule that drives this option by default
        renewed = group is not None and name in self.schedules.get('defaults', {})
        if group is not None:
            self.own = [own | {name} if i == group else own for i, own in enumerate(self.own)]
        self._commit(values, {**self.schedules, where: {**others, **schedules}}, renewed)

    def follow(self, lr: Any) -> None:
        """Follow another schedule of the learning rate from now on."""
        self.lr_scheduler = self._admitted(lr)
        values = self.options
        groups = [
            hp if 'lr' in own else hp.with_values(lr=to_leaf('lr', self.lr_scheduler.base_lr_of(i)))
            for i, (own, hp) in enumerate(zip(self.own, values['groups'], strict=True))
        ]
        self._commit({**values, 'groups': groups}, dict(self.schedules), renewed=True)

    def _admitted(self, lr: Any) -> LRScheduler:
        scheduler = as_scheduler(lr)
        if getattr(scheduler, 'cycle_momentum', False):
            options = self.options['defaults'].plain().values()
            if options.keys().isdisjoint({'momentum', 'betas'}):
                raise ValueError('Invalid cycle_momentum=True. This optimizer has neither momentum nor betas.')
            if not is_on(options.get('momentum', 1.0)):
                raise ValueError('Invalid cycle_momentum=True with momentum=0. Give the optimizer a momentum above 0.')
        if isinstance(scheduler, OptaxSchedule):
            scheduler.follow(self.step_count)
        return scheduler

    def _commit(self, values: dict[str, Any], schedules: Schedules, renewed: bool = False) -> None:
        """Write the options; the number of changes of schedules is a flag among them."""
        for schedule in (s for own in schedules.values() for s in own.values()):
            if isinstance(schedule, OptaxSchedule) and schedule.last_epoch is not self.step_count:
                schedule.follow(self.step_count)
        if renewed or schedules != self.schedules:
            shared = values['shared']
            values = {**values, 'shared': shared.with_values(schedules=shared.schedules + '+')}
        self.schedules = schedules
        self.values.value = Packed.of(values)

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the weights that stay as they are."""
        return frozen_names(self.values.value.flags['shared'])

    def freeze(self, names: Iterable[str]) -> None:
        """Let these weights, and no others, stay as they are."""
        values = self.options
        shared = values['shared'].with_values(frozen='\n'.join(sorted(names)))
        self._commit({**values, 'shared': shared}, self.schedules)

    # learning rates

    def lr_of(self, group: int) -> Any:
        """The rate that a group applies."""
        return as_number(self.part(self.options, self.positions(), group).lr) if self.own else self.lr_scheduler()

    def set_lr(self, value: Any) -> None:
        """Set the rate of the schedule so that the first group applies ``value``."""
        scale = as_number(self.options['groups'][0].lr_scale) if self.own else 1.0
        refusal = f'Invalid lr={value!r}. The first group has an lr_scale of 0: no rate gives it.'
        self.lr_scheduler.set_rate(ratio(validate('lr', value), scale, refusal))

    def set_lr_of(self, group: int, value: Any, check: Check) -> None:
        """Set the rate that a group applies: that of the schedule, if there is but one group."""
        if len(self.own) == 1:
            self.set_lr(value)
            return
        hp = self.options['groups'][group]
        scheduled = as_number(self.lr_scheduler.rate(self.lr_scheduler.position(), hp.lr, group))
        refusal = f'Invalid lr={value!r} of group {group}. The schedule stands at zero: no factor gives it.'
        self.set('lr_scale', ratio(validate('lr', value), scheduled, refusal), group, check)


def frozen_names(shared: Hyperparameters) -> frozenset[str]:
    """The names of frozen weights among the shared options."""
    names: str = shared.frozen
    return frozenset(names.split('\n')) if names else frozenset()


def split(options: Options, kinds: Mapping[str, Any]) -> tuple[Options, dict[str, LRScheduler]]:
    """Options as numbers and flags; and the schedules among them, whose base rates stand in their place."""
    checked, schedules = {}, {}
    for name, value in options.items():
        kind = kinds.get(name, value)
        if callable(value) and not isinstance(kind, (bool, str, tuple)):
            schedules[name] = as_scheduler(value)
            value = schedules[name].base_lrs[0]
        checked[name] = validate(name, value, like=None if callable(kind) else kind)
    return checked, schedules


def ratio(value: Any, by: Any, refusal: str) -> Any:
    """``value / by``; an error if that is zero, unless a transformation only tries out what happens."""
    if not isinstance(by, Tracer) and by == 0:
        if not inside_transformation():
            raise ValueError(refusal)
        return value
    return value / by
