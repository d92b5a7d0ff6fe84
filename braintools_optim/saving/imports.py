"""Helpers for loading states: undoing changes after an error, setting rates, and replacing slots by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from braintools_optim.core import Core
from braintools_optim.options.kinds import as_number
from braintools_optim.options.types import Tree
from braintools_optim.step.state import merge_slots, without

__all__ = ['as_array', 'registered', 'set_slots', 'take_rate', 'unchanged_by_errors']

Array = npt.NDArray[np.floating]
Found = Mapping[str, Mapping[str, ArrayLike]]
"""Arrays by slot and weight."""


def registered(core: Core) -> None:
    """Raise unless weights are registered and the States hold the weights in training."""
    core.registered('loading')
    core.refuse_evaluating('A checkpoint')


def refuse_other_algorithms(core: Core, what: str) -> None:
    """Raise if a group has another algorithm than the optimizer."""
    others = {type(group.rule).__name__ for group in core.groups if group.rule is not core.rule}
    if others:
        raise ValueError(f'The optimizer has groups of {", ".join(sorted(others))}, which {what} cannot hold.')


@contextmanager
def unchanged_by_errors(core: Core) -> Iterator[None]:
    """Undo all changes of States and options if the block raises."""
    settings = core.settings
    values = {name: state.value for name, state in core.named_states().items()}
    overridden, schedules, done = settings.overridden, settings.schedules, False
    try:
        yield
        done = True
    finally:
        if not done:
            settings.overridden, settings.schedules = overridden, schedules
            for name, state in core.named_states().items():
                state.value = values[name]


def take_rate(core: Core, group: int, rate: ArrayLike) -> None:
    """Set the learning rate of a group if it differs."""
    plain: float = as_number(as_array(rate))
    if plain != core.settings.lr_of(group):
        core.settings.set_lr_of(group, plain, core.check_change)


def as_array(x: Tree) -> Array:
    """Return an array, or a tensor of torch on any device, as a NumPy array."""
    if hasattr(x, 'detach'):
        x = x.detach().cpu()
        x = x.float() if 'bfloat16' in str(x.dtype) else x
    return np.asarray(x)


def set_slots(core: Core, found: Found, counts: Mapping[str, int], whole: bool = False) -> None:
    """Replace the slots and update counts. A weight without any slot in ``found`` starts again, unless ``whole``."""
    state, named = core.state, core.weights.named()
    some = {name for values in found.values() for name in values}
    slots, stage_slots = without(state.slots, list(named)), without(state.stage_slots, list(named))
    for i, group in enumerate(core.groups):
        members = {name: named[name] for name in group.keys}
        first = core.restarted(i, members, core.settings.frozen - some)
        slots, stage_slots = merge_slots(slots, first.slots), merge_slots(stage_slots, first.stage_slots)
    fresh = {slot: dict(arrays) for slot, arrays in slots.items()}
    problems = [f'{slot}.{n}: not here' for slot in found for n in found[slot] if n not in fresh.get(slot, {})]
    kept = {slot: arrays for slot, arrays in stage_slots.items() if slot != 'master'}
    problems += [f'{slot}.{n}: not there' for slot, arrays in kept.items() for n in arrays if whole or n in some]
    for slot in fresh:
        for name, here in fresh[slot].items():
            there = as_array(found[slot][name]) if name in found.get(slot, {}) else None
            if there is None:
                problems += [f'{slot}.{name}: not there'] * (whole or name in some)
            elif there.shape != here.shape or not jnp.issubdtype(there.dtype, jnp.floating):
                problems.append(f'{slot}.{name}: {there.dtype}{[*there.shape]} there, {here.dtype}{[*here.shape]} here')
            else:
                fresh[slot][name] = jnp.array(there, here.dtype)
    if problems:
        raise ValueError(f'The state does not fit this optimizer, which is unchanged. {"; ".join(problems)}')
    step = jnp.asarray([counts[name] for name in core.weights.keys], jnp.int32)
    state = replace(state, slots=fresh, stage_slots=stage_slots, step=step)
    core.registered('loading').value = core.beside_weights(state)
