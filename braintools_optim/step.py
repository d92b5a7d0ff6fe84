"""One pure step: clip -> decay -> rule -> lr -> new weights. No State is touched here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.clipping import clip_by_value, global_norm, norm_clip_factor
from braintools_optim.options import Hyperparameters
from braintools_optim.precision import cast_floats, compute_dtype, from_working, to_working
from braintools_optim.rule import Rule, TreeRule

__all__ = ['Memory', 'init_memory', 'merge_memory', 'step']

Array = jax.Array
Leaves = Mapping[str, Array]
Memory = dict[str, Any]
Group = tuple[Sequence[str], Hyperparameters]


def init_memory(rule: Rule, group: str, weights: Leaves, hp: Hyperparameters) -> Memory:
    """The memory of a group before its first update: ``{'step': counts, slot: {weight: array}}``."""
    memory: Memory = {'step': jnp.zeros(len(weights), jnp.int32)}
    if isinstance(rule, TreeRule):
        computed = {key: jnp.asarray(w, compute_dtype(w)) for key, w in weights.items()}
        memory['tree'] = {group: rule.init_tree(computed, hp)}
    else:
        for key, w in weights.items():
            for slot, value in rule.init_slots(to_working(w), hp).items():
                memory.setdefault(slot, {})[key] = value
    copies: Memory = jax.tree.map(jnp.array, memory)  # a step donates its memory, and may not donate a weight
    return copies


def merge_memory(memory: Memory, fresh: Memory) -> Memory:
    """The memory of some groups and of one more."""
    slots = {slot: {**memory.get(slot, {}), **fresh.get(slot, {})} for slot in {**memory, **fresh} if slot != 'step'}
    return {'step': jnp.concatenate([memory['step'], fresh['step']]), **slots}


def step(
    rule: Rule,
    shared: Hyperparameters,
    groups: Sequence[Group],
    weights: Leaves,
    gradients: Leaves,
    memory: Memory,
    extra: Mapping[str, Any],
    changes_only: bool = False,
) -> tuple[dict[str, Array], Memory]:
    """New weights (or only their changes) and new memory.

    ``shared`` holds what concerns all groups together, the clipping; ``groups`` is the names of the
    leaves and the hyperparameters of each group, in the order of ``memory['step']``; ``extra`` is
    what a :class:`TreeRule` is told besides the gradients.
    """
    check_gradients(weights, gradients)
    common = {**shared.values(), 'changes_only': changes_only}
    if shared.grad_clip_norm is not None:
        common['clip_factor'] = norm_clip_factor(global_norm(dict(gradients)), shared.grad_clip_norm)
    new_weights: dict[str, Array] = {}
    new_memory: Memory = {'step': memory['step'] + 1, **{slot: {} for slot in memory if slot != 'step'}}
    first = 0
    for index, (keys, hp) in enumerate(groups):
        decay = 'decoupled' if hp.decoupled_weight_decay else 'coupled'
        if rule.decays or hp.weight_decay is None:
            decay = 'none'  # here: the rule applies it, or there is none
            hp = hp.with_values(weight_decay=jnp.zeros(()) if hp.weight_decay is None else hp.weight_decay)
        hp = hp.with_values(**common, decay=decay, step=new_memory['step'][first : first + len(keys)])
        own_weights, own_gradients = ({key: leaves[key] for key in keys} for leaves in (weights, gradients))
        if isinstance(rule, TreeRule):
            state = memory['tree'][str(index)]
            updated, state = update_tree(rule, hp, own_weights, own_gradients, state, extra)
            slots: Memory = {'tree': {str(index): state}}
        else:
            updated, slots = update_leaves(rule, hp, own_weights, own_gradients, memory)
        new_weights |= updated
        for slot, values in slots.items():
            new_memory[slot] |= values
        first += len(keys)
    return new_weights, new_memory


def update_leaves(
    rule: Rule, hp: Hyperparameters, weights: Leaves, gradients: Leaves, memory: Memory
) -> tuple[dict[str, Array], Memory]:
    """One group under a rule that looks at one leaf at a time."""

    @jax.jit  # traced once for each distinct shape, however many leaves there are
    def update_leaf(w: Array, g: Array, slots: dict[str, Array], hp: Hyperparameters) -> tuple[Array, dict[str, Array]]:
        dtype, g, w = w.dtype, to_working(g.astype(compute_dtype(w))), to_working(w)
        hp = cast_floats(hp, like=w)
        direction, new_slots = rule.direction(clip_and_decay(g, w, hp), w, slots, hp)
        new_slots = {name: new_slots[name].astype(slots[name].dtype) for name in slots}
        return from_working(apply_direction(direction, w, hp), dtype), new_slots

    prepared = rule.prepare(hp)
    new_weights: dict[str, Array] = {}
    new_slots: Memory = {}
    for i, (key, w) in enumerate(weights.items()):
        own = hp.with_values(step=hp.step[i], **{name: value[i] for name, value in prepared.items()})
        slots = {slot: leaves[key] for slot, leaves in memory.items() if slot != 'step' and key in leaves}
        new_weights[key], slots = update_leaf(w, gradients[key], slots, own)
        for slot, value in slots.items():
            new_slots.setdefault(slot, {})[key] = value
    return new_weights, new_slots


def update_tree(
    rule: TreeRule, hp: Hyperparameters, weights: Leaves, gradients: Leaves, state: Any, extra: Mapping[str, Any]
) -> tuple[dict[str, Array], Any]:
    """One group under a rule that looks at all its leaves together."""
    computed = {key: w.astype(compute_dtype(w)) for key, w in weights.items()}
    hps = {key: cast_floats(hp, like=w.real) for key, w in computed.items()}
    seen = {key: clip_and_decay(gradients[key].astype(w.dtype), w, hps[key]) for key, w in computed.items()}
    directions, state = rule.tree_direction(seen, computed, state, hp, extra)
    new = {key: apply_direction(directions[key], w, hps[key]) for key, w in computed.items()}
    return {key: new[key].astype(w.dtype) for key, w in weights.items()}, state


def clip_and_decay(g: Array, w: Array, hp: Hyperparameters) -> Array:
    """The gradient as the rule sees it: clipped by norm, then by value, then with coupled decay."""
    if hp.grad_clip_norm is not None:
        g = g * hp.clip_factor
    if hp.grad_clip_value is not None:
        g = clip_by_value(g, hp.grad_clip_value)
    if hp.maximize:
        g = -g
    return g + hp.weight_decay * w if hp.decay == 'coupled' else g


def apply_direction(direction: Array, w: Array, hp: Hyperparameters) -> Array:
    """The weight after its step along the direction, or the step alone."""
    if hp.decay == 'decoupled':
        direction = direction + hp.weight_decay * w
    change: Array = hp.lr * direction
    return w - change if not hp.changes_only else -change


def check_gradients(weights: Leaves, gradients: Leaves) -> None:
    wrong = [
        f'{key}: the weight is {w.dtype}{list(w.shape)}, its gradient {g.dtype}{list(g.shape)}'
        for key, w, g in ((key, jnp.asarray(weights[key]), jnp.asarray(gradients[key])) for key in weights)
        if w.shape != g.shape or not fits(g, w)
    ]
    if wrong:
        raise ValueError('Gradients must have the shapes of their weights. ' + '; '.join(wrong))


def fits(g: Array, w: Array) -> bool:
    """Whether a gradient's dtype is one that a weight of this dtype can have."""
    return jnp.issubdtype(g.dtype, jnp.floating) or (jnp.iscomplexobj(g) and jnp.iscomplexobj(w))
