"""Rules around an optax transformation of all weights of a group: LBFGS, Lookahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Unpack

import brainunit
import jax
import jax.numpy as jnp
import optax

from braintools_optim.learning_rate import LearningRate, Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Argument, Flag, Hyperparameters, Number, WeightDecay
from braintools_optim.options.kinds import AT_LEAST_ONE, AT_LEAST_ZERO, UNIT, is_on
from braintools_optim.options.types import ArrayOrQuantity, Options, OptionValue, Tree
from braintools_optim.rules.loss import loss_of_leaves
from braintools_optim.rules.optax import OptaxRule, to_optax
from braintools_optim.rules.shared_options import SharedOptions
from braintools_optim.step.rule import Extra, GroupInfo, Leaves, as_reals
from braintools_optim.weights.precision import divide, from_working

__all__ = ['LBFGS', 'Lookahead']

Array = jax.Array
SYNC_PERIOD = Number(AT_LEAST_ONE, integer=True)
MEMORY_SIZE = Number(AT_LEAST_ONE, integer=True, static=True)
ALPHA = Number(UNIT)
LINESEARCHES = {
    'strong_wolfe': lambda: optax.scale_by_zoom_linesearch(max_linesearch_steps=25, initial_guess_strategy='one'),
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

    torch's options are accepted, too. ``torch.optim.LBFGS(params)`` is ``LBFGS(history_size=100, max_iter=20,
    tolerance_grad=1e-7, tolerance_change=1e-9)`` here, where an update makes one iteration by default. The recursion
    for :math:`P_t` is optax's, so that single iterations differ from torch's: the first step has at most the Euclidean
    length 1, where torch bounds the sum of its sizes; torch leaves out steps along which the gradient does not grow;
    and ``lr`` multiplies the step that a line search finds, where torch starts the search with ``lr``. In iterations
    after the first one, the gradient is that of the loss alone: clipping, weight decay and other options that change
    the gradient act on the first one. Each group of parameters iterates by itself, with all others as they were.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Factor :math:`\eta` on the step, >= 0.
    memory_size : int, default 10
        The number of steps that are remembered, >= 1.
    scale_init_precond : bool, default True
        Scale the first estimate of the inverse Hessian by the last step.
    linesearch : {'strong_wolfe', 'zoom', 'backtracking'} or optax.GradientTransformationExtraArgs, optional
        How the step size is found. ``'strong_wolfe'`` and ``'zoom'`` find a step that fulfils the strong Wolfe
        conditions; the former tries the step size 1 first, which suits L-BFGS and takes fewer iterations, the latter
        the step size of the last update. Default: no line search.
    history_size : int, optional
        torch's name of ``memory_size``.
    line_search_fn : {'strong_wolfe'}, optional
        torch's name of ``linesearch``.
    max_iter : int, default 1
        Largest number of iterations in an update, >= 1. More than one need the loss, as a line search does.
    max_eval : int, optional
        Number of evaluations of the loss after which an update makes no further iteration, >= 1. The given gradient
        and the steps of line searches count. Default: ``max_iter * 5 // 4``, as in torch.
    tolerance_grad : float, default 0.0
        Do not move further if no entry of the gradient is larger than this, >= 0.
    tolerance_change : float, default 0.0
        Do not move further if a step decreases the loss by less than this to first order, >= 0, nor after a step that
        changes the loss by less than this, or no entry of a parameter by more.

    Raises
    ------
    ValueError
        If the line search is unknown, an option is given under two names, an update with a line search or several
        iterations is not given the loss, or an update with several iterations is partial.

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

    works_per_group = False
    lr: Rate = Rate(1.0)
    memory_size: Annotated[int, Argument(MEMORY_SIZE.check)] = 10
    scale_init_precond: Annotated[bool, Argument(Flag().check)] = True
    linesearch: Annotated[str | optax.GradientTransformationExtraArgs | None, Argument(check_linesearch)] = None
    _: KW_ONLY
    history_size: InitVar[int | None] = None
    line_search_fn: InitVar[Literal['strong_wolfe', None]] = None
    max_iter: Annotated[int, Argument(Number(AT_LEAST_ONE, integer=True, static=True).check)] = 1
    max_eval: Annotated[int | None, Argument(Number(AT_LEAST_ONE, integer=True, optional=True).check)] = None
    tolerance_grad: Annotated[float, Argument(Number(AT_LEAST_ZERO).check)] = 0.0
    tolerance_change: Annotated[float, Argument(Number(AT_LEAST_ZERO).check)] = 0.0

    def resolve(self, options: Options) -> Options:
        options = with_names_of_torch(options)
        steps, scales, search = (options[name] for name in ('memory_size', 'scale_init_precond', 'linesearch'))
        steps = MEMORY_SIZE.check('memory_size', steps)
        newton = optax.scale_by_lbfgs(int(steps), Flag().check('scale_init_precond', scales))
        self.tx = optax.chain(newton, optax.scale(-1.0), transformation(check_linesearch('linesearch', search)))
        return super().resolve(options)

    def group_direction(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        dtypes = {key: x.dtype for key, x in w.items()}
        g, w, extra = as_reals(g), as_reals(w), dict(info.extra)
        if 'value_fn' in extra:
            loss = loss_of_leaves(extra['value_fn'], self._core.weights)
            sign = -1 if hp.maximize else 1
            extra['value_fn'] = lambda w: sign * loss({key: from_working(x, dtypes[key]) for key, x in w.items()})
            extra |= {'value': sign * extra['value']} if 'value' in extra else {}
            info = replace(info, extra={**extra, 'grad': g})
        directions, state = (self.iterate if self.max_iter > 1 else self.iterate_once)(g, w, state, hp, info)
        return {key: from_working(d, dtypes[key]) for key, d in directions.items()}, state

    def iterate_once(
        self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, Tree]:
        """Return the direction of one iteration and the new state, or no move and the old state at a minimum."""
        directions, new = super().group_direction(g, w, state, hp, info)
        if not (is_on(self.tolerance_grad) or is_on(self.tolerance_change)):
            return directions, new
        stops = (largest(g) <= self.tolerance_grad) | (product(g, directions) < self.tolerance_change)
        stops &= (self.tolerance_grad > 0) | (self.tolerance_change > 0)  # unknown before if they are traced
        still = {key: jnp.zeros_like(d) for key, d in directions.items()}
        return where(stops, still, directions), where(stops, state, new)

    def iterate(self, g: Leaves, w: Leaves, state: Tree, hp: Hyperparameters, info: GroupInfo) -> tuple[Leaves, Tree]:
        """Return the direction to the point that several iterations reach, and the new state."""
        value_fn, frozen, one_iteration = info.extra['value_fn'], self.settings.frozen, super().group_direction
        max_eval = self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval

        def objective(w: Leaves) -> Array:
            value: Array = brainunit.get_mantissa(value_fn(w))
            return value

        def iteration(now: Iteration) -> Iteration:
            known = replace(info, extra={**info.extra, 'value': now.value, 'grad': now.g})
            directions, state = one_iteration(now.g, now.w, now.state, hp, known)
            moves = {key: (hp.lr * d).astype(d.dtype) for key, d in directions.items()}
            w = {key: x - moves[key] for key, x in now.w.items()}
            value, g = jax.value_and_grad(objective)(w)
            g = {key: jnp.zeros_like(x) if key in frozen else x for key, x in g.items()}
            stuck = product(now.g, directions) < self.tolerance_change
            ends = stuck | (largest(g) <= self.tolerance_grad) | (largest(moves) <= self.tolerance_change)
            ends |= jnp.abs(value - now.value) < self.tolerance_change
            evaluations = jnp.asarray(optax.tree.get(state, 'num_linesearch_steps', 1), jnp.int32)
            place = where(stuck, (now.w, now.g, now.value, now.state), (w, g, value, state))
            return Iteration(now.iterations + 1, now.evaluations + evaluations, ends, *place)

        def goes_on(now: Iteration) -> Array:
            return ~now.ends & (now.iterations < self.max_iter) & (now.evaluations < max_eval)

        value = jnp.asarray(brainunit.get_mantissa(info.extra['value']), jax.eval_shape(objective, w).dtype)
        one = jnp.ones((), jnp.int32)
        first = Iteration(0 * one, one, largest(g) <= self.tolerance_grad, w, g, value, state)
        last = jax.lax.while_loop(goes_on, iteration, first)
        return {key: divide(x - last.w[key], hp.lr.astype(x.dtype)) for key, x in w.items()}, last.state

    def update(self, grads: Tree, **arguments: Any) -> None:
        """Update the weights in place, as :meth:`Optimizer.update` does; the loss is ``value`` and ``value_fn``."""
        if self.max_iter > 1 and arguments.get('partial'):
            raise ValueError('Invalid partial=True with max_iter > 1. Later iterations compute all gradients.')
        super().update(grads, **arguments)

    def init_group(self, weights: Leaves, hp: Hyperparameters) -> Tree:
        return super().init_group(as_reals(weights), hp)

    def extra_args(self, value: ArrayOrQuantity | None, value_fn: Callable[..., ArrayOrQuantity] | None) -> Extra:
        searches = isinstance(self.linesearch, (str, optax.GradientTransformationExtraArgs))
        if (searches or self.max_iter > 1) and (value is None or not callable(value_fn)):
            raise ValueError(
                f'Invalid value={value!r}, value_fn={value_fn!r}. '
                f'{"A line search" if searches else f"max_iter={self.max_iter}"} needs the loss: '
                f'update(grads, value=loss, value_fn=loss_of), or minimize(loss_fn).'
            )
        return super().extra_args(value, value_fn)


class Iteration(NamedTuple):
    """The position of an update of :class:`LBFGS` between two iterations."""

    iterations: Array
    evaluations: Array
    ends: Array
    w: Leaves
    g: Leaves
    value: Array
    state: Tree


def with_names_of_torch(options: Options) -> Options:
    """Return the options of :class:`LBFGS`, with options that are given under torch's names under ours."""
    for theirs, ours, default in (('history_size', 'memory_size', 10), ('line_search_fn', 'linesearch', None)):
        value = options.pop(theirs)
        if theirs == 'line_search_fn' and value not in ('strong_wolfe', None):
            raise ValueError(f"Invalid line_search_fn={value!r}. Must be 'strong_wolfe' or None.")
        if value is not None and options[ours] != default:
            raise ValueError(f'Invalid {theirs}={value!r} with {ours}={options[ours]!r}. Must be one of the two.')
        if value is not None:
            options[ours] = value
    return options


def largest(leaves: Leaves) -> Array:
    """Return the size of the largest entry."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in leaves.values()]))


def product(a: Leaves, b: Leaves) -> Array:
    """Return the scalar product of two groups of arrays."""
    return sum((jnp.sum(x * b[key]) for key, x in a.items()), start=jnp.zeros(()))


def where(condition: Array, a: Tree, b: Tree) -> Tree:
    """Return the first or the second of two trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


class Lookahead(OptaxRule):
    r"""Lookahead: every few steps the weights return part of the way to where they started.

    .. math::
        w_t = w_{t-1} + \eta \, u(g_t); \quad
        \text{every } k \text{ steps: } \phi \leftarrow \phi + \alpha (w_t - \phi), \; w_t = \phi

    ``with optimizer.eval_weights():`` puts the slow weights :math:`\phi` into the States.

    Parameters
    ----------
    base_optimizer : optax.GradientTransformation or Optimizer
        The optimizer that makes the steps :math:`u`, with a learning rate apart from ``lr``. An Optimizer acts with the
        options that it has now, and its schedule follows the update count.
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

    author_names: ClassVar = {'k': 'sync_period', 'la_steps': 'sync_period', 'la_alpha': 'alpha'}
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
