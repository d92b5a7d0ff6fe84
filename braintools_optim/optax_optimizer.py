"""OptaxOptimizer: any optax transformation as an optimizer; and any rule as an optax transformation."""

from __future__ import annotations

from typing import Any

import jax
import optax

from braintools_optim.optimizer import LearningRate, Optimizer
from braintools_optim.options import Hyperparameters
from braintools_optim.rule import TreeRule

__all__ = ['OptaxOptimizer']

Array = jax.Array


class OptaxOptimizer(TreeRule, Optimizer):
    r"""Any optax transformation: what it returns is added to the weights.

    .. math:: w \leftarrow w + \eta \, u(g), \qquad u = \mathrm{tx.update}

    Parameters
    ----------
    tx : optax.GradientTransformation, optional
        A complete optax optimizer, such as ``optax.adam(1e-3)``, which holds its own ``-lr``. It is
        given the gradients after clipping and coupled decay. Default: Adam.
    lr : float, LRScheduler or callable, optional
        With ``tx``, a factor on what it returns, default 1. Without, Adam's learning rate, default 1e-3.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight. At least 0.
    grad_clip_norm, grad_clip_value : float, optional
        See :class:`Optimizer`.

    Raises
    ------
    TypeError
        If ``tx`` is no gradient transformation.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, optax
    >>> w = brainstate.ParamState(jnp.ones(2))
    >>> optimizer = OptaxOptimizer(optax.sgd(0.5)).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([1.0, 2.0])})
    >>> w.value.tolist()
    [0.5, 0.0]
    """

    def __init__(
        self,
        tx: optax.GradientTransformation | None = None,
        lr: LearningRate | None = None,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
    ):
        if tx is not None and not isinstance(tx, optax.GradientTransformation):
            raise TypeError(f'Invalid tx={tx!r}. Must be an optax.GradientTransformation.')
        if lr is None:
            lr = 1e-3 if tx is None else 1.0
        self.tx = optax.with_extra_args_support(tx or optax.chain(optax.scale_by_adam(), optax.scale(-1.0)))
        super().__init__(lr, grad_clip_norm, grad_clip_value, weight_decay=weight_decay)

    def init_tree(self, weights: dict[str, Array], hp: Hyperparameters) -> Any:
        return self.tx.init(weights)

    def tree_direction(
        self, gradients: dict[str, Array], weights: dict[str, Array], state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[dict[str, Array], Any]:
        updates, state = self.tx.update(gradients, state, weights, **extra)
        return jax.tree.map(lambda u: -u, updates), state

    def update(self, grads: Any, *, loss_unit: Any = None, **extra: Any) -> None:
        """Update the weights in place; ``extra`` goes to the transformation, such as ``value=loss``."""
        self._update(grads, loss_unit, extra)

    def step(self, grads: Any, *, loss_unit: Any = None, **extra: Any) -> None:
        """The same as :meth:`update`."""
        self.update(grads, loss_unit=loss_unit, **extra)
