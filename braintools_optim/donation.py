"""jit: brainstate's, with the buffers of the States that are written donated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, ParamSpec, TypeVar, cast, overload

import brainstate
import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr

from braintools_optim.buffers import Made, block_for, compiler_options
from braintools_optim.states import all_or_none, are_hooked, is_traced, may_touch, read, write

__all__ = ['donating', 'jit']

P = ParamSpec('P')
R = TypeVar('R')
Indices = int | Sequence[int] | None
Names = str | Sequence[str] | None
Wanted = Callable[[brainstate.State], bool]


@dataclass(eq=False)
class Plan:
    """What one trace does with States."""

    states: tuple[brainstate.State, ...]
    forms: list[Any]  # of their values
    written: tuple[bool, ...]
    donated: tuple[bool, ...]
    block: int | None  # of temporary memory
    constants: list[Any]  # arrays that the compiled function holds

    def __post_init__(self) -> None:
        self.made = Made()
        self.given = list(compress(self.states, self.donated))
        self.kept = [state for state, donated in zip(self.states, self.donated, strict=True) if not donated]
        self.targets = list(compress(self.states, self.written))
        self.reused = list(compress(self.donated, self.written))  # which of what is written is donated next

    def ready(self, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]] | None:
        """The values that are donated and the others, if States may be read directly and no buffer needs a look."""
        if not (self.made.trusted and may_touch(self.states, are_plain=True)):
            return None
        donated, kept = read(self.given, direct=True), read(self.kept, direct=True)
        return (donated, kept) if self.made.is_alone(donated, (kept, args, kwargs)) else None

    def divided(self, args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
        """The values that are donated, with buffers of their own, and the others."""
        donated, kept = read(self.given, direct=False), read(self.kept, direct=False)
        return self.made.separated(donated, (kept, args, kwargs, self.constants)), kept

    def finish(self, new: Sequence[Any], direct: bool) -> None:
        """Write what the function made."""
        write(self.targets, new, direct)
        if direct:
            self.made.remember(list(compress(new, self.reused)))


def is_lost(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_deleted()


class StaleError(Exception):
    """An argument or a State's value has another form than it had in the trace."""


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
      they run, and hooks of States may refuse what is written: then nothing is donated;
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
    plans: list[Plan] = []
    current: dict[Any, int] = {}  # by the form of the arguments

    def run(number: int, donated: Sequence[Any], kept: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        own, parts = plans[number], (iter(kept), iter(donated))
        values = [next(parts[chosen]) for chosen in own.donated]
        expected = current.get(stateful.get_arg_cache_key(*args, **kwargs))
        if expected != number or list(map(form, values)) != own.forms:
            raise StaleError
        new, result = stateful.jaxpr_call(values, *args, **kwargs)
        return list(compress(new, own.written)), result

    run.__name__ = getattr(function, '__name__', 'run')

    @functools.cache
    def compiled(block: int | None) -> Any:
        return jax.jit(
            run,
            donate_argnums=1,
            static_argnums=(0, *(i + 3 for i in stateful.static_argnums)),
            static_argnames=stateful.static_argnames or None,
            compiler_options=compiler_options(block=block),
        )

    def find(args: Any, kwargs: Any, renew: bool = False) -> int:
        """The number of the plan for these arguments."""
        key = stateful.get_arg_cache_key(*args, **kwargs)
        if renew or key not in current:
            trace = stateful.get_state_trace(*args, **kwargs)
            new = stateful.get_out_shapes(*args, **kwargs)[1]
            found = plan(trace, stateful.get_jaxpr(*args, **kwargs), new, wanted)
            same = [i for i, own in enumerate(plans) if alike(own, found)]
            plans.extend([] if same else [found])
            current[key] = same[0] if same else len(plans) - 1
        return current[key]

    @functools.wraps(function)
    def jitted(*args: Any, **kwargs: Any) -> Any:
        # if it is not the right plan, that is seen where jax compiles anew
        passed = plans[0].ready(args, kwargs) if len(plans) == 1 and not config.jax_disable_jit else None
        if passed is not None:
            own = plans[0]
            try:
                new, result = compiled(own.block)(0, *passed, *args, **kwargs)
            except StaleError:
                pass
            except (TypeError, ValueError, jax.errors.JaxRuntimeError):  # a buffer may have been refused
                if not own.given or any(map(is_lost, jax.tree.leaves(passed))):
                    raise
                own.made.trusted = False
            else:
                own.finish(new, direct=True)
                return result
        if is_traced() or config.jax_disable_jit:
            return plain(*args, **kwargs)
        number = find(args, kwargs)
        for _ in range(2):
            own = plans[number]
            direct = may_touch(own.states)
            if not direct and are_hooked(own.states):
                with all_or_none(own.states):
                    return plain(*args, **kwargs)
            try:
                new, result = compiled(own.block)(number, *own.divided(args, kwargs), *args, **kwargs)
            except StaleError:
                number = find(args, kwargs, renew=True)
            else:
                own.finish(new, direct)
                return result
        return plain(*args, **kwargs)

    def lower(*args: Any, **kwargs: Any) -> Any:
        number = find(args, kwargs, renew=True)
        own = plans[number]
        return compiled(own.block).lower(number, *own.divided(args, kwargs), *args, **kwargs)

    def clear_cache() -> None:
        plain.clear_cache()
        for block in {own.block for own in plans}:
            compiled(block).clear_cache()
        current.clear()

    vars(jitted).update(origin_fun=function, stateful_fun=stateful, lower=lower, clear_cache=clear_cache)
    return jitted


def plan(trace: Any, jaxpr: ClosedJaxpr, new_values: Sequence[Any], wanted: Wanted) -> Plan:
    """What to donate: States that are written and keep their shapes; nothing, if the function may fail."""
    inner = jaxprs_of(jaxpr)
    may_fail = any('callback' in equation.primitive.name for own in inner for equation in own.eqns)
    states, written = tuple(trace.states), tuple(trace.been_writen)
    forms = list(map(form, trace.original_state_values))
    entries = zip(states, written, forms, map(form, new_values), strict=True)
    donated = tuple(write and not may_fail and old == new and wanted(s) for s, write, old, new in entries)
    block = block_for([size(v.aval) for own in inner for equation in own.eqns for v in equation.outvars])
    return Plan(states, forms, written, donated, block, [constant for own in inner for constant in own.consts])


def alike(a: Plan, b: Plan) -> bool:
    same_states = list(map(id, a.states)) == list(map(id, b.states))
    return same_states and (a.forms, a.written, a.donated, a.block) == (b.forms, b.written, b.donated, b.block)


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


def size(aval: Any) -> int:
    """The bytes of an array in a trace, none of what is no array."""
    return math.prod(aval.shape) * aval.dtype.itemsize if isinstance(aval, ShapedArray) else 0


def form(value: Any) -> Any:
    leaves, structure = jax.tree.flatten(value)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
