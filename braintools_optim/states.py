"""The values of States, read and written as the attributes that they are where brainstate would do nothing else.

That is outside of transformations, and takes a quarter of the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import brainstate
import brainunit
import jax.numpy as jnp
from brainstate._state import TRACE_CONTEXT  # there is no public name for "is a transformation active?"
from jax.extend.core import get_opaque_trace_state

from braintools_optim.options import Packed

__all__ = ['inside_transformation', 'is_traced', 'is_watched', 'read', 'write']

jax_trace: Any = functools.partial(get_opaque_trace_state, convention='nnx')
TOP_LEVEL = jax_trace()
VALUES = {type(jnp.zeros(())), dict, brainunit.Quantity, Packed}  # others may stand for what cannot be read
HARMLESS = {'__abstractmethods__', '__annotations__', '__doc__', '__firstlineno__', '__init__', '__module__'}
HARMLESS |= {'__orig_bases__', '__parameters__', '__static_attributes__', '_abc_impl'}


def inside_transformation() -> bool:
    """Whether a brainstate transformation is tracing (or probing) the caller."""
    return bool(TRACE_CONTEXT.state_stack)


def is_traced() -> bool:
    """Whether any transformation is: jax's own, too, under which States that were there before cannot be written."""
    return inside_transformation() or jax_trace() != TOP_LEVEL


def is_watched() -> bool:
    """Whether brainstate checks what is written, or has hooks for all States."""
    checks: bool = TRACE_CONTEXT.tree_check[-1] or TRACE_CONTEXT.jax_tracer_check[-1]
    return checks or brainstate.GlobalHookRegistry.instance().has_hooks()


@functools.cache
def is_plain(kind: Any) -> bool:
    """Whether States of this kind are read and written as ``State`` is; and that does, tried out, no more than this."""
    before_state = kind.__mro__[: kind.__mro__.index(brainstate.State)]
    overridden = {name for own in before_state for name in vars(own)} & vars(brainstate.State).keys()
    probe, new = brainstate.State(jnp.zeros(())), jnp.ones(())
    before = dict(vars(probe))
    probe.value = new
    after = vars(probe)
    changed = {name: value for name, value in after.items() if name not in before or before[name] is not value}
    return overridden <= HARMLESS and changed == {'_value': new, '_been_writen': True} and probe.value is new


def read(states: Iterable[brainstate.State], direct: bool) -> list[Any]:
    """The values of States."""
    if not direct:
        return [state.value for state in states]
    values = []
    for state in states:
        value = vars(state).get('_value')
        quick = type(value) in VALUES and is_plain(state.__class__) and not state.hooks.has_hooks()
        values.append(value if quick else state.value)
    return values


def write(states: Iterable[brainstate.State], values: Iterable[Any], direct: bool) -> None:
    """Write the values of States."""
    for state, value in zip(states, values, strict=True):
        if direct and is_plain(state.__class__) and not state.hooks.has_hooks():
            own = vars(state)
            own['_value'], own['_been_writen'] = value, True
        else:
            state.value = value
