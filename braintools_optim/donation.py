"""jit: brainstate's, with the buffers of the States that are written donated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast, overload
from weakref import WeakKeyDictionary

import brainstate
import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr

from braintools_optim.weights import inside_transformation

__all__ = ['donating', 'jit']

P = ParamSpec('P')
R = TypeVar('R')
Indices = int | Sequence[int] | None
Names = str | Sequence[str] | None
Wanted = Callable[[brainstate.State], bool]


class Plan(NamedTuple):
    """What is donated of the States of one trace."""

    donated: tuple[bool, ...]  # by State
    constants: list[Any]  # arrays that the compiled function holds


@overload
def jit(
    function: Callable[P, R], *, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[P, R]: ...
@overload
def jit(
    *, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def jit(
    function: Callable[..., Any] | None = None, *, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[..., Any]:
    """``brainstate.transform.jit`` that writes the new values of States into the buffers of the old ones.

    A train step then needs no second copy of weights and memory, and no time to fill it. An array
    got before from the ``.value`` of a State that the function writes is lost at the next call:
    using it is a ``RuntimeError`` of jax. Everything else is as without donation:

    - States that are only read are kept, and so are those that change shape or dtype;
    - a buffer that is also another State's, an argument's or a constant's is copied first;
    - an error leaves the States as they were. Functions that call back into Python may fail while
      they run, and are therefore compiled without donation;
    - inside another transformation the function is part of that one.

    Parameters
    ----------
    function : callable
        What is compiled. Without it, a decorator.
    static_argnums : int or sequence of int, optional
        The positional arguments that are compiled in.
    static_argnames : str or sequence of str, optional
        The keyword arguments that are.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD, jit
    >>> w = brainstate.ParamState(jnp.ones(2))
    >>> optimizer = SGD(lr=0.5).register_trainable_weights({'w': w})
    >>> @jit
    ... def train_step(gradient):
    ...     optimizer.update({'w': gradient})
    >>> before = w.value
    >>> train_step(jnp.array([1.0, 2.0]))
    >>> w.value.tolist(), before.is_deleted()
    ([0.5, 0.0], True)
    """
    if function is None:
        return functools.partial(jit, static_argnums=static_argnums, static_argnames=static_argnames)
    return donating(function, lambda state: True, static_argnums, static_argnames)


def donating(
    function: Callable[..., Any], wanted: Wanted, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[..., Any]:
    """The same, of the States that are ``wanted``."""
    plain: Any = brainstate.transform.jit(function, static_argnums=static_argnums, static_argnames=static_argnames)
    stateful, config = plain.stateful_fun, cast(Any, jax.config)
    plans: WeakKeyDictionary[Any, Plan] = WeakKeyDictionary()

    def run(donated: Sequence[Any], kept: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        values = [k if d is None else d for d, k in zip(donated, kept, strict=True)]
        return stateful.jaxpr_call(values, *args, **kwargs)

    run.__name__ = getattr(function, '__name__', 'run')
    static = tuple(i + 2 for i in stateful.static_argnums)
    compiled: Any = jax.jit(
        run, donate_argnums=0, static_argnums=static, static_argnames=stateful.static_argnames or None
    )

    def prepare(*args: Any, **kwargs: Any) -> tuple[Any, list[Any], list[Any]]:
        """What the function touches; the values of those States that are donated, and of the others."""
        trace = stateful.get_state_trace(*args, **kwargs)
        if trace not in plans:
            new = stateful.get_out_shapes(*args, **kwargs)[1]
            plans[trace] = plan(trace, stateful.get_jaxpr(*args, **kwargs), new, wanted)
        own, values = plans[trace], trace.get_state_values()
        kept = [None if d else value for d, value in zip(own.donated, values, strict=True)]
        donated = [value if d else None for d, value in zip(own.donated, values, strict=True)]
        return trace, unshared(donated, (kept, args, kwargs, own.constants)), kept

    @functools.wraps(function)
    def jitted(*args: Any, **kwargs: Any) -> Any:
        traced = inside_transformation() or any(isinstance(x, Tracer) for x in jax.tree.leaves((args, kwargs)))
        if traced or config.jax_disable_jit:
            return plain(*args, **kwargs)
        trace, donated, kept = prepare(*args, **kwargs)
        new, result = compiled(donated, kept, *args, **kwargs)
        trace.assign_state_vals_v2(trace.get_read_state_values(True), new)
        return result

    def lower(*args: Any, **kwargs: Any) -> Any:
        _, *values = prepare(*args, **kwargs)
        return compiled.lower(*values, *args, **kwargs)

    def clear_cache() -> None:
        plain.clear_cache()
        compiled.clear_cache()

    vars(jitted).update(origin_fun=function, stateful_fun=stateful, lower=lower, clear_cache=clear_cache)
    return jitted


def plan(trace: Any, jaxpr: ClosedJaxpr, new_values: Sequence[Any], wanted: Wanted) -> Plan:
    """What to donate: States that are written and keep their shapes; nothing, if the function may fail."""
    inner = jaxprs_of(jaxpr)
    may_fail = any('callback' in equation.primitive.name for own in inner for equation in own.eqns)
    states = zip(trace.states, trace.been_writen, trace.original_state_values, new_values, strict=True)
    donated = (write and not may_fail and form(old) == form(new) and wanted(s) for s, write, old, new in states)
    return Plan(tuple(donated), [constant for own in inner for constant in own.consts])


def jaxprs_of(jaxpr: ClosedJaxpr) -> list[ClosedJaxpr]:
    """A jaxpr and all within it, each once."""
    found, waiting = {}, [jaxpr]
    while waiting:
        own = waiting.pop()
        if id(own.jaxpr) not in found:
            found[id(own.jaxpr)] = own
            parts = jax.tree.leaves([list(equation.params.values()) for equation in own.eqns])
            waiting += [part for part in parts if isinstance(part, ClosedJaxpr)]
            waiting += [ClosedJaxpr(part, ()) for part in parts if isinstance(part, Jaxpr)]
    return list(found.values())


def form(value: Any) -> Any:
    leaves, structure = jax.tree.flatten(value)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def unshared(donated: list[Any], others: Any) -> list[Any]:
    """What is donated, with arrays whose buffer occurs twice or among ``others`` copied."""
    taken = {buffer_of(leaf) for leaf in jax.tree.leaves(others)}
    leaves, structure = jax.tree.flatten(donated)
    for i, leaf in enumerate(leaves):
        buffer = buffer_of(leaf)
        if buffer in taken and isinstance(leaf, jax.Array):
            leaves[i] = leaf.copy()
        taken.add(buffer)
    result: list[Any] = jax.tree.unflatten(structure, leaves)
    return result


def buffer_of(leaf: Any) -> int:
    """What tells buffers apart; two arrays may share one."""
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) > 1:
        return id(leaf)
    return leaf.unsafe_buffer_pointer() or id(leaf)
