"""WeightPolicy: how single parameters are treated, by their names. A policy is fixed when a step is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import optax
from jax.typing import DTypeLike

from braintools_optim.constraints import Constraint, Projection, bound, chained
from braintools_optim.options.types import ArrayOrQuantity
from braintools_optim.step.stage import Stage
from braintools_optim.weights.predicates import Predicate, selected
from braintools_optim.weights.sharding import Layout

__all__ = ['Accumulation', 'Treatment', 'WeightPolicy']


@dataclass(frozen=True)
class Accumulation:
    """The number of batches that an update takes, and whether their gradients are averaged or added."""

    steps: int
    reduction: Literal['mean', 'sum'] = 'mean'


@dataclass(frozen=True)
class WeightPolicy:
    """The parameters that are not decayed or obey a constraint, and the form in which their state is kept."""

    stages: tuple[Stage, ...]
    """All stages of an update, in order."""
    undecayed: frozenset[str] = frozenset()
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    norm_scales: Mapping[str, float] = field(default_factory=dict)
    """The factors of gradients in norms, where they are not 1."""
    state_dtype: DTypeLike | None = None
    master_weights: bool = False
    metrics: bool | Literal['weights'] = False
    accumulation: Accumulation | None = None
    transforms: Mapping[str, tuple[tuple[str, ...], optax.GradientTransformationExtraArgs]] = field(
        default_factory=dict
    )
    """Transformations of gradients before clipping, with the names of the parameters, by 'all' or a group's number."""
    norm_axis_name: str | tuple[str, ...] | None = None
    """The axes of a mesh over whose shards norms are summed, inside ``jax.shard_map``."""
    layout: Layout = Layout()  # noqa: RUF009 (a frozen record)
    """How the weights and slots are laid out over several devices."""
    on_spike: str = 'ignore'
    """The treatment of gradients whose norm is far above the running norm: ``'ignore'``, ``'skip'`` or ``'clip'``."""
    changes_only: bool = False
    """Whether a step returns the changes of the parameters instead of the parameters."""


@dataclass(frozen=True)
class Treatment:
    """The treatment of the parameters of one group: whether they are not decayed, constrained or frozen."""

    no_decay: Predicate | None = None
    constraints: Mapping[Predicate, Projection] = field(default_factory=dict)
    freeze: Predicate | None = None
    gradient_transform: optax.GradientTransformationExtraArgs | None = None

    def applied(
        self, policy: WeightPolicy, weights: Mapping[str, ArrayOrQuantity], index: int
    ) -> tuple[WeightPolicy, list[str]]:
        """Return a policy that also treats the weights of the group, and the names of the weights to freeze."""
        chosen, frozen = ([] if p is None else selected(p, weights) for p in (self.no_decay, self.freeze))
        constraints, outer = bound(self.constraints, weights), policy.constraints
        chains = {key: chained((outer[key], c)) if key in outer else c for key, c in constraints.items()}
        undecayed = policy.undecayed.union(chosen)
        own = {} if self.gradient_transform is None else {str(index): (tuple(weights), self.gradient_transform)}
        transforms = {**policy.transforms, **own}
        return replace(policy, undecayed=undecayed, constraints={**outer, **chains}, transforms=transforms), frozen
