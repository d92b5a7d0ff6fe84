"""The States of a model as a tree that a file can hold, and back."""

from __future__ import annotations

from collections.abc import Mapping

import brainstate
import brainunit
import jax
import jax.numpy as jnp
from brainstate.graph import Node

from braintools_optim.options.types import Tree
from braintools_optim.saving.arrays import check_alike, fitting
from braintools_optim.saving.trees import is_key
from braintools_optim.saving.whole import whole
from braintools_optim.weights.unique_states import Path, flatten_states, show

__all__ = ['fitted_values', 'model_tree']


def model_tree(model: Tree) -> dict[Path, Tree]:
    """Return the values of the States of a model by path: an array, or its leaves by name."""
    tree: dict[Path, Tree] = {}
    for path, state in states_of(model).items():
        found = leaves_of(state.value)
        leaves = {name: as_saved(leaf, f'{show(path)}.{name}' if name else show(path)) for name, leaf in found.items()}
        tree[path] = leaves[''] if leaves.keys() == {''} else leaves
    return tree


def fitted_values(model: Tree, found: Tree) -> list[tuple[brainstate.State, Tree]]:
    """Return the States of a model with the values in a :func:`model_tree`; raise an error that lists what differs."""
    if not isinstance(found, Mapping):
        raise ValueError(f'Invalid weights of type {type(found).__name__} in the file. Must be a dict of paths.')
    states = states_of(model)
    check_alike(found, [state.value for state in states.values()])
    problems = [f'{show(path)}: not there' for path in states if path not in found]
    problems += [f'{path if isinstance(path, str) else show(path)}: not here' for path in found if path not in states]
    values = []
    for path, state in states.items():
        if path in found:
            values.append((state, fitted_value(show(path), found[path], state.value, problems)))
    if problems:
        raise ValueError('The file does not fit this model, which is unchanged. ' + '; '.join(problems))
    return values


def fitted_value(name: str, found: Tree, value: Tree, problems: list[str]) -> Tree:
    """Return the value of a State with the leaves that were saved; add all differences to ``problems``."""
    here = leaves_of(value)
    there = found if isinstance(found, Mapping) else {'': found}
    restored = []
    labels = {key: f'{name}.{key}' if key else name for key in {**here, **there}}
    for key, leaf in here.items():
        if key not in there:
            problems.append(f'{labels[key]}: not there')
        else:
            restored.append(fitted_leaf(labels[key], there[key], leaf, problems))
    problems += [f'{labels[key]}: not here' for key in there if key not in here]
    if len(restored) < len(here):
        return value
    return jax.tree.unflatten(jax.tree.structure(value, is_leaf=is_leaf), restored)


def fitted_leaf(name: str, there: Tree, here: Tree, problems: list[str]) -> Tree:
    """Return a saved leaf in the form of the leaf here; add a description of a difference to ``problems``."""
    units = brainunit.get_unit(there), brainunit.get_unit(here)
    if units[0] != units[1]:
        problems.append(f'unit of {name}: {str(units[0])!r} there, {str(units[1])!r} here')
        return here
    array, difference = fitting(brainunit.get_mantissa(there), brainunit.get_mantissa(here))
    if array is None:
        problems.append(f'{name}: {difference}')
        return here
    return brainunit.Quantity(array, unit=units[1]) if isinstance(here, brainunit.Quantity) else array


def states_of(model: Tree) -> dict[Path, brainstate.State]:
    """Return the States of a tree of States, or the long-term States of a node, such as a module, by path."""
    if isinstance(model, Node):
        found: Tree = brainstate.graph.states(model, brainstate.LongTermState)
        return dict(found)
    return dict(flatten_states(model))


def leaves_of(value: Tree) -> dict[str, Tree]:
    """Return the leaves of the value of a State by dotted name, with their units."""
    leaves = jax.tree_util.tree_flatten_with_path(value, is_leaf=is_leaf)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def is_leaf(x: Tree) -> bool:
    """Return whether a part of a value is saved as one leaf."""
    return isinstance(x, brainunit.Quantity)


def as_saved(leaf: Tree, name: str) -> Tree:
    """Return a leaf as a file holds it: a NumPy array, a quantity or a random key."""
    if isinstance(leaf, brainunit.Quantity):
        return brainunit.Quantity(as_saved(leaf.mantissa, name), unit=leaf.unit)
    return leaf if is_key(leaf) else whole(jnp.asarray(leaf), name)
