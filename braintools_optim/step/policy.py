"""WeightPolicy: how single parameters are treated, by their names. A policy is fixed when a step is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jax.typing import DTypeLike

from braintools_optim.constraints import Constraint
from braintools_optim.step.stage import Stage

__all__ = ['WeightPolicy']


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
    changes_only: bool = False
    """Whether a step returns the changes of the parameters instead of the parameters."""
