"""ParamStates <-> leaves: paths, tied weights, pytree values, units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import brainstate
import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.options import MissingKeyError
from braintools_optim.units import gradient_scales, is_quantity

__all__ = ['UniqueStateManager', 'Weights', 'flatten_states']

Path = tuple[Any, ...]


def children(node: Any) -> Iterator[tuple[Path, Any]] | None:
    """The entries of a container with their paths; None for anything else. A tuple key is a path."""
    if isinstance(node, Mapping):
        return ((k if isinstance(k, tuple) else (k,), v) for k, v in node.items())
    if isinstance(node, (list, tuple)):
        return (((i,), v) for i, v in enumerate(node))
    return None


def flatten_states(states: Any, path: Path = ()) -> list[tuple[Path, brainstate.State]]:
    """The States of a tree with their paths; an error for any other leaf."""
    if isinstance(states, brainstate.State):
        return [(path, states)]
    entries = children(states)
    if entries is None:
        raise TypeError(f'All params values must be brainstate.State, but {show(path)} is {type(states).__name__}.')
    return [found for key, entry in entries for found in flatten_states(entry, path + key)]


def show(path: Path) -> str:
    return '.'.join(map(str, path)) or '(the root)'


class UniqueStateManager:
    """Named States, each counted once however many names it has.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.zeros(2))
    >>> manager = UniqueStateManager({'encoder': {'w': w}, 'decoder': {'w': w}})
    >>> len(manager), list(manager.to_dict())
    (1, ['encoder.w'])
    """

    def __init__(self, pytree: Any = None):
        self._states: dict[Path, brainstate.State] = {}
        if pytree is not None:
            self.make_unique(pytree)

    def make_unique(self, pytree: Any) -> dict[Any, Any]:
        """Keep the first of each State of ``pytree``, forgetting what was held; return them as a tree."""
        self.clear()
        return self.merge_with(pytree).to_pytree()

    def merge_with(self, pytree: Any) -> UniqueStateManager:
        """Add the States of ``pytree`` that are not held yet."""
        seen = self.seen_ids
        for path, state in flatten_states(pytree):
            if id(state) not in seen:
                seen.add(id(state))
                self._states[path] = state
        return self

    def to_pytree(self) -> dict[Any, Any]:
        """The States as a nested dict."""
        return self._nest(self._states)

    def to_pytree_value(self) -> dict[Any, Any]:
        """The States' values as a nested dict."""
        return self._nest({path: state.value for path, state in self._states.items()})

    @staticmethod
    def _nest(flat: Mapping[Path, Any]) -> dict[Any, Any]:
        tree: dict[Any, Any] = {}
        for path, leaf in flat.items():
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1] if path else ''] = leaf
        return tree

    def to_dict(self) -> dict[str, brainstate.State]:
        """The States by name, such as ``'layers.0.weight'``."""
        return {show(path): state for path, state in self._states.items()}

    def to_dict_value(self) -> dict[str, Any]:
        """The States' values by name."""
        return {name: state.value for name, state in self.to_dict().items()}

    def get_flattened(self) -> list[tuple[Path, brainstate.State]]:
        return list(self._states.items())

    def get_state_by_path(self, path: Path) -> brainstate.State | None:
        return self._states.get(tuple(path))

    def update_state(self, path: Path, state: brainstate.State) -> bool:
        """Put ``state`` at a path that is held already; False if there is none."""
        if tuple(path) not in self._states:
            return False
        self._states[tuple(path)] = state
        return True

    def clear(self) -> None:
        self._states.clear()

    flattened_states = property(get_flattened)
    unique_states = property(lambda self: list(self._states.values()))
    unique_paths = property(lambda self: list(self._states))
    num_unique_states = property(lambda self: len(self._states))
    seen_ids = property(lambda self: {id(state) for state in self._states.values()})

    def __len__(self) -> int:
        return len(self._states)


class Weights:
    """The registered States as flat leaves (unitless arrays) under dotted names, in a fixed order."""

    def __init__(self) -> None:
        self.manager = UniqueStateManager()
        self.keys: list[str] = []  # of the leaves
        self._names: dict[Path, int] = {}  # every name of a State -> its id
        self._layouts: list[tuple[brainstate.State, Any, list[str]]] = []  # State, structure, names of its leaves
        self.states: list[brainstate.State] = []
        self.structure: Any = None  # of all their values
        self._shapes: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self._layouts)

    def extended(self, states: Any, skip_known: bool = False) -> tuple[Weights, list[str]]:
        """These weights and further ones; and the names of the further leaves."""
        new = Weights()
        new._names, new._layouts = dict(self._names), list(self._layouts)
        known, taken = {id(state): names for state, _, names in self._layouts}, set(self.keys)
        added: dict[int, list[str]] = {}
        for path, state in flatten_states(states):
            if id(state) in known and not skip_known:
                raise ValueError(f'{show(path)} is registered already, as {", ".join(known[id(state)])}.')
            if id(state) not in known and id(state) not in added:
                names = leaf_names(path, state.value)
                if path in new._names or not taken.isdisjoint(names):
                    raise ValueError(f'The name {show(path)} is in use for another weight.')
                taken.update(names)
                added[id(state)] = names
                new._layouts.append((state, jax.tree.structure(state.value), names))
            new._names[path] = id(state)
        for path in new._names:
            if inside := next((path[:i] for i in range(len(path)) if path[:i] in new._names), None):
                raise ValueError(f'The name {show(path)} lies inside {show(inside)}, which is another weight.')
        if not added and not skip_known:
            raise ValueError('There are no weights to register.')
        new.manager.merge_with(self.manager.to_pytree()).merge_with(states)
        new.states = [state for state, _, _ in new._layouts]
        leaves, new.structure = jax.tree.flatten([state.value for state in new.states])
        new.keys = [name for _, _, names in new._layouts for name in names]
        new._shapes = [jnp.shape(leaf) for leaf in leaves]
        return new, new.keys[len(self.keys) :]

    def read(self) -> dict[str, Any]:
        """The leaves of all weights by name, in the order of ``keys``."""
        return self.leaves([state.value for state in self.states])

    def leaves(self, values: list[Any]) -> dict[str, Any]:
        """The leaves of these values of the States."""
        leaves, structure = jax.tree.flatten(values)
        if structure != self.structure:
            changed = [
                f'{", ".join(names)}: {own} is now {jax.tree.structure(value)}'
                for (_, own, names), value in zip(self._layouts, values, strict=True)
                if own != jax.tree.structure(value)
            ]
            raise ValueError(
                f'The structure or unit of a weight has changed since it was registered. {"; ".join(changed)}'
            )
        return dict(zip(self.keys, leaves, strict=True))

    @property
    def sizes(self) -> list[int]:
        """How many entries each leaf has."""
        return [math.prod(shape) for shape in self._shapes]

    def check_shapes(self, leaves: Mapping[str, Any]) -> None:
        """Raise if a weight has not the shape that it was registered with, and that its memory has."""
        pairs = zip(self.keys, self._shapes, map(jnp.shape, leaves.values()), strict=True)
        changed = [f'{key}: {list(was)} is now {list(now)}' for key, was, now in pairs if was != now]
        if changed:
            raise ValueError(f'The shape of a weight has changed since it was registered. {"; ".join(changed)}')

    def as_tree(self, leaves: Mapping[str, Any]) -> dict[Any, Any]:
        """The weights' values as a nested dict under the registered names, with these leaves."""
        with self.replaced(leaves):
            return self.manager.to_pytree_value()

    @contextmanager
    def replaced(self, leaves: Mapping[str, Any]) -> Iterator[None]:
        """The States hold these leaves for a while, tracers too."""
        before = [state.value for state, _, _ in self._layouts]
        try:
            for (state, structure, names), value in zip(self._layouts, before, strict=True):
                own = zip(names, jax.tree.leaves(value), strict=True)
                state.restore_value(structure.unflatten([leaves.get(name, leaf) for name, leaf in own]))
            yield
        finally:
            for (state, _, _), value in zip(self._layouts, before, strict=True):
                state.restore_value(value)

    def settle(self) -> None:
        """Give Python numbers and weakly typed arrays a type, which the first update would: it compiles once then."""
        for state, structure, _ in self._layouts:
            leaves = structure.flatten_up_to(state.value)
            if any(getattr(leaf, 'weak_type', not hasattr(leaf, 'dtype')) for leaf in leaves):
                state.value = structure.unflatten([jnp.asarray(leaf, jnp.result_type(leaf)) for leaf in leaves])

    def named(self) -> dict[str, Any]:
        """The leaves by name, with their units."""
        values = [jax.tree.leaves(state.value, is_leaf=is_quantity) for state, _, _ in self._layouts]
        return dict(zip(self.keys, (leaf for leaves in values for leaf in leaves), strict=True))

    def state_of(self, key: str) -> brainstate.State:
        """The State that a leaf belongs to."""
        return next(state for state, _, names in self._layouts if key in names)

    def match(
        self, gradients: Any, loss_unit: Any = None, partial: bool = False, frozen: Set[str] = frozenset()
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The gradients by name, without units, and what those are multiplied by that are on another scale."""
        found = self._find(gradients, partial, frozen)
        weights = self.named()
        scales = gradient_scales({key: weights[key] for key in found}, found, loss_unit)
        return {key: brainunit.get_mantissa(g) for key, g in found.items()}, scales

    def _find(self, gradients: Any, partial: bool, frozen: Set[str]) -> dict[str, Any]:
        """The gradient of each leaf by name; an error that lists what is missing or left over."""
        found: dict[int, Any] = {}
        unknown: list[str] = []

        def collect(node: Any, path: Path) -> None:
            if path in self._names:
                if node is not None:
                    found.setdefault(self._names[path], node)
            elif (entries := children(node)) is not None:
                for key, entry in entries:
                    collect(entry, path + key)
            elif node is not None:
                unknown.append(show(path))

        collect(gradients, ())
        leaves: dict[str, Any] = {}
        for state, structure, names in self._layouts:
            if id(state) in found:
                leaves |= self._leaves_of(found[id(state)], state, structure, names, partial)
        missing = [key for key in self.keys if key not in leaves and key not in frozen]
        problems = [f'missing or None: {", ".join(missing)}'] if missing and not partial else []
        if unknown and (not partial or not leaves):  # of a part, at least one is to be known
            problems.append(f'not registered: {", ".join(unknown)}')
        if problems:
            raise MissingKeyError('Gradients must be those of the registered weights. ' + '; '.join(problems))
        return leaves

    def _leaves_of(
        self, gradient: Any, state: brainstate.State, structure: Any, names: list[str], partial: bool
    ) -> dict[str, Any]:
        """The leaves of the gradient of one State by name; those that are None are left out."""
        plain: Any = jax.tree.structure(state.value, is_leaf=is_quantity)  # units are part of a Quantity's structure
        theirs: Any = jax.tree.structure(gradient, is_leaf=lambda x: is_quantity(x) or x is None)
        if theirs != plain:
            raise ValueError(
                f'The gradient of {", ".join(names)} has the structure {jax.tree.structure(gradient)}, '
                f'its weight {structure}.'
            )
        leaves = jax.tree.leaves(gradient, is_leaf=lambda x: is_quantity(x) or x is None)
        return {name: leaf for name, leaf in zip(names, leaves, strict=True) if leaf is not None}


def leaf_names(path: Path, value: Any) -> list[str]:
    """The names of a State's leaves; an error for a leaf that is no array of real or complex numbers."""
    names = []
    for inner, leaf in jax.tree_util.tree_flatten_with_path(value, is_leaf=is_quantity)[0]:
        name = '.'.join(filter(None, [*map(str, path), jax.tree_util.keystr(inner, simple=True, separator='.')]))
        try:
            dtype = jnp.asarray(brainunit.get_mantissa(leaf)).dtype
        except (TypeError, ValueError):
            raise TypeError(f'The weight {name} is {type(leaf).__name__}. Must be an array.') from None
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f'The weight {name} is {dtype}. Only floating-point and complex weights can be trained.')
        names.append(name)
    return names
