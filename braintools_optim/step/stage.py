"""Stage: one step of an update, and Leaf: the record of a parameter that passes through all stages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import jax
import jax.numpy as jnp

from braintools_optim.constraints import Constraint
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.types import Tree
from braintools_optim.step.rule import Slots

__all__ = ['Context', 'Leaf', 'Stage', 'keep_if_finite']

Array = jax.Array
T = TypeVar('T')


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['hp', 'shared', 'factor', 'finite'],
    meta_fields=['nonfinite', 'decay', 'changes_only'],
)
@dataclass(frozen=True)
class Context:
    """The values that the parameters of a group share in one update."""

    hp: Hyperparameters
    """The options of the group."""
    shared: Hyperparameters
    """The options that concern all groups together."""
    factor: Tree
    """The factor of the gradients from loss scale and clipping by norm, None if there is none."""
    finite: Tree
    """Whether all gradients are finite, None if they were not checked."""
    nonfinite: str
    """The treatment of gradients that are not finite: ``'ignore'``, ``'zero'`` or ``'skip'``."""
    decay: str
    """How the stages apply weight decay: ``'none'``, ``'coupled'`` or ``'decoupled'``."""
    changes_only: bool
    """Whether the update returns the changes of the parameters instead of the parameters."""


@dataclass(frozen=True)
class Leaf:
    """One parameter on its way through the stages of an update."""

    stored: Array
    """The parameter as its State holds it."""
    weight: Array
    """The parameter in the dtype of the arithmetic."""
    gradient: Array
    slots: Slots
    """The slots of the rule, as the optimizer state holds them."""
    stage_slots: Slots
    """The slots of the stages, as the optimizer state holds them."""
    context: Context
    step: Array
    """The update count of the parameter, this update included."""
    index: Array | None = None
    """The position of the parameter among all parameters, from which its random numbers are derived."""
    constraint: Constraint | None = None
    constraint_data: Tree = None
    direction: Tree = None
    """The direction, which is subtracted after multiplication by the learning rate; None before the rule is asked."""
    new: Tree = None
    """The new parameter (or its change), in the dtype of the arithmetic."""
    result: Tree = None
    """The new parameter (or its change) as its State will hold it."""
    new_slots: Slots = field(default_factory=dict)
    new_stage_slots: Slots = field(default_factory=dict)

    @property
    def hp(self) -> Hyperparameters:
        """The options of the group."""
        return self.context.hp

    @property
    def shared(self) -> Hyperparameters:
        """The options that concern all groups together."""
        return self.context.shared

    def with_gradient(self, gradient: Array) -> Leaf:
        """Return the leaf with another gradient."""
        return replace(self, gradient=gradient)

    def with_direction(self, direction: Array) -> Leaf:
        """Return the leaf with another direction."""
        return replace(self, direction=direction)

    def with_slot(self, name: str, value: Array) -> Leaf:
        """Return the leaf with a new value of a stage's slot."""
        return replace(self, new_stage_slots={**self.new_stage_slots, name: value})


def always(leaf: Leaf) -> bool:
    """Switch a stage on for every parameter."""
    return True


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of an update: a function from :class:`Leaf` to :class:`Leaf`, on or off by the options.

    Parameters
    ----------
    apply : callable
        ``apply(leaf) -> leaf``, traced. Before the direction a stage changes ``leaf.gradient``, after the direction
        ``leaf.direction``.
    is_on : callable, optional
        ``is_on(leaf) -> bool`` decides, while the step is traced, whether the stage is part of it. Default: always.
    slot : str, optional
        The name of an array that the stage keeps for each parameter: ``leaf.stage_slots[slot]`` reads the array, and
        ``leaf.with_slot(slot, value)`` updates it.
    init : callable, optional
        ``init(w, hp) -> array`` makes the slot before the first update; None if the parameter has none.
    after_direction : bool, default False
        Whether the stage follows the direction of the rule. Only read for stages that are given as an option.
    in_state_dtype : bool, default True
        Whether the option ``state_dtype`` determines the dtype of the slot.

    Examples
    --------
    Scale the gradients of matrices:

    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD, Stage
    >>> halve = Stage(
    ...     lambda leaf: leaf.with_gradient(leaf.gradient / 2),
    ...     is_on=lambda leaf: leaf.gradient.ndim == 2,
    ... )
    >>> w = brainstate.ParamState(jnp.zeros((1, 1)))
    >>> optimizer = SGD(lr=1.0, stages=[halve]).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.ones((1, 1))})
    >>> float(w.value[0, 0])
    -0.5
    """

    apply: Callable[[Leaf], Leaf]
    is_on: Callable[[Leaf], bool] = always
    slot: str = ''
    init: Callable[[Array, Hyperparameters], Array | None] = lambda w, hp: None
    after_direction: bool = False
    in_state_dtype: bool = True


def keep_if_finite(context: Context, new: T, old: T) -> T:
    """Return the new values, or the old ones if the update is skipped because a gradient is not finite."""
    if context.nonfinite != 'skip':
        return new
    kept: T = jax.tree.map(lambda x, y: jnp.where(context.finite, x, y), new, old)
    return kept
