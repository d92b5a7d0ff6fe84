"""Reading and writing States directly, where access through ``State.value`` would do nothing more.

``State.value`` checks for traces and hooks at every read and write, which took longer than everything else that an
eager update adds to its compiled step (brainstate 0.5.4: 2 us a read and 9 us a write, against 0.2 us for the
attribute; about half of an update of 4 small parameters). :func:`read` and :func:`write` with ``direct=False`` are the
plain code that direct access must equal; :func:`may_access_directly` says when the two are equal.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from typing import Any, TypeVar

import brainstate
import jax
import jax.numpy as jnp
from brainstate import GlobalHookRegistry
from brainstate._state import TRACE_CONTEXT  # brainstate has no public name for "is a transformation active?"
from jax.extend.core import get_opaque_trace_state, set_current_trace, take_current_trace

from braintools_optim.options.types import Structure, Tree

__all__ = [
    'Deferred',
    'all_or_none',
    'are_hooked',
    'deferred',
    'inside_transformation',
    'is_traced',
    'may_access_directly',
    'read',
    'receive',
    'traces_undone',
    'write',
]

R = TypeVar('R')
jax_trace: Callable[[str], object] = get_opaque_trace_state
enter: Callable[[object], contextlib.AbstractContextManager[None]] = set_current_trace
TOP_LEVEL = jax_trace('nnx')
GLOBAL_HOOKS = GlobalHookRegistry.instance()
HARMLESS = {'__abstractmethods__', '__annotations__', '__doc__', '__firstlineno__', '__init__', '__module__'}
HARMLESS |= {'__orig_bases__', '__parameters__', '__static_attributes__', '_abc_impl'}
value_of, has_hooks = operator.attrgetter('_value'), operator.attrgetter('_hooks_manager._has_hooks')
any_global_hook = operator.attrgetter('_has_hooks')


def inside_transformation() -> bool:
    """Return whether a brainstate transformation is tracing or probing the caller."""
    return bool(TRACE_CONTEXT.state_stack)


def is_traced() -> bool:
    """Return whether a transformation of brainstate or jax is active. Under jax's, earlier States are read-only."""
    return inside_transformation() or jax_trace('nnx') != TOP_LEVEL


@functools.cache
def is_as_known() -> bool:
    """Return whether a write and a hook change a State of this brainstate in the way that this module relies on."""
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
def is_plain(kind: type[brainstate.State]) -> bool:
    """Return whether States of this class are read and written as ``State`` is."""
    before_state = kind.__mro__[: kind.__mro__.index(brainstate.State)]
    overridden = {name for base in before_state for name in vars(base)} & vars(brainstate.State).keys()
    return overridden <= HARMLESS and is_as_known()


def may_access_directly(states: Sequence[brainstate.State], are_plain: bool = False) -> bool:
    """Return whether States may be read and written directly now. ``are_plain`` skips the check of their classes.

    Direct access is wrong inside transformations, and where hooks or checks of brainstate observe reads and writes.
    A value that ``State.value`` refuses to return, such as one of a finished trace, is refused later by jax.
    """
    here = TRACE_CONTEXT
    if here.state_stack or here.tree_check[-1] or here.jax_tracer_check[-1] or jax_trace('nnx') != TOP_LEVEL:
        return False
    if any_global_hook(GLOBAL_HOOKS) or any(map(has_hooks, states)):
        return False
    return are_plain or all(map(is_plain, set(map(type, states))))


def read(states: Iterable[brainstate.State], direct: bool) -> list[Tree]:
    """Return the values of States."""
    return list(map(value_of, states)) if direct else [state.value for state in states]


def write(states: Sequence[brainstate.State], values: Iterable[Tree], direct: bool) -> None:
    """Write the values of all States or, if an error occurs, of none."""
    if direct:
        for state, value in zip(states, values):  # noqa: B905 (strict=True takes as long as the rest of the loop)
            attributes: Any = state.__dict__
            attributes['_value'] = value
            attributes['_been_writen'] = True
        return
    with all_or_none(states):
        for state, value in zip(states, values, strict=True):
            state.value = value


def receive(function: Callable[..., Any], args: Iterable[Any], finish: Callable[[Any], R], donated: bool = True) -> R:
    """Call ``finish`` with the result of ``function(*args)``, also if a signal handler raises in between.

    The buffers of donated arguments are gone when ``function`` returns, so that its result must not be lost. Python
    runs signal handlers between bytecodes. ``extend`` and ``starmap`` have none, and jax makes a :func:`deferred` tree
    without any: the result is stored before a handler can run. With ``donated``, ``finish`` may be called twice.
    """
    results: list[Any] = []
    try:
        results.extend(starmap(function, (args,)))
        return finish(opened(results[0]))
    except BaseException:
        if results and donated:
            finish(opened(results[0]))
        raise


class StructureKey(tuple[Structure]):
    """A structure as the key of a dict, with a short text: jax writes the text of the key for every leaf."""

    __slots__ = ()

    def __repr__(self) -> str:
        return 'structure'


Deferred = dict[StructureKey, list[jax.Array]]


def deferred(tree: Tree) -> Deferred:
    """Return a tree as its structure and its leaves, from which :func:`opened` makes the tree.

    jax makes the nodes of a result before a compiled function returns. Dataclasses and named tuples run Python code for
    that; a dict whose key is the structure does not.
    """
    leaves, structure = jax.tree.flatten(tree)
    return {StructureKey((structure,)): leaves}


def opened(returned: Deferred) -> Tree:
    """Return the tree of a :func:`deferred` result."""
    (((structure,), leaves),) = returned.items()
    return structure.unflatten(leaves)


def are_hooked(states: Iterable[brainstate.State]) -> bool:
    """Return whether hooks observe reads and writes of these States, which the hooks may refuse."""
    if GLOBAL_HOOKS.has_hooks():  # checked first, because global hooks must not see the State that is_as_known probes
        return True
    return any(map(has_hooks if is_as_known() else brainstate.State.has_hooks, states))


@contextlib.contextmanager
def traces_undone() -> Iterator[Callable[[Callable[..., R]], Callable[..., R]]]:
    """Leave no trace of a function that is traced in the block, also if jax or brainstate is interrupted at its end.

    The block traces the function that the context returns for the given one.
    """
    depth, traces = len(TRACE_CONTEXT.state_stack), []
    with take_current_trace() as outside:
        pass

    def watched(function: Callable[..., R]) -> Callable[..., R]:
        def run(*args: Tree) -> R:
            traces.append(TRACE_CONTEXT.state_stack[-1])
            return function(*args)

        return run

    try:
        yield watched
    except BaseException:
        enter(outside).__enter__()
        del TRACE_CONTEXT.state_stack[depth:]
        for trace in traces:
            with contextlib.suppress(RuntimeError):  # raised if the States have been restored
                trace.recovery_original_values()
        raise


@contextlib.contextmanager
def all_or_none(states: Sequence[brainstate.State]) -> Iterator[None]:
    """Give the States their former values back if the block raises."""
    before = list(map(value_of, states))
    try:
        yield
    except BaseException:
        for state, value in zip(states, before, strict=True):
            attributes: dict[str, Tree] = vars(state)
            attributes['_value'] = value
        raise
