"""Rules that look at all weights together: LBFGS, Lookahead; and what such rules share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Unpack

import brainstate
import jax
import jax.numpy as jnp
import optax

from braintools_optim.optax_optimizer import OptaxOptimizer, to_optax
from braintools_optim.optimizer import LearningRate, Optimizer
from braintools_optim.options import UNIT, Hyperparameters, validate
from braintools_optim.precision import cast_floats, from_working, to_working
from braintools_optim.rule import Slots, TreeRule
from braintools_optim.shared_options import SharedOptions
from braintools_optim.weights import Weights

__all__ = ['LBFGS', 'GroupRule', 'Leaves', 'Lookahead', 'loss_of_leaves', 'updates']

Array = jax.Array
Leaves = dict[str, Array]
LINESEARCHES = {
    'zoom': lambda: optax.scale_by_zoom_linesearch(max_linesearch_steps=100),
    'backtracking': lambda: optax.scale_by_backtracking_linesearch(max_backtracking_steps=100),
}


class GroupRule(TreeRule, Optimizer):
    """A rule of all the weights of a group, on real numbers: complex weights are pairs. Its memory keeps its dtypes."""

    def init_group(self, w: Leaves, hp: Hyperparameters) -> dict[str, Any]:
        """The memory before the first update: numbers of the group, and slots ``{name: {weight: array}}``."""
        return {}

    def group_direction(
        self, g: Leaves, w: Leaves, state: dict[str, Any], hp: Hyperparameters, extra: Any
    ) -> tuple[Leaves, dict[str, Any]]:
        """The directions and the new memory."""
        raise NotImplementedError(f'{type(self).__name__} must define group_direction(g, w, state, hp, extra).')

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        """The memory of a group of one weight, which an assignment to an option may not change any more."""
        leaves = jax.tree_util.tree_flatten_with_path(self.init_group({'w': w}, hp))[0]
        return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}

    def init_tree(self, weights: Leaves, hp: Hyperparameters) -> Any:
        state = self.init_group(as_reals(weights), hp)
        dtype = self._treatment.state_dtype
        slots = {name: each for name, each in state.items() if isinstance(each, dict) and dtype is not None}
        return state | {name: {key: x.astype(dtype) for key, x in each.items()} for name, each in slots.items()}

    def tree_direction(
        self, gradients: Leaves, weights: Leaves, state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[Leaves, Any]:
        g, w = as_reals(gradients), as_reals(weights)
        hp, wide = cast_floats((hp, state), like=jnp.zeros((), jnp.result_type(*w.values())))
        directions, new = self.group_direction(g, w, wide, hp, extra)
        new = jax.tree.map(lambda old, x: x.astype(old.dtype), state, new)
        return {key: from_working(d, weights[key].dtype) for key, d in directions.items()}, new


def as_reals(leaves: Leaves) -> Leaves:
    """Complex numbers as pairs of reals."""
    return {key: to_working(x) for key, x in leaves.items()}


def updates(hp: Hyperparameters) -> Array:
    """The update count of a group; that of a weight stops while it is frozen."""
    return jnp.max(hp.step)


def loss_of_leaves(value_fn: Callable[..., Any], registered: Weights) -> Callable[[Leaves], Any]:
    """A loss of named leaves, from one of the tree of weights or of the model's States, which stay as they are."""
    if not registered.keys:
        raise ValueError('A value_fn needs the weights that it is a function of: register_trainable_weights.')
    of_tree = takes_weights(value_fn)

    def value_of(leaves: Leaves) -> Any:
        trace = brainstate.StateTraceStack()
        try:
            with trace:
                if of_tree:
                    return value_fn(registered.as_tree(leaves))
                with registered.replaced(leaves):
                    return value_fn()
        finally:  # what it writes belongs to a derivative or a branch, and may not leave it
            trace.recovery_original_values()

    return value_of


class LBFGS(OptaxOptimizer):
    r"""L-BFGS: the gradient times an estimate of the inverse Hessian from the last few steps.

    .. math:: w_{t+1} = w_t - \eta \, s_t P_t g_t

    with optax's recursion for :math:`P_t` and the step :math:`s_t` of the line search, or 1. A line
    search is told the loss: ``update(grads, value=loss, value_fn=loss_of)``, where ``loss_of`` takes
    the tree of the weights, or nothing and reads the model's States; or ``minimize(loss_fn)``.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        :math:`\eta`, a factor on the step. For what is not listed here see :class:`Optimizer`.
    memory_size : int, default 10
        How many steps are remembered. At least 1.
    scale_init_precond : bool, default True
        Scale the first estimate by the last step.
    linesearch : {'zoom', 'backtracking'} or optax.GradientTransformationExtraArgs, optional
        How the step is found. Default: none.

    Raises
    ------
    ValueError
        If an option is out of its range or the line search is unknown.

    References
    ----------
    Liu and Nocedal (1989), On the limited memory BFGS method for large scale optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, -4.0]))
    >>> optimizer = LBFGS(linesearch='zoom').register_trainable_weights({'w': w})
    >>> loss = lambda: jnp.sum((w.value - 1.0) ** 2 * jnp.array([1.0, 10.0]))
    >>> for _ in range(8):
    ...     _ = optimizer.minimize(loss)
    >>> w.value.round(3).tolist()
    [1.0, 1.0]
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        memory_size: int = 10,
        scale_init_precond: bool = True,
        linesearch: str | optax.GradientTransformationExtraArgs | None = None,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        memory_size = int(validate('memory_size', memory_size))
        scale_init_precond = validate('scale_init_precond', scale_init_precond, like=True)
        search = optax.identity() if linesearch is None else linesearch
        if isinstance(linesearch, str) and linesearch in LINESEARCHES:
            search = LINESEARCHES[linesearch]()
        if not isinstance(search, optax.GradientTransformation):
            known = f'Must be one of {sorted(LINESEARCHES)}, or an optax transformation.'
            raise ValueError(f'Invalid linesearch={linesearch!r}. Unknown linesearch method. {known}')
        newton = optax.scale_by_lbfgs(memory_size, scale_init_precond)
        super().__init__(
            optax.chain(newton, optax.scale(-1.0), search), lr, 0.0, grad_clip_norm, grad_clip_value, **shared
        )
        self.memory_size, self.scale_init_precond, self.linesearch = memory_size, scale_init_precond, linesearch

    def tree_direction(
        self, gradients: dict[str, Array], weights: dict[str, Array], state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[dict[str, Array], Any]:
        dtypes = {key: w.dtype for key, w in weights.items()}
        gradients, weights = as_reals(gradients), as_reals(weights)
        if 'value_fn' in extra:
            loss = loss_of_leaves(extra['value_fn'], self._weights)
            value_fn = lambda w: loss({key: from_working(x, dtypes[key]) for key, x in w.items()})  # noqa: E731
            extra = {**extra, 'grad': gradients, 'value_fn': value_fn}
        directions, state = super().tree_direction(gradients, weights, state, hp, extra)
        return {key: from_working(d, dtypes[key]) for key, d in directions.items()}, state

    def init_tree(self, weights: Leaves, hp: Hyperparameters) -> Any:
        return super().init_tree(as_reals(weights), hp)

    def _told(self, value: Any, value_fn: Any) -> dict[str, Any]:
        searches = isinstance(self.linesearch, (str, optax.GradientTransformationExtraArgs))
        if searches and (value is None or not callable(value_fn)):
            raise ValueError(
                f'Invalid value={value!r}, value_fn={value_fn!r}. A line search must be told the loss: '
                f'update(grads, value=loss, value_fn=loss_of), or minimize(loss_fn).'
            )
        return super()._told(value, value_fn)


def takes_weights(value_fn: Callable[..., Any]) -> bool:
    """Whether a loss is one of the tree of weights, and not of the model's States."""
    parameters = inspect.signature(value_fn).parameters.values()
    return any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)


class Lookahead(OptaxOptimizer):
    r"""Lookahead: every few steps the weights go part of the way from where they set out.

    .. math::
        w_t = w_{t-1} + \eta \, u(g_t); \quad
        \text{every } k \text{ steps: } \phi \leftarrow \phi + \alpha (w_t - \phi), \; w_t = \phi

    ``with optimizer.eval_weights():`` puts the slow weights :math:`\phi` into the States.

    Parameters
    ----------
    base_optimizer : optax.GradientTransformation or Optimizer
        What makes the steps :math:`u`, with its own learning rate. Of an Optimizer, the options that it
        has now; its schedule follows the updates.
    sync_period : int, default 5
        :math:`k`, at least 1.
    alpha : float, default 0.5
        In [0, 1].
    lr : float, LRScheduler or callable, optional
        :math:`\eta`, a factor on the steps, default 1. For what is not listed here see :class:`Optimizer`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Zhang et al. (2019), Lookahead Optimizer: k steps forward, 1 step back.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, optax
    >>> w = brainstate.ParamState(jnp.array(0.0))
    >>> optimizer = Lookahead(optax.sgd(1.0), sync_period=2).register_trainable_weights({'w': w})
    >>> for _ in range(2):
    ...     optimizer.update({'w': jnp.array(-1.0)})
    >>> float(w.value)  # two steps of 1 forward, half of the way back
    1.0
    """

    def __init__(
        self,
        base_optimizer: optax.GradientTransformation | Optimizer,
        sync_period: int = 5,
        alpha: float = 0.5,
        lr: LearningRate | None = None,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        sync_period, alpha = int(validate('sync_period', sync_period)), validate('alpha', alpha, allowed=UNIT)
        if not isinstance(base_optimizer, (Optimizer, optax.GradientTransformation)):
            allowed = 'Must be an Optimizer or an optax.GradientTransformation.'
            raise TypeError(f'Invalid base_optimizer={base_optimizer!r}. {allowed}')
        fast = to_optax(base_optimizer) if isinstance(base_optimizer, Optimizer) else base_optimizer
        super().__init__(fast, 1.0 if lr is None else lr, weight_decay, grad_clip_norm, grad_clip_value, **shared)
        self.base_optimizer, self.sync_period, self.alpha = base_optimizer, sync_period, alpha

    def init_tree(self, weights: dict[str, Array], hp: Hyperparameters) -> Any:
        return {'slow': dict(weights), 'fast': super().init_tree(weights, hp)}

    def tree_direction(
        self, gradients: dict[str, Array], weights: dict[str, Array], state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[dict[str, Array], Any]:
        backward, fast = super().tree_direction(gradients, weights, state['fast'], hp, extra)
        sync, lr = updates(hp) % self.sync_period == 0, jnp.where(hp.lr == 0, 1.0, hp.lr)
        ahead = {k: weights[k] - hp.lr * backward[k] - s for k, s in state['slow'].items()}
        slow = {k: (s + self.alpha * ahead[k]).astype(s.dtype) for k, s in state['slow'].items()}
        back = {k: jnp.where(sync, (weights[k] - slow[k]) / lr, d) for k, d in backward.items()}
        return back, {'slow': {k: jnp.where(sync, slow[k], s) for k, s in state['slow'].items()}, 'fast': fast}

    def tree_evaluation(self, weights: dict[str, Array], state: Any, hp: Hyperparameters) -> dict[str, Array]:
        slow: dict[str, Array] = state['slow']
        return slow
