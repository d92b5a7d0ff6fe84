"""Plans: which States a traced function reads and writes, and which of their buffers it donates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import brainstate
import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr

from braintools_optim.compiled.access import may_access_directly, read, write
from braintools_optim.compiled.buffers import DonationCache, block_for
from braintools_optim.options.types import Structure, Tree

__all__ = ['Arguments', 'Form', 'Keywords', 'Plan', 'Wanted', 'form', 'plan_of']

Wanted = Callable[[brainstate.State], bool]
Arguments = Sequence[Tree]
"""The positional arguments of a function."""
Keywords = Mapping[str, Tree]
"""The keyword arguments of a function."""
Form = tuple[Structure, list[tuple[tuple[int, ...], np.dtype]]]
"""The structure of a value, and the shapes and dtypes of its leaves."""


@dataclass(eq=False)
class Plan:
    """The States that one trace reads and writes, and the buffers that it donates."""

    states: tuple[brainstate.State, ...]
    forms: list[Form]
    """The forms of the values of the States."""
    written: tuple[bool, ...]
    donated: tuple[bool, ...]
    block: int | None
    """The size of the blocks of temporary memory."""
    constants: list[Tree]
    """The arrays that the compiled function holds."""

    def __post_init__(self) -> None:
        self.reused = list(compress(self.donated, self.written))  # which of the written values are donated next
        self.bind(self.states)

    def bind(self, states: Sequence[brainstate.State]) -> None:
        """Read and write these States."""
        self.states = tuple(states)
        self.made = DonationCache()
        self.given = list(compress(self.states, self.donated))
        self.kept = [state for state, donated in zip(self.states, self.donated, strict=True) if not donated]
        self.targets = list(compress(self.states, self.written))

    def values_if_unaliased(self, args: Arguments, kwargs: Keywords) -> tuple[list[Tree], list[Tree]] | None:
        """Return the donated values and the others, None if buffers must be compared or direct access is wrong."""
        if not (self.made.trusted and may_access_directly(self.states, are_plain=True)):
            return None
        donated, kept = read(self.given, direct=True), read(self.kept, direct=True)
        return (donated, kept) if self.made.is_unaliased(donated, (kept, args, kwargs)) else None

    def values(self, args: Arguments, kwargs: Keywords) -> tuple[list[Tree], list[Tree]]:
        """Return the donated values, with buffers that nothing else uses, and the others."""
        donated, kept = read(self.given, direct=False), read(self.kept, direct=False)
        return self.made.unaliased(donated, (kept, args, kwargs, self.constants)), kept

    def finish(self, new: Sequence[Tree], direct: bool) -> None:
        """Write the values that the function returned."""
        write(self.targets, new, direct)
        if direct:
            self.made.remember(list(compress(new, self.reused)))

    def equals(self, other: Plan) -> bool:
        """Return whether another plan does the same with the same States."""
        same_states = list(map(id, self.states)) == list(map(id, other.states))
        mine = self.forms, self.written, self.donated, self.block
        return same_states and mine == (other.forms, other.written, other.donated, other.block)


def plan_of(trace: brainstate.StateTraceStack, jaxpr: ClosedJaxpr, new_values: Sequence[Tree], wanted: Wanted) -> Plan:
    """Return the plan of a trace: written States that keep their shapes are donated, unless the function may fail."""
    inner = jaxprs_of(jaxpr)
    may_fail = calls_python(inner)
    states, written = tuple(trace.states), tuple(trace.been_writen)
    forms = list(map(form, trace.original_state_values))
    entries = zip(states, written, forms, map(form, new_values), strict=True)
    donated = tuple(write and not may_fail and old == new and wanted(s) for s, write, old, new in entries)
    block = block_for([size(v.aval) for part in inner for equation in part.eqns for v in equation.outvars])
    return Plan(states, forms, written, donated, block, [constant for part in inner for constant in part.consts])


def calls_python(jaxprs: Sequence[ClosedJaxpr]) -> bool:
    """Return whether a compiled function calls back into Python, where it may fail after its arguments were donated."""
    return any('callback' in equation.primitive.name for part in jaxprs for equation in part.eqns)


def jaxprs_of(jaxpr: ClosedJaxpr) -> list[ClosedJaxpr]:
    """Return a jaxpr and all jaxprs inside it, each once."""
    found, waiting = {}, [jaxpr]
    while waiting:
        present = waiting.pop()
        if id(present.jaxpr) not in found:
            found[id(present.jaxpr)] = present
            parts = jax.tree.leaves([list(equation.params.values()) for equation in present.eqns])
            waiting += [part for part in parts if isinstance(part, ClosedJaxpr)]
            waiting += [ClosedJaxpr(part, ()) for part in parts if isinstance(part, Jaxpr)]
    return list(found.values())


def size(aval: object) -> int:
    """Return the bytes of an array in a trace, 0 for anything else."""
    return math.prod(aval.shape) * aval.dtype.itemsize if isinstance(aval, ShapedArray) else 0


def form(value: Tree) -> Form:
    """Return the structure of a value, and the shapes and dtypes of its leaves."""
    leaves, structure = jax.tree.flatten(value)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
