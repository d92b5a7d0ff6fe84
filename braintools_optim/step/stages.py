"""The stages of an update, in order, and the options of every optimizer that switch them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, replace
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from braintools_optim.options.fields import LAST, OVER_ALL, Option
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.kinds import (
    AT_LEAST_ZERO,
    BELOW_ONE,
    POSITIVE,
    POSITIVE_AND_FINITE,
    DecayRate,
    Flag,
    Number,
    Period,
    Schedulable,
)
from braintools_optim.step.centralization import CENTRALIZE, Centralization
from braintools_optim.step.clipping import clip_adaptively, clip_by_value, global_norm, norm_clip_factor
from braintools_optim.step.rule import Slots
from braintools_optim.step.stage import Context, Leaf, Stage, keep_if_finite
from braintools_optim.weights.precision import compute_dtype, from_working, round_stochastically, to_working

__all__ = ['DIRECTION', 'STAGES', 'StageOptions', 'apply_stages', 'init_stage_slots', 'master_or_cast', 'with_stages']

Array = jax.Array
OptionalPositive = Annotated[Schedulable | None, Number(POSITIVE, optional=True), OVER_ALL]


class StageOptions(Centralization):
    """The options of the stages, which every optimizer has; :class:`Optimizer` describes them."""

    _: KW_ONLY
    grad_clip_norm: Annotated[OptionalPositive, LAST] = None
    grad_clip_value: Annotated[OptionalPositive, LAST] = None
    maximize: bool = False
    cautious: bool = False
    grokfast: Annotated[Schedulable | None, Number(POSITIVE_AND_FINITE, optional=True)] = None
    grokfast_decay: DecayRate = 0.98
    grad_clip_over: Annotated[Literal['all', 'group', 'weight'], OVER_ALL] = 'all'
    grad_clip_adaptive: OptionalPositive = None
    on_nonfinite: Annotated[Literal['ignore', 'skip', 'zero', 'raise'], OVER_ALL] = 'ignore'
    max_consecutive_skips: Annotated[Period, OVER_ALL] = 20
    rounding: Annotated[Literal['nearest', 'stochastic'], OVER_ALL] = 'nearest'
    spike_factor: Annotated[Schedulable, Number(POSITIVE_AND_FINITE), OVER_ALL] = 3.0
    spike_decay: Annotated[Schedulable, Number(BELOW_ONE, decay=True), OVER_ALL] = 0.98
    weight_decay = Option[Schedulable](0.0, Number(AT_LEAST_ZERO, off_at_zero=True))
    decoupled_weight_decay = Option[bool](False, Flag())
    lr_scale = Option[Schedulable](1.0, Number(AT_LEAST_ZERO))


# before the direction


def blank_nonfinite(leaf: Leaf) -> Leaf:
    """Set the gradients of a skipped update to zero, so that no NaN reaches derivatives."""
    return leaf.with_gradient(jnp.where(leaf.context.finite, leaf.gradient, 0))


def scale_gradient(leaf: Leaf) -> Leaf:
    """Divide by the loss scale and clip by the norm over all parameters or over the group."""
    return leaf.with_gradient(leaf.gradient * leaf.context.factor)


def clip_norm(leaf: Leaf) -> Leaf:
    """Clip by the norm of the parameter's own gradient."""
    factor = norm_clip_factor(global_norm(leaf.gradient), leaf.shared.grad_clip_norm)
    return leaf.with_gradient(leaf.gradient * factor.astype(leaf.hp.lr.dtype))


def clip_unit_norms(leaf: Leaf) -> Leaf:
    """Clip the gradient of each unit relative to the norm of the unit's parameters."""
    return leaf.with_gradient(clip_adaptively(leaf.gradient, leaf.weight, leaf.shared.grad_clip_adaptive))


def clip_values(leaf: Leaf) -> Leaf:
    """Clip each entry of the gradient."""
    return leaf.with_gradient(clip_by_value(leaf.gradient, leaf.shared.grad_clip_value))


def ascend(leaf: Leaf) -> Leaf:
    """Turn descent into ascent."""
    return leaf.with_gradient(-leaf.gradient)


def couple_decay(leaf: Leaf) -> Leaf:
    """Add the gradient of the L2 penalty."""
    return leaf.with_gradient(leaf.gradient + leaf.hp.weight_decay * leaf.weight)


def amplify_low_frequencies(leaf: Leaf) -> Leaf:
    """Add a multiple of the gradient's moving average (Lee et al., 2024)."""
    hp, g = leaf.hp, leaf.gradient
    sample, mean = to_working(g), leaf.stage_slots['grokfast'].astype(hp.lr.dtype)
    mean = jnp.where(leaf.step == 1, sample, hp.grokfast_decay.average(mean, sample))
    return leaf.with_gradient(g + hp.grokfast * from_working(mean, g.dtype)).with_slot('grokfast', mean)


# after the direction


def mask_disagreement(leaf: Leaf) -> Leaf:
    """Move only entries whose direction agrees in sign with the gradient, and those further (Liang et al., 2024)."""
    agrees = (leaf.direction * leaf.gradient > 0).astype(leaf.gradient.dtype)
    return leaf.with_direction(leaf.direction * agrees / jnp.maximum(jnp.mean(agrees), 1e-3))


def decouple_decay(leaf: Leaf) -> Leaf:
    """Decay the parameter itself."""
    return leaf.with_direction(leaf.direction + leaf.hp.weight_decay * leaf.weight)


def apply_rate(leaf: Leaf) -> Leaf:
    """Subtract the direction times the learning rate."""
    change = leaf.hp.lr * leaf.direction
    return replace(leaf, new=-change if leaf.context.changes_only else leaf.weight - change)


def round_result(leaf: Leaf) -> Leaf:
    """Round to the parameter's dtype, to the nearest number or stochastically."""
    dtype = leaf.stored.dtype
    if leaf.index is not None and compute_dtype(leaf.stored) != dtype:  # stochastic rounding
        key = jax.random.fold_in(jax.random.key(leaf.index), leaf.step)
        return replace(leaf, result=round_stochastically(leaf.new, dtype, key))
    return replace(leaf, result=from_working(leaf.new, dtype))


def project(leaf: Leaf) -> Leaf:
    """Apply the constraint."""
    if leaf.constraint is None:
        return leaf
    return replace(leaf, result=leaf.constraint.project(leaf.result, leaf.constraint_data).astype(leaf.stored.dtype))


def keep_master(leaf: Leaf) -> Leaf:
    """Keep the unrounded parameter, unless a constraint has moved it."""
    new, result = leaf.new, leaf.result
    kept = jnp.where(new.astype(leaf.stored.dtype) == result, new, result.astype(new.dtype))
    return leaf.with_slot('master', kept)


def undo_skipped(leaf: Leaf) -> Leaf:
    """Leave the parameter and its slots as they were if the update is skipped."""
    before = jnp.zeros_like(leaf.stored) if leaf.context.changes_only else leaf.stored
    return replace(
        leaf,
        result=keep_if_finite(leaf.context, leaf.result, before),
        new_slots=kept_slots(leaf.context, leaf.new_slots, leaf.slots),
        new_stage_slots=kept_slots(leaf.context, leaf.new_stage_slots, leaf.stage_slots),
    )


def kept_slots(context: Context, new: Slots, old: Slots) -> Slots:
    """Return new slots in the dtypes of the old ones, or the old ones if the update is skipped."""
    new = {name: x.astype(old[name].dtype) for name, x in new.items()}
    return keep_if_finite(context, new, {name: old[name] for name in new})


def grokfast_slot(w: Array, hp: Hyperparameters) -> Array | None:
    """Return the first moving average of the gradient, None if the option is off."""
    return None if hp.grokfast is None else jnp.zeros_like(w)


def is_per_weight(leaf: Leaf) -> bool:
    """Return whether the norm of each gradient is clipped separately."""
    return leaf.shared.grad_clip_norm is not None and leaf.shared.grad_clip_over == 'weight'


DIRECTION = Stage(lambda leaf: leaf)
"""Stands for the direction of the rule among the stages."""

CLIP_VALUES = Stage(clip_values, lambda leaf: leaf.shared.grad_clip_value is not None)

STAGES: tuple[Stage, ...] = (
    Stage(blank_nonfinite, lambda leaf: leaf.context.nonfinite == 'skip'),
    Stage(scale_gradient, lambda leaf: leaf.context.factor is not None),
    Stage(clip_norm, is_per_weight),
    Stage(clip_unit_norms, lambda leaf: leaf.shared.grad_clip_adaptive is not None),
    CLIP_VALUES,
    Stage(ascend, lambda leaf: leaf.hp.maximize),
    Stage(couple_decay, lambda leaf: leaf.context.decay == 'coupled'),
    CENTRALIZE,
    Stage(amplify_low_frequencies, lambda leaf: 'grokfast' in leaf.stage_slots, 'grokfast', grokfast_slot),
    DIRECTION,
    Stage(mask_disagreement, lambda leaf: leaf.hp.cautious),
    Stage(decouple_decay, lambda leaf: leaf.context.decay == 'decoupled'),
    Stage(apply_rate),
    Stage(round_result),
    Stage(project),
    Stage(keep_master, lambda leaf: 'master' in leaf.stage_slots),
    Stage(undo_skipped),
)


def with_stages(more: tuple[Stage, ...], last: Sequence[Stage] = ()) -> tuple[Stage, ...]:
    """Return all stages with further ones around the direction, and with the last ones before a skip is undone."""
    place = STAGES.index(DIRECTION)
    before = [stage for stage in more if not stage.after_direction]
    after = [stage for stage in more if stage.after_direction]
    *stages, undo = STAGES[place + 1 :]
    return (*STAGES[:place], *before, DIRECTION, *after, *stages, *last, undo)


def apply_stages(stages: tuple[Stage, ...], leaf: Leaf) -> Leaf:
    """Pass a parameter through those stages that are on."""
    for stage in stages:
        if stage.is_on(leaf):
            leaf = stage.apply(leaf)
    return leaf


def init_stage_slots(stages: tuple[Stage, ...], w: Array, hp: Hyperparameters) -> Slots:
    """Return the slots that the stages keep of one parameter before its first update."""
    slots = {stage.slot: stage.init(w, hp) for stage in stages if stage.slot}
    return {name: slot for name, slot in slots.items() if slot is not None}


def master_or_cast(w: Array, stage_slots: Slots) -> Array:
    """Return a parameter in the dtype of the arithmetic: its master copy, unless a new value was assigned."""
    current, master = w.astype(compute_dtype(w)), stage_slots.get('master')
    return current if master is None else jnp.where(master.astype(w.dtype) == w, master, current)
