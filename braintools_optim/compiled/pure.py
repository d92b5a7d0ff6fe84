"""PureStep: the step of an optimizer without its States, for optax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax

from braintools_optim.core import Core
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.hyperparameters import replace as with_values
from braintools_optim.options.types import Options
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.rule import Extra
from braintools_optim.step.state import OptimizerState, init_state
from braintools_optim.step.step import Inputs, Outcome, step

__all__ = ['PureStep']

Leaves = Mapping[str, jax.Array]


@dataclass(frozen=True)
class PureStep:
    """The step of an optimizer with its present options and no States."""

    core: Core
    shared: Hyperparameters
    options: Hyperparameters
    plain: Options
    schedule: LRScheduler

    @classmethod
    def of(cls, core: Core) -> PureStep:
        """Return the step of an optimizer with the options that it has now."""
        settings = core.settings
        values, positions = settings.options, settings.positions()
        shared, options = (settings.part(values, positions, part) for part in ('shared', 'defaults'))
        return cls(core, shared, options, settings.as_plain(options), settings.lr_scheduler)

    def init(self, weights: Leaves) -> OptimizerState:
        """Return the optimizer state before the first update."""
        return init_state(self.core.rule, '0', weights, Hyperparameters(self.plain), self.policy(weights), {})

    def step(
        self, weights: Leaves, gradients: Leaves, state: OptimizerState, count: jax.Array, extra: Extra
    ) -> Outcome:
        """Return the changes of the weights and the new state, with the rate that the schedule has at ``count``."""
        groups = [(list(weights), with_values(self.options, lr=self.schedule.lr_at(count)))]
        return step(self.core.rule, self.policy(weights), Inputs(self.shared, groups, weights, gradients, state, extra))

    def policy(self, weights: Leaves) -> WeightPolicy:
        """Return the policy for these weights, under which a step returns their changes."""
        return replace(self.core.policy_with(weights), metrics=False, changes_only=True)
