"""UniqueStateManager: the States of a tree by name, each once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

import brainstate
import jax

from braintools_optim.options.hints import hint_for_weights
from braintools_optim.options.types import Structure, Tree

__all__ = ['Path', 'UniqueStateManager', 'children', 'flatten_states', 'show']

Path = tuple[Hashable, ...]


def children(node: Tree) -> Iterator[tuple[Path, Tree]] | None:
    """Return the entries of a container with their paths, None for anything else. A key that is a tuple is a path."""
    if isinstance(node, Mapping):
        return ((k if isinstance(k, tuple) else (k,), v) for k, v in node.items())
    if isinstance(node, (list, tuple)):
        return (((i,), v) for i, v in enumerate(node))
    return None


def flatten_states(states: Tree, path: Path = ()) -> list[tuple[Path, brainstate.State]]:
    """Return the States of a tree with their paths; raise ``TypeError`` for any other leaf."""
    if isinstance(states, brainstate.State):
        return [(path, states)]
    entries = children(states)
    if entries is None:
        raise TypeError(
            f'All params values must be brainstate.State, but {show(path)} is {type(states).__name__}.'
            f'{hint_for_weights(states)}'
        )
    return [found for key, entry in entries for found in flatten_states(entry, path + key)]


def show(path: Path) -> str:
    """Return the dotted name of a path."""
    return '.'.join(map(str, path)) or '(the root)'


class UniqueStateManager:
    """Named States, each counted once however many names it has.

    The class has the interface of braintools.optim, for code that uses it.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.zeros(2))
    >>> manager = UniqueStateManager({'encoder': {'w': w}, 'decoder': {'w': w}})
    >>> len(manager), list(manager.to_dict())
    (1, ['encoder.w'])
    """

    def __init__(self, pytree: Tree = None):
        self._states: dict[Path, brainstate.State] = {}
        self._tree: Tree = None
        if pytree is not None:
            self.make_unique(pytree)

    def make_unique(self, pytree: Tree) -> dict[Hashable, Tree]:
        """Hold the first of each State of ``pytree`` and nothing else; return the States as a tree."""
        self.clear()
        self._tree = pytree
        return self.merge_with(pytree).to_pytree()

    def merge_with(self, pytree: Tree) -> UniqueStateManager:
        """Add the States of ``pytree`` that are not held yet."""
        seen = self.seen_ids
        for path, state in flatten_states(pytree):
            if id(state) not in seen:
                seen.add(id(state))
                self._states[path] = state
        return self

    def to_pytree(self) -> dict[Hashable, Tree]:
        """Return the States as a nested dict."""
        return nested(self._states)

    def to_pytree_value(self) -> dict[Hashable, Tree]:
        """Return the values of the States as a nested dict."""
        return nested({path: state.value for path, state in self._states.items()})

    def to_dict(self) -> dict[str, brainstate.State]:
        """Return the States by name, such as ``'layers.0.weight'``."""
        return {show(path): state for path, state in self._states.items()}

    def to_dict_value(self) -> dict[str, Tree]:
        """Return the values of the States by name."""
        return {name: state.value for name, state in self.to_dict().items()}

    def get_flattened(self) -> list[tuple[Path, brainstate.State]]:
        """Return the States with their paths."""
        return list(self._states.items())

    def get_state_by_path(self, path: Path) -> brainstate.State | None:
        """Return the State at a path, None if there is none."""
        return self._states.get(tuple(path))

    def update_state(self, path: Path, state: brainstate.State) -> bool:
        """Put ``state`` at a path that is held already; return False if the path is not held."""
        if tuple(path) not in self._states:
            return False
        self._states[tuple(path)] = state
        return True

    def clear(self) -> None:
        """Hold no States."""
        self._states.clear()
        self._tree = None

    @property
    def flattened_states(self) -> list[tuple[Path, brainstate.State]]:
        """The States with their paths."""
        return self.get_flattened()

    @property
    def unique_states(self) -> list[brainstate.State]:
        """The States."""
        return list(self._states.values())

    @property
    def unique_paths(self) -> list[Path]:
        """The paths of the States."""
        return list(self._states)

    @property
    def num_unique_states(self) -> int:
        """The number of States."""
        return len(self._states)

    @property
    def seen_ids(self) -> set[int]:
        """The ids of the States."""
        return {id(state) for state in self._states.values()}

    @property
    def pytree_structure(self) -> Structure | None:
        """The structure of the tree that :meth:`make_unique` was given, with States as leaves; None if it had none.

        A State that occurs several times is several leaves. :meth:`merge_with` does not change the structure.
        """
        if self._tree is None or not self._states:
            return None
        return jax.tree.structure(self._tree, is_leaf=lambda x: isinstance(x, brainstate.State))

    def __len__(self) -> int:
        return len(self._states)


def nested(flat: Mapping[Path, Tree]) -> dict[Hashable, Tree]:
    """Return a nested dict of the entries of a dict with paths as keys."""
    tree: dict[Hashable, Tree] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1] if path else ''] = leaf
    return tree
