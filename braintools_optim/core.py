"""Core: the parts of an optimizer, handed to the modules that update, save and describe an optimizer."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

import brainstate
import brainunit
import jax
import jax.numpy as jnp
from jax.core import Tracer

from braintools_optim.compiled.access import inside_transformation
from braintools_optim.compiled.buffers import is_lost, unshared
from braintools_optim.constraints import Projection, bound
from braintools_optim.loss_scale import DynamicLossScale
from braintools_optim.options.hyperparameters import Hyperparameters, values_of
from braintools_optim.options.types import ArrayOrQuantity, Options, OptionValue, Tree
from braintools_optim.settings import OptimState, Settings
from braintools_optim.step.metrics import first_metrics
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.rule import Rule, Slots
from braintools_optim.step.stages import init_stage_slots
from braintools_optim.step.state import OptimizerState, init_state, merge_slots, merge_states, without
from braintools_optim.weights.groups import Group
from braintools_optim.weights.predicates import Predicate, check_predicate, selected
from braintools_optim.weights.registered import Weights
from braintools_optim.weights.units import norm_scales

__all__ = ['Arguments', 'Core', 'refuse_evaluating']


@dataclass(frozen=True)
class Arguments:
    """The arguments of an optimizer's constructor that concern single weights, and cannot be assigned."""

    no_decay: Predicate | None
    constraints: Mapping[Predicate, Projection] | None
    norm_unit: Literal['own'] | brainunit.Unit | Sequence[brainunit.Unit] | None
    loss_scale: DynamicLossScale | float | None


@dataclass(eq=False)
class Core:
    """The parts of an optimizer: its rule, options, weights, groups and state."""

    rule: Rule
    settings: Settings
    arguments: Arguments
    policy: WeightPolicy
    step_count: OptimState
    metrics_state: OptimState | None
    weights: Weights = field(default_factory=Weights)
    groups: list[Group] = field(default_factory=list)
    opt_state: OptimState | None = None
    freezing: list[tuple[Predicate, bool]] = field(default_factory=list)
    """The predicates that were frozen (True) or unfrozen (False), in order, for weights that are registered later."""
    made_inside: bool = field(default_factory=inside_transformation)
    """Whether the optimizer was made inside a transformation."""

    @property
    def name(self) -> str:
        """The name of the optimizer's class."""
        return type(self.rule).__name__

    @property
    def state(self) -> OptimizerState:
        """The value of the optimizer state."""
        state: OptimizerState = self.registered('use').value
        return state

    @property
    def dynamic_loss_scale(self) -> DynamicLossScale | None:
        """The loss scale, if it adapts itself."""
        scale = self.arguments.loss_scale
        return scale if isinstance(scale, DynamicLossScale) else None

    def registered(self, action: str) -> OptimState:
        """Return the State of the optimizer state; raise if no weights are registered."""
        if self.opt_state is None:
            raise ValueError(f'register_trainable_weights must be called before {action}.')
        return self.opt_state

    def refuse_evaluating(self, action: str) -> None:
        """Raise while the States hold evaluation weights."""
        if self.opt_state is not None:
            refuse_evaluating(self.opt_state.value, action)

    def named_states(self) -> dict[str, brainstate.State]:
        """Return all States of the optimizer, those of its schedules included, by dotted path."""
        found: Tree = brainstate.graph.states(self.rule)
        return {'.'.join(map(str, path)): state for path, state in found.items()}

    # registration

    def add_groups(self, weights: Weights, groups: list[Group], overrides: list[Options]) -> None:
        """Register the weights of further groups, with the options that each overrides; an error registers none."""
        if inside_transformation() and not self.made_inside:
            raise ValueError(
                'Weights cannot be registered inside a transformation with an optimizer that was made outside: '
                'register them before, or make the optimizer inside too.'
            )
        options, add_options = self.settings.added(overrides)
        for own in options:
            self.check_options(Hyperparameters(own))
        named = weights.named()
        fresh = {key: named[key] for key in weights.keys[len(self.weights.keys) :]}
        policy, frozen = self.policy_with(fresh), set(self.settings.frozen)
        for predicate, freezing in self.freezing:
            (frozen.update if freezing else frozen.difference_update)(selected(predicate, fresh))
        states = []
        for index, (group, own) in enumerate(zip(groups, options, strict=True), len(self.groups)):
            leaves = {key: fresh[key] for key in group.keys}
            states.append(self.first_state(str(index), leaves, own, policy, frozen))
        state = functools.reduce(merge_states, states)
        weights.strengthen_types()
        add_options()
        if self.opt_state is None:
            self.opt_state = OptimState(state)
        else:
            self.opt_state.value = merge_states(self.opt_state.value, state)
        self.weights, self.groups, self.policy = weights, [*self.groups, *groups], policy
        if frozen != self.settings.frozen:
            self.settings.freeze(frozen)
        self.clear_metrics()

    def clear_metrics(self) -> None:
        """Start the metrics again, if there are any, for the present groups and weights."""
        if self.metrics_state is not None:
            weights = len(self.weights.keys) if self.policy.metrics == 'weights' else None
            self.metrics_state.value = first_metrics(len(self.groups), weights)

    def policy_with(self, fresh: Mapping[str, ArrayOrQuantity]) -> WeightPolicy:
        """Return the policy for the registered weights and for further ones."""
        arguments, policy = self.arguments, self.policy
        units = {key: brainunit.get_unit(w) for key, w in fresh.items()}
        patterns = [(f'constraints[{p!r}]', p) for p in arguments.constraints or {}] + [
            (f'no_decay={arguments.no_decay!r}', arguments.no_decay)
        ]
        for option, pattern in patterns:
            if isinstance(pattern, str) and not selected(pattern, {**self.weights.named(), **fresh}):
                warnings.warn(f'No weight is chosen by {option}. There are: {", ".join(fresh)}.', stacklevel=4)
        excluded = [] if arguments.no_decay is None else selected(arguments.no_decay, fresh)
        constraints = {**policy.constraints, **bound(arguments.constraints or {}, fresh)}
        scales = {**policy.norm_scales, **norm_scales(units, arguments.norm_unit)}
        return replace(policy, undecayed=policy.undecayed.union(excluded), constraints=constraints, norm_scales=scales)

    def first_state(
        self,
        group: str,
        leaves: Mapping[str, ArrayOrQuantity],
        options: Mapping[str, OptionValue],
        policy: WeightPolicy | None = None,
        frozen: Set[str] = frozenset(),
    ) -> OptimizerState:
        """Return the state of some weights of a group before their first update."""
        units = {key: brainunit.get_unit(w) for key, w in leaves.items()}
        arrays = {key: jnp.asarray(brainunit.get_mantissa(w)) for key, w in leaves.items()}
        state = init_state(self.rule, group, arrays, Hyperparameters(options), policy or self.policy, units, frozen)
        own: OptimizerState = unshared(state, arrays)  # an update donates its state, and must not donate a weight
        return own

    def replace_lost_state(self) -> None:
        """Start the optimizer state again if its buffers were lost, so that it can be loaded or reset."""
        opt_state = self.registered('use')
        if any(map(is_lost, jax.tree.leaves(opt_state.value))):
            named = self.weights.named()
            if lost := [key for key, w in named.items() if is_lost(brainunit.get_mantissa(w))]:
                raise ValueError(f'The weights {", ".join(lost)} were deleted. Assign their States first.')
            states = []
            for i, group in enumerate(self.groups):
                leaves = {key: named[key] for key in group.keys}
                states.append(self.first_state(str(i), leaves, self.settings.plain(i), frozen=self.settings.frozen))
            opt_state.value = functools.reduce(merge_states, states)
        if is_lost(self.step_count.value):
            self.step_count.value = jnp.zeros((), jnp.int32)
        if self.metrics_state is not None and any(map(is_lost, jax.tree.leaves(self.metrics_state.value))):
            self.clear_metrics()

    def check_options(self, options: Hyperparameters) -> None:
        """Raise if options do not go together. Traced options are unknown and pass."""
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(options)):
            self.rule.check_options(options)
        if self.rule.decays and options.decoupled_weight_decay:
            raise ValueError(f'Invalid decoupled_weight_decay=True. {self.name} applies weight_decay itself.')

    def check_change(self, before: Hyperparameters, after: Hyperparameters) -> None:
        """Raise if changed options do not go together, or would change the slots of registered weights."""
        self.check_options(after)
        if self.groups:
            self.check_traced_change(values_of(before), values_of(after))
        old, new = self.initial_slots(before), self.initial_slots(after)
        same = old.keys() == new.keys() and all(old[k] is new[k] or are_equal(old[k], new[k]) for k in old)
        if self.groups and not same:
            changed = {k: v for k, v in values_of(after).items() if v != values_of(before)[k]}
            raise ValueError(
                f'{changed} cannot be assigned once weights are registered: the optimizer state of each '
                f'would begin as {sorted(new)}, and it is {sorted(old)}.'
            )

    def check_traced_change(self, before: Options, after: Options) -> None:
        """Raise if a changed option needs slots that the optimizer state lacks, though its traced value is unknown."""
        state = self.registered('use').value
        for name in [k for k, value in before.items() if isinstance(value, Tracer) and after[k] is not value]:
            needed, needless = (self.initial_slots(Hyperparameters(x)) for x in (after, {**after, name: 0.0}))
            if lacking := sorted(needed.keys() - needless.keys() - {*state.slots, *state.stage_slots}):
                raise ValueError(
                    f'{name} cannot be assigned once weights are registered: it needs {lacking} in the optimizer '
                    f'state, which began without. Give {name} above 0 when you build the optimizer.'
                )

    def initial_slots(self, options: Hyperparameters) -> Slots:
        """Return all slots of a small weight before its first update, to tell whether options change them."""
        w = jnp.zeros((1, 1))
        return self.rule.initial_state(w, options) | init_stage_slots(self.policy.stages, w, options)

    # freezing

    def set_frozen(self, predicate: Predicate, freezing: bool) -> None:
        """Freeze or unfreeze weights. A weight that was never updated has no slots while it is frozen."""
        if inside_transformation():
            raise ValueError('Weights cannot be frozen inside a transformation: it decides what is compiled.')
        check_predicate(predicate)
        named = self.weights.named()
        names = selected(predicate, named)
        if named and not names:
            raise ValueError(f'No weight is chosen by {predicate!r}. There are: {", ".join(named)}.')
        self.freezing.append((predicate, freezing))
        if self.opt_state is None:
            return
        state = self.state
        counts = dict(zip(named, state.step, strict=True))
        slots, stage_slots = state.slots, state.stage_slots
        for index, group in enumerate(self.groups):
            new = [key for key in group.keys if key in names and counts[key] == 0]
            slots, stage_slots = without(slots, new), without(stage_slots, new)
            if not freezing:
                own = self.first_state(str(index), {key: named[key] for key in new}, self.settings.plain(index))
                slots, stage_slots = merge_slots(slots, own.slots), merge_slots(stage_slots, own.stage_slots)
        self.opt_state.value = replace(state, slots=slots, stage_slots=stage_slots)
        frozen = self.settings.frozen
        self.settings.freeze(frozen.union(names) if freezing else frozen.difference(names))


def are_equal(a: jax.Array, b: jax.Array) -> bool:
    """Return whether two arrays are equal; True for traced arrays, whose values are unknown."""
    same = jnp.array_equal(a, b)
    return isinstance(same, Tracer) or bool(same)


def refuse_evaluating(state: OptimizerState, action: str) -> None:
    """Raise if an optimizer state belongs to evaluation weights."""
    if state.evaluating:
        raise ValueError(
            f'{action} inside eval_weights: the States hold the weights to evaluate, not those in training. '
            f'Leave the block first.'
        )
