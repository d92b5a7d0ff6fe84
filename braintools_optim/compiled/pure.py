"""PureStep: the step of an optimizer without its States, for optax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax

from braintools_optim.core import Core
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.hyperparameters import replace as with_values
from braintools_optim.options.types import Options, Tree
from braintools_optim.settings import OptionValues
from braintools_optim.step.inputs import GroupInputs, Inputs, Outcome
from braintools_optim.step.policy import WeightPolicy
from braintools_optim.step.rule import Extra
from braintools_optim.step.state import OptimizerState, init_state
from braintools_optim.step.step import step

__all__ = ['PureStep']

Leaves = Mapping[str, jax.Array]


@dataclass(frozen=True)
class PureStep:
    """The step of an optimizer with its present options and no States."""

    core: Core
    values: OptionValues
    positions: Mapping[str, Tree]
    """The positions of the schedules, rates set by hand and reductions included."""
    plain: Options

    @classmethod
    def of(cls, core: Core) -> PureStep:
        """Return the step of an optimizer with the options that it has now."""
        settings = core.settings
        return cls(core, settings.options, settings.positions(), settings.plain('defaults'))

    def at(self, count: jax.Array) -> tuple[Hyperparameters, Hyperparameters]:
        """Return the shared options and those of the weights, with all schedules at the epoch ``count``."""

        def moved(position: Tree) -> Tree:
            if 'manual' not in position:
                return {name: moved(part) for name, part in position.items()}
            return {**position, 'epoch': count} if 'epoch' in position else position

        settings, positions = self.core.settings, moved(self.positions)
        shared, hp = (settings.part(self.values, positions, part) for part in ('shared', 'defaults'))
        return shared, with_values(hp, lr=settings.lr_scheduler.rate(positions['lr']))

    def init(self, weights: Leaves) -> OptimizerState:
        """Return the optimizer state before the first update."""
        return init_state(self.core.rule, '0', weights, Hyperparameters(self.plain), self.policy(weights), {})

    def step(
        self, weights: Leaves, gradients: Leaves, state: OptimizerState, count: jax.Array, extra: Extra
    ) -> Outcome:
        """Return the changes of the weights and the new state, with the rate that the schedule has at ``count``."""
        shared, hp = self.at(count)
        inputs = Inputs(shared, [GroupInputs(list(weights), hp, self.core.rule)], weights, gradients, state, extra)
        return step(self.policy(weights), inputs)

    def policy(self, weights: Leaves) -> WeightPolicy:
        """Return the policy for these weights, under which a step returns their changes."""
        return replace(self.core.policy_with(weights), metrics=False, changes_only=True)
