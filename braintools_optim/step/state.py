"""OptimizerState: the slots, update counts and further arrays that an optimizer keeps between updates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import brainunit
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.types import Tree
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.rule import Rule, Slots
from braintools_optim.step.stages import init_stage_slots
from braintools_optim.weights.precision import compute_dtype, to_working

__all__ = ['OptimizerState', 'init_leaf', 'init_state', 'merge_slots', 'merge_states', 'slots_of', 'without']

Array = jax.Array
BySlot = Mapping[str, Mapping[str, Array]]
OTHER_PARTS = ('step', 'skipped', 'constraint', 'tree', 'running')


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['step', 'skipped', 'slots', 'stage_slots', 'constraint', 'groups', 'running'],
    meta_fields=['evaluating'],
)
@dataclass(eq=False)  # not frozen, because every eager update makes one and frozen ones take 0.7 us longer
class OptimizerState(Mapping[str, Tree]):
    """The value of ``optimizer.opt_state``; ``state['exp_avg']['w']`` is the slot ``exp_avg`` of the weight ``w``."""

    step: Array
    """The update counts, one for each parameter in the order of ``optimizer.weight_names``."""
    skipped: Array
    """The number of skipped updates, in all and in a row."""
    slots: BySlot
    """The slots of the rule, ``{slot: {parameter: array}}``."""
    stage_slots: BySlot
    """The slots of the stages, in the same form."""
    constraint: Mapping[str, Tree]
    """The data that the constraints keep of each parameter."""
    groups: Mapping[str, Tree]
    """The states that rules keep of whole groups, by the number of the group."""
    running: Mapping[str, Tree] = field(default_factory=dict)
    """Numbers over all parameters between updates, such as those of the batches so far."""
    evaluating: bool = False
    """Whether the States of the model hold evaluation weights."""

    def parts(self) -> dict[str, Tree]:
        """Return all parts by name. A slot of the rule that has the name of another part is called ``slots.<name>``."""
        others: dict[str, Tree] = {**self.stage_slots, 'step': self.step, 'skipped': self.skipped}
        others |= {'constraint': self.constraint} if self.constraint else {}
        others |= {'tree': self.groups} if self.groups else {}
        others |= {'running': self.running} if self.running else {}
        return {self.part_name(slot): arrays for slot, arrays in self.slots.items()} | others

    def part_name(self, slot: str) -> str:
        """Return the name of a slot of the rule among all parts."""
        return f'slots.{slot}' if slot in {*self.stage_slots, *OTHER_PARTS} else slot

    def with_parts(self, parts: Mapping[str, Tree]) -> OptimizerState:
        """Return the state with the values of all parts, given by the names of :meth:`parts`."""
        return replace(
            self,
            step=parts['step'],
            skipped=parts['skipped'],
            slots={slot: parts[self.part_name(slot)] for slot in self.slots},
            stage_slots={slot: parts[slot] for slot in self.stage_slots},
            constraint=parts.get('constraint', {}),
            groups=parts.get('tree', {}),
            running=parts.get('running', {}),
        )

    def __getitem__(self, name: str) -> Tree:
        return self.parts()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts())

    def __len__(self) -> int:
        return len(self.parts())


def init_state(
    rule: Rule,
    group: str,
    weights: Mapping[str, Array],
    hp: Hyperparameters,
    policy: WeightPolicy,
    units: Mapping[str, brainunit.Unit],
    frozen: Set[str] = frozenset(),
) -> OptimizerState:
    """Return the state of a group before its first update. Frozen parameters have no slots yet."""
    slots: dict[str, dict[str, Array]] = {}
    stage_slots: dict[str, dict[str, Array]] = {}
    for key, w in weights.items():
        for target, found in zip((slots, stage_slots), init_leaf(rule, w, hp, policy), strict=True):
            for slot, value in found.items():
                target.setdefault(slot, {}).update({} if key in frozen else {key: value})
    computed = {key: jnp.asarray(w, compute_dtype(w)) for key, w in weights.items()}
    of_group = rule.init_group(computed, hp) if computed else {}
    return OptimizerState(
        step=jnp.asarray(np.zeros(len(weights), np.int32)),
        skipped=jnp.asarray(np.zeros(2, np.int32)),
        slots=slots,
        stage_slots=stage_slots,
        constraint={key: c.begin(weights[key], units[key]) for key, c in policy.constraints.items() if key in weights},
        groups={group: of_group} if rule.couples_parameters else {},
    )


def init_leaf(rule: Rule, w: Array, hp: Hyperparameters, policy: WeightPolicy) -> tuple[Slots, Slots]:
    """Return the slots of the rule and those of the stages for one parameter before its first update."""
    working = to_working(w)
    slots, stage_slots = dict(rule.init_slots(working, hp)), init_stage_slots(policy.stages, working, hp)
    if policy.state_dtype is not None:
        slots = {name: in_dtype(x, policy.state_dtype) for name, x in slots.items()}
        exact = {stage.slot for stage in policy.stages if not stage.in_state_dtype}
        stage_slots = {k: x if k in exact else in_dtype(x, policy.state_dtype) for k, x in stage_slots.items()}
    if policy.master_weights and compute_dtype(w) != w.dtype:
        stage_slots['master'] = working
    return slots, stage_slots


def in_dtype(x: Array, dtype: DTypeLike) -> Array:
    """Return a floating-point array in a dtype, any other array unchanged."""
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def merge_states(first: OptimizerState, *others: OptimizerState) -> OptimizerState:
    """Return the state of some groups and of further ones."""
    states = (first, *others)
    return replace(
        first,
        step=jnp.concatenate([state.step for state in states]),
        slots=functools.reduce(merge_slots, (state.slots for state in states)),
        stage_slots=functools.reduce(merge_slots, (state.stage_slots for state in states)),
        constraint={key: own for state in states for key, own in state.constraint.items()},
        groups={name: own for state in states for name, own in state.groups.items()},
    )


def merge_slots(slots: BySlot, fresh: BySlot) -> dict[str, dict[str, Array]]:
    """Return slots of some parameters and of further ones."""
    return {slot: {**slots.get(slot, {}), **fresh.get(slot, {})} for slot in {**slots, **fresh}}


def slots_of(slots: BySlot, key: str) -> Slots:
    """Return the slots of one parameter."""
    return {slot: leaves[key] for slot, leaves in slots.items() if key in leaves}


def without(slots: BySlot, names: Sequence[str]) -> dict[str, dict[str, Array]]:
    """Return slots without those of some weights."""
    return {slot: {key: x for key, x in arrays.items() if key not in names} for slot, arrays in slots.items()}
