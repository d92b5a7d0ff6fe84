"""Weights: the registered ParamStates as flat, unitless leaves under dotted names, and gradients matched to them."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import brainstate
import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.options.kinds import MissingKeyError
from braintools_optim.options.types import ArrayOrQuantity, Structure, Tree
from braintools_optim.weights.unique_states import Path, UniqueStateManager, children, flatten_states, show
from braintools_optim.weights.units import gradient_scales, is_quantity

__all__ = ['Weights']

Array = jax.Array
TRAINABLE = (jnp.floating, jnp.complexfloating)
"""The kinds of numbers that a weight may have."""
T = TypeVar('T')


class Layout(NamedTuple):
    """One State, the structure of its value, and the names of its leaves."""

    state: brainstate.State
    structure: Structure
    names: list[str]
    plain: Structure
    """The structure without units, in which None is a leaf."""
    units: list[brainunit.Unit | None]
    """The units of the leaves of the plain structure, None where the value is None."""


class Weights:
    """The leaves of the registered States under dotted names, in a fixed order."""

    def __init__(
        self,
        layouts: Sequence[Layout] = (),
        ids: Mapping[Path, int] | None = None,
        parts: Sequence[Mapping[Path, int]] = (),
    ):
        self.layouts = list(layouts)
        self.ids = dict(ids or {})  # every path of a State -> its id; tied States have several paths
        self.parts = list(parts)  # the same for each tree that was registered, with the paths in that tree
        self.states = [layout.state for layout in self.layouts]
        self.keys = [name for layout in self.layouts for name in layout.names]
        by_id = {id(state): state for state in self.states}
        self.manager = UniqueStateManager({path: by_id[i] for path, i in self.ids.items()})
        self.structure: Structure
        leaves, self.structure = jax.tree.flatten([state.value for state in self.states])
        self.shapes = [jnp.shape(leaf) for leaf in leaves]
        self.dtypes = [jnp.result_type(leaf) for leaf in leaves]
        units = [unit for layout in self.layouts for unit in layout.units if unit is not None]
        self.units = dict(zip(self.keys, units, strict=True))

    def __len__(self) -> int:
        return len(self.layouts)

    def extended(self, states: Tree, skip_known: bool = False) -> tuple[Weights, list[str]]:
        """Return these weights together with further ones, and the names of the further leaves.

        If a further name is in use, the names of all further leaves begin with the number of trees registered before.
        """
        found = flatten_states(states)
        known = {id(layout.state): layout.names for layout in self.layouts}
        if not skip_known:
            for path, state in found:
                if id(state) in known:
                    raise ValueError(f'{show(path)} is registered already, as {", ".join(known[id(state)])}.')
        fresh = [(path, state) for path, state in found if id(state) not in known]
        taken = set(self.keys)
        clashes = any(path in self.ids or not taken.isdisjoint(leaf_names(path, s.value)) for path, s in fresh)
        prefix: Path = (str(len(self.parts)),) if clashes else ()
        layouts, ids, added = list(self.layouts), dict(self.ids), set(known)
        for path, state in found:
            if id(state) in known:
                ids[path] = id(state)
                continue
            path = (*prefix, *path)
            if id(state) not in added:
                names = leaf_names(path, state.value)
                if path in ids or not taken.isdisjoint(names):
                    raise ValueError(f'The name {show(path)} is in use for another weight.')
                taken.update(names)
                added.add(id(state))
                layouts.append(layout_of(state, names))
            ids[path] = id(state)
        for path in ids:
            if inside := next((path[:i] for i in range(len(path)) if path[:i] in ids), None):
                raise ValueError(f'The name {show(path)} lies inside {show(inside)}, which is another weight.')
        if not fresh and not skip_known:
            raise ValueError('There are no weights to register.')
        new = Weights(layouts, ids, [*self.parts, {path: id(state) for path, state in found}])
        warn_of_others(new.layouts[len(self.layouts) :])
        return new, new.keys[len(self.keys) :]

    # values of the States

    def read(self) -> dict[str, Array]:
        """Return the leaves of all weights by name, in the order of ``keys``."""
        return self.leaves([state.value for state in self.states])

    def leaves(self, values: Sequence[Tree]) -> dict[str, Array]:
        """Return the leaves of these values of the States by name."""
        leaves, structure = jax.tree.flatten(values)
        if structure != self.structure:
            changed = [
                f'{", ".join(layout.names)}: {layout.structure} is now {jax.tree.structure(value)}'
                for layout, value in zip(self.layouts, values, strict=True)
                if layout.structure != jax.tree.structure(value)
            ]
            raise ValueError(
                f'The structure or unit of a weight has changed since it was registered. {"; ".join(changed)}'
            )
        return dict(zip(self.keys, leaves, strict=True))

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each leaf."""
        return [math.prod(shape) for shape in self.shapes]

    def check_unchanged(self, leaves: Mapping[str, Array]) -> None:
        """Raise if a weight no longer has the shape or the kind of numbers that it had at registration."""
        for key, was, now in zip(self.keys, self.dtypes, map(jnp.result_type, leaves.values()), strict=True):
            if not any(jnp.issubdtype(was, kind) and jnp.issubdtype(now, kind) for kind in TRAINABLE):
                kind = 'complex' if jnp.issubdtype(was, jnp.complexfloating) else 'floating-point'
                raise TypeError(f'The weight {key} was {was} when it was registered and is {now} now. Must be {kind}.')
        pairs = zip(self.keys, self.shapes, map(jnp.shape, leaves.values()), strict=True)
        changed = [f'{key}: {list(was)} is now {list(now)}' for key, was, now in pairs if was != now]
        if changed:
            raise ValueError(f'The shape of a weight has changed since it was registered. {"; ".join(changed)}')

    def reading(self, loss: Callable[..., T]) -> Callable[[], T]:
        """Return a loss that takes nothing: one that takes the tree of the weights is given what the States hold."""
        parameters = inspect.signature(loss).parameters.values()
        takes_weights = any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)
        return (lambda: loss(self.manager.to_pytree_value())) if takes_weights else loss

    @contextmanager
    def replaced(self, leaves: Mapping[str, Array]) -> Iterator[None]:
        """Let the States hold these leaves, which may be traced, inside a ``with`` block."""
        before = [layout.state.value for layout in self.layouts]
        try:
            for layout, value in zip(self.layouts, before, strict=True):
                pairs = zip(layout.names, jax.tree.leaves(value), strict=True)
                layout.state.restore_value(layout.structure.unflatten([leaves.get(name, leaf) for name, leaf in pairs]))
            yield
        finally:
            for layout, value in zip(self.layouts, before, strict=True):
                layout.state.restore_value(value)

    def strengthen_types(self) -> None:
        """Give Python numbers and weakly typed arrays a dtype. Otherwise the second update would compile again."""
        for layout in self.layouts:
            leaves = layout.structure.flatten_up_to(layout.state.value)
            if any(getattr(leaf, 'weak_type', not hasattr(leaf, 'dtype')) for leaf in leaves):
                layout.state.value = layout.structure.unflatten([jnp.asarray(x, jnp.result_type(x)) for x in leaves])

    def named(self) -> dict[str, ArrayOrQuantity]:
        """Return the leaves by name, with their units."""
        values = [jax.tree.leaves(state.value, is_leaf=is_quantity) for state in self.states]
        return dict(zip(self.keys, (leaf for leaves in values for leaf in leaves), strict=True))

    def state_of(self, key: str) -> brainstate.State:
        """Return the State that a leaf belongs to."""
        return next(layout.state for layout in self.layouts if key in layout.names)

    # gradients

    def match(
        self,
        gradients: Tree,
        loss_unit: brainunit.Unit | None = None,
        partial: bool = False,
        frozen: Set[str] = frozenset(),
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the gradients by name, without units, and a factor for each that has another scale than its weight."""
        found = self.find(gradients, partial, frozen)
        scales = gradient_scales({key: self.units[key] for key in found}, found, loss_unit)
        return {key: brainunit.get_mantissa(g) for key, g in found.items()}, scales

    def find(self, gradients: Tree, partial: bool, frozen: Set[str]) -> dict[str, ArrayOrQuantity]:
        """Return the gradient of each leaf by name; raise an error that lists missing and unknown gradients."""
        found: dict[int, Tree] = {}
        by_name: dict[str, ArrayOrQuantity] = {}
        unknown: list[str] = []
        names = set(self.keys)
        if not names:  # registration has warned; brainstate's grad of no States differentiates arguments instead
            return {}

        def collect(node: Tree, path: Path, ids: Mapping[Path, int], part: Path = ()) -> None:
            if path in ids:
                if node is not None:
                    found.setdefault(ids[path], node)
            elif not part and (name := show(path)) in names:
                by_name[name] = node
            elif (entries := children(node)) is not None:
                for key, entry in entries:
                    collect(entry, path + key, ids, part)
            elif node is not None:
                unknown.append(show(part + path))

        if self.is_list_of_parts(gradients):
            for i, (part, ids) in enumerate(zip(gradients, self.parts, strict=True)):
                collect(part, (), ids, (i,))
        else:
            collect(gradients, (), self.ids)
        leaves = {name: g for name, g in by_name.items() if g is not None}
        for layout in self.layouts:
            if id(layout.state) in found:
                own = gradient_leaves(found[id(layout.state)], layout)
                if twice := sorted(own.keys() & leaves.keys()):
                    raise ValueError(f'The gradients of {", ".join(twice)} are given twice.')
                leaves |= own
        missing = [key for key in self.keys if key not in leaves and key not in frozen]
        problems = [f'missing or None: {", ".join(missing)}'] if missing and not partial else []
        if unknown and (not partial or not leaves):  # a partial update must hold at least one known gradient
            problems.append(f'not registered: {", ".join(unknown)}')
        if problems:
            raise MissingKeyError('Gradients must be those of the registered weights. ' + '; '.join(problems))
        return leaves

    def is_list_of_parts(self, gradients: Tree) -> bool:
        """Return whether gradients are a list with an entry for each tree that was registered."""
        is_list = isinstance(gradients, (list, tuple)) and len(gradients) == len(self.parts) > 1
        return is_list and not any(path[:1] == (0,) for path in self.ids)


def warn_of_others(layouts: Sequence[Layout]) -> None:
    """Warn of States that are not weights, such as running means and hidden states, which an optimizer would train."""
    others = [f'{", ".join(x.names)} ({type(x.state).__name__})' for x in layouts if not is_weight(x.state)]
    if others:
        warnings.warn(
            f'These States are not ParamStates, but will be trained: {"; ".join(others)}. '
            f'Register model.states(brainstate.ParamState), or make them ParamStates.',
            stacklevel=4,
        )


def is_weight(state: brainstate.State) -> bool:
    """Return whether a State holds weights."""
    return isinstance(state, brainstate.ParamState)


def is_leaf(x: object) -> bool:
    """Return whether ``x`` is a Quantity, whose structure holds the unit, or None, which marks a missing gradient."""
    return is_quantity(x) or x is None


def layout_of(state: brainstate.State, names: list[str]) -> Layout:
    """Return the layout of a State whose leaves have these names."""
    leaves, plain = jax.tree.flatten(state.value, is_leaf=is_leaf)
    units = [None if leaf is None else brainunit.get_unit(leaf) for leaf in leaves]
    return Layout(state, jax.tree.structure(state.value), names, plain, units)


def gradient_leaves(gradient: Tree, layout: Layout) -> dict[str, ArrayOrQuantity]:
    """Return the leaves of the gradient of one State by name, without those that are None."""
    given: Structure = jax.tree.structure(gradient, is_leaf=is_leaf)
    if given != layout.plain:
        raise ValueError(
            f'The gradient of {", ".join(layout.names)} has the structure {jax.tree.structure(gradient)}, '
            f'its weight {layout.structure}.'
        )
    pairs = zip(jax.tree.leaves(gradient, is_leaf=is_leaf), layout.units, strict=True)
    leaves = [g for g, unit in pairs if unit is not None]
    return {name: g for name, g in zip(layout.names, leaves, strict=True) if g is not None}


def leaf_names(path: Path, value: Tree) -> list[str]:
    """Return the names of the leaves of a State; raise for a leaf that is no array of real or complex numbers."""
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
