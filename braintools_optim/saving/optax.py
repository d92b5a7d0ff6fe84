"""Optimizer states of optax and of braintools.optim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from braintools_optim.core import Core
from braintools_optim.options.types import Tree
from braintools_optim.saving.checkpoint import weights
from braintools_optim.saving.imports import (
    refuse_other_algorithms,
    registered,
    set_slots,
    take_rate,
    unchanged_by_errors,
)

__all__ = ['load_braintools_state_dict', 'load_optax_state']


def load_optax_state(core: Core, state: Tree, count: int | None = None) -> None:
    """Load the state of an optax transformation such as ``optax.adam(...)`` of the same weights."""
    slots_of: Mapping[str, Mapping[str, str]] | None = vars(type(core.rule)).get('optax_slots')
    if slots_of is None:
        raise ValueError(f'{core.name} has no counterpart in optax whose state could be loaded.')
    registered(core)
    refuse_other_algorithms(core, 'the state of one transformation')
    if with_unit := [name for name, w in weights(core).items() if w['unit'] != '1']:
        raise ValueError(f'The weights {with_unit} have units, in which optax does not keep its state.')
    found: dict[str, dict[str, jax.Array]] = {}
    counts = [] if count is None else [count]
    for part in parts_of(state):
        kind = type(part).__name__
        if kind in slots_of:
            for field, slot in slots_of[kind].items():
                if slot in found:
                    raise ValueError(f'The state holds {kind} twice. Must be that of one optimizer.')
                found[slot] = by_name(core, getattr(part, field))
        elif kind != 'ScaleByScheduleState':
            raise ValueError(f'The state holds {kind}, for which {core.name} has no slot.')
        if 'count' in part._fields:  # every tuple has a method of this name
            counts.append(int(part.count))
    with unchanged_by_errors(core):
        set_slots(core, found, dict.fromkeys(core.weights.keys, counts[-1] if counts else 1), whole=True)
        if counts:
            core.step_count.value = core.beside_weights(jnp.asarray(counts[0], jnp.int32))


def parts_of(state: Tree) -> Iterator[Tree]:
    """Return the states of a chain that hold something."""
    if isinstance(state, (tuple, list)) and not hasattr(state, '_fields'):
        for part in state:
            yield from parts_of(part)
    elif jax.tree.leaves(state):
        yield state


def by_name(core: Core, tree: Tree) -> dict[str, jax.Array]:
    """Return the leaves of a tree that has the structure of the weights, or has them by name."""
    manager = core.weights.manager
    paths = dict(zip(manager.to_dict(), manager.unique_paths, strict=True))
    if isinstance(tree, Mapping) and tree.keys() == paths.keys():
        tree = {paths[name]: leaf for name, leaf in tree.items()}
    leaves: dict[str, jax.Array] = core.weights.match(tree)[0]
    return leaves


def load_braintools_state_dict(core: Core, state_dict: Mapping[str, Tree]) -> None:
    """Load a ``state_dict`` of braintools.optim."""
    if not isinstance(state_dict, Mapping) or not {'opt_state', 'step_count', 'lr'} <= state_dict.keys():
        raise ValueError("Invalid state_dict. Must be of braintools.optim, with 'opt_state', 'step_count' and 'lr'.")
    if state_dict['opt_state'] is None:
        raise ValueError('The state_dict was taken before weights were registered: it holds no optimizer state.')
    if state_dict.get('param_groups_opt_states'):
        raise ValueError(
            'The state_dict has groups that were added, whose options it does not hold '
            '(braintools.optim runs them as Adam). Must be that of one group.'
        )
    with unchanged_by_errors(core):
        load_optax_state(core, state_dict['opt_state'], int(state_dict['step_count']))
        for i in range(len(core.groups)):
            take_rate(core, i, state_dict['lr'])
