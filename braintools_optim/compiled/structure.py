"""The structure of a trace: a key that two traces share if the same compiled code serves both."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.extend.linear_util import WrappedFun

__all__ = ['Identity', 'structure_of']

JAX = Path(jax.__file__).parent
PURE = tuple(str(JAX / '_src' / name) for name in ('nn', 'numpy', 'ops', 'scipy', 'third_party', 'lax/other.py'))
"""The files of jax whose functions with derivative rules take no functions and read nothing but their arguments."""
Atom = Var | Literal


class Identity:
    """An object as a part of a key: equal only to itself, and kept alive by the key."""

    __slots__ = ('of',)

    def __init__(self, of: object):
        self.of = of

    def __hash__(self) -> int:
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.of is other.of


def structure_of(jaxpr: Jaxpr, numbers: list[Literal] | None = None, within: tuple[str, ...] = ()) -> Hashable:
    """Return the structure of a jaxpr, whose constants are arguments.

    The Python numbers in the equations are part of the structure, unless a list is given: the numbers of the equations
    at the top level are then appended to it, and the structure has their places and types. ``within`` are the functions
    of whose derivatives the jaxpr is a part.
    """
    names: dict[Var, int] = {}

    def name(atom: Atom) -> Hashable:
        if isinstance(atom, Var):
            return names.setdefault(atom, len(names))
        if numbers is None:
            return atom.aval, repr(atom.val)
        numbers.append(atom)
        return atom.aval

    entries: list[Hashable] = [tuple((name(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))]
    for eqn in jaxpr.eqns:
        entries.append((eqn.primitive, tuple(map(name, eqn.invars)), parameters(jaxpr, eqn, within), eqn.ctx))
        entries.append(tuple(names.setdefault(v, len(names)) for v in eqn.outvars))
    return (*entries, tuple(map(name, jaxpr.outvars)))


def parameters(jaxpr: Jaxpr, eqn: JaxprEqn, within: tuple[str, ...]) -> tuple[Hashable, ...]:
    """Return the structure of the parameters of an equation.

    A derivative rule that is a Python function may read anything when it is traced: its trace is part of the structure.
    """
    values = eqn.params.values()
    if not any(isinstance(value, WrappedFun) for value in values):
        return tuple(part(value, within) for value in values)
    known = [value for value in values if not (isinstance(value, WrappedFun) or callable(value))]
    called = next(value for value in known if isinstance(value, ClosedJaxpr)).jaxpr.debug_info.func_src_info
    is_pure = str(called).partition(' at ')[2].startswith(PURE) or called in within
    traced = None if is_pure else rule(jaxpr, eqn, (*within, str(called)))
    return (*(part(value, within) for value in known), traced)


def rule(jaxpr: Any, eqn: JaxprEqn, within: tuple[str, ...]) -> Hashable:
    """Return the structure of the derivative of an equation."""
    if eqn.params.get('symbolic_zeros'):
        return Identity(eqn)  # the rule may treat zeros as it likes
    invars = list(dict.fromkeys(v for v in eqn.invars if isinstance(v, Var)))
    alone = jaxpr.replace(constvars=[], invars=invars, outvars=list(eqn.outvars), eqns=[eqn])
    function: Callable[..., Sequence[jax.Array]] = jaxpr_as_fun(ClosedJaxpr(alone, ()))

    def derivative(*xs: jax.Array) -> Any:
        if 'bwd' not in eqn.params:
            return jax.jvp(function, xs, tuple(map(tangent, xs)))[1]
        results, pull = jax.vjp(function, *xs)
        return pull([tangent(y) for y in results])

    avals: list[Any] = [v.aval for v in invars]  # which have a shape and a dtype
    return part(jax.make_jaxpr(derivative)(*avals), within)


def tangent(x: jax.Array) -> jax.Array | np.ndarray:
    """Return a tangent of an array."""
    return jnp.ones_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)


def part(value: Any, within: tuple[str, ...] = ()) -> Hashable:
    """Return a parameter of an equation as a part of a structure."""
    if isinstance(value, ClosedJaxpr):
        return structure_of(value.jaxpr, None, within), tuple(map(part, value.consts))
    if isinstance(value, Jaxpr):
        return structure_of(value, None, within)
    if isinstance(value, (tuple, list)):
        return tuple(part(x, within) for x in value)
    if isinstance(value, dict):
        return tuple((name, part(x, within)) for name, x in value.items())
    if isinstance(value, FunctionType):
        return function(value)
    if isinstance(value, (bool, int, float, complex)):
        return type(value), repr(value)
    if hasattr(value, '__array__') and not isinstance(value, jax.Array):
        array = np.asarray(value)
        return array.dtype, array.shape, array.tobytes()
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return cast(Hashable, value)


def function(value: FunctionType) -> Hashable:
    """Return a function as a part of a structure.

    Functions with the same code are the same if they share the variables that they capture. A function that jax makes
    from others does not change them, so their values are compared.
    """
    cells = value.__closure__ or ()
    of_jax = value.__code__.co_filename.startswith(str(JAX))
    captured = tuple(part(cell.cell_contents) if of_jax else Identity(cell) for cell in cells)
    defaults = tuple(map(Identity, (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())))
    code: CodeType = value.__code__
    return code, Identity(value.__globals__), captured, defaults
