"""Rule, GroupRule: the base classes of algorithms, for one parameter or for all parameters of a group together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.types import Tree
from braintools_optim.weights.precision import cast_floats, from_working, to_working, widest

__all__ = ['Extra', 'GroupInfo', 'GroupRule', 'Leaves', 'RealGroupRule', 'Rule', 'Slots', 'as_reals']

Array = jax.Array
Slots = dict[str, Array]
Leaves = dict[str, Array]
Extra = Mapping[str, Any]
"""The arguments of a rule besides gradients, by name: the loss, its function, arguments of an optax transformation."""


class Rule:
    """The algorithm of an optimizer, for one parameter. The :class:`Optimizer` does everything else."""

    decays: ClassVar[bool] = False
    """Whether :meth:`direction` applies ``hp.weight_decay`` itself, as LAMB does."""
    couples_parameters: ClassVar[bool] = False
    """Whether the rule needs the gradients of all parameters of a group together."""
    works_per_group: ClassVar[bool] = True
    """Whether one group may have this algorithm while other groups have others."""
    pauses_without_lr: ClassVar[bool] = False
    """Whether an update with a learning rate of 0 is not counted, because the rule leaves its state unchanged."""

    @property
    def has_evaluation(self) -> bool:
        """Whether the weights to evaluate may differ from those in training."""
        return type(self).evaluation is not Rule.evaluation

    def check_options(self, hp: Hyperparameters) -> None:
        """Raise ``ValueError`` if options do not go together. The options are Python numbers and flags here."""

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        """Return the slots of one parameter, by name, before its first update."""
        return {}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        """Return numbers that depend on the update count ``hp.step`` alone, computed once for all parameters.

        ``hp.step`` is a vector here, with one count for each parameter, and so is each result;
        :meth:`direction` finds the entry of its parameter as ``hp.<name>``.
        """
        return {}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        """Return the direction, which is *subtracted* from ``w`` after multiplication by ``lr``, and the new slots.

        ``hp`` holds every option by name, the results of :meth:`prepare`, the learning rate ``hp.lr`` and the update
        count ``hp.step``, a float, unless an option has one of these names.
        """
        raise NotImplementedError(f'{type(self).__name__} must define direction(g, w, slots, hp).')

    def evaluation(self, w: Array, slots: Slots, hp: Hyperparameters) -> Array:
        """Return the parameter to evaluate, if it differs from the one in training."""
        raise TypeError(f'{type(self).__name__} has no evaluation weights: evaluate the weights themselves.')

    def init_group(self, weights: Leaves, hp: Hyperparameters) -> Tree:
        """Return the state that the rule keeps of a whole group, any tree, before the first update."""
        return None

    def initial_state(self, w: Array, hp: Hyperparameters) -> Slots:
        """Return all slots that the rule would keep for one parameter, to tell whether options change the slots."""
        return self.init_slots(w, hp)


@dataclass(frozen=True)
class GroupInfo:
    """The inputs of a :class:`GroupRule` besides gradients, parameters, state and hyperparameters."""

    counts: Array
    """The number of updates of each parameter, the present one included."""
    grad_norm: Array
    """The norm of the gradients of all groups before clipping."""
    weight_decays: dict[str, Array]
    """The weight decay of each parameter, for a rule that applies it itself."""
    extra: Extra
    """The result of ``extra_args`` of the optimizer, such as the loss."""

    @property
    def count(self) -> Array:
        """The update count of the group. The count of a frozen parameter stands still."""
        return jnp.max(self.counts)


class GroupRule(Rule):
    """A rule that needs all parameters of a group together, such as any optax transformation."""

    couples_parameters: ClassVar[bool] = True

    @property
    def has_evaluation(self) -> bool:
        return type(self).group_evaluation is not GroupRule.group_evaluation

    def initial_state(self, w: Array, hp: Hyperparameters) -> Slots:
        return {}

    def group_direction(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        """Return the directions, which are *subtracted* after multiplication by ``lr``, and the new state."""
        raise NotImplementedError(f'{type(self).__name__} must define group_direction(g, w, state, hp, info).')

    def group_evaluation(self, w: Leaves, state: Tree, hp: Hyperparameters) -> Leaves:
        """Return the parameters to evaluate, if they differ from those in training."""
        raise TypeError(f'{type(self).__name__} has no evaluation weights: evaluate the weights themselves.')


class RealGroupRule(GroupRule):
    """A group rule on real numbers: complex parameters are pairs of reals. Each entry of its state keeps its dtype."""

    state_dtype: DTypeLike | None

    def init_state(self, w: Leaves, hp: Hyperparameters) -> dict[str, Tree]:
        """Return the state before the first update: numbers of the group, and slots ``{name: {parameter: array}}``."""
        return {}

    def directions(
        self, g: Leaves, w: Leaves, state: dict[str, Tree], hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, dict[str, Tree]]:
        """Return the directions and the new state."""
        raise NotImplementedError(f'{type(self).__name__} must define directions(g, w, state, hp, info).')

    def initial_state(self, w: Array, hp: Hyperparameters) -> Slots:
        leaves = jax.tree_util.tree_flatten_with_path(self.init_state({'w': w}, hp))[0]
        return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}

    def init_group(self, weights: Leaves, hp: Hyperparameters) -> Tree:
        state = self.init_state(as_reals(weights), hp)
        slots = {name: x for name, x in state.items() if isinstance(x, dict) and self.state_dtype is not None}
        return state | {name: {k: x.astype(self.state_dtype) for k, x in slot.items()} for name, slot in slots.items()}

    def group_direction(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        gradients, weights = as_reals(g), as_reals(w)
        like = jnp.zeros((), widest(w.dtype for w in weights.values()))
        hp, wide, norm, decays = cast_floats((hp, state, info.grad_norm, info.weight_decays), like=like)
        info = replace(info, grad_norm=norm, weight_decays=decays)
        directions, new = self.directions(gradients, weights, wide, hp, info)
        new = jax.tree.map(lambda old, x: x.astype(old.dtype), state, new)
        return {key: from_working(d, w[key].dtype) for key, d in directions.items()}, new


def as_reals(leaves: Leaves) -> Leaves:
    """Return complex numbers as pairs of reals, and everything in float32 at least."""
    return {key: to_working(x) for key, x in leaves.items()}
