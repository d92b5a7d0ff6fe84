"""jit: brainstate's, with the buffers of the States that are written donated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, ParamSpec, TypeVar, cast, overload

import brainstate
import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.tree_util import tree_leaves

from braintools_optim.buffers import block_for, compiler_options, unshared
from braintools_optim.states import all_or_none, are_hooked, direct_values, is_traced, value_of, write

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
    kept: tuple[bool, ...]  # the others
    block: int | None  # of temporary memory
    constants: list[Any]  # arrays that the compiled function holds
    made: frozenset[int] = frozenset()  # the ids of the arrays that it made last, of States that are donated
    known: list[int] = field(default_factory=list)  # the ids of the values of all States after that
    trusted: bool = False  # those were found not to share a buffer

    def divided(self, values: Sequence[Any], args: Any, kwargs: Any) -> tuple[list[Any], list[Any]]:
        """Of the values of the States those that are donated, with buffers of their own, and the others.

        To look at all buffers takes time, and is left out once what this function makes is known to share none. (An id
        may be that of a new array by now; one that shares a buffer is refused by jax.)
        """
        donated, kept = list(compress(values, self.donated)), list(compress(values, self.kept))
        if self.trusted and list(map(id, values)) == self.known and self.shares_none((args, kwargs)):
            return donated, kept
        found, others = ids_of(donated), (kept, args, kwargs)
        if not (self.trusted and found == self.made and self.shares_none(others)):
            own = unshared(donated, (others, self.constants))
            self.trusted = found == self.made and own is donated
            donated = own
        return donated, kept

    def finish(self, values: Sequence[Any], direct: bool) -> None:
        """Write what the function made."""
        write(list(compress(self.states, self.written)), compress(values, self.written), direct)
        self.known = list(map(id, map(value_of, self.states))) if direct else []
        self.made = ids_of(list(compress(values, self.donated)))

    def shares_none(self, others: Any) -> bool:
        """Whether none of these is an array that the function made."""
        return self.made.isdisjoint(ids_of(others))


def ids_of(tree: Any) -> frozenset[int]:
    return frozenset(map(id, tree_leaves(tree)))


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
        return stateful.jaxpr_call(values, *args, **kwargs)

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

    def attempt(number: int, values: Sequence[Any], args: Any, kwargs: Any, again: bool) -> Any:
        """The new values of the States and the result; None if it is to be tried anew."""
        own = plans[number]
        try:
            return compiled(own.block)(number, *own.divided(values, args, kwargs), *args, **kwargs)
        except StaleError:
            return None
        except (jax.errors.JaxRuntimeError, ValueError):  # jax may have refused a buffer that occurs twice
            may_share, own.trusted = own.trusted and not again, False
            if not may_share or any(map(is_lost, jax.tree.leaves(values))):
                raise
            return None

    @functools.wraps(function)
    def jitted(*args: Any, **kwargs: Any) -> Any:
        direct = direct_values(plans[0].states, plans[0].known) if len(plans) == 1 else None
        if (direct is None and is_traced()) or config.jax_disable_jit:
            return plain(*args, **kwargs)
        number = 0 if direct is not None else find(args, kwargs)
        for again in (False, True):
            own = plans[number]
            direct = direct_values(own.states) if direct is None else direct
            if direct is None and are_hooked(own.states):
                with all_or_none(own.states):
                    return plain(*args, **kwargs)
            values = [state.value for state in own.states] if direct is None else direct
            returned = attempt(number, values, args, kwargs, again)
            if returned is not None:
                new, result = returned
                own.finish(new, direct is not None)
                return result
            number, direct = find(args, kwargs, renew=True), None
        return plain(*args, **kwargs)

    def lower(*args: Any, **kwargs: Any) -> Any:
        number = find(args, kwargs, renew=True)
        own = plans[number]
        values = [state.value for state in own.states]
        return compiled(own.block).lower(number, *own.divided(values, args, kwargs), *args, **kwargs)

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
    kept = tuple(not chosen for chosen in donated)
    return Plan(states, forms, written, donated, kept, block, [constant for own in inner for constant in own.consts])


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
