"""Parameter groups as torch shows them: mappings from option to value, which read and assign."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from braintools_optim.options.kinds import MissingKeyError, Scalar
from braintools_optim.options.number import ReadsAsNumber
from braintools_optim.options.types import OptionValue
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.settings import Check, Settings
from braintools_optim.step.group import Group

__all__ = ['GroupRate', 'ParamGroup']


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
