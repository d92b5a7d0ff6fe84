"""jit: ``brainstate.transform.jit`` that donates the buffers of the States that it writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import compress
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

import brainstate
import jax

from braintools_optim.compiled.access import all_or_none, are_hooked, deferred, is_traced, may_access_directly, receive
from braintools_optim.compiled.buffers import compiler_options, is_lost, raise_if_lost
from braintools_optim.compiled.plan import Arguments, Keywords, Plan, Wanted, form, plan_of
from braintools_optim.options.types import Tree

__all__ = ['Donating', 'donating', 'jit']

P = ParamSpec('P')
R = TypeVar('R')
Indices = int | Sequence[int] | None
Names = str | Sequence[str] | None


class Compiled(Protocol):
    """A compiled function of jax."""

    def __call__(self, *args: Tree, **kwargs: Tree) -> Tree: ...

    def lower(self, *args: Tree, **kwargs: Tree) -> jax.stages.Lowered: ...

    def clear_cache(self) -> None: ...


class StaleError(Exception):
    """An argument or the value of a State has another form than in the trace."""


@overload
def jit(
    function: Callable[P, R], *, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[P, R]: ...
@overload
def jit(
    *, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def jit(
    function: Callable[P, R] | None = None, *, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """``brainstate.transform.jit`` that writes the new values of States into the buffers of the old ones.

    A train step then needs no second copy of the weights and the optimizer state, and no time to fill such a copy. An
    array that was read from the ``.value`` of a State before a call that writes this State is deleted by that call:
    using the array raises a ``RuntimeError`` of jax. Everything else is as without donation:

    - States that are only read keep their buffers, and so do States that change shape or dtype.
    - A buffer that another State, an argument or a constant also uses is copied first.
    - An error leaves the States as they were. Functions that call back into Python may fail while they run, and hooks
      of States may refuse a write: in both cases nothing is donated.
    - Inside another transformation the function becomes part of that transformation.

    Parameters
    ----------
    function : callable
        The function to compile. Without it, ``jit`` returns a decorator.
    static_argnums : int or sequence of int, optional
        The positional arguments that are compiled in.
    static_argnames : str or sequence of str, optional
        The keyword arguments that are compiled in.

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
    function: Callable[P, R], wanted: Wanted, static_argnums: Indices = None, static_argnames: Names = None
) -> Callable[P, R]:
    """Return the function compiled, with those States donated that are ``wanted``."""
    plain: Any = brainstate.transform.jit(function, static_argnums=static_argnums, static_argnames=static_argnames)
    compiled = Donating(plain, getattr(function, '__name__', 'run'), wanted)

    @functools.wraps(function)
    def jitted(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = compiled(args, kwargs)
        return result

    vars(jitted).update(
        origin_fun=function, stateful_fun=plain.stateful_fun, lower=compiled.lower, clear_cache=compiled.clear_cache
    )
    return jitted


class Donating:
    """A function of States that brainstate has traced, compiled with the buffers of some States donated.

    There is one :class:`Plan` for each set of States and forms of their values; the forms of the arguments share plans.
    """

    def __init__(self, plain: Any, name: str, wanted: Wanted):
        self.plain, self.stateful, self.wanted = plain, plain.stateful_fun, wanted
        self.plans: list[Plan] = []
        self.current: dict[Hashable, int] = {}  # the number of the plan, by the form of the arguments
        self.functions: dict[int | None, Compiled] = {}  # the compiled functions, by the size of blocks

        def run(number: int, donated: Sequence[Tree], kept: Sequence[Tree], *args: Tree, **kwargs: Tree) -> Tree:
            return self.run(number, donated, kept, args, kwargs)

        run.__name__ = name
        self.traced = run

    def __call__(self, args: Arguments, kwargs: Keywords) -> Tree:
        config = cast(Any, jax.config)
        if len(self.plans) == 1 and not config.jax_disable_jit:
            done, result = self.call_only_plan(self.plans[0], args, kwargs)
            if done:
                return result
        if is_traced() or config.jax_disable_jit:
            return self.plain(*args, **kwargs)
        number = self.find(args, kwargs)
        for _ in range(2):
            plan = self.plans[number]
            direct = may_access_directly(plan.states)
            if not direct and are_hooked(plan.states):
                with all_or_none(plan.states):
                    return self.plain(*args, **kwargs)
            try:
                return self.call(plan, number, plan.values(args, kwargs), args, kwargs, direct)
            except StaleError:
                number = self.find(args, kwargs, renew=True)
            except RuntimeError:
                raise_if_lost(('', state) for state in plan.states)
                raise
        return self.plain(*args, **kwargs)

    def call_only_plan(self, plan: Plan, args: Arguments, kwargs: Keywords) -> tuple[bool, Tree]:
        """Call the function without looking for its plan; return whether that was possible, and the result.

        If the plan is not the right one, tracing notices, because jax compiles anew. This path takes a third off a
        call with 4 small parameters.
        """
        values = plan.values_if_unaliased(args, kwargs)
        if values is None:
            return False, None
        try:
            return True, self.call(plan, 0, values, args, kwargs, direct=True)
        except StaleError:
            return False, None
        except (TypeError, ValueError, jax.errors.JaxRuntimeError):  # jax may have refused a buffer
            raise_if_lost(('', state) for state in plan.states)
            if not plan.given or any(map(is_lost, jax.tree.leaves(values))):
                raise
            plan.made.trusted = False
            return False, None

    def call(
        self, plan: Plan, number: int, values: tuple[Tree, Tree], args: Arguments, kwargs: Keywords, direct: bool
    ) -> Tree:
        """Call the compiled function, write the States, and return the result."""

        def finish(returned: tuple[Sequence[Tree], Tree]) -> Tree:
            plan.finish(returned[0], direct)
            return returned[1]

        function: Any = self.function(plan)
        if kwargs:
            function = functools.partial(function, **kwargs)
        return receive(function, (number, *values, *args), finish)

    def run(
        self, number: int, donated: Sequence[Tree], kept: Sequence[Tree], args: Arguments, kwargs: Keywords
    ) -> Tree:
        """Call brainstate's trace with the values of States; this is what jax compiles."""
        plan, parts = self.plans[number], (iter(kept), iter(donated))
        values = [next(parts[chosen]) for chosen in plan.donated]
        expected = self.current.get(self.stateful.get_arg_cache_key(*args, **kwargs))
        if expected != number or list(map(form, values)) != plan.forms:
            raise StaleError
        new, result = self.stateful.jaxpr_call(values, *args, **kwargs)
        return deferred((list(compress(new, plan.written)), result))

    def function(self, plan: Plan) -> Compiled:
        """Return the compiled function for a plan."""
        if plan.block not in self.functions:
            compiled: Any = jax.jit(
                self.traced,
                donate_argnums=1,
                static_argnums=(0, *(i + 3 for i in self.stateful.static_argnums)),
                static_argnames=self.stateful.static_argnames or None,
                compiler_options=compiler_options(block=plan.block),
            )
            self.functions[plan.block] = compiled
        return self.functions[plan.block]

    def find(self, args: Arguments, kwargs: Keywords, renew: bool = False) -> int:
        """Return the number of the plan for these arguments."""
        key = self.stateful.get_arg_cache_key(*args, **kwargs)
        if renew or key not in self.current:
            trace = self.stateful.get_state_trace(*args, **kwargs)
            new = self.stateful.get_out_shapes(*args, **kwargs)[1]
            found = plan_of(trace, self.stateful.get_jaxpr(*args, **kwargs), new, self.wanted)
            same = [i for i, plan in enumerate(self.plans) if plan.equals(found)]
            self.plans.extend([] if same else [found])
            self.current[key] = same[0] if same else len(self.plans) - 1
        return self.current[key]

    def rebind(self, states: Mapping[int, brainstate.State]) -> None:
        """Read and write other States from now on, given by the ids of those in whose place they are."""
        self.plain.clear_cache()  # brainstate would keep using the former States
        for plan in self.plans:
            plan.bind([states.get(id(state), state) for state in plan.states])

    def lower(self, *args: Tree, **kwargs: Tree) -> jax.stages.Lowered:
        """Trace and lower the function, as the method of jax's compiled functions does."""
        number = self.find(args, kwargs, renew=True)
        plan = self.plans[number]
        return self.function(plan).lower(number, *plan.values(args, kwargs), *args, **kwargs)

    def clear_cache(self) -> None:
        """Forget all compiled code."""
        self.plain.clear_cache()
        for function in self.functions.values():
            function.clear_cache()
        self.current.clear()
