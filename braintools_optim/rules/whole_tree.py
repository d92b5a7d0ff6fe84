"""Rules around an optax transformation of all weights of a group: LBFGS, Lookahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Unpack

import jax.numpy as jnp
import optax

from braintools_optim.learning_rate import LearningRate, Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Argument, Flag, Hyperparameters, Number, WeightDecay
from braintools_optim.options.kinds import AT_LEAST_ONE, UNIT
from braintools_optim.options.types import ArrayOrQuantity, Options, OptionValue, Tree
from braintools_optim.rules.loss import loss_of_leaves
from braintools_optim.rules.optax import OptaxRule, to_optax
from braintools_optim.rules.shared_options import SharedOptions
from braintools_optim.step.rule import Extra, GroupInfo, Leaves, as_reals
from braintools_optim.weights.precision import from_working

__all__ = ['LBFGS', 'Lookahead']

SYNC_PERIOD = Number(AT_LEAST_ONE, integer=True)
ALPHA = Number(UNIT)
LINESEARCHES = {
    'zoom': lambda: optax.scale_by_zoom_linesearch(max_linesearch_steps=100),
    'backtracking': lambda: optax.scale_by_backtracking_linesearch(max_backtracking_steps=100),
}


def check_linesearch(name: str, value: OptionValue) -> OptionValue:
    """Return a line search by name or as a transformation, or None."""
    if value is None or value in LINESEARCHES or isinstance(value, optax.GradientTransformation):
        return value
    known = f'Must be one of {sorted(LINESEARCHES)}, or an optax transformation.'
    raise ValueError(f'Invalid linesearch={value!r}. Unknown linesearch method. {known}')


def transformation(linesearch: str | optax.GradientTransformation | None) -> optax.GradientTransformation:
    """Return a line search as a transformation."""
    if linesearch is None:
        return optax.identity()
    return LINESEARCHES[linesearch]() if isinstance(linesearch, str) else linesearch


class LBFGS(OptaxRule):
    r"""L-BFGS: the gradient times an estimate of the inverse Hessian, computed from the last few steps.

    .. math:: w_{t+1} = w_t - \eta \, s_t P_t g_t

    with optax's recursion for :math:`P_t` and the step size :math:`s_t` of the line search, or 1. A line search needs
    the loss: ``update(grads, value=loss, value_fn=loss_of)``, where ``loss_of`` takes the tree of the weights, or takes
    nothing and reads the States of the model; or ``minimize(loss_fn)``.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Factor :math:`\eta` on the step, >= 0.
    memory_size : int, default 10
        The number of steps that are remembered, >= 1.
    scale_init_precond : bool, default True
        Scale the first estimate of the inverse Hessian by the last step.
    linesearch : {'zoom', 'backtracking'} or optax.GradientTransformationExtraArgs, optional
        How the step size is found. Default: no line search.

    Raises
    ------
    ValueError
        If the line search is unknown, or an update with a line search is not given the loss.

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

    lr: Rate = Rate(1.0)
    memory_size: Annotated[int, Argument(Number(AT_LEAST_ONE, integer=True).check)] = 10
    scale_init_precond: Annotated[bool, Argument(Flag().check)] = True
    linesearch: Annotated[str | optax.GradientTransformationExtraArgs | None, Argument(check_linesearch)] = None

    def resolve(self, options: Options) -> Options:
        steps, scales, search = (options[name] for name in ('memory_size', 'scale_init_precond', 'linesearch'))
        steps = Number(AT_LEAST_ONE, integer=True).check('memory_size', steps)
        newton = optax.scale_by_lbfgs(int(steps), Flag().check('scale_init_precond', scales))
        self.tx = optax.chain(newton, optax.scale(-1.0), transformation(check_linesearch('linesearch', search)))
        return super().resolve(options)

    def group_direction(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        dtypes = {key: x.dtype for key, x in w.items()}
        g, w, extra = as_reals(g), as_reals(w), info.extra
        if 'value_fn' in extra:
            loss = loss_of_leaves(extra['value_fn'], self._core.weights)
            value_fn = lambda w: loss({key: from_working(x, dtypes[key]) for key, x in w.items()})  # noqa: E731
            info = replace(info, extra={**extra, 'grad': g, 'value_fn': value_fn})
        directions, state = super().group_direction(g, w, state, hp, info)
        return {key: from_working(d, dtypes[key]) for key, d in directions.items()}, state

    def init_group(self, weights: Leaves, hp: Hyperparameters) -> Tree:
        return super().init_group(as_reals(weights), hp)

    def extra_args(self, value: ArrayOrQuantity | None, value_fn: Callable[..., ArrayOrQuantity] | None) -> Extra:
        searches = isinstance(self.linesearch, (str, optax.GradientTransformationExtraArgs))
        if searches and (value is None or not callable(value_fn)):
            raise ValueError(
                f'Invalid value={value!r}, value_fn={value_fn!r}. A line search needs the loss: '
                f'update(grads, value=loss, value_fn=loss_of), or minimize(loss_fn).'
            )
        return super().extra_args(value, value_fn)


class Lookahead(OptaxRule):
    r"""Lookahead: every few steps the weights return part of the way to where they started.

    .. math::
        w_t = w_{t-1} + \eta \, u(g_t); \quad
        \text{every } k \text{ steps: } \phi \leftarrow \phi + \alpha (w_t - \phi), \; w_t = \phi

    ``with optimizer.eval_weights():`` puts the slow weights :math:`\phi` into the States.

    Parameters
    ----------
    base_optimizer : optax.GradientTransformation or Optimizer
        The optimizer that makes the steps :math:`u`, with its own learning rate. An Optimizer acts with the options
        that it has now, and its schedule follows the update count.
    sync_period : int, default 5
        The number of steps :math:`k` between two returns, >= 1.
    alpha : float, default 0.5
        Share :math:`\alpha` of the way that is kept, in [0, 1].
    lr : float, LRScheduler or callable, optional
        Factor :math:`\eta` on the steps, >= 0. Default: 1.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

    Raises
    ------
    TypeError
        If ``base_optimizer`` is neither an Optimizer nor an optax transformation.

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

    weight_decay: WeightDecay = 0.0

    def __init__(
        self,
        /,
        base_optimizer: optax.GradientTransformation | Optimizer,
        sync_period: int = 5,
        alpha: float = 0.5,
        lr: LearningRate | None = None,
        weight_decay: WeightDecay = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        sync_period, alpha = int(SYNC_PERIOD.check('sync_period', sync_period)), ALPHA.check('alpha', alpha)
        if not isinstance(base_optimizer, (Optimizer, optax.GradientTransformation)):
            allowed = 'Must be an Optimizer or an optax.GradientTransformation.'
            raise TypeError(f'Invalid base_optimizer={base_optimizer!r}. {allowed}')
        self.tx = optax.with_extra_args_support(
            to_optax(base_optimizer) if isinstance(base_optimizer, Optimizer) else base_optimizer
        )
        options: Options = {'weight_decay': weight_decay, 'grad_clip_norm': grad_clip_norm}
        super().__init__(lr=1.0 if lr is None else lr, grad_clip_value=grad_clip_value, **options, **shared)
        self.base_optimizer, self.sync_period, self.alpha = base_optimizer, sync_period, alpha

    def init_group(self, weights: Leaves, hp: Hyperparameters) -> Tree:
        return {'slow': dict(weights), 'fast': super().init_group(weights, hp)}

    def group_direction(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        backward, fast = super().group_direction(g, w, state['fast'], hp, info)
        sync, lr = info.count % self.sync_period == 0, jnp.where(hp.lr == 0, 1.0, hp.lr)
        ahead = {k: w[k] - hp.lr * backward[k] - s for k, s in state['slow'].items()}
        slow = {k: (s + self.alpha * ahead[k]).astype(s.dtype) for k, s in state['slow'].items()}
        back = {k: jnp.where(sync, (w[k] - slow[k]) / lr, d) for k, d in backward.items()}
        return back, {'slow': {k: jnp.where(sync, slow[k], s) for k, s in state['slow'].items()}, 'fast': fast}

    def group_evaluation(self, w: Leaves, state: Tree, hp: Hyperparameters) -> Leaves:
        slow: Leaves = state['slow']
        return slow
