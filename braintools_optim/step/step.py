"""One pure step: gradients, parameters and optimizer state in, new parameters and state out. It touches no State."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from braintools_optim.constraints import Constraint
from braintools_optim.options.fields import fields_of
from braintools_optim.options.hyperparameters import Hyperparameters, values_of
from braintools_optim.options.hyperparameters import replace as with_values
from braintools_optim.options.types import Tree
from braintools_optim.step.clipping import global_norm, norm_clip_factor
from braintools_optim.step.gradients import checked, scaled_norm, transformed, without_spikes
from braintools_optim.step.inputs import Inputs, Outcome
from braintools_optim.step.observed import Observed, Update
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.rule import GroupInfo, GroupRule, Rule, Slots
from braintools_optim.step.stage import Context, Leaf, keep_if_finite
from braintools_optim.step.stages import DIRECTION, apply_stages, master_or_cast
from braintools_optim.step.state import slots_of
from braintools_optim.weights.precision import cast_floats, to_working

__all__ = ['MANY', 'check_gradients', 'next_skipped', 'step']

Array = jax.Array
T = TypeVar('T')
MANY = 8
"""The number of parameters from which on scalars are hidden from XLA's CPU fusion."""


def step(policy: WeightPolicy, inputs: Inputs) -> Outcome:
    """Return new parameters (or only their changes), the new optimizer state, and numbers for the metrics."""
    check_gradients(inputs.weights, inputs.gradients)
    inputs, finite = transformed(policy, *checked(policy, inputs))
    inputs, applied, calm = without_spikes(policy, inputs, finite)
    shared, state = inputs.shared, inputs.state
    norms = norms_over(shared, policy, inputs)
    factors = clip_factors(shared, norms, inputs, applied, calm)
    counts, places = next_counts(inputs), {key: i for i, key in enumerate(inputs.weights)}
    traced = {group.rule: traced_once(group.rule, policy) for group in inputs.groups}
    runs = [Run(group.rule, policy, inputs, places, traced[group.rule]) for group in inputs.groups]
    new_weights = dict(inputs.weights)
    if policy.changes_only:
        new_weights = {key: jnp.zeros_like(w) for key, w in inputs.weights.items()}
    slots, stage_slots = ({slot: dict(arrays) for slot, arrays in x.items()} for x in (state.slots, state.stage_slots))
    groups, updates = dict(state.groups), []
    for index, ((names, hp, rule), run, factor) in enumerate(zip(inputs.groups, runs, factors, strict=True)):
        group_counts = counts
        if list(names) != list(inputs.weights):
            group_counts = counts[np.array([places[key] for key in names], np.int32)]
        context = context_of(rule, policy, inputs, hp, factor, applied)
        if isinstance(rule, GroupRule):
            leaves, groups[str(index)] = run.update_together(rule, str(index), names, context, group_counts)
        else:
            leaves = run.update_each(names, context, group_counts)
        for key, leaf in leaves.items():
            new_weights[key] = leaf[0]
            for target, found in zip((slots, stage_slots), leaf[1:], strict=True):
                for slot, value in found.items():
                    target[slot][key] = value
        updates.append(Update(context, {key: leaf[0] for key, leaf in leaves.items()}))
    counted = without_pauses(counts, inputs, places)
    after = replace(
        state,
        step=counted if applied is None else jnp.where(applied, counted, state.step),
        skipped=next_skipped(state.skipped, applied, inputs.counts_skips(policy)),
        slots=slots,
        stage_slots=stage_slots,
        groups=groups,
    )
    return Outcome(new_weights, after, finite, applied, runs[0].observed(norms, updates) if policy.metrics else {})


def next_counts(inputs: Inputs) -> Array:
    """Return the update counts after this update."""
    updated = np.array([key in inputs.gradients for key in inputs.weights], np.int32)
    counts: Array = inputs.state.step + (1 if updated.all() else updated)
    return counts


def without_pauses(counts: Array, inputs: Inputs, places: Mapping[str, int]) -> Array:
    """Return the update counts, without the updates with a learning rate of 0 of rules that pause then."""
    for names, hp, rule in inputs.groups:
        if rule.pauses_without_lr:
            chosen = np.array([places[key] for key in names], np.int32)
            counts = counts.at[chosen].set(jnp.where(hp.lr == 0, inputs.state.step[chosen], counts[chosen]))
    return counts


def next_skipped(skipped: Array, finite: Array | None, counts: bool) -> Array:
    """Return the numbers of skipped updates. An update that raises is not counted, because it changes nothing."""
    if finite is None or not counts:
        return skipped
    total, consecutive = skipped
    return jnp.stack([total + (~finite).astype(total.dtype), jnp.where(finite, 0, consecutive + 1)])


def context_of(
    rule: Rule,
    policy: WeightPolicy,
    inputs: Inputs,
    hp: Hyperparameters,
    factor: Array | None,
    finite: Array | None,
) -> Context:
    """Return the values that the parameters of one group share in this step."""
    decay = 'decoupled' if hp.decoupled_weight_decay else 'coupled'
    if rule.decays or hp.weight_decay is None:
        decay = 'none'  # for the stages: either the rule applies the decay itself, or there is none
    off = [name for name, own in fields_of(type(rule)).items() if getattr(own.kind, 'off_at_zero', False)]
    hp = with_values(hp, **{name: jnp.zeros(()) for name in off if values_of(hp)[name] is None})
    nonfinite = 'skip' if finite is not None else inputs.shared.on_nonfinite
    return Context(hp, inputs.shared, factor, finite, nonfinite, decay, policy.changes_only)


# norms


def norms_over(shared: Hyperparameters, policy: WeightPolicy, inputs: Inputs) -> list[Array]:
    """Return the norms that clipping and metrics need: over all gradients, over each group, or over each gradient."""
    if shared.grad_clip_norm is None and not policy.metrics:
        return []
    gradients, groups = inputs.gradients, [group.names for group in inputs.groups]
    choices: dict[str, list[Sequence[str]]] = {
        'all': [[k for names in groups for k in names]],
        'group': groups,
        'weight': [[k] for k in gradients],
    }
    members = choices[shared.grad_clip_over]
    unscale = None if inputs.loss_scale is None else 1 / inputs.loss_scale
    norms = [scaled_norm({k: gradients[k] for k in names if k in gradients}, policy) for names in members]
    return norms if unscale is None else [norm * unscale for norm in norms]


def clip_factors(
    shared: Hyperparameters, norms: Sequence[Array], inputs: Inputs, applied: Array | None, calm: Array | None
) -> list[Array | None]:
    """Return the factor of the gradients of each group, None where there is none; ``calm`` is that of a spike."""
    unscale = None if inputs.loss_scale is None else 1 / inputs.loss_scale
    unscale = calm if unscale is None else unscale if calm is None else unscale * calm
    limit, count = shared.grad_clip_norm, len(inputs.groups)
    if limit is None or shared.grad_clip_over == 'weight':  # in the latter case a stage clips each parameter
        return [unscale] * count
    norms = norms if calm is None else [norm * calm for norm in norms]
    clips = [norm_clip_factor(norm, limit) for norm in norms] * (count if shared.grad_clip_over == 'all' else 1)
    if applied is not None:
        clips = [jnp.where(applied, clip, 0.0) for clip in clips]  # no NaN in derivatives
    return [clip if unscale is None else clip * unscale for clip in clips]


# the parameters of a group

Updated = tuple[Array, Slots, Slots]
"""A new parameter, its slots of the rule and its slots of the stages."""
Arrays = tuple[Array, Array, Slots, Slots, Tree, Array | None]
"""A parameter, its gradient, its slots of the rule and of the stages, the data of its constraint, and its index."""
Traced = Callable[[Constraint | None, Arrays, Context, dict[str, Array], Array | np.uint32], Updated]


def traced_once(rule: Rule, policy: WeightPolicy) -> Traced:
    """Return the update of one parameter as a function that is traced once for each distinct shape."""

    @functools.partial(jax.jit, static_argnums=0)
    def update(
        constraint: Constraint | None,
        arrays: Arrays,
        context: Context,
        by_place: dict[str, Array],
        place: Array,
    ) -> Updated:
        w, g, slots, stage_slots, data, index = arrays
        numbers = {name: jax.lax.dynamic_slice(x, (place,), (1,)).reshape(()) for name, x in by_place.items()}
        count = numbers.pop('')
        hp = Hyperparameters({'step': count.astype(context.hp.lr.dtype), **values_of(context.hp), **numbers})
        context = cast_floats(replace(context, hp=hp), like=to_working(w))
        weight = master_or_cast(w, stage_slots)
        g = g.astype(weight.dtype)
        leaf = Leaf(w, weight, g, slots, stage_slots, context, count, index, constraint, data)
        place_of_rule = policy.stages.index(DIRECTION)
        leaf = apply_stages(policy.stages[:place_of_rule], leaf)
        leaf = replace(leaf, gradient=to_working(leaf.gradient), weight=to_working(leaf.weight))
        direction, new = rule.direction(leaf.gradient, leaf.weight, cast_floats(slots, like=leaf.weight), context.hp)
        leaf = apply_stages(policy.stages[place_of_rule:], replace(leaf, direction=direction, new_slots=new))
        return leaf.result, leaf.new_slots, leaf.new_stage_slots

    traced: Traced = update
    return traced


@dataclass(frozen=True)
class Run:
    """One step while it is traced."""

    rule: Rule
    policy: WeightPolicy
    inputs: Inputs
    places: Mapping[str, int]
    update: Traced

    def update_each(self, names: Sequence[str], context: Context, counts: Array) -> dict[str, Updated]:
        """Map the direction of a rule over the parameters of a group."""
        if not names:
            return {}
        options = {'step': counts.astype(context.hp.lr.dtype), **values_of(context.hp)}
        prepared = self.rule.prepare(Hyperparameters(options))
        hidden = (context, {'': counts, **prepared}, list(np.arange(len(names), dtype=np.uint32)))
        context, by_place, places = hide_from_xla(hidden, counts)
        undecayed = without_decay(context)
        state = self.inputs.state
        updated = {}
        for key, place in zip(names, places, strict=True):
            if key in self.inputs.gradients:
                updated[key] = self.update(
                    self.policy.constraints.get(key),
                    (
                        self.inputs.weights[key],
                        self.inputs.gradients[key],
                        slots_of(state.slots, key),
                        slots_of(state.stage_slots, key),
                        state.constraint.get(key),
                        self.index(key),
                    ),
                    undecayed if key in self.policy.undecayed else context,
                    by_place,
                    place,
                )
        return updated

    def update_together(
        self, rule: GroupRule, group: str, names: Sequence[str], context: Context, counts: Array
    ) -> tuple[dict[str, Updated], Tree]:
        """Update all parameters of a group together. A parameter without a gradient counts with the gradient zero."""
        state, policy = self.inputs.state, self.policy
        before = state.groups[group]
        if not names:
            return {}, before
        leaves = {key: self.leaf(key, context, counts[i]) for i, key in enumerate(names)}
        place = policy.stages.index(DIRECTION)
        leaves = {key: apply_stages(policy.stages[:place], leaf) for key, leaf in leaves.items()}
        norm = global_norm(dict(self.inputs.gradients))
        norm = norm if self.inputs.loss_scale is None else norm / self.inputs.loss_scale
        decays = {key: leaf.hp.weight_decay for key, leaf in leaves.items()}
        directions, after = rule.group_direction(
            {key: leaf.gradient for key, leaf in leaves.items()},
            {key: leaf.weight for key, leaf in leaves.items()},
            before,
            context.hp,
            GroupInfo(counts, norm, decays, self.inputs.extra),
        )
        updated = {}
        for key, leaf in leaves.items():
            if key in self.inputs.gradients:
                working = replace(leaf, gradient=to_working(leaf.gradient), weight=to_working(leaf.weight))
                leaf = apply_stages(policy.stages[place:], replace(working, direction=to_working(directions[key])))
                updated[key] = leaf.result, leaf.new_slots, leaf.new_stage_slots
        return updated, keep_if_finite(context, after, before)

    def observed(self, norms: Sequence[Array], updates: Sequence[Update]) -> dict[str, Tree]:
        """Return the numbers for the metrics."""
        inputs, count = self.inputs, jnp.zeros((), jnp.int32)
        observed = Observed(self.policy, inputs.weights, inputs.gradients, inputs.loss_scale, norms, updates)
        return observed.numbers(inputs.shared.grad_clip_norm, functools.partial(self.leaf, count=count))

    def leaf(self, key: str, context: Context, count: Array) -> Leaf:
        """Return one parameter before the stages."""
        state, w = self.inputs.state, self.inputs.weights[key]
        context = cast_floats(without_decay(context) if key in self.policy.undecayed else context, like=to_working(w))
        if key not in self.inputs.gradients:
            context = replace(context, decay='none')
        stage_slots = slots_of(state.stage_slots, key)
        weight = master_or_cast(w, stage_slots)
        g = self.inputs.gradients.get(key, jnp.zeros_like(w)).astype(weight.dtype)
        constraint, data = self.policy.constraints.get(key), state.constraint.get(key)
        return Leaf(w, weight, g, {}, stage_slots, context, count, self.index(key), constraint, data)

    def index(self, key: str) -> Array | None:
        """Return the position of a parameter among all parameters, None if no random numbers are needed."""
        return jnp.uint32(self.places[key]) if self.inputs.shared.rounding == 'stochastic' else None


def without_decay(context: Context) -> Context:
    """Return the context of a parameter that is not decayed."""
    return replace(context, hp=with_values(context.hp, weight_decay=jnp.zeros(())), decay='none')


def hide_from_xla(numbers: T, counts: Array) -> T:
    """Hide scalars from XLA's CPU fusion so that they are not recomputed for each parameter.

    The position of the parameter is hidden, too: equal kernels are compiled only once, and a constant position would
    make them differ. With few parameters hiding costs more than it saves, and an accelerator would have to wait for the
    condition.
    """
    if jax.default_backend() != 'cpu' or len(counts) < MANY:
        return numbers
    others = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), numbers)
    hidden: T = jax.lax.cond(counts[0] < 0, lambda: others, lambda: numbers)
    return hidden


def check_gradients(weights: Mapping[str, ArrayLike], gradients: Mapping[str, object]) -> None:
    """Raise unless each gradient has the shape of its weight and a dtype that the weight allows."""
    wrong = []
    for key, gradient in gradients.items():
        w = jnp.asarray(weights[key])
        try:
            g = jnp.asarray(gradient)
        except (TypeError, ValueError):
            raise TypeError(f'The gradient of {key} is {type(gradient).__name__}. Must be an array.') from None
        fits = jnp.issubdtype(g.dtype, jnp.floating) or (jnp.iscomplexobj(g) and jnp.iscomplexobj(w))
        if w.shape != g.shape or not fits:
            wrong.append(f'{key}: the weight is {w.dtype}{list(w.shape)}, its gradient {g.dtype}{list(g.shape)}')
    if wrong:
        raise ValueError('Gradients must have the shapes of their weights. ' + '; '.join(wrong))
