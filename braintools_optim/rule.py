"""A rule: per weight leaf a gradient in, a direction out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax

from braintools_optim.options import Hyperparameters

__all__ = ['Rule', 'Slots']

Array = jax.Array
Slots = dict[str, Array]


class Rule:
    """What an algorithm says about one weight; the :class:`Optimizer` does everything else."""

    decays: ClassVar[bool] = False
    """Whether :meth:`direction` applies ``hp.weight_decay`` itself, as LAMB does."""
    group_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Options of groups that the constructor does not take, and what they are by default."""

    def check_options(self, hp: Hyperparameters) -> None:
        """Raise ``ValueError`` for hyperparameters that do not go together."""

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        """The memory that the rule keeps of one weight, by name, before the first update."""
        return {}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        """What depends on the update count ``hp.step`` alone, computed once for all weights.

        ``hp.step`` is a vector here, one count a weight; each result is too, and
        :meth:`direction` finds its own entry as ``hp.<name>``.
        """
        return {}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        """The direction, which is *subtracted* from ``w`` after multiplication by ``lr``, and the new memory."""
        raise NotImplementedError(f'{type(self).__name__} must define direction(g, w, slots, hp).')

    def evaluation(self, w: Array, slots: Slots, hp: Hyperparameters) -> Array:
        """The weight to evaluate, where that is not the one in training."""
        raise TypeError(f'{type(self).__name__} has no evaluation weights: evaluate the weights themselves.')


class TreeRule(Rule):
    """A rule that needs all the weights of a group together: anything from optax."""

    def init_tree(self, weights: dict[str, Array], hp: Hyperparameters) -> Any:
        """The memory that the rule keeps of a group, any tree, before the first update."""
        raise NotImplementedError(f'{type(self).__name__} must define init_tree(weights, hp).')

    def tree_direction(
        self, gradients: dict[str, Array], weights: dict[str, Array], state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[dict[str, Array], Any]:
        """The directions, which are *subtracted* after multiplication by ``lr``, and the new memory.

        ``hp.grad_norm`` is the norm of the gradients of all groups before clipping; ``hp.weight_decays`` has the
        decay of each weight, for a rule that applies it itself.
        """
        raise NotImplementedError(f'{type(self).__name__} must define tree_direction(...).')

    def tree_evaluation(self, weights: dict[str, Array], state: Any, hp: Hyperparameters) -> dict[str, Array]:
        """The weights to evaluate, where those are not the ones in training."""
        raise TypeError(f'{type(self).__name__} has no evaluation weights: evaluate the weights themselves.')
