"""Groups: weights that share hyperparameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from braintools_optim.options import MissingKeyError
from braintools_optim.selection import Predicate, selected

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['Group', 'GroupRate', 'ParamGroup']


@dataclass
class Group:
    """The names of its leaves, and what was registered."""

    keys: list[str]
    params: Any


def divided(
    weights: Mapping[str, Any], groups: Mapping[Predicate, Mapping[str, Any]]
) -> list[tuple[list[str], Mapping[str, Any]]]:
    """The names of the weights of each group with its options; the first group is what no predicate chooses."""
    rest = dict(weights)
    parts = []
    for predicate, options in groups.items():
        names = selected(predicate, rest)
        if not names:
            warnings.warn(f'No weight is chosen by groups[{predicate!r}]. There are: {", ".join(rest)}.', stacklevel=4)
            continue
        parts.append((names, options))
        rest = {name: w for name, w in rest.items() if name not in names}
    return [(list(rest), {}), *parts]


class ParamGroup(MutableMapping[str, Any]):
    """A group as torch shows it: ``group['weight_decay']`` reads, assigning acts on the next update."""

    def __init__(self, optimizer: Optimizer, index: int):
        self._optimizer, self._index = optimizer, index

    def _options(self) -> dict[str, Any]:
        return self._optimizer.settings.plain(self._index)

    def __getitem__(self, name: str) -> Any:
        if name == 'lr':
            return GroupRate(self._optimizer, self._index)
        if name == 'params':
            return self._optimizer._groups[self._index].params
        options = self._options()
        if name not in options:
            raise MissingKeyError(f'{name!r} is no option of a group. Must be among {sorted(options)}.')
        return options[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == 'lr':
            self['lr'].value = value
        elif name == 'params':
            raise MissingKeyError("The 'params' of a group are fixed; add_param_group adds weights.")
        else:
            self._optimizer.settings.set(name, value, self._index, self._optimizer._check_change)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f'A hyperparameter cannot be deleted: {name!r}.')

    def __iter__(self) -> Iterator[str]:
        return iter(('params', *self._options()))

    def __len__(self) -> int:
        return 1 + len(self._options())

    def __repr__(self) -> str:
        weights = self._optimizer._groups[self._index].keys
        options = ', '.join(f'{name}={value!r}' for name, value in self._options().items() if name != 'lr')
        return f'ParamGroup({", ".join(weights)}; lr={self["lr"].value}, {options})'


class GroupRate:
    """The learning rate that a group applies; assigning ``.value`` acts on the next update."""

    def __init__(self, optimizer: Optimizer, index: int):
        self._optimizer, self._index = optimizer, index

    @property
    def value(self) -> Any:
        return self._optimizer.settings.lr_of(self._index)

    @value.setter
    def value(self, value: Any) -> None:
        self._optimizer.settings.set_lr_of(self._index, value, self._optimizer._check_change)

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        return f'GroupRate({self.value})'
