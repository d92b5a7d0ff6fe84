"""Reading: the arrays of one State in a state_dict, checked one by one against the arrays here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from braintools_optim.core import Core
from braintools_optim.options.kinds import ANY, AT_LEAST_ZERO, BELOW_ONE, Kind, Number, Numbers, Range
from braintools_optim.options.types import Tree
from braintools_optim.saving.arrays import fitting
from braintools_optim.settings import kinds_of

__all__ = ['Reading']

COUNT = Number(AT_LEAST_ZERO, integer=True)
NON_NEGATIVE = Number(AT_LEAST_ZERO)
KINDS = {
    'opt_state.skipped': COUNT,
    'loss_scale.state.scale': NON_NEGATIVE,
    'loss_scale.state.updates': COUNT,
}
"""The kinds of numbers in the States of an optimizer, by name."""
SETTINGS_KINDS = {
    'step_count': COUNT,
    'last_epoch': COUNT,
    'fraction': Number(BELOW_ONE),
    'manual.rate': NON_NEGATIVE,
    'manual.reference': NON_NEGATIVE,
    'best': Number(ANY),
    'num_bad_epochs': COUNT,
    'cooldown_counter': COUNT,
    'reduction': NON_NEGATIVE,
}
"""The kinds of numbers in the States of settings and schedules, by the ends of their names."""
OPTIONS = 'settings.values.'


class Reading:
    """The arrays of one State, by name. A misfit is described in ``problems``, and the present array stays."""

    def __init__(self, core: Core, where: str, arrays: Mapping[str, Tree], problems: list[str]):
        self.core = core
        self.where = where
        self.arrays = arrays
        self.left = dict(arrays)
        self.problems = problems

    def take(self, name: str, leaf: Tree, here: str | None = None) -> Tree:
        """Return the array of a name, or ``leaf`` if the array does not fit; ``here`` is the name of ``leaf`` here."""
        label = self.label(name if here is None else here)
        if name not in self.left:
            self.problems.append(f'{label}: not there')
            return leaf
        there = self.left.pop(name)
        array, difference = fitting(there, leaf)
        if array is None:
            self.problems.append(f'{label}: {difference}')
            return leaf
        kind = kind_of(self.core, label)
        # rounding may have moved an option onto the end of its range, so the present numbers are accepted
        if kind is None or np.array_equal(there, leaf):
            return array
        if refusal := self.refusal(kind, name, label, np.asarray(there)):
            self.problems.append(refusal)
            return leaf
        return array

    def finish(self) -> None:
        """Report the arrays that were not taken."""
        self.problems += [f'{self.label(name)}: not here' for name in self.left]

    def label(self, name: str) -> str:
        """Return the full name of an array."""
        return f'{self.where}.{name}' if name else self.where

    def refusal(self, kind: Kind, name: str, label: str, numbers: npt.NDArray[np.generic]) -> str:
        """Return why an assignment would refuse these numbers, or an empty string."""
        try:
            for number in numbers.ravel().tolist():
                kind.check(label, number)
        except (TypeError, ValueError) as error:
            return str(error)
        stem, _, end = name.rpartition('.')
        if label.startswith(OPTIONS) and end == 'complement' and f'{stem}.value' in self.arrays:
            value = np.asarray(self.arrays[f'{stem}.value'])
            if value.shape == numbers.shape and not np.allclose(1 - value, numbers, rtol=0, atol=1e-6):
                return f'Invalid {label}={numbers}. Must be 1 - {value}, the complement of the decay rate.'
        return ''


def kind_of(core: Core, name: str) -> Kind | None:
    """Return the kind of numbers in an array, by its full name; None if any numbers are allowed."""
    if name.startswith('opt_state.step.'):
        return COUNT
    if name.startswith(OPTIONS):
        return kind_of_option(core, name.removeprefix(OPTIONS).split('.'))
    if 'settings' in name.split('.'):
        return next((kind for end, kind in SETTINGS_KINDS.items() if name.endswith(f'.{end}')), None)
    return KINDS.get(name)


def kind_of_option(core: Core, path: list[str]) -> Kind | None:
    """Return the kind of a number among the options: of a part or a group, of a tuple, or of a decay rate."""
    in_group = path[0] == 'groups'
    option, *inside = path[2:] if in_group else path[1:]
    kind = kinds_of(core.settings.owner_of(int(path[1]) if in_group else path[0])).get(option)
    if isinstance(kind, Numbers):
        kind, inside = kind.entry, inside[1:]
    return Number(Range(0, 1, low_open=True)) if inside == ['complement'] else kind
