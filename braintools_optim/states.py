"""The values of States, read and written as the attributes that they are where brainstate would do nothing else.

That is outside of transformations, and takes a quarter of the time.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import brainstate
import jax.numpy as jnp
from brainstate import GlobalHookRegistry
from brainstate._state import TRACE_CONTEXT  # there is no public name for "is a transformation active?"
from jax.extend.core import get_opaque_trace_state

__all__ = ['all_or_none', 'are_hooked', 'inside_transformation', 'is_traced', 'may_touch', 'read', 'write']

jax_trace: Any = get_opaque_trace_state
TOP_LEVEL = jax_trace('nnx')
HOOKS_OF_ALL: Any = GlobalHookRegistry.instance()
HARMLESS = {'__abstractmethods__', '__annotations__', '__doc__', '__firstlineno__', '__init__', '__module__'}
HARMLESS |= {'__orig_bases__', '__parameters__', '__static_attributes__', '_abc_impl'}
value_of, has_hooks = operator.attrgetter('_value'), operator.attrgetter('_hooks_manager._has_hooks')


def inside_transformation() -> bool:
    """Whether a brainstate transformation is tracing (or probing) the caller."""
    return bool(TRACE_CONTEXT.state_stack)


def is_traced() -> bool:
    """Whether any transformation is: jax's own, too, under which States that were there before cannot be written."""
    return inside_transformation() or jax_trace('nnx') != TOP_LEVEL


@functools.cache
def is_as_known() -> bool:
    """Whether States of this brainstate, tried out, change by a write and by a hook as they are taken to here."""
    probe, new = brainstate.State(jnp.zeros(())), jnp.ones(())
    before = dict(vars(probe))
    probe.value = new
    after = vars(probe)
    changed = {name: value for name, value in after.items() if name not in before or before[name] is not value}
    if changed != {'_value': new, '_been_writen': True} or probe.value is not new:
        return False
    hooks = vars(after['_hooks_manager'])
    was_hooked = hooks.get('_has_hooks')
    probe.register_hook('read', lambda context: None)
    return was_hooked is False and hooks['_has_hooks'] is True


@functools.cache
def is_plain(kind: Any) -> bool:
    """Whether States of this kind are read and written as ``State`` is."""
    before_state = kind.__mro__[: kind.__mro__.index(brainstate.State)]
    overridden = {name for own in before_state for name in vars(own)} & vars(brainstate.State).keys()
    return overridden <= HARMLESS and is_as_known()


def may_touch(states: Sequence[brainstate.State], are_plain: bool = False) -> bool:
    """Whether States may be read and written directly now; they are known to be plain or looked at.

    They may in no transformation, nor if hooks or checks of brainstate's see what is read and written. A value may be
    one that ``State.value`` refuses to give: jax takes it for no argument.
    """
    here = TRACE_CONTEXT
    if here.state_stack or here.tree_check[-1] or here.jax_tracer_check[-1] or jax_trace('nnx') != TOP_LEVEL:
        return False
    if HOOKS_OF_ALL._has_hooks or any(map(has_hooks, states)):
        return False
    return are_plain or all(map(is_plain, set(map(type, states))))


def read(states: Iterable[brainstate.State], direct: bool) -> list[Any]:
    """The values of States."""
    return list(map(value_of, states)) if direct else [state.value for state in states]


def write(states: Sequence[brainstate.State], values: Iterable[Any], direct: bool) -> None:
    """Write the values of States, of all or of none."""
    if direct:
        for state, value in zip(states, values):  # noqa: B905 (to say "strict" takes as long as the rest)
            own: Any = state.__dict__
            own['_value'] = value
            own['_been_writen'] = True
        return
    with all_or_none(states):
        for state, value in zip(states, values, strict=True):
            state.value = value


def are_hooked(states: Iterable[brainstate.State]) -> bool:
    """Whether hooks see how these States are read and written, which they may refuse."""
    if HOOKS_OF_ALL.has_hooks():  # which are to see no State that is tried out
        return True
    return any(map(has_hooks if is_as_known() else brainstate.State.has_hooks, states))


@contextlib.contextmanager
def all_or_none(states: Sequence[brainstate.State]) -> Iterator[None]:
    """An error leaves the States with the values that they had."""
    before = list(map(value_of, states))
    try:
        yield
    except BaseException:
        for state, value in zip(states, before, strict=True):
            own: Any = vars(state)
            own['_value'] = value
        raise
