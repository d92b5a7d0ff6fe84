"""OptaxOptimizer: any optax transformation as an optimizer; to_optax: any optimizer as an optax transformation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from braintools_optim.learning_rate import LearningRate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Hyperparameters, WeightDecay
from braintools_optim.options.fields import fields_of
from braintools_optim.options.types import ArrayOrQuantity, Options, Tree
from braintools_optim.rules.loss import loss_of_leaves
from braintools_optim.rules.shared_options import SharedOptions
from braintools_optim.step.rule import Extra, GroupInfo, GroupRule, Leaves
from braintools_optim.step.state import OptimizerState

__all__ = ['OptaxOptimizer', 'OptaxRule', 'to_optax']

Array = jax.Array


class OptaxDirection(GroupRule):
    """A rule whose direction is what the optax transformation ``tx`` returns, with the opposite sign."""

    tx: optax.GradientTransformationExtraArgs

    def init_group(self, weights: Leaves, hp: Hyperparameters) -> Tree:
        return self.tx.init(weights)

    def group_direction(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        updates, state = self.tx.update(g, state, w, **info.extra)
        return jax.tree.map(lambda u: -u, updates), state


CALL = ('loss_unit', 'partial', 'flush', 'loss_scale')


class OptaxRule(OptaxDirection, Optimizer):
    """Base of optimizers whose direction comes from an optax transformation, which the constructor sets as ``tx``."""

    def resolve(self, options: Options) -> Options:
        if options['state_dtype'] is not None:
            raise ValueError(f'Invalid state_dtype. {type(self).__name__} keeps its state in the dtypes of optax.')
        return options

    def update(
        self,
        grads: Tree,
        *,
        value: ArrayOrQuantity | None = None,
        value_fn: Callable[..., ArrayOrQuantity] | None = None,
        **arguments: Any,
    ) -> None:
        """Update the weights in place.

        Arguments that :meth:`Optimizer.update` does not list go to the transformation, like ``value`` and ``value_fn``.
        """
        known = {name: arguments.pop(name) for name in CALL if name in arguments}
        self.update_with(grads, {**arguments, **self.extra_args(value, value_fn)}, **known)

    def extra_args(self, value: ArrayOrQuantity | None, value_fn: Callable[..., ArrayOrQuantity] | None) -> Extra:
        return {name: given for name, given in (('value', value), ('value_fn', value_fn)) if given is not None}


class OptaxOptimizer(OptaxRule):
    r"""Any optax transformation as an optimizer, which adds the updates of the transformation to the weights.

    .. math:: w \leftarrow w + \eta \, u(g), \qquad u = \mathrm{tx.update}

    Parameters
    ----------
    tx : optax.GradientTransformation, optional
        A complete optax optimizer, such as ``optax.adam(1e-3)``, which already contains ``-lr``. The transformation
        gets the gradients after clipping and coupled decay. Default: Adam.
    lr : float, LRScheduler or callable, optional
        With ``tx`` a factor on the updates of ``tx``, default 1. Without ``tx`` Adam's learning rate, default 1e-3.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

    Raises
    ------
    TypeError
        If ``tx`` is not a gradient transformation.
    ValueError
        If a ``state_dtype`` is given: optax decides on the dtypes of its state.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, optax
    >>> w = brainstate.ParamState(jnp.ones(2))
    >>> optimizer = OptaxOptimizer(optax.sgd(0.5)).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([1.0, 2.0])})
    >>> w.value.tolist()
    [0.5, 0.0]
    """

    weight_decay: WeightDecay = 0.0

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        """Count every optimizer as an OptaxOptimizer, which is the base of all optimizers of braintools.optim."""
        return True if cls is OptaxOptimizer and Optimizer in other.__mro__ else NotImplemented

    def __init__(
        self,
        /,
        tx: optax.GradientTransformation | None = None,
        lr: LearningRate | None = None,
        weight_decay: WeightDecay = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        if isinstance(tx, optax.MultiSteps):
            raise TypeError(f'Invalid tx={tx!r}. Pass the optimizer inside, and accumulate_steps to this optimizer.')
        if tx is not None and not isinstance(tx, optax.GradientTransformation):
            raise TypeError(f'Invalid tx={tx!r}. Must be an optax.GradientTransformation.')
        rate: LearningRate = (1e-3 if tx is None else 1.0) if lr is None else lr
        self.tx = optax.with_extra_args_support(tx or optax.chain(optax.scale_by_adam(), optax.scale(-1.0)))
        options: Options = {'weight_decay': weight_decay, 'grad_clip_norm': grad_clip_norm}
        super().__init__(lr=rate, grad_clip_value=grad_clip_value, **options, **shared)

    def group_direction(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        if 'value_fn' in info.extra:
            loss = loss_of_leaves(info.extra['value_fn'], self._core.weights)
            info = replace(info, extra={**info.extra, 'value_fn': loss, 'grad': g})
        return super().group_direction(g, w, state, hp, info)


CANNOT = (
    'groups',
    'constraints',
    'master_weights',
    'loss_scale',
    'average',
    'accumulate_steps',
    'gradient_transform',
    'on_spike',
    'shard_memory_over',
    'replaces_gradient',
)


class ToOptaxState(NamedTuple):
    """The state of :func:`to_optax`: the number of updates, and the optimizer state."""

    step_count: Array
    memory: OptimizerState


def to_optax(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer as a complete optax transformation, with clipping, decay, rule and ``-lr``.

    The transformation is a pure function: the options are those that the optimizer has now, a schedule follows the
    update count of the transformation, and no State is read or written later.

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
    fields = fields_of(type(optimizer))
    for name in CANNOT:
        if getattr(optimizer, name) != (fields[name].default if name in fields else False):
            raise ValueError(f'Invalid {name}={getattr(optimizer, name)!r}. An optax transformation cannot have it.')
    pure = optimizer.as_pure_step()

    def flat(tree: Tree) -> dict[str, Array]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}

    def init(params: Tree) -> ToOptaxState:
        return ToOptaxState(jnp.zeros((), jnp.int32), pure.init(flat(params)))

    def update(updates: Tree, state: Tree, params: Tree = None, **extra: object) -> tuple[Tree, ToOptaxState]:
        if params is None:
            raise ValueError('update(updates, state, params) needs params: the weights decide on decay and precision.')
        weights = flat(params)
        new = pure.step(weights, flat(updates), state.memory, state.step_count, extra)
        tree = jax.tree.unflatten(jax.tree.structure(params), list(new.weights.values()))
        return tree, ToOptaxState(state.step_count + (1 if new.finite is None else new.finite), new.state)

    return optax.GradientTransformationExtraArgs(init, update)
