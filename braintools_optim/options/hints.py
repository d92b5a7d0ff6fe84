"""Hints: the likely fix for a call that is right in another library, as the last sentence of an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import jax
from brainstate import State

__all__ = ['hint_for', 'hint_for_method', 'hint_for_weights', 'suggestion']

NOTHING: Mapping[str, str] = MappingProxyType({})
OPTIMIZER_FIRST = ' An optimizer takes its schedule, not the reverse: Adam(lr=StepLR(0.1, step_size=30)).'
WEIGHTS = ' Weights go to register_trainable_weights.'
OTHER_NAMES = {
    **dict.fromkeys(('learning_rate', 'lr_scheduler', 'schedule', 'scheduler', 'step_size'), 'lr'),
    **dict.fromkeys(('clip', 'grad_clip', 'gradient_clip', 'max_grad_norm', 'max_norm'), 'grad_clip_norm'),
    **dict.fromkeys(('clip_norm', 'clipnorm', 'global_clipnorm', 'gradient_clip_norm'), 'grad_clip_norm'),
    **dict.fromkeys(('clip_value', 'clipvalue', 'gradient_clip_value'), 'grad_clip_value'),
    **dict.fromkeys(('beta', 'b1', 'b2', 'beta_1', 'beta_2'), 'betas'),
    **dict.fromkeys(('epsilon', 'epsilon_'), 'eps'),
    **dict.fromkeys(('decay', 'l2', 'wd'), 'weight_decay'),
    'mask': 'no_decay',
}
"""The names of options in torch, keras, optax or other code, and the names of the same options here."""
METHODS = {
    'init': 'register_trainable_weights(states) takes the place of init.',
    'parameters': 'weight_names and param_states hold the registered weights.',
    'zero_grad': 'There are no gradients to reset: gradients are an argument of update.',
}
"""Methods of optimizers in other libraries, and what takes their place here."""


def suggestion(name: str, known: Iterable[str], other_names: Mapping[str, str] = NOTHING) -> str:
    """Return a sentence that names the option called ``name`` elsewhere, or else the known option most like it."""
    if name in ('params', 'parameters', 'weights'):
        return WEIGHTS
    known = list(known)
    other = other_names.get(name) or (OTHER_NAMES.get(name) if OTHER_NAMES.get(name) in known else None)
    close = [other] if other else difflib.get_close_matches(name, known, 1, cutoff=0.7)
    return f' Did you mean {close[0]!r}?' if close else ''


def hint_for(value: object) -> str:
    """Return the likely fix for a value in the place of a number or a schedule."""
    if isinstance(value, type):
        return f' {value.__name__} is a class. Give an instance: {value.__name__}(...).'
    if not isinstance(value, Mapping) and hasattr(value, 'register_trainable_weights'):
        return OPTIMIZER_FIRST
    return WEIGHTS if is_module(value) or holds_weights(value) else ''


def hint_for_weights(value: object) -> str:
    """Return the likely fix for a value in the place of a tree of States."""
    return ' Give the States of the module: model.states(brainstate.ParamState).' if is_module(value) else ''


def hint_for_method(name: str) -> str:
    """Return what takes the place of a method of other libraries."""
    return f'. {METHODS[name]}' if name in METHODS else ''


def is_module(value: object) -> bool:
    """Return whether a value is a module of brainstate, or similar."""
    return not isinstance(value, (type, Mapping)) and callable(getattr(value, 'states', None))


def holds_weights(value: object) -> bool:
    """Return whether a value is a State, or a tree of States or arrays."""
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, State) or any(isinstance(x, jax.Array) or holds_weights(x) for x in entries)
