"""The learning rate of an optimizer: a field that reads as the scheduler and is assigned a number or a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from braintools_optim.options.fields import Option
from braintools_optim.options.kinds import RATE, LearningRate, Scalar
from braintools_optim.options.types import OptionValue
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.settings import Settings

__all__ = ['LearningRate', 'Rate', 'Scheduled']


class Rate(Option[OptionValue]):
    """The field ``lr``. Assigning a number sets the rate, assigning a schedule follows it from the next update on."""

    def __init__(self, default: LearningRate | None):
        super().__init__(default, RATE)

    @overload
    def __get__(self, instance: None, owner: type) -> float: ...
    @overload
    def __get__(self, instance: object, owner: type) -> LRScheduler: ...
    def __get__(self, instance: Any, owner: type) -> OptionValue:
        return self.default if instance is None else instance.lr_scheduler

    def __set__(self, instance: Any, value: LearningRate) -> None:
        if callable(value):
            instance.add_scheduler(value)
        else:
            instance.current_lr = value


class Scheduled:
    """The methods of an optimizer that read and set its learning rate."""

    settings: Settings

    @property
    def lr_scheduler(self) -> LRScheduler:
        """The schedule of the learning rate."""
        return self.settings.lr_scheduler

    @property
    def lr_schedulers(self) -> list[LRScheduler]:
        """The schedules of the rates of all groups, each once, to be stepped in a loop."""
        every = [self.lr_scheduler, *map(self.settings.lr_schedule_of, range(len(self.settings.owners)))]
        return list({id(schedule): schedule for schedule in every}.values())

    @property
    def current_lr(self) -> Scalar:
        """The rate that the next update applies to the first group; assigning a number acts on the next update."""
        return self.settings.lr_of(0)

    @current_lr.setter
    def current_lr(self, value: Scalar) -> None:
        self.settings.set_lr(value)

    @property
    def base_lr(self) -> Scalar:
        """The rate at which the schedule starts."""
        return self.lr_scheduler.base_lrs[0]

    def lr_apply(self, fn: Callable[[Scalar], Scalar]) -> None:
        """Set the rate to ``fn`` of the present rate."""
        self.current_lr = fn(self.current_lr)

    def get_last_lr(self) -> list[Scalar]:
        """Return the rate of each group."""
        return [self.settings.lr_of(i) for i in range(max(len(self.settings.owners), 1))]

    def add_scheduler(self, scheduler: LearningRate) -> None:
        """Follow another schedule from now on."""
        self.settings.follow(scheduler)
