"""Rules that look at all weights together: LBFGS, Lookahead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from braintools_optim.optax_optimizer import OptaxOptimizer, to_optax
from braintools_optim.optimizer import LearningRate, Optimizer
from braintools_optim.options import Hyperparameters
from braintools_optim.shared_options import SharedOptions

__all__ = ['LBFGS', 'Lookahead']

Array = jax.Array
LINESEARCHES = {
    'zoom': lambda: optax.scale_by_zoom_linesearch(max_linesearch_steps=100),
    'backtracking': lambda: optax.scale_by_backtracking_linesearch(max_backtracking_steps=100),
}


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
        if memory_size < 1:
            raise ValueError(f'Invalid memory_size={memory_size}. Must be >= 1.')
        search = optax.identity() if linesearch is None else linesearch
        if isinstance(linesearch, str) and linesearch in LINESEARCHES:
            search = LINESEARCHES[linesearch]()
        if not isinstance(search, optax.GradientTransformation):
            raise ValueError(f'Unknown linesearch method: {linesearch!r}. Must be one of {sorted(LINESEARCHES)}.')
        newton = optax.scale_by_lbfgs(memory_size, scale_init_precond)
        super().__init__(
            optax.chain(newton, optax.scale(-1.0), search), lr, 0.0, grad_clip_norm, grad_clip_value, **shared
        )
        self.memory_size, self.scale_init_precond, self.linesearch = memory_size, scale_init_precond, linesearch

    def tree_direction(
        self, gradients: dict[str, Array], weights: dict[str, Array], state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[dict[str, Array], Any]:
        if 'value_fn' in extra:
            extra = {**extra, 'grad': gradients, 'value_fn': self._loss_of_weights(extra['value_fn'])}
        return super().tree_direction(gradients, weights, state, hp, extra)

    def _loss_of_weights(self, value_fn: Callable[..., Any]) -> Callable[[dict[str, Array]], Any]:
        """A loss of named leaves, from one of the tree of weights or of the model's States."""
        if takes_weights(value_fn):
            return lambda weights: value_fn(self._weights.as_tree(weights))

        def value_of(weights: dict[str, Array]) -> Any:
            with self._weights.replaced(weights):
                return value_fn()

        return value_of


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
        if sync_period < 1:
            raise ValueError(f'Invalid sync_period={sync_period}. Must be >= 1.')
        if not 0 <= alpha <= 1:
            raise ValueError(f'Invalid alpha={alpha}. Must be in [0, 1].')
        fast = to_optax(base_optimizer) if isinstance(base_optimizer, Optimizer) else base_optimizer
        super().__init__(fast, 1.0 if lr is None else lr, weight_decay, grad_clip_norm, grad_clip_value, **shared)
        self.base_optimizer, self.sync_period, self.alpha = base_optimizer, sync_period, alpha

    def init_tree(self, weights: dict[str, Array], hp: Hyperparameters) -> Any:
        return {'slow': dict(weights), 'fast': super().init_tree(weights, hp)}

    def tree_direction(
        self, gradients: dict[str, Array], weights: dict[str, Array], state: Any, hp: Hyperparameters, extra: Any
    ) -> tuple[dict[str, Array], Any]:
        backward, fast = super().tree_direction(gradients, weights, state['fast'], hp, extra)
        sync, lr = jnp.max(hp.step) % self.sync_period == 0, jnp.where(hp.lr == 0, 1.0, hp.lr)
        slow = {k: s + self.alpha * (weights[k] - hp.lr * backward[k] - s) for k, s in state['slow'].items()}
        back = {k: jnp.where(sync, (weights[k] - slow[k]) / lr, d) for k, d in backward.items()}
        return back, {'slow': {k: jnp.where(sync, slow[k], s) for k, s in state['slow'].items()}, 'fast': fast}

    def tree_evaluation(self, weights: dict[str, Array], state: Any, hp: Hyperparameters) -> dict[str, Array]:
        slow: dict[str, Array] = state['slow']
        return slow
