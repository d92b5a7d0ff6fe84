"""Inputs and Outcome: the records that go into a step and come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax

from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.types import Tree
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.rule import Extra, Rule
from braintools_optim.step.state import OptimizerState

__all__ = ['GroupInputs', 'Inputs', 'Outcome']

Array = jax.Array


class GroupInputs(NamedTuple):
    """The leaf names, the options and the rule of a group."""

    names: Sequence[str]
    hp: Hyperparameters
    rule: Rule


@dataclass(frozen=True)
class Inputs:
    """The inputs of one step."""

    shared: Hyperparameters
    """The options that concern all groups together."""
    groups: Sequence[GroupInputs]
    weights: Mapping[str, Array]
    gradients: Mapping[str, Array]
    """The gradients by name. A parameter without a gradient stays as it is."""
    state: OptimizerState
    extra: Extra
    """The arguments of a rule besides gradients, see :class:`GroupInfo`."""
    loss_scale: Array | None = None
    skip_nonfinite: bool = False
    """Whether the loss scale adapts itself, so that an update whose gradients are not finite is skipped."""

    def counts_skips(self, policy: WeightPolicy) -> bool:
        """Return whether an update that is not applied counts as skipped."""
        return self.skips or policy.on_spike == 'skip'

    @property
    def skips(self) -> bool:
        """Whether an update whose gradients are not finite is skipped and counted."""
        return self.skip_nonfinite or self.shared.on_nonfinite == 'skip'

    @property
    def checks(self) -> bool:
        """Whether an update needs to know if its gradients are finite."""
        return self.skips or self.shared.on_nonfinite == 'raise'

    @property
    def zeroes(self) -> bool:
        """Whether entries that are not finite count as 0."""
        return self.shared.on_nonfinite == 'zero' and not self.skip_nonfinite


class Outcome(NamedTuple):
    """The results of a step."""

    weights: dict[str, Array]
    state: OptimizerState
    finite: Array | None
    """Whether all gradients are finite, None if they were not checked."""
    applied: Array | None
    """Whether the parameters were updated, None if they are in any case."""
    metrics: dict[str, Tree]
    """Numbers for the metrics."""
