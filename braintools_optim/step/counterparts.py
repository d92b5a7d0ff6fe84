"""Counterparts: the names of the options and slots of a rule in torch and optax, declared by the class of the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from braintools_optim.options.types import Options, OptionValue

__all__ = ['ArraySlots', 'TorchCounterpart', 'optax_state', 'torch_options']

ArraySlots = dict[str, npt.NDArray[np.floating]]


@dataclass(frozen=True)
class TorchCounterpart:
    """The optimizer of torch for a rule: the options of its groups, by their names here. A subclass converts slots."""

    options: tuple[str, ...]
    fixed: Mapping[str, OptionValue] = field(default_factory=dict)
    """The values that other options must have, because torch's optimizer does not have these options."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """The names in torch of options that have other names here."""
    counts: bool = True
    """Whether torch counts the updates of each parameter."""

    def from_torch(self, slots: ArraySlots, lr: float) -> ArraySlots:
        """Return the slots of a parameter here, from torch's."""
        return slots

    def to_torch(self, slots: ArraySlots, count: int, options: Options) -> ArraySlots:
        """Return the slots of a parameter in torch, from those here."""
        return slots


def torch_options(names: str, *, counts: bool = True) -> TorchCounterpart:
    """Return a counterpart with these options besides ``maximize``. Without the option, weight decay is coupled."""
    fixed = {} if 'decoupled_weight_decay' in names else {'decoupled_weight_decay': False}
    return TorchCounterpart(('maximize', *names.split()), fixed, counts=counts)


def optax_state(name: str, **slots: str) -> dict[str, dict[str, str]]:
    """Return the slots here for the fields of one of optax's states, by the name of the state's class."""
    return {name: slots}
