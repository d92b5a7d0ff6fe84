"""The loss as a function of named leaves, for rules that compute it again."""

from __future__ import annotations

from collections.abc import Callable

import brainstate

from braintools_optim.options.types import ArrayOrQuantity
from braintools_optim.step.rule import Leaves
from braintools_optim.weights.registered import Weights

__all__ = ['loss_of_leaves']


def loss_of_leaves(
    value_fn: Callable[..., ArrayOrQuantity], registered: Weights
) -> Callable[[Leaves], ArrayOrQuantity]:
    """Return a loss as a function of named leaves, without any change of the States of the model.

    ``value_fn`` takes the tree of the weights, or nothing and reads the States.
    """
    if not registered.keys:
        raise ValueError('A value_fn needs the weights that it is a function of: register_trainable_weights.')
    loss = registered.reading(value_fn)

    def value_of(leaves: Leaves) -> ArrayOrQuantity:
        trace = brainstate.StateTraceStack()
        try:
            with trace, registered.replaced(leaves):
                return loss()
        finally:  # what the loss writes belongs to a derivative or a branch, and must not leave it
            trace.recovery_original_values()

    return value_of
