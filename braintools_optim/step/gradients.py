"""The gradients before clipping: the treatment of NaN and inf, transformations, and spikes of the norm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.types import Tree
from braintools_optim.step.clipping import global_norm
from braintools_optim.step.inputs import Inputs
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.weights.precision import compute_dtype

__all__ = [
    'SPIKE_WARMUP',
    'all_finite',
    'check_transform',
    'checked',
    'first_norm',
    'first_transforms',
    'scaled_norm',
    'transformed',
    'without_spikes',
]

Array = jax.Array
lax: Any = jax.lax  # whose collectives have no types
SPIKE_WARMUP = 10
"""The number of updates before the running norm is compared with."""


def checked(policy: WeightPolicy, inputs: Inputs) -> tuple[Inputs, Array | None]:
    """Return whether all gradients are finite, None if that does not matter; set NaN and inf to 0 if asked to."""
    if inputs.checks:
        return inputs, all_finite(inputs.gradients, policy)
    if not inputs.zeroes:
        return inputs, None
    gradients = {key: jnp.where(jnp.isfinite(g), g, 0) for key, g in inputs.gradients.items()}
    return replace(inputs, gradients=gradients), None


def all_finite(leaves: Mapping[str, Array], policy: WeightPolicy) -> Array:
    """Return whether no entry is NaN or infinite, in any shard."""
    finite = functools.reduce(jnp.logical_and, (jnp.isfinite(g).all() for g in leaves.values()), jnp.ones((), bool))
    if policy.norm_axis_name is None:
        return finite
    everywhere: Array = lax.pmin(finite.astype(jnp.int32), policy.norm_axis_name).astype(bool)
    return everywhere


def scaled_norm(leaves: Mapping[str, Array], policy: WeightPolicy) -> Array:
    """Return the norm of some arrays, each in the unit in which it counts in norms."""
    scales = policy.norm_scales
    norm = global_norm([g * scales[key] if key in scales else g for key, g in leaves.items()])
    if policy.norm_axis_name is None:
        return norm
    largest = lax.pmax(norm, policy.norm_axis_name)
    ratio = norm / jnp.where(largest > 0, largest, 1)  # squares could overflow
    summed: Array = largest * jnp.sqrt(lax.psum(ratio * ratio, policy.norm_axis_name))
    return summed


# transformations


def check_transform(name: str, value: object) -> optax.GradientTransformationExtraArgs | None:
    """Return an optax transformation, for a function one without state, or None."""
    if value is None:
        return None
    if not isinstance(value, optax.GradientTransformation):
        if not callable(value):
            raise TypeError(f'Invalid {name}={value!r}. Must be an optax transformation or a function of gradients.')
        function: Callable[[Tree], Tree] = value
        value = optax.stateless(lambda updates, params: function(updates))
    return optax.with_extra_args_support(value)


def first_transforms(policy: WeightPolicy, weights: Mapping[str, Array]) -> dict[str, Tree]:
    """Return the states of the transformations before the first update."""
    return {
        name: transform.init({key: widened(weights[key]) for key in keys})
        for name, (keys, transform) in policy.transforms.items()
    }


def widened(x: Array) -> Array:
    """Return an array in the dtype of the arithmetic."""
    x = jnp.asarray(x)
    return x.astype(compute_dtype(x))


def transformed(policy: WeightPolicy, inputs: Inputs, finite: Array | None) -> tuple[Inputs, Array | None]:
    """Apply the transformations of the gradients, without the loss scale. An update that is skipped keeps their state.

    A parameter without a gradient counts with the gradient 0.
    """
    if not policy.transforms:
        return inputs, finite
    gradients = {key: widened(g) for key, g in inputs.gradients.items()}
    if inputs.loss_scale is not None:
        gradients = {key: g / inputs.loss_scale.astype(g.real.dtype) for key, g in gradients.items()}
    states = dict(inputs.state.running['transforms'])
    for name, (keys, transform) in policy.transforms.items():
        weights = {key: widened(inputs.weights[key]) for key in keys}
        found = {key: gradients.get(key, jnp.zeros_like(w)) for key, w in weights.items()}
        updates, state = transform.update(found, states[name], weights)
        new = check_transformed(name, found, updates)
        if finite is not None:
            state = jax.tree.map(functools.partial(jnp.where, finite), state, states[name])
        states[name] = state
        gradients |= {key: new[key] for key in keys if key in gradients}
    running = {**inputs.state.running, 'transforms': states}
    return replace(inputs, gradients=gradients, loss_scale=None, state=replace(inputs.state, running=running)), finite


def check_transformed(name: str, before: Mapping[str, Array], after: Tree) -> Mapping[str, Array]:
    """Return transformed gradients; raise unless they have the names and shapes of the gradients before."""
    if not isinstance(after, Mapping) or after.keys() != before.keys():
        raise TypeError(f'The gradient_transform of {name} returned {after!r}. Must be a dict with the same names.')
    if wrong := [key for key, g in before.items() if jnp.shape(after[key]) != g.shape]:
        raise ValueError(f'The gradient_transform of {name} changed the shape of {", ".join(wrong)}.')
    return after


# spikes


def first_norm() -> Array:
    """Return the running norm, and the number of norms in it, before the first update."""
    return jnp.zeros(2, jnp.result_type(float))


def without_spikes(
    policy: WeightPolicy, inputs: Inputs, finite: Array | None
) -> tuple[Inputs, Array | None, Array | None]:
    """Return the inputs with the new running norm, whether the update is applied, and the factor that clips a spike."""
    shared = inputs.shared
    if policy.on_spike == 'ignore':
        return inputs, finite, None
    mean, count = inputs.state.running['norm']
    norm = scaled_norm(inputs.gradients, policy).astype(mean.dtype)
    norm = norm if inputs.loss_scale is None else norm / inputs.loss_scale.astype(mean.dtype)
    limit = shared.spike_factor.astype(mean.dtype) * mean
    is_spike = (count >= SPIKE_WARMUP) & (norm > limit)
    counted = jnp.isfinite(norm) if finite is None else finite
    sample = jnp.where(is_spike, limit, jnp.where(counted, norm, 0))
    new = jnp.stack([next_mean(shared, mean, count, sample), count + 1])
    running = {**inputs.state.running, 'norm': jnp.where(counted | is_spike, new, jnp.stack([mean, count]))}
    inputs = replace(inputs, state=replace(inputs.state, running=running))
    if policy.on_spike == 'clip':
        return inputs, finite, jnp.where(is_spike, limit / jnp.where(is_spike, norm, 1), 1)
    return inputs, ~is_spike if finite is None else finite & ~is_spike, None


def next_mean(shared: Hyperparameters, mean: Array, count: Array, sample: Array) -> Array:
    """Return the running norm with one more sample: the mean at first, then a moving average."""
    share = jnp.maximum(shared.spike_decay.complement.astype(mean.dtype), 1 / (count + 1))
    return mean + share * (sample - mean)
