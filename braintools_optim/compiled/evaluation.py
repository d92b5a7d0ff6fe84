"""Evaluation weights, such as averages, which the States hold inside ``with optimizer.eval_weights()``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp

from braintools_optim.compiled.access import inside_transformation
from braintools_optim.compiled.update import Updater
from braintools_optim.core import Core
from braintools_optim.step.rule import GroupRule
from braintools_optim.step.stages import master_or_cast
from braintools_optim.step.state import slots_of
from braintools_optim.weights.precision import cast_floats, from_working, to_working

__all__ = ['eval_weights']


@contextmanager
def eval_weights(core: Core, updater: Updater) -> Iterator[None]:
    """Let the States hold the evaluation weights; afterwards they hold the very arrays that they held before."""
    core.refuse_evaluating('eval_weights')
    opt_state = core.registered('eval_weights')

    def compute() -> list[jax.Array]:
        return evaluation_weights(core)

    leaves = (compute if inside_transformation() else updater.jit('eval_weights', compute))()
    # a static field of the optimizer state: an update that is compiled already is traced anew, and refused
    opt_state.value = replace(opt_state.value, evaluating=True)
    try:
        with core.weights.replaced(dict(zip(core.weights.keys, leaves, strict=True))):
            yield
    finally:
        opt_state.value = replace(opt_state.value, evaluating=False)


def evaluation_weights(core: Core) -> list[jax.Array]:
    """Return the leaves to evaluate, in the order of the registered leaves."""
    state, settings = core.state, core.settings
    weights = {key: jnp.asarray(w) for key, w in core.weights.read().items()}
    options, positions = settings.options, settings.positions()
    found: dict[str, jax.Array] = {}
    averages = state.stage_slots.get('average')
    if averages is not None:
        found = {key: from_working(x, weights[key].dtype) for key, x in averages.items()}
    evaluating = [group.rule.has_evaluation for group in core.groups]
    for i, group in enumerate(core.groups if averages is None else ()):
        hp = settings.part(options, positions, i)
        group_weights = {key: master_or_cast(weights[key], slots_of(state.stage_slots, key)) for key in group.keys}
        if any(evaluating) and not evaluating[i]:
            found |= {key: weights[key] for key in group.keys}
            continue
        if isinstance(group.rule, GroupRule):
            found |= group.rule.group_evaluation(group_weights, state.groups[str(i)], hp)
            continue
        for key, w in group_weights.items():
            if key in settings.frozen and not slots_of(state.slots, key):  # frozen before the first update
                found[key] = w
                continue
            working = to_working(w)
            exact = (cast_floats(x, like=working) for x in (slots_of(state.slots, key), hp))
            found[key] = from_working(group.rule.evaluation(working, *exact), w.dtype)
    found = weights | found  # a weight that was frozen before its first update has no average
    for key, constraint in core.policy.constraints.items():
        found[key] = constraint.project(found[key], state.constraint[key])
    return [found[key].astype(w.dtype) for key, w in weights.items()]
