"""Evaluation weights: the weights that some optimizers would have you evaluate, in the States for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from braintools_optim.precision import cast_floats, from_working, to_working
from braintools_optim.rule import TreeRule
from braintools_optim.states import inside_transformation
from braintools_optim.step import Memory, precise, slots_of

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['eval_weights', 'refuse_evaluated', 'refuse_inside']

ACTIVE = 'eval_weights'


@contextmanager
def eval_weights(optimizer: Optimizer) -> Iterator[None]:
    """The States hold the evaluation weights; afterwards the very arrays that they held before."""
    refuse_inside(optimizer, 'eval_weights')
    if optimizer.opt_state is None:
        raise ValueError('register_trainable_weights must be called before eval_weights.')

    def compute() -> list[Any]:
        return evaluated(optimizer)

    leaves = (compute if inside_transformation() else optimizer._jit(ACTIVE, compute))()
    # part of the memory's structure: an update that is compiled already is traced anew, and refused
    optimizer.opt_state.value = {**optimizer.opt_state.value, ACTIVE: {}}
    try:
        with optimizer._weights.replaced(dict(zip(optimizer.weight_names, leaves, strict=True))):
            yield
    finally:
        optimizer.opt_state.value = {k: v for k, v in optimizer.opt_state.value.items() if k != ACTIVE}


def refuse_inside(optimizer: Optimizer, what: str) -> None:
    """Raise while the evaluation weights are in the States."""
    if optimizer.opt_state is not None:
        refuse_evaluated(optimizer.opt_state.value, what)


def refuse_evaluated(memory: Memory, what: str) -> None:
    """Raise if a memory goes with evaluation weights."""
    if ACTIVE in memory:
        raise ValueError(
            f'{what} inside eval_weights: the States hold the weights to evaluate, not those in training. '
            f'Leave the block first.'
        )


def evaluated(optimizer: Optimizer) -> list[Any]:
    """The leaves to evaluate, in the order of ``optimizer.weight_names``."""
    state: Any = optimizer.opt_state
    memory, settings = state.value, optimizer.settings
    weights = {key: jnp.asarray(w) for key, w in optimizer._weights.read().items()}
    values, positions = settings.options, settings.positions()
    found: dict[str, Any] = {}
    for i, group in enumerate(optimizer._groups):
        hp = settings.part(values, positions, i)
        slots = {key: slots_of(memory, key) for key in group.keys}
        own = {key: precise(weights[key], slots[key]) for key in group.keys}
        if isinstance(optimizer, TreeRule):
            found |= optimizer.tree_evaluation(own, memory['tree'][str(i)], hp)
            continue
        for key, w in own.items():
            working = to_working(w)
            exact = (cast_floats(x, like=working) for x in (slots[key], hp))
            found[key] = from_working(optimizer.evaluation(working, *exact), w.dtype)
    for key, constraint in optimizer._treatment.constraints.items():
        found[key] = constraint.project(found[key], memory['constraint'][key])
    return [found[key].astype(w.dtype) for key, w in weights.items()]
