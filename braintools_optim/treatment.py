"""Treatment: what is done to single weights, by their names; fixed when a step is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from braintools_optim.constraints import Constraint

__all__ = ['Treatment']


@dataclass(frozen=True)
class Treatment:
    """Which weights are not decayed, obey a constraint, count in another unit, and how their memory is kept."""

    undecayed: frozenset[str] = frozenset()
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    norm_scales: Mapping[str, float] = field(default_factory=dict)
    """What a gradient is multiplied by in norms."""
    state_dtype: Any = None
    master_weights: bool = False
    metrics: bool = False
    changes_only: bool = False
    """Whether a step returns the changes of the weights instead of the weights."""
