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
from dataclasses import replace
from itertools import compress
from typing import Any

import brainstate
import numpy as np
from jax.extend.core import Literal, Var

from braintools_optim.compiled.jit import Donating
from braintools_optim.compiled.structure import Identity, structure_of
from braintools_optim.compiled.trace import Trace
from braintools_optim.options.types import Tree

__all__ = ['Replays']

MOST = 32
"""The number of compiled functions that are kept for one optimizer."""
Step = Callable[..., Tree]
"""A function of a function, which it calls any number of times, and of further arguments."""


def key_of(trace: Trace, fixed: Set[int]) -> tuple[Hashable, list[Literal]]:
    """Return the key of a trace, and the Python numbers in its equations.

    Models make their short-term States anew, so that only the place of such a State counts, unless its id is ``fixed``.
    """
    numbers: list[Literal] = []
    structure, states = structure_of(trace.jaxpr, numbers), []
    for state in trace.states:
        is_renewed = isinstance(state, brainstate.ShortTermState) and id(state) not in fixed
        states.append(type(state) if is_renewed else Identity(state))
    return (structure, tuple(states), trace.written, trace.inputs, trace.outputs), numbers


def number(literal: Literal) -> np.ndarray:
    """Return a number of an equation as an array."""
    aval: Any = literal.aval
    return np.asarray(literal.val, aval.dtype)


class Known:
    """The traces of one structure: what all of them share, and the function compiled for them."""

    def __init__(self, numbers: list[Literal]):
        self.numbers = [number(literal).tobytes() for literal in numbers]
        self.places: list[int] = []
        """The places of the numbers that were not the same in all traces."""
        self.states: tuple[brainstate.State, ...] = ()
        self.compiled: Donating | None = None

    def varies(self, numbers: list[Literal]) -> bool:
        """Return whether further numbers vary in a trace, and count them among those that do."""
        others = [number(literal).tobytes() for literal in numbers]
        differ = [i for i, (old, new) in enumerate(zip(self.numbers, others, strict=True)) if old != new]
        more = sorted({*differ, *self.places})
        varies, self.places = more != self.places, more
        return varies

    def replay(self, trace: Trace, numbers: list[Literal], step: Step) -> Callable[..., Tree]:
        """Return a step as a function of the numbers that vary and the captured arrays, and of the inputs."""
        self.states, trace = trace.states, with_arguments(trace, numbers, self.places)

        def replayed(constants: Sequence[Tree], args: Sequence[Tree]) -> Tree:
            result, values = trace.call(constants, args, [state.value for state in self.states])
            for state, value in zip(compress(self.states, trace.written), compress(values, trace.written), strict=True):
                state.value = value
            return result

        return lambda constants, *inputs: step(lambda *args: replayed(constants, args), *inputs)

    def rebind(self, compiled: Donating, states: tuple[brainstate.State, ...]) -> None:
        """Use the present States, if a model has made some of them anew."""
        if any(map(operator.is_not, self.states, states)):
            compiled.rebind(dict(zip(map(id, self.states), states, strict=True)))
            self.states = states


class Replays:
    """The functions that one optimizer has compiled from traces."""

    def __init__(self, compile: Callable[[Callable[..., Tree]], Donating]):
        self.compile = compile
        self.known: dict[Hashable, Known] = {}

    def __call__(
        self,
        kind: Hashable,
        step: Step,
        function: Callable[..., Tree],
        args: Sequence[Tree],
        inputs: Sequence[Tree],
        fixed: Set[int],
    ) -> Tree:
        """Return ``step(function, *inputs)`` for a function of ``args``.

        ``kind`` tells apart steps that do something else. No other State may replace one whose id is ``fixed``.
        """
        trace = Trace.of(function, args, 'minimize')
        structure, numbers = key_of(trace, fixed)
        key = kind, structure
        known = self.known.pop(key, None) or Known(numbers)
        self.known[key] = known  # the last used is the last entry
        if len(self.known) > MOST:
            self.forget()
        if known.varies(numbers) or known.compiled is None:
            known.compiled = self.compile(known.replay(trace, numbers, step))
        known.rebind(known.compiled, trace.states)
        constants = [*trace.constants, *(number(numbers[i]) for i in known.places)]
        return known.compiled((constants, *inputs), {})

    def forget(self) -> None:
        """Forget the function that was not used for longest."""
        del self.known[next(iter(self.known))]
        warnings.warn(
            f'The loss was compiled {MOST} times, because something other than the arrays and numbers that it reads '
            'has changed: their shapes, its branches, or a number inside a loop. Make such a number an array.',
            stacklevel=5,
        )


def with_arguments(trace: Trace, numbers: list[Literal], places: Sequence[int]) -> Trace:
    """Return a trace in which the numbers at some places are further captured arrays."""
    jaxpr: Any = trace.jaxpr
    varying, place = {i: Var(numbers[i].aval) for i in places}, itertools.count()

    def replaced(atoms: Sequence[Any]) -> list[Any]:  # in the order in which structure_of finds the numbers
        return [varying.get(next(place), x) if isinstance(x, Literal) else x for x in atoms]

    eqns = [eqn.replace(invars=replaced(eqn.invars)) for eqn in jaxpr.eqns]
    outvars = replaced(jaxpr.outvars)
    constvars = [*jaxpr.constvars, *varying.values()]
    return replace(trace, jaxpr=jaxpr.replace(constvars=constvars, eqns=eqns, outvars=outvars))
