"""OptaxOptimizer: any optax transformation as an optimizer; to_optax: any optimizer as an optax transformation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from braintools_optim.optimizer import LearningRate, Optimizer
from braintools_optim.options import Hyperparameters
from braintools_optim.registration import treated
from braintools_optim.rule import TreeRule
from braintools_optim.shared_options import SharedOptions
from braintools_optim.step import Memory, init_memory, step
from braintools_optim.treatment import Treatment

__all__ = ['OptaxOptimizer', 'to_optax']

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
        **shared: Unpack[SharedOptions],
    ):
        if tx is not None and not isinstance(tx, optax.GradientTransformation):
            raise TypeError(f'Invalid tx={tx!r}. Must be an optax.GradientTransformation.')
        if shared.get('state_dtype') is not None:
            raise ValueError(f'Invalid state_dtype. {type(self).__name__} keeps its memory in the dtypes of optax.')
        if lr is None:
            lr = 1e-3 if tx is None else 1.0
        self.tx = optax.with_extra_args_support(tx or optax.chain(optax.scale_by_adam(), optax.scale(-1.0)))
        super().__init__(lr, grad_clip_norm, grad_clip_value, weight_decay=weight_decay, **shared)

    def init_tree(self, weights: dict[str, Array], hp: Hyperparameters) -> Any:
        return self.tx.init(weights)

    def tree_direction(
        self, gradients: dict[str, Array], weights: dict[str, Array], state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[dict[str, Array], Any]:
        updates, state = self.tx.update(gradients, state, weights, **extra)
        return jax.tree.map(lambda u: -u, updates), state

    def update(
        self,
        grads: Any,
        *,
        loss_unit: Any = None,
        partial: bool = False,
        loss_scale: Any = None,
        value: Any = None,
        value_fn: Any = None,
        **extra: Any,
    ) -> None:
        """Update the weights in place; ``value``, ``value_fn`` and ``extra`` go to the transformation."""
        self._update(grads, loss_unit, extra | self._told(value, value_fn), partial, loss_scale)

    def _told(self, value: Any, value_fn: Any) -> dict[str, Any]:
        return {name: what for name, what in (('value', value), ('value_fn', value_fn)) if what is not None}


class ToOptaxState(NamedTuple):
    """The state of :func:`to_optax`: the number of updates, and the optimizer's memory by path."""

    step_count: Array
    memory: Memory


def to_optax(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    """An optimizer as a complete optax transformation: clipping, decay, rule and ``-lr``, to be chained.

    It is a pure function: the options are those that the optimizer has now, a schedule follows the
    count of the transformation's updates, and no State is touched.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> from braintools_optim import SGD
    >>> tx = to_optax(SGD(lr=0.5, momentum=0.5))
    >>> state = tx.init({'w': jnp.zeros(2)})
    >>> updates, state = tx.update({'w': jnp.ones(2)}, state, {'w': jnp.zeros(2)})
    >>> updates['w'].tolist()
    [-0.5, -0.5]
    """
    settings, schedule = optimizer.settings, optimizer.lr_scheduler
    values, positions = settings.options, settings.positions()
    shared, options = (settings.part(values, positions, part) for part in ('shared', 'defaults'))
    for name in ('groups', 'constraints', 'master_weights', 'loss_scale'):
        if getattr(optimizer, name):
            raise ValueError(f'Invalid {name}={getattr(optimizer, name)!r}. An optax transformation cannot have it.')

    def flat(tree: Any) -> dict[str, Array]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}

    def treatment(weights: dict[str, Array]) -> Treatment:
        return replace(treated(optimizer, weights), metrics=False, changes_only=True)

    def init(params: Any) -> ToOptaxState:
        weights = flat(params)
        memory = init_memory(optimizer, '0', weights, options.plain(), treatment(weights), {})
        return ToOptaxState(jnp.zeros((), jnp.int32), memory)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError('update(updates, state, params) needs params: the weights decide on decay and precision.')
        weights = flat(params)
        groups = [(list(weights), options.with_values(lr=schedule.lr_at(state.step_count)))]
        new = step(optimizer, shared, groups, weights, flat(updates), state.memory, extra, treatment(weights))
        tree = jax.tree.unflatten(jax.tree.structure(params), list(new.weights.values()))
        return tree, ToOptaxState(state.step_count + (1 if new.finite is None else new.finite), new.memory)

    return optax.GradientTransformationExtraArgs(init, update)
