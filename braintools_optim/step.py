"""One pure step: clip -> decay -> rule -> lr -> new weights. No State is touched here."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.buffers import unshared
from braintools_optim.clipping import clip_adaptively, clip_by_value, global_norm, norm_clip_factor
from braintools_optim.constraints import Constraint
from braintools_optim.options import Hyperparameters
from braintools_optim.precision import cast_floats, compute_dtype, from_working, round_stochastically, to_working
from braintools_optim.rule import Rule, Slots, TreeRule
from braintools_optim.treatment import Treatment

__all__ = [
    'MANY',
    'NOT_SLOTS',
    'Group',
    'Memory',
    'Outcome',
    'check_gradients',
    'first_slots',
    'init_memory',
    'merge_memory',
    'precise',
    'slots_of',
    'step',
]

Array = jax.Array
Leaves = Mapping[str, Array]
Memory = dict[str, Any]
Group = tuple[Sequence[str], Hyperparameters]
COUNTS = {'step', 'skipped'}
MANY = 8  # leaves
NOT_SLOTS = COUNTS | {'tree', 'constraint'}


class Outcome(NamedTuple):
    """What a step makes, and what it saw: ``finite`` (None if nobody looked) and the numbers for metrics."""

    weights: dict[str, Array]
    memory: Memory
    finite: Array | None
    metrics: dict[str, Any]


# memory


def init_memory(
    rule: Rule,
    group: str,
    weights: Leaves,
    hp: Hyperparameters,
    treatment: Treatment,
    units: Mapping[str, Any],
    frozen: Set[str] = frozenset(),
) -> Memory:
    """The memory of a group before its first update: ``{'step': counts, slot: {weight: array}}``."""
    memory: Memory = {name: jnp.asarray(np.zeros(n, np.int32)) for name, n in (('step', len(weights)), ('skipped', 2))}
    if isinstance(rule, TreeRule):
        computed = {key: jnp.asarray(w, compute_dtype(w)) for key, w in weights.items()}
        memory['tree'] = {group: rule.init_tree(computed, hp) if computed else {}}
    for key, w in weights.items():
        for slot, value in first_slots(rule, w, hp, treatment).items():
            memory.setdefault(slot, {}).update({} if key in frozen else {key: value})
        if key in treatment.constraints:
            memory.setdefault('constraint', {})[key] = treatment.constraints[key].begin(w, units[key])
    own: Memory = unshared(memory, weights)  # a step donates its memory, and may not donate a weight
    return own


def first_slots(rule: Rule, w: Array, hp: Hyperparameters, treatment: Treatment) -> Slots:
    """The slots of one weight before its first update."""
    working = to_working(w)
    slots = {} if isinstance(rule, TreeRule) else dict(rule.init_slots(working, hp))
    if hp.grokfast is not None:
        slots['grokfast'] = jnp.zeros_like(working)
    if treatment.state_dtype is not None:
        floats = {name for name, x in slots.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        slots = {name: x.astype(treatment.state_dtype) if name in floats else x for name, x in slots.items()}
    if treatment.master_weights and compute_dtype(w) != w.dtype:
        slots['master'] = working
    return slots


def merge_memory(memory: Memory, fresh: Memory) -> Memory:
    """The memory of some groups and of one more."""
    slots = {slot: memory.get(slot, {}) | fresh.get(slot, {}) for slot in {**memory, **fresh}.keys() - COUNTS}
    counts = jnp.concatenate([memory['step'], fresh['step']])
    return {**slots, 'step': counts, 'skipped': memory['skipped']}


# the step


def step(
    rule: Rule,
    shared: Hyperparameters,
    groups: Sequence[Group],
    weights: Leaves,
    gradients: Leaves,
    memory: Memory,
    extra: Mapping[str, Any],
    treatment: Treatment,
    loss_scale: Array | None = None,
    skip_nonfinite: bool = False,
) -> Outcome:
    """New weights (or only their changes), new memory, and what was seen.

    ``shared`` holds what concerns all groups together; ``groups`` is the names of the leaves and the
    hyperparameters of each group; a weight without a gradient stays as it is. ``memory['step']`` is in the
    order of ``weights``. ``extra`` is what a :class:`TreeRule` is told besides the gradients.
    """
    check_gradients(weights, gradients)
    guard = 'skip' if skip_nonfinite or shared.on_nonfinite in ('skip', 'raise') else shared.on_nonfinite
    finite = all_finite(gradients) if guard == 'skip' else None
    if guard == 'zero':
        gradients = {key: jnp.where(jnp.isfinite(g), g, 0) for key, g in gradients.items()}
    looked = {**shared.values(), 'guard': guard, 'finite': finite}
    factors, metrics = survey(shared, [keys for keys, _ in groups], gradients, treatment, looked, loss_scale)
    if isinstance(rule, TreeRule):
        norm = global_norm(dict(gradients))
        looked['grad_norm'] = norm if loss_scale is None else norm / loss_scale
    updated = np.array([key in gradients for key in weights], np.int32)
    counts = memory['step'] + (1 if updated.all() else updated)
    place = {key: i for i, key in enumerate(weights)}
    new_weights = dict(weights) if not treatment.changes_only else {k: jnp.zeros_like(w) for k, w in weights.items()}
    new_memory: Memory = {slot: dict(x) if isinstance(x, dict) else x for slot, x in memory.items()}

    @functools.partial(jax.jit, static_argnums=0)  # traced once for each distinct shape, however many leaves there are
    def update(
        constraint: Constraint | None, w: Array, g: Array, slots: Slots, data: Any, hp: Any, by_place: Any, place: Any
    ) -> tuple[Array, Slots]:
        own = {name: jax.lax.dynamic_slice(x, (place,), (1,)).reshape(()) for name, x in by_place.items()}
        return update_leaf(rule, constraint, w, g, slots, data, hp.with_values(**own))

    for index, ((keys, hp), factor) in enumerate(zip(groups, factors, strict=True)):
        decay = 'decoupled' if hp.decoupled_weight_decay else 'coupled'
        if rule.decays or hp.weight_decay is None:
            decay = 'none'  # here: the rule applies it, or there is none
            hp = hp.with_values(weight_decay=jnp.zeros(()) if hp.weight_decay is None else hp.weight_decay)
        own = counts if list(keys) == list(weights) else counts[np.array([place[key] for key in keys], np.int32)]
        hp = hp.with_values(**looked, factor=factor, decay=decay, changes_only=treatment.changes_only, step=own)
        by_place, places = {}, list(np.arange(len(keys), dtype=np.uint32))
        if not isinstance(rule, TreeRule) and keys:
            hp, by_place, places = opaque((hp, {'step': own, **rule.prepare(hp)}, places), own)
        undecayed = hp.with_values(weight_decay=jnp.zeros(()), decay='none')
        hps = {key: undecayed if key in treatment.undecayed else hp for key in keys}
        if shared.rounding == 'stochastic':  # what sets the random numbers of one weight apart from those of the others
            hps = {key: own_hp.with_values(place=jnp.uint32(place[key])) for key, own_hp in hps.items()}
        new: dict[str, Array] = {}
        if isinstance(rule, TreeRule) and keys:
            hps = {key: own_hp.with_values(step=own[i]) for i, (key, own_hp) in enumerate(hps.items())}
            new, state = update_tree(rule, hp, hps, weights, gradients, new_memory, str(index), extra, treatment)
            new_memory['tree'][str(index)] = state
        elif keys:
            for key, place_in_group in zip(keys, places, strict=True):
                if key in gradients:
                    new[key], slots = update(
                        treatment.constraints.get(key),
                        weights[key],
                        gradients[key],
                        slots_of(memory, key),
                        memory.get('constraint', {}).get(key),
                        hps[key],
                        by_place,
                        place_in_group,
                    )
                    for slot, value in slots.items():
                        new_memory[slot][key] = value
        if treatment.metrics:
            changes = {k: (w if treatment.changes_only else w - weights[k]) for k, w in new.items()}
            changed, size = (scaled_norm(x, treatment) for x in (changes, {k: weights[k] for k in new}))
            metrics['update_norms'].append(changed)
            metrics['update_ratio'].append(jnp.where(size > 0, changed / jnp.where(size > 0, size, 1), 0))
        new_weights |= new
    new_memory['step'] = counts if finite is None else jnp.where(finite, counts, memory['step'])
    if finite is not None and (skip_nonfinite or shared.on_nonfinite == 'skip'):  # one that raises changes nothing
        total, consecutive = memory['skipped']
        new_memory['skipped'] = jnp.stack([total + ~finite, jnp.where(finite, 0, consecutive + 1)])
    return Outcome(new_weights, new_memory, finite, metrics)


def survey(
    shared: Hyperparameters,
    groups: Sequence[Sequence[str]],
    gradients: Leaves,
    treatment: Treatment,
    looked: Mapping[str, Any],
    loss_scale: Array | None,
) -> tuple[list[Array | None], dict[str, Any]]:
    """What the gradients of each group are multiplied by, None if by nothing; and the metrics of it."""
    unscale = None if loss_scale is None else 1 / loss_scale
    limit, over = shared.grad_clip_norm, shared.grad_clip_over
    if limit is None and not treatment.metrics:
        return [unscale] * len(groups), {}

    def norm_of(keys: Sequence[str]) -> Array:
        norm = scaled_norm({key: gradients[key] for key in keys if key in gradients}, treatment)
        return norm if unscale is None else norm * unscale

    members = {'all': [[k for keys in groups for k in keys]], 'group': groups, 'weight': [[k] for k in gradients]}[over]
    norms = [norm_of(keys) for keys in members]
    factors: list[Array | None] = [unscale] * len(groups)
    if limit is not None and over != 'weight':  # else a leaf finds its own
        clips = [norm_clip_factor(norm, limit) for norm in norms] * (len(groups) if over == 'all' else 1)
        if looked['finite'] is not None:
            clips = [jnp.where(looked['finite'], clip, 0.0) for clip in clips]  # no NaN in derivatives
        factors = [clip if unscale is None else clip * unscale for clip in clips]
    if not treatment.metrics:
        return factors, {}
    clipped = jnp.any(jnp.stack(norms) > limit) if limit is not None and norms else jnp.zeros((), bool)
    total = jnp.sqrt(sum((norm**2 for norm in norms), start=jnp.zeros(())))
    return factors, {'grad_norm': total, 'clipped': clipped, 'update_norms': [], 'update_ratio': []}


def opaque(numbers: Any, counts: Array) -> Any:
    """The same numbers, of which XLA knows on a CPU neither what they are nor how they came about.

    It would repeat in the kernels of each leaf what makes them; and kernels are compiled once if they are
    equal, which the place of a leaf would keep them from. Among few leaves that saves less than it takes, and an
    accelerator would have to wait for the condition.
    """
    if jax.default_backend() != 'cpu' or len(counts) < MANY:
        return numbers
    others = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), numbers)
    return jax.lax.cond(counts[0] < 0, lambda: others, lambda: numbers)


def update_leaf(
    rule: Rule, constraint: Constraint | None, w: Array, g: Array, slots: Slots, data: Any, hp: Hyperparameters
) -> tuple[Array, Slots]:
    """One weight under a rule that looks at one at a time."""
    hp = cast_floats(hp, like=to_working(w))
    g, current, kept = seen(g, w, slots, hp)
    g, current = to_working(g), to_working(current)
    own = cast_floats({slot: x for slot, x in slots.items() if slot not in kept and slot != 'master'}, like=current)
    direction, new_slots = rule.direction(g, current, own, hp)
    return moved(direction, g, current, w, slots, {**new_slots, **kept}, constraint, data, hp)


def update_tree(
    rule: TreeRule,
    hp: Hyperparameters,
    hps: Mapping[str, Hyperparameters],
    weights: Leaves,
    gradients: Leaves,
    memory: Memory,
    group: str,
    extra: Mapping[str, Any],
    treatment: Treatment,
) -> tuple[dict[str, Array], Any]:
    """One group under a rule that looks at all its leaves together; one that stays has the gradient zero."""
    looks = {}
    hps = {key: cast_floats(own, like=to_working(weights[key])) for key, own in hps.items()}
    for key in hps:
        g = gradients.get(key, jnp.zeros_like(weights[key]))
        own = hps[key] if key in gradients else hps[key].with_values(decay='none')
        looks[key] = seen(g, weights[key], slots_of(memory, key), own)
    old = memory['tree'][group]
    hp = hp.with_values(weight_decays={key: own.weight_decay for key, own in hps.items()})
    directions, state = rule.tree_direction(
        {key: g for key, (g, _, _) in looks.items()}, {key: w for key, (_, w, _) in looks.items()}, old, hp, extra
    )
    new = {}
    for key, (g, w, kept) in looks.items():
        if key in gradients:
            direction, g, w = to_working(directions[key]), to_working(g), to_working(w)
            slots, data = slots_of(memory, key), memory.get('constraint', {}).get(key)
            constraint = treatment.constraints.get(key)
            new[key], kept = moved(direction, g, w, weights[key], slots, kept, constraint, data, hps[key])
            for slot, value in kept.items():
                memory[slot][key] = value
    return new, chosen(hp, state, old)


def slots_of(memory: Memory, key: str) -> Slots:
    return {slot: leaves[key] for slot, leaves in memory.items() if slot not in NOT_SLOTS and key in leaves}


def seen(g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Array, Slots]:
    """The gradient and the weight as the rule sees them, and the memory of this.

    Not finite entries -> loss scale and clipping by norm -> adaptively -> by value -> maximize -> coupled decay
    -> low frequencies amplified.
    """
    kept: Slots = {}
    current = precise(w, slots)
    g = g.astype(current.dtype)
    if hp.guard == 'skip':
        g = jnp.where(hp.finite, g, 0)
    if hp.factor is not None:
        g = g * hp.factor
    if hp.grad_clip_norm is not None and hp.grad_clip_over == 'weight':
        g = g * norm_clip_factor(global_norm(g), hp.grad_clip_norm).astype(hp.lr.dtype)
    if hp.grad_clip_adaptive is not None:
        g = clip_adaptively(g, current, hp.grad_clip_adaptive)
    if hp.grad_clip_value is not None:
        g = clip_by_value(g, hp.grad_clip_value)
    if hp.maximize:
        g = -g
    if hp.decay == 'coupled':
        g = g + hp.weight_decay * current
    if hp.grokfast is not None:
        sample, mean = to_working(g), slots['grokfast'].astype(hp.lr.dtype)
        mean = kept['grokfast'] = jnp.where(hp.step == 1, sample, hp.grokfast_decay.average(mean, sample))
        g = g + hp.grokfast * from_working(mean, g.dtype)
    return g, current, kept


def precise(w: Array, slots: Slots) -> Array:
    """A weight in the dtype of the arithmetic: its master copy, unless it was assigned meanwhile."""
    current = w.astype(compute_dtype(w))
    return jnp.where(slots['master'].astype(w.dtype) == w, slots['master'], current) if 'master' in slots else current


def moved(
    direction: Array,
    g: Array,
    current: Array,
    w: Array,
    slots: Slots,
    new_slots: Slots,
    constraint: Constraint | None,
    data: Any,
    hp: Hyperparameters,
) -> tuple[Array, Slots]:
    """The weight after its step along the direction, or the step alone; and its memory."""
    if hp.cautious:
        agrees = (direction * g > 0).astype(g.dtype)
        direction = direction * agrees / jnp.maximum(jnp.mean(agrees), 1e-3)
    if hp.decay == 'decoupled':
        direction = direction + hp.weight_decay * current
    change: Array = hp.lr * direction
    new = -change if hp.changes_only else current - change
    if hp.rounding == 'stochastic' and compute_dtype(w) != w.dtype:
        result = round_stochastically(new, w.dtype, jax.random.fold_in(jax.random.key(hp.place), hp.step))
    else:
        result = from_working(new, w.dtype)
    if constraint is not None:
        result = constraint.project(result, data).astype(w.dtype)
    if 'master' in slots:
        new_slots = {**new_slots, 'master': jnp.where(new.astype(w.dtype) == result, new, result.astype(new.dtype))}
    new_slots = {name: x.astype(slots[name].dtype) for name, x in new_slots.items()}
    untouched = jnp.zeros_like(w) if hp.changes_only else w
    return chosen(hp, result, untouched), chosen(hp, new_slots, {name: slots[name] for name in new_slots})


def chosen(hp: Hyperparameters, new: Any, old: Any) -> Any:
    """The new values, or the old ones if a gradient was not finite and the step is skipped for that."""
    return jax.tree.map(lambda x, y: jnp.where(hp.finite, x, y), new, old) if hp.guard == 'skip' else new


def scaled_norm(leaves: Leaves, treatment: Treatment) -> Array:
    scales = treatment.norm_scales
    return global_norm([g * scales[key] if key in scales else g for key, g in leaves.items()])


def all_finite(leaves: Leaves) -> Array:
    return functools.reduce(jnp.logical_and, (jnp.isfinite(g).all() for g in leaves.values()), jnp.ones((), bool))


def check_gradients(weights: Leaves, gradients: Mapping[str, Any]) -> None:
    wrong = []
    for key, gradient in gradients.items():
        w = jnp.asarray(weights[key])
        try:
            g = jnp.asarray(gradient)
        except (TypeError, ValueError):
            raise TypeError(f'The gradient of {key} is {type(gradient).__name__}. Must be an array.') from None
        if w.shape != g.shape or not fits(g, w):
            wrong.append(f'{key}: the weight is {w.dtype}{list(w.shape)}, its gradient {g.dtype}{list(g.shape)}')
    if wrong:
        raise ValueError('Gradients must have the shapes of their weights. ' + '; '.join(wrong))


def fits(g: Array, w: Array) -> bool:
    """Whether a gradient's dtype is one that a weight of this dtype can have."""
    return jnp.issubdtype(g.dtype, jnp.floating) or (jnp.iscomplexobj(g) and jnp.iscomplexobj(w))
