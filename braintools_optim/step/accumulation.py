"""Accumulation of gradients over several batches, after which one update takes place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.types import Tree
from braintools_optim.step.gradients import all_finite
from braintools_optim.step.inputs import Inputs, Outcome
from braintools_optim.step.policy import Accumulation, WeightPolicy
from braintools_optim.step.rule import Extra
from braintools_optim.step.stage import Stage
from braintools_optim.step.state import OptimizerState
from braintools_optim.step.step import next_skipped, step
from braintools_optim.weights.precision import compute_dtype, from_working, to_working

__all__ = ['ACCUMULATOR', 'accumulating_step', 'first_accumulation']

Array = jax.Array


def init_accumulator(w: Array, hp: Hyperparameters) -> Array:
    """Return the sum of no gradients."""
    return jnp.zeros_like(w)


ACCUMULATOR = Stage(lambda leaf: leaf, lambda leaf: False, 'accumulated', init_accumulator, in_state_dtype=False)
"""Holds the sum of the gradients of each parameter; the sum grows outside of the stages."""


def first_accumulation() -> dict[str, Array]:
    """Return the numbers of batches so far, finite ones and all, and the sum of their losses."""
    return {'batches': jnp.zeros(2, jnp.int32), 'value': jnp.zeros((), jnp.result_type(float))}


def accumulating_step(policy: WeightPolicy, inputs: Inputs, how: Accumulation, flush: bool) -> Outcome:
    """Add the gradients of one batch and, once there are enough, update.

    ``finite`` of the outcome is whether the gradients of this batch are finite, None if they were not checked.
    """
    check_extra(inputs.extra)
    state, zero, counted = inputs.state, inputs.zeroes, inputs.skips
    finite = all_finite(inputs.gradients, policy) if inputs.checks else None
    sums = dict(state.stage_slots.get('accumulated', {}))  # no such slot without weights
    for key, g in inputs.gradients.items():
        sums[key] = sums[key] + contribution(g, sums[key], inputs.loss_scale, finite, zero)
    before = state.running['accumulation']
    counts = before['batches'] + batch_of(finite, counted)
    loss = jnp.asarray(brainunit.get_mantissa(inputs.extra.get('value', 0.0)))
    value = before['value'] + contribution(loss, before['value'], None, finite, zero)
    due = jnp.asarray(flush) | (counts[1] >= how.steps)
    due = due if finite is None or counted else due & finite  # a batch that raises changes nothing
    divisor = jnp.maximum(counts[0], 1) if how.reduction == 'mean' else jnp.ones((), jnp.int32)
    now = with_sums(state, sums, {'batches': jnp.where(due, 0, counts), 'value': jnp.where(due, 0, value)})
    now = replace(now, skipped=next_skipped(state.skipped, finite, counted))
    waiting = replace(inputs, state=now, loss_scale=None, skip_nonfinite=False)

    def update() -> Outcome:
        gradients = {
            key: from_working(sums[key] / divisor.astype(sums[key].dtype), compute_dtype(jnp.asarray(g)))
            for key, g in inputs.gradients.items()
        }
        empty = with_sums(now, {k: jnp.zeros_like(x) for k, x in sums.items()}, now.running['accumulation'])
        extra = {**inputs.extra, 'value': value / divisor.astype(value.dtype)} if 'value' in inputs.extra else {}
        new = step(policy, replace(waiting, gradients=gradients, state=empty, extra=extra))
        return new._replace(finite=None, applied=jnp.ones((), bool) if new.applied is None else new.applied)

    def wait() -> Outcome:
        shapes = jax.eval_shape(update)
        metrics: dict[str, Tree] = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.metrics)
        return Outcome(dict(inputs.weights), now, None, jnp.zeros((), bool), metrics)

    new: Outcome = jax.lax.cond(due & (counts[0] > 0), update, wait)
    return new._replace(finite=finite)


def contribution(x: Array, total: Array, scale: Array | None, finite: Array | None, zero: bool) -> Array:
    """Return a gradient or a loss as a summand: without loss scale, and 0 if the batch is left out."""
    summand = to_working(x).astype(total.dtype)
    if scale is not None:
        summand = summand / scale.astype(total.dtype)
    if zero:
        return jnp.where(jnp.isfinite(summand), summand, 0)
    return summand if finite is None else jnp.where(finite, summand, 0)


def batch_of(finite: Array | None, counted: bool) -> Array:
    """Return the count of one batch, among the finite batches and among all; ``counted`` if it counts in any case."""
    one = jnp.ones((), jnp.int32)
    finite = one if finite is None else finite.astype(jnp.int32)
    return jnp.stack([finite, one if counted else finite])


def with_sums(state: OptimizerState, sums: Mapping[str, Array], numbers: Mapping[str, Array]) -> OptimizerState:
    """Return an optimizer state with other sums of gradients and other numbers of batches."""
    slots = {**state.stage_slots, 'accumulated': dict(sums)} if sums else state.stage_slots
    return replace(state, stage_slots=slots, running={**state.running, 'accumulation': dict(numbers)})


def check_extra(extra: Extra) -> None:
    """Raise if an optimizer is given more than gradients and the loss, which cannot be accumulated."""
    if unfit := sorted(extra.keys() - {'value'}):
        raise ValueError(
            f'Invalid {", ".join(unfit)} with accumulate_steps. Only gradients and the loss (value=) are accumulated: '
            f'leave out accumulate_steps, or give the loss of all batches together.'
        )
