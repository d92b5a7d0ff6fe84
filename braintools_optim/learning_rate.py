"""The learning rate of an optimizer: read, set, scheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from braintools_optim.schedulers.base import LRScheduler

if TYPE_CHECKING:
    from braintools_optim.groups import Group
    from braintools_optim.settings import Settings

__all__ = ['LearningRate', 'Scheduled']

LearningRate = float | LRScheduler | Callable[[Any], Any]


class Scheduled:
    """What an optimizer says of its learning rate; the truth is in its settings."""

    settings: Settings
    _groups: list[Group]

    @property
    def lr_scheduler(self) -> LRScheduler:
        """The schedule of the learning rate."""
        return self.settings.lr_scheduler

    @property
    def lr(self) -> Any:
        """The scheduler, which reads as a number; assigning a number sets the rate, from the next update on."""
        return self.lr_scheduler

    @lr.setter
    def lr(self, value: Any) -> None:
        if callable(value):
            self.add_scheduler(value)
        else:
            self.current_lr = value

    @property
    def current_lr(self) -> Any:
        """The rate that the next update applies (to the first group), as a number."""
        return self.settings.lr_of(0)

    @current_lr.setter
    def current_lr(self, value: Any) -> None:
        self.settings.set_lr(value)

    @property
    def base_lr(self) -> Any:
        """The rate that the schedule starts from."""
        return self.lr_scheduler.base_lrs[0]

    def lr_apply(self, fn: Callable[[Any], Any]) -> None:
        """Set the rate to ``fn`` of the present one."""
        self.current_lr = fn(self.current_lr)

    def get_last_lr(self) -> list[Any]:
        """The rate of each group."""
        return [self.settings.lr_of(i) for i in range(max(len(self._groups), 1))]

    def add_scheduler(self, scheduler: LearningRate) -> None:
        """Follow another schedule from now on."""
        self.settings.follow(scheduler)
