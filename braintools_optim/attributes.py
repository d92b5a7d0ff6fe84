"""Attributes: what may be assigned to an optimizer that has been constructed, besides its options."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from brainstate import State
from brainstate.graph import Node

from braintools_optim.options import validate
from braintools_optim.settings import Settings

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['OptimizerMeta', 'admitted']

NodeMeta: Any = type(Node)


class OptimizerMeta(NodeMeta):
    """Marks what has been constructed; a copy that brainstate puts together is not marked, and takes anything."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().__call__(*args, **kwargs)
        object.__setattr__(optimizer, '_is_built', True)
        return optimizer


def admitted(optimizer: Optimizer, name: str, value: Any) -> Any:
    """A value for an attribute that is no option; an error if there is none of this name, or not of this kind."""
    old, default = optimizer.__dict__.get(name), getattr(type(optimizer), name, None)
    if not (name.startswith('_') or name in optimizer.__dict__ or hasattr(type(optimizer), name)):
        options = sorted({'lr'}.union(optimizer.settings.plain('defaults'), optimizer.settings.plain('shared')))
        close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
        raise AttributeError(
            f'Invalid {name}={value!r}. {type(optimizer).__name__} has no such option. '
            f'Must be among {close or options}; attributes of your own are set in the constructor.'
        )
    if isinstance(old, (State, Settings)) and not isinstance(value, type(old)):
        raise TypeError(f'Invalid {name}={value!r}. Must be {type(old).__name__}, of which only the value changes.')
    return validate(name, value, like=default) if isinstance(default, bool) else value
