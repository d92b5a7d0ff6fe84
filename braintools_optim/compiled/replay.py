"""Replays: functions that are traced in every call, and compiled only if the trace is new.

A compiled function holds what its Python code read when it was traced: variables, attributes, the contents of lists. So
the Python code runs in every call. What it computes is compiled once for each structure of its traces: the arrays that
it captures are arguments, and so are the Python numbers that were not the same in all of its traces.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable, Hashable, Sequence, Set
from dataclasses import dataclass
from itertools import compress
from typing import Any

import brainstate
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

from braintools_optim.compiled.access import traces_undone
from braintools_optim.compiled.jit import Donating
from braintools_optim.compiled.structure import Identity, structure_of
from braintools_optim.options.types import Structure, Tree

__all__ = ['Replays']

MOST = 32
"""The number of compiled functions that are kept for one optimizer."""
Step = Callable[..., Tree]
"""A function of a function, which it calls any number of times, and of further arguments."""


@dataclass
class Trace:
    """What a function does with its arguments and with States, without its Python code."""

    jaxpr: Jaxpr
    constants: list[Tree]
    """The arrays that the function captures."""
    numbers: list[Literal]
    """The Python numbers in the equations."""
    states: tuple[brainstate.State, ...]
    written: tuple[bool, ...]
    output: Structure
    key: Hashable

    @classmethod
    def of(cls, function: Callable[..., Tree], args: Sequence[Tree], fixed: Set[int]) -> Trace:
        """Trace a function; all States stay as they are. No State may take the place of those with a ``fixed`` id."""
        with traces_undone() as watched:
            traced = brainstate.transform.StatefulFunction(watched(function), name='minimize').make_jaxpr(*args)
        at = traced.get_arg_cache_key(*args)
        closed, trace = traced.get_jaxpr_by_cache(at), traced.get_state_trace_by_cache(at)
        states, written = tuple(trace.states), tuple(trace.been_writen)
        output: Structure = traced.get_out_treedef_by_cache(at)
        numbers: list[Literal] = []
        key = (
            structure_of(closed.jaxpr, numbers),
            tuple(role(state, fixed) for state in states),
            written,
            jax.tree.structure((args, [state.value for state in states])),
            output,
        )
        constants = [x if isinstance(x, jax.Array) else np.asarray(x) for x in closed.consts]
        return cls(closed.jaxpr, constants, numbers, states, written, output, key)

    def values_of(self, places: Sequence[int]) -> list[Tree]:
        """Return the numbers at some places, and the captured arrays."""
        return [*self.constants, *(number(self.numbers[i]) for i in places)]


def role(state: brainstate.State, fixed: Set[int]) -> Hashable:
    """Return a State as a part of a key. Models make their short-term States anew, so that only the place counts."""
    kind: type[brainstate.State] = type(state)
    is_renewed = issubclass(kind, brainstate.ShortTermState) and id(state) not in fixed
    return (kind,) if is_renewed else Identity(state)


def number(literal: Literal) -> np.ndarray:
    """Return a number of an equation as an array."""
    aval: Any = literal.aval
    return np.asarray(literal.val, aval.dtype)


class Replay:
    """A traced function as a function of its arguments, its captured arrays and those of its numbers that vary."""

    def __init__(self, trace: Trace, places: Sequence[int]):
        self.states, self.written, self.output = trace.states, trace.written, trace.output
        jaxpr: Any = trace.jaxpr
        varying = {i: Var(trace.numbers[i].aval) for i in places}
        place = itertools.count()

        def replaced(atoms: Sequence[Any]) -> list[Any]:  # in the order in which structure_of finds the numbers
            return [varying.get(next(place), x) if isinstance(x, Literal) else x for x in atoms]

        self.jaxpr: Jaxpr = jaxpr.replace(
            constvars=[*jaxpr.constvars, *varying.values()],
            eqns=[eqn.replace(invars=replaced(eqn.invars)) for eqn in jaxpr.eqns],
            outvars=replaced(jaxpr.outvars),
        )

    def __call__(self, constants: Sequence[Tree], args: Sequence[Tree]) -> Tree:
        inputs = jax.tree.leaves((args, {}, [state.value for state in self.states]))
        results = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*inputs)
        result, values = self.output.unflatten(results)
        for state, value in zip(compress(self.states, self.written), compress(values, self.written), strict=True):
            state.value = value
        return result


class Known:
    """The traces of one structure: what all of them share, and the function compiled for them."""

    def __init__(self, trace: Trace):
        self.numbers = [number(literal).tobytes() for literal in trace.numbers]
        self.places: list[int] = []
        """The places of the numbers that were not the same in all traces."""
        self.replay = Replay(trace, ())
        self.compiled: Donating | None = None

    def varies(self, trace: Trace) -> bool:
        """Return whether further numbers vary in a trace, and count them among those that do."""
        others = [number(literal).tobytes() for literal in trace.numbers]
        differ = [i for i, (old, new) in enumerate(zip(self.numbers, others, strict=True)) if old != new]
        more = sorted({*differ, *self.places})
        varies, self.places = more != self.places, more
        return varies


class Replays:
    """The functions that one optimizer has compiled from traces."""

    def __init__(self, compile: Callable[[Callable[..., Tree]], Donating]):
        self.compile = compile
        self.known: dict[Hashable, Known] = {}

    def __call__(self, kind: Hashable, step: Step, trace: Trace, inputs: Sequence[Tree]) -> Tree:
        """Return ``step`` of the traced function and the inputs; ``kind`` tells apart steps that do something else."""
        key = kind, trace.key
        known = self.known.pop(key, None) or Known(trace)
        self.known[key] = known  # the last used is the last entry
        if len(self.known) > MOST:
            self.forget()
        if known.varies(trace) or known.compiled is None:
            known.replay = Replay(trace, known.places)
            known.compiled = self.compile(of_replay(step, known.replay))
        elif any(map(operator.is_not, known.replay.states, trace.states)):
            known.compiled.rebind(dict(zip(map(id, known.replay.states), trace.states, strict=True)))
            known.replay.states = trace.states
        return known.compiled((trace.values_of(known.places), *inputs), {})

    def forget(self) -> None:
        """Forget the function that was not used for longest."""
        del self.known[next(iter(self.known))]
        warnings.warn(
            f'The loss was compiled {MOST} times, because something other than the arrays and numbers that it reads '
            'has changed: their shapes, its branches, or a number inside a loop. Make such a number an array.',
            stacklevel=4,
        )


def of_replay(step: Step, replay: Replay) -> Callable[..., Tree]:
    """Return a step as a function of the values that its traced function captures, and of the inputs."""

    def run(values: Sequence[Tree], *inputs: Tree) -> Tree:
        return step(lambda *args: replay(values, args), *inputs)

    return run
