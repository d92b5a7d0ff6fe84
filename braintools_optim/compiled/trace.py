"""Traces: what a function does with its arguments and with States, without its Python code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from braintools_optim.compiled.access import traces_undone
from braintools_optim.options.types import Structure, Tree

__all__ = ['Trace']


@dataclass(frozen=True)
class Trace:
    """What a function does with its arguments and with States, as a pure function."""

    jaxpr: Jaxpr
    constants: list[Tree]
    """The arrays that the function captures."""
    states: tuple[brainstate.State, ...]
    written: tuple[bool, ...]
    inputs: Structure
    """The structure of the arguments and the values of the States."""
    outputs: Structure

    @classmethod
    def of(cls, function: Callable[..., Tree], args: Sequence[Tree], name: str) -> Trace:
        """Trace a function; all States stay as they are."""
        with traces_undone() as watched:
            traced = brainstate.transform.StatefulFunction(watched(function), name=name).make_jaxpr(*args)
        at = traced.get_arg_cache_key(*args)
        closed, trace = traced.get_jaxpr_by_cache(at), traced.get_state_trace_by_cache(at)
        states = tuple(trace.states)
        return cls(
            closed.jaxpr,
            [x if isinstance(x, jax.Array) else np.asarray(x) for x in closed.consts],
            states,
            tuple(trace.been_writen),
            jax.tree.structure((tuple(args), [state.value for state in states])),
            traced.get_out_treedef_by_cache(at),
        )

    def shape_of_result(self) -> tuple[int, ...]:
        """Return the shape of a result that is an array."""
        aval: Any = self.jaxpr.outvars[0].aval
        shape: tuple[int, ...] = aval.shape
        return shape

    def call(self, constants: Sequence[Tree], args: Sequence[Tree], values: Sequence[Tree]) -> tuple[Tree, Any]:
        """Return the result for captured arrays, arguments and values of the States, and new values of the States.

        The new values of States that are not written are None.
        """
        inputs = jax.tree.leaves((tuple(args), list(values)))
        results: tuple[Tree, Any] = self.outputs.unflatten(jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*inputs))
        return results
