"""Step sizes that are estimated during training: Prodigy, DAdaptAdamW, DoG, PolyakSGD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Annotated

import brainunit
import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import (
    Betas,
    Decay,
    Hyperparameters,
    NonNegative,
    Number,
    Positive,
    WeightDecay,
)
from braintools_optim.options.kinds import AT_LEAST_ONE, BELOW_ONE, POSITIVE, Scalar, Schedulable
from braintools_optim.options.types import ArrayOrQuantity, Tree
from braintools_optim.step.rule import Extra, GroupInfo, Leaves, RealGroupRule
from braintools_optim.weights.precision import divide, sqrt, widest

__all__ = ['DAdaptAdamW', 'DoG', 'PolyakSGD', 'Prodigy']

Array = jax.Array
State = dict[str, Tree]
GrowthRate = Annotated[Schedulable, Number(AT_LEAST_ONE)]
each = jax.tree.map


class DistanceAdapted(RealGroupRule, Optimizer):
    """Base of Adam with the rate ``d``, a lower bound of the distance from the initial parameters to the solution."""

    decays = True
    pauses_without_lr = True

    lr: Rate = Rate(1.0)
    betas: Betas = (0.9, 0.999)
    _: KW_ONLY
    use_bias_correction: bool = False

    def start(self, w: Leaves, d0: Scalar) -> State:
        """Return the part of the first state that all rules of this kind have."""
        zeros = each(jnp.zeros_like, w)
        d = jnp.asarray(d0, widest(x.dtype for x in w.values()))
        return {'d0': d, 'd': d, 's': zeros, 'exp_avg': zeros, 'exp_avg_sq': zeros}

    def rate(self, d: Array, hp: Hyperparameters, info: GroupInfo) -> Array:
        """Return the length of a step, except for the factor ``lr``."""
        mean, second = (beta.correction(info.count.astype(d.dtype)) for beta in hp.betas)
        return d * sqrt(second) / mean if hp.use_bias_correction else d

    def unless_paused(self, new: State, old: State, hp: Hyperparameters) -> State:
        """Return the new state, or the old one if the learning rate is 0."""
        state: State = each(lambda x, before: jnp.where(hp.lr == 0, before, x), {**old, **new}, old)
        return state

    def limit(self, d: Array, hp: Hyperparameters) -> Array:
        """Return the upper bound of the next estimate. An infinite factor would make a derivative NaN."""
        return d * jnp.minimum(hp.growth_rate, np.finfo(d.dtype).max)


class Prodigy(DistanceAdapted):
    r"""Prodigy: Adam with an estimate of the distance to the solution as its rate, which grows from ``d0``.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_t^2 g_t^2 \\
        r_t &= \beta_3 r_{t-1} + \eta d_t^2 \langle g_t, w_0 - w_{t-1} \rangle, \quad
        s_t = \beta_3 s_{t-1} + \eta d_t^2 g_t \\
        d_{t+1} &= \max(d_t, c \, r_t / \lVert s_t \rVert_1), \quad
        w_t = w_{t-1} - \eta d_t \left( \frac{m_t}{\sqrt{v_t} + d_{t+1} \epsilon} + \lambda w_{t-1} \right)

    Each group has a separate estimate: the estimate of the first group is
    ``optimizer.opt_state.value['tree']['0']['d']``. The authors' code has one estimate for all groups. By default the
    bias is not corrected, as in the paper; optax always corrects the bias. As in the authors' code, an update with
    ``lr == 0`` (the start of a warm-up) changes neither the optimizer state nor the update count, so that the estimate
    and the bias correction start with the first update that moves a parameter. With :math:`\beta_1 = 0` prodigyopt
    since version 1.1 keeps no mean and takes :math:`d_{t+1} g_t` in place of :math:`m_t = d_t g_t`; this class follows
    the paper, so that the rule is continuous in :math:`\beta_1`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Factor :math:`\eta` on the estimated rate, see :class:`Optimizer`.
    betas : pair of float, default (0.9, 0.999)
        Decay rates :math:`\beta_1, \beta_2` of the two moments, in [0, 1).
    beta3 : float, optional
        Decay rate :math:`\beta_3` of the sums in the estimate, in [0, 1). Default: :math:`\sqrt{\beta_2}`.
    eps : float, default 1e-8
        Number :math:`\epsilon` that is multiplied by ``d`` and added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.
    use_bias_correction : bool, default False
        Multiply the rate by Adam's :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.
    safeguard_warmup : bool, default False
        Leave ``lr`` out of :math:`s`, so that a warm-up of ``lr`` does not inflate the estimate.
    d0 : float, default 1e-6
        Initial estimate, > 0. Cannot be assigned once parameters are registered.
    d_coef : float, default 1.0
        Factor :math:`c` on the estimate, > 0. If Prodigy is to be tuned, this is the option to tune.
    growth_rate : float, default inf
        Largest ratio of two successive estimates, >= 1.

    References
    ----------
    Mishchenko and Defazio (2024), Prodigy: An Expeditiously Adaptive Parameter-Free Learner.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, -4.0]))
    >>> optimizer = Prodigy().register_trainable_weights({'w': w})
    >>> loss = lambda: jnp.sum(w.value**2)
    >>> for _ in range(200):
    ...     _ = optimizer.minimize(loss)
    >>> bool(loss() < 0.01)
    True
    """

    beta3: Annotated[Schedulable | None, Number(BELOW_ONE, optional=True)] = None
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0
    _: KW_ONLY
    safeguard_warmup: bool = False
    d0: Positive = 1e-6
    d_coef: Positive = 1.0
    growth_rate: GrowthRate = math.inf

    def init_state(self, w: Leaves, hp: Hyperparameters) -> State:
        state = self.start(w, hp.d0)
        return {**state, 'd_max': state['d'], 'd_numerator': jnp.zeros_like(state['d']), 'p0': w}

    def directions(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, State]:
        beta1, beta2 = hp.betas
        beta3 = jnp.sqrt(beta2.value) if hp.beta3 is None else hp.beta3
        d = state['d']
        rate = self.rate(d, hp, info)
        drift = sum(each(lambda g, w, start: jnp.sum(g * (start - w)), g, w, state['p0']).values())
        numerator = beta3 * state['d_numerator'] + d * hp.lr * rate * drift
        share = d * (d if hp.safeguard_warmup else hp.lr * rate)
        s = each(lambda s, g: beta3 * s + share * g, state['s'], g)
        exp_avg = each(lambda m, g: beta1.average(m, d * g), state['exp_avg'], g)
        exp_avg_sq = each(lambda v, g: beta2.average(v, (d * g) ** 2), state['exp_avg_sq'], g)
        d_hat = hp.d_coef * divide(numerator, sum_of_sizes(s))
        d_max = jnp.maximum(state['d_max'], d_hat)
        grown = jnp.where(d == state['d0'], jnp.maximum(d, d_hat), d)  # the first growth is not limited
        d_next = jnp.minimum(d_max, self.limit(grown, hp))
        direction = each(
            lambda m, v, w, decay: rate * (divide(m, sqrt(v) + d_next * hp.eps) + decay * w),
            exp_avg,
            exp_avg_sq,
            w,
            info.weight_decays,
        )
        new = {'d': d_next, 'd_max': d_max, 'd_numerator': numerator, 's': s}
        return direction, self.unless_paused({**new, 'exp_avg': exp_avg, 'exp_avg_sq': exp_avg_sq}, state, hp)


class DAdaptAdamW(DistanceAdapted):
    r"""AdamW by D-adaptation: the rate is an estimate of the distance to the solution, which grows from ``d0``.

    .. math::
        r_t &= \gamma r_{t-1} + (1 - \gamma) \eta d_t \left\langle g_t,
        \frac{s_{t-1}}{\sqrt{v_{t-1}} + \epsilon} \right\rangle, \quad
        s_t = \gamma s_{t-1} + (1 - \gamma) \eta d_t g_t, \quad \gamma = \sqrt{\beta_2} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        d_{t+1} &= \max\left(d_t, \frac{r_t}{(1 - \gamma) \lVert s_t \rVert_1}\right), \quad
        w_t = w_{t-1} - \eta \left( \frac{m_t}{\sqrt{v_t} + \epsilon} + \lambda d_t w_{t-1} \right)

    Each group has a separate estimate, as in :class:`Prodigy`. By default the bias is not corrected, as in the paper;
    optax always corrects the bias. In optax ``lr`` multiplies the summands of :math:`m`, here the whole step. The two
    agree for a constant ``lr``, and here a change of ``lr`` acts fully on the next step. An update with ``lr == 0``
    changes neither the optimizer state nor the update count, as in :class:`Prodigy`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Factor :math:`\eta` on the estimated rate, see :class:`Optimizer`.
    betas : pair of float, default (0.9, 0.999)
        Decay rates :math:`\beta_1, \beta_2` of the two moments, in [0, 1).
    eps : float, default 1e-8
        Number :math:`\epsilon` that is added to the denominators, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.
    use_bias_correction, d0, growth_rate
        See :class:`Prodigy`.

    References
    ----------
    Defazio and Mishchenko (2023), Learning-Rate-Free Learning by D-Adaptation.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(1.0))
    >>> optimizer = DAdaptAdamW(d0=0.5, use_bias_correction=True).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(3.0)})  # the first step has the length d0
    >>> float(w.value.round(5))
    0.5
    """

    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0
    _: KW_ONLY
    d0: Positive = 1e-6
    growth_rate: GrowthRate = math.inf

    def init_state(self, w: Leaves, hp: Hyperparameters) -> State:
        state = self.start(w, hp.d0)
        return {**state, 'numerator_weighted': jnp.zeros_like(state['d'])}

    def directions(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, State]:
        beta1, beta2 = hp.betas
        root = jnp.sqrt(beta2.value)
        gamma = Decay(root, beta2.complement / (1 + root))
        rate = self.rate(state['d'], hp, info)
        past = each(lambda s, v: divide(s, sqrt(v) + hp.eps), state['s'], state['exp_avg_sq'])
        gain = hp.lr * rate * sum(each(lambda g, s: jnp.sum(g * s), g, past).values())
        numerator = gamma.average(state['numerator_weighted'], gain)
        s = each(lambda s, g: gamma.average(s, hp.lr * rate * g), state['s'], g)
        exp_avg = each(lambda m, g: beta1.average(m, rate * g), state['exp_avg'], g)
        exp_avg_sq = each(lambda v, g: beta2.average(v, g * g), state['exp_avg_sq'], g)
        d_hat = divide(numerator, gamma.complement * sum_of_sizes(s))
        d = jnp.maximum(state['d'], jnp.minimum(d_hat, self.limit(state['d'], hp)))
        direction = each(
            lambda m, v, w, decay: divide(m, sqrt(v) + hp.eps) + decay * rate * w,
            exp_avg,
            exp_avg_sq,
            w,
            info.weight_decays,
        )
        new = {'d': d, 's': s, 'numerator_weighted': numerator, 'exp_avg': exp_avg, 'exp_avg_sq': exp_avg_sq}
        return direction, self.unless_paused(new, state, hp)


class DoG(RealGroupRule, Optimizer):
    r"""Distance over gradients: the largest distance from the start divided by the root of all squared gradients.

    .. math::
        w_t = w_{t-1} - \eta \frac{\bar r_t}{\sqrt{G_t + \epsilon}} g_t, \quad
        \bar r_t = \max\Bigl(r_\epsilon (1 + \lVert w_0 \rVert), \max_{i < t} \lVert w_i - w_0 \rVert\Bigr), \quad
        G_t = \sum_{i \le t} \lVert g_i \rVert^2

    The norms are taken over a whole group, so each group has a separate rate. The authors recommend to evaluate the
    average of the parameters.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Factor :math:`\eta` on the estimated rate, see :class:`Optimizer`.
    reps_rel : float, default 1e-6
        Relative length :math:`r_\epsilon` of the first step, > 0. The authors recommend 1e-4 with batch normalization.
    init_eta : float, optional
        Initial rate in place of ``reps_rel``, > 0. The first step has the rate ``lr * init_eta``; in the authors' code
        and in optax ``lr`` does not multiply ``init_eta``.
    eps : float, default 1e-8
        Number :math:`\epsilon` that is added to :math:`G`, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    layerwise : bool, default False
        Take the norms over each parameter instead of the group, which is the algorithm LDoG.
    decoupled_weight_decay : bool, default False
        Decay the parameters themselves instead of their gradients.

    References
    ----------
    Ivgi, Hinder and Carmon (2023), DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, -4.0]))
    >>> optimizer = DoG(reps_rel=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.0, -2.0])})  # the first step has the length 0.5 * (1 + 5)
    >>> w.value.tolist()
    [3.0, -1.0]
    """

    lr: Rate = Rate(1.0)
    reps_rel: Positive = 1e-6
    init_eta: Annotated[Schedulable | None, Number(POSITIVE, optional=True)] = None
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0
    _: KW_ONLY
    layerwise: bool = False
    decoupled_weight_decay: bool = False

    def init_state(self, w: Leaves, hp: Hyperparameters) -> State:
        zeros = each(lambda _: jnp.zeros((), widest(x.dtype for x in w.values())), w)
        return {'init_buffer': w, 'max_dist': zeros, 'G': zeros}

    def directions(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, State]:
        def squares(leaves: Leaves) -> Leaves:
            sums = each(lambda x: jnp.sum(x * x), leaves)
            return sums if hp.layerwise else dict.fromkeys(sums, sum(sums.values(), start=jnp.zeros(())))

        def rate(dist: Array, G: Array, start: Array) -> Array:
            if hp.init_eta is None:
                return divide(jnp.maximum(dist, hp.reps_rel * (1 + sqrt(start))), sqrt(G + hp.eps))
            return jnp.where(info.count == 1, hp.init_eta, divide(dist, sqrt(G + hp.eps)))

        start = state['init_buffer']
        dist = squares(each(jnp.subtract, w, start))
        max_dist = each(lambda most, square: jnp.maximum(most, sqrt(square)), state['max_dist'], dist)
        G = each(jnp.add, state['G'], squares(g))
        direction = each(lambda g, *norms: g * rate(*norms), g, max_dist, G, squares(start))
        return direction, {'init_buffer': start, 'max_dist': max_dist, 'G': G}


class PolyakSGD(RealGroupRule, Optimizer):
    r"""Gradient descent with Polyak's step size, which depends on how far the loss exceeds its minimum.

    .. math:: w_t = w_{t-1} - \eta \min\left(\frac{\max(f_t - f_{\min}, 0)}{\lVert g_t \rVert^2 + \epsilon},
              \eta_{\max}\right) g_t

    Each update needs the loss, not multiplied by a loss scale: ``update(grads, value=loss)`` or ``minimize(loss_fn)``.
    The norm is taken over the gradients of all groups before clipping. Unlike optax by default, this class never
    ascends when the loss falls below ``f_min``. Here ``lr`` multiplies the step; in optax ``scaling`` divides the step.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Factor :math:`\eta` on the step, see :class:`Optimizer`.
    max_learning_rate : float, default 1.0
        Largest rate :math:`\eta_{\max}`, > 0.
    f_min : float, default 0.0
        Minimum :math:`f_{\min}` of the loss, any finite number. With ``maximize``, the maximum.
    eps : float, default 0.0
        Number :math:`\epsilon` that is added to the denominator, >= 0.

    Raises
    ------
    ValueError
        If an update does not get the loss, or the loss is not a scalar.

    References
    ----------
    Polyak (1987), Introduction to Optimization. Loizou et al. (2021), Stochastic Polyak Step-size for SGD.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(4.0))
    >>> optimizer = PolyakSGD().register_trainable_weights({'w': w})
    >>> optimizer.minimize(lambda: w.value**2).item(), w.value.item()  # half the distance to 0
    (16.0, 2.0)
    """

    works_per_group = False
    lr: Rate = Rate(1.0)
    max_learning_rate: Positive = 1.0
    f_min: Annotated[Schedulable, Number()] = 0.0
    eps: NonNegative = 0.0

    def extra_args(self, value: ArrayOrQuantity | None, value_fn: Callable[..., ArrayOrQuantity] | None) -> Extra:
        return {} if value is None else {'value': value}

    def directions(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, State]:
        value = brainunit.get_mantissa(info.extra.get('value'))
        if value is None or jnp.shape(value) != ():
            raise ValueError(
                f'Invalid value={value}. PolyakSGD needs the loss, a number: '
                'update(grads, value=loss) or minimize(loss_fn).'
            )
        gap = jnp.maximum(hp.f_min - value if hp.maximize else value - hp.f_min, 0)
        rate = jnp.minimum(divide(gap, info.grad_norm**2 + hp.eps), hp.max_learning_rate)
        return each(lambda g: rate * g, g), state


def sum_of_sizes(leaves: Leaves) -> Array:
    """Return the sum of the absolute values of all entries."""
    return sum((jnp.sum(jnp.abs(x)) for x in leaves.values()), start=jnp.zeros(()))
