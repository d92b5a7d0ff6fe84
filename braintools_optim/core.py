"""Core: the parts of an optimizer, handed to the modules that update, save and describe an optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

import brainstate
import brainunit
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from braintools_optim.compiled.access import inside_transformation
from braintools_optim.compiled.buffers import is_lost, unshared
from braintools_optim.constraints import Projection, bound
from braintools_optim.groups.spec import GroupSpec, GroupValue
from braintools_optim.loss_scale import DynamicLossScale
from braintools_optim.options.hooks import Hooks
from braintools_optim.options.hyperparameters import Hyperparameters, values_of
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import ArrayOrQuantity, Options, Tree
from braintools_optim.settings import OptimState, Settings
from braintools_optim.step.accumulation import first_accumulation
from braintools_optim.step.gradients import first_norm, first_transforms
from braintools_optim.step.group import Group
from braintools_optim.step.metrics import first_metrics
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.rule import Rule, Slots
from braintools_optim.step.stages import init_stage_slots
from braintools_optim.step.state import OptimizerState, init_state, merge_slots, merge_states, without
from braintools_optim.weights.predicates import Predicate, check_predicate, selected
from braintools_optim.weights.registered import Weights
from braintools_optim.weights.sharding import Layout, beside
from braintools_optim.weights.units import norm_scales

__all__ = ['Arguments', 'Core', 'check_options', 'refuse_evaluating']


@dataclass(frozen=True)
class Arguments:
    """The arguments of an optimizer's constructor that concern single weights, and cannot be assigned."""

    no_decay: Predicate | None
    constraints: Mapping[Predicate, Projection] | None
    norm_unit: Literal['own'] | brainunit.Unit | Sequence[brainunit.Unit] | None
    loss_scale: DynamicLossScale | float | None
    gradient_transform: optax.GradientTransformationExtraArgs | None
    groups: Mapping[Predicate, GroupValue] | None
    shard_memory_over: str | None


@dataclass(eq=False)
class Core:
    """The parts of an optimizer: its rule, options, weights, groups and state."""

    rule: Rule
    settings: Settings
    arguments: Arguments
    policy: WeightPolicy
    step_count: OptimState
    metrics_state: OptimState | None
    did_update: OptimState
    """Whether the last call updated the weights; constant if gradients are not accumulated."""
    weights: Weights = field(default_factory=Weights)
    groups: list[Group] = field(default_factory=list)
    opt_state: OptimState | None = None
    hooks: Hooks = field(default_factory=Hooks)
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

    @explicit_transfers
    def add_groups(self, weights: Weights, specs: list[GroupSpec]) -> None:
        """Register the weights of further groups; an error registers none."""
        if inside_transformation() and not self.made_inside:
            raise ValueError(
                'Weights cannot be registered inside a transformation with an optimizer that was made outside: '
                'register them before, or make the optimizer inside too.'
            )
        groups = [spec.group for spec in specs]
        options, add_options = self.settings.added([spec.options for spec in specs])
        for group, own in zip(groups, options, strict=True):
            check_options(group.rule, Hyperparameters(own))
        named = weights.named()
        fresh = {key: named[key] for key in weights.keys[len(self.weights.keys) :]}
        policy, frozen = self.policy_with(fresh), set(self.settings.frozen)
        for predicate, freezing in self.freezing:
            (frozen.update if freezing else frozen.difference_update)(selected(predicate, fresh))
        for index, spec in enumerate(specs, len(self.groups)):
            policy, more = spec.treatment.applied(policy, {key: fresh[key] for key in spec.group.keys}, index)
            frozen.update(more)
        if self.arguments.gradient_transform is not None:
            transforms = {**policy.transforms, 'all': (tuple(weights.keys), self.arguments.gradient_transform)}
            policy = replace(policy, transforms=transforms)
        arrays = {key: jnp.asarray(brainunit.get_mantissa(w)) for key, w in named.items()}
        policy = replace(policy, layout=Layout.of(arrays, self.arguments.shard_memory_over))
        states = []
        for index, (group, own) in enumerate(zip(groups, options, strict=True), len(self.groups)):
            leaves = {key: fresh[key] for key in group.keys}
            states.append(self.first_state(index, group.rule, leaves, own, policy, frozen))
        state = merge_states(*states)
        weights.strengthen_types()
        add_options()
        state = state if self.opt_state is None else merge_states(self.opt_state.value, state)
        running = merge_running(state.running, beside(first_running(policy, arrays), arrays, policy.layout))
        if self.opt_state is None:
            self.opt_state = OptimState(replace(state, running=running))
        else:
            self.opt_state.value = replace(state, running=running)
        self.weights, self.groups, self.policy = weights, [*self.groups, *groups], policy
        if frozen != self.settings.frozen:
            self.settings.freeze(frozen)
        for counter in [self.step_count, *([scale.state] if (scale := self.dynamic_loss_scale) else [])]:
            counter.value = self.beside_weights(counter.value)
        self.settings.spread(policy.layout)
        self.clear_metrics()

    def beside_weights(self, tree: Tree) -> Tree:
        """Return a tree of arrays on the devices of the weights."""
        return beside(tree, self.weights.read(), self.policy.layout)

    def clear_metrics(self) -> None:
        """Start the metrics again, if there are any, for the present groups and weights."""
        if self.metrics_state is not None:
            weights = len(self.weights.keys) if self.policy.metrics == 'weights' else None
            self.metrics_state.value = self.beside_weights(first_metrics(len(self.groups), weights))

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
        index: int,
        rule: Rule,
        leaves: Mapping[str, ArrayOrQuantity],
        options: Options,
        policy: WeightPolicy,
        frozen: Set[str] = frozenset(),
    ) -> OptimizerState:
        """Return the state of some weights of a group before their first update."""
        units = {key: brainunit.get_unit(w) for key, w in leaves.items()}
        arrays = {key: jnp.asarray(brainunit.get_mantissa(w)) for key, w in leaves.items()}
        state = init_state(rule, str(index), arrays, Hyperparameters(options), policy, units, frozen)
        # an update donates its state, and must not donate a weight
        own: OptimizerState = unshared(beside(state, arrays, policy.layout), arrays)
        return own

    def first_running(self) -> dict[str, Tree]:
        """Return the numbers over all parameters before the first update."""
        running: dict[str, Tree] = self.beside_weights(first_running(self.policy, self.weights.read()))
        return running

    def restarted(
        self, index: int, leaves: Mapping[str, ArrayOrQuantity], frozen: Set[str] = frozenset()
    ) -> OptimizerState:
        """Return the state of some weights of a registered group as before their first update."""
        rule, options = self.groups[index].rule, self.settings.plain(index)
        return self.first_state(index, rule, leaves, options, self.policy, frozen)

    def replace_lost_state(self) -> None:
        """Start the optimizer state again if its buffers were lost, so that it can be loaded or reset."""
        opt_state = self.registered('use')
        if any(map(is_lost, jax.tree.leaves(opt_state.value))):
            named = self.weights.named()
            if lost := [key for key, w in named.items() if is_lost(brainunit.get_mantissa(w))]:
                raise ValueError(f'The weights {", ".join(lost)} were deleted. Assign their States first.')
            leaves = [{key: named[key] for key in group.keys} for group in self.groups]
            states = [self.restarted(i, own, self.settings.frozen) for i, own in enumerate(leaves)]
            opt_state.value = replace(merge_states(*states), running=self.first_running())
        if is_lost(self.step_count.value):
            self.step_count.value = self.beside_weights(jnp.zeros((), jnp.int32))
        if self.metrics_state is not None and any(map(is_lost, jax.tree.leaves(self.metrics_state.value))):
            self.clear_metrics()

    def check_change(self, group: int | None, before: Hyperparameters, after: Hyperparameters) -> None:
        """Raise if changed options do not go together, or would change the slots of registered weights."""
        rule = self.rule if group is None else self.groups[group].rule
        check_options(rule, after)
        old, new = self.initial_slots(rule, before), self.initial_slots(rule, after)
        same = old.keys() == new.keys() and all(old[k] is new[k] or are_equal(old[k], new[k]) for k in old)
        if self.groups and not same:
            options = values_of(before)
            given = {k: v for k, v in values_of(after).items() if v is not options[k]}
            changed = {k: v for k, v in given.items() if isinstance(v, Tracer) or v != options[k]}
            raise ValueError(
                f'{changed} cannot be assigned once weights are registered: the optimizer state of each would begin '
                f'as {sorted(new)}, and it is {sorted(old)}. Assign it before, or give it to the constructor.'
            )

    def initial_slots(self, rule: Rule, options: Hyperparameters) -> Slots:
        """Return all slots of a small weight before its first update, to tell whether options change them."""
        w = jnp.zeros((1, 1))
        return rule.initial_state(w, options) | init_stage_slots(self.policy.stages, w, options)

    # freezing

    @explicit_transfers
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
                own = self.restarted(index, {key: named[key] for key in new})
                slots, stage_slots = merge_slots(slots, own.slots), merge_slots(stage_slots, own.stage_slots)
        self.opt_state.value = replace(state, slots=slots, stage_slots=stage_slots)
        frozen = self.settings.frozen
        self.settings.freeze(frozen.union(names) if freezing else frozen.difference(names))


def first_running(policy: WeightPolicy, weights: Mapping[str, jax.Array]) -> dict[str, Tree]:
    """Return the numbers over all parameters before the first update."""
    running: dict[str, Tree] = {}
    if policy.accumulation is not None:
        running['accumulation'] = first_accumulation()
    if policy.transforms:
        running['transforms'] = first_transforms(policy, weights)
    if policy.on_spike != 'ignore':
        running['norm'] = first_norm()
    return running


def merge_running(before: Mapping[str, Tree], first: Mapping[str, Tree]) -> dict[str, Tree]:
    """Return the numbers over all parameters after further weights. A transformation of all gradients starts again."""
    merged = {**first, **before}
    if 'transforms' in first:
        of_groups = {name: state for name, state in before.get('transforms', {}).items() if name != 'all'}
        merged['transforms'] = {**first['transforms'], **of_groups}
    return merged


def check_options(rule: Rule, options: Hyperparameters) -> None:
    """Raise if options do not go together. Traced options are unknown and pass."""
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(options)):
        rule.check_options(options)
    if rule.decays and options.decoupled_weight_decay:
        raise ValueError(f'Invalid decoupled_weight_decay=True. {type(rule).__name__} applies weight_decay itself.')


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
