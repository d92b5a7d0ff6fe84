"""Step sizes that are estimated while training: Prodigy, DAdaptAdamW, DoG, PolyakSGD."""

from __future__ import annotations

from typing import Any, Unpack

import brainunit
import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.optimizer import LearningRate, given
from braintools_optim.options import Decay, Hyperparameters
from braintools_optim.precision import divide, sqrt
from braintools_optim.rules.whole_tree import GroupRule, Leaves, updates
from braintools_optim.shared_options import SharedOptions

__all__ = ['DAdaptAdamW', 'DoG', 'PolyakSGD', 'Prodigy']

Array = jax.Array
State = dict[str, Any]
UNBOUNDED = float('inf')
each = jax.tree.map


class DistanceAdapted(GroupRule):
    """Adam whose rate is ``d``, a bound from below of how far the weights of the group are from the solution."""

    decays = True

    def start(self, w: Leaves, d0: Any) -> State:
        zeros = each(jnp.zeros_like, w)
        d = jnp.asarray(d0, jnp.result_type(*w.values()))
        return {'d0': d, 'd': d, 's': zeros, 'exp_avg': zeros, 'exp_avg_sq': zeros}

    def rate(self, d: Array, hp: Hyperparameters) -> Array:
        """What the weights move by, but for lr."""
        mean, second = (beta.correction(updates(hp)) for beta in hp.betas)
        return d * sqrt(second) / mean if hp.use_bias_correction else d

    def limit(self, d: Array, hp: Hyperparameters) -> Array:
        """How far the estimate may grow; an infinite factor would make NaN of a derivative."""
        return d * jnp.minimum(hp.growth_rate, np.finfo(d.dtype).max)


class Prodigy(DistanceAdapted):
    r"""Prodigy: Adam whose rate is an estimate of the distance to the solution, which grows from ``d0``.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_t^2 g_t^2 \\
        r_t &= \beta_3 r_{t-1} + \eta d_t^2 \langle g_t, w_0 - w_{t-1} \rangle, \quad
        s_t = \beta_3 s_{t-1} + \eta d_t^2 g_t \\
        d_{t+1} &= \max(d_t, c \, r_t / \lVert s_t \rVert_1), \quad
        w_t = w_{t-1} - \eta d_t \left( \frac{m_t}{\sqrt{v_t} + d_{t+1} \epsilon} + \lambda w_{t-1} \right)

    Each group has its own estimate, ``optimizer.opt_state.value['tree']['0']['d']`` of the first (the authors' code
    has one for all groups). The bias is not corrected by default, as in the paper; optax always corrects it.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        :math:`\eta`, a factor on the estimated rate. For what is not listed here see :class:`Optimizer`.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    beta3 : float, optional
        The decay rate of the sums in the estimate, in [0, 1). Default: the root of ``betas[1]``.
    eps : float, default 1e-8
        Added to the denominator, times ``d``; at least 0.
    weight_decay : float, default 0.0
        :math:`\lambda`, decoupled: it decays the weight itself.
    use_bias_correction : bool, default False
        Multiply the rate by Adam's :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.
    safeguard_warmup : bool, default False
        Leave lr out of :math:`s`, so that a warm-up of lr does not inflate the estimate.
    d0 : float, default 1e-6
        The first estimate, above 0; fixed once weights are registered.
    d_coef : float, default 1.0
        :math:`c`, above 0; what to tune, if anything.
    growth_rate : float, default inf
        The greatest ratio of two estimates, at least 1.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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

    def __init__(
        self,
        lr: LearningRate = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = UNBOUNDED,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_group(self, w: Leaves, hp: Hyperparameters) -> State:
        state = self.start(w, hp.d0)
        return {**state, 'd_max': state['d'], 'd_numerator': jnp.zeros_like(state['d']), 'p0': w}

    def group_direction(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, extra: Any
    ) -> tuple[Leaves, State]:
        beta1, beta2 = hp.betas
        beta3 = jnp.sqrt(beta2.value) if hp.beta3 is None else hp.beta3
        d = state['d']
        rate = self.rate(d, hp)
        drift = sum(each(lambda g, w, start: jnp.sum(g * (start - w)), g, w, state['p0']).values())
        numerator = beta3 * state['d_numerator'] + d * hp.lr * rate * drift
        share = d * (d if hp.safeguard_warmup else hp.lr * rate)
        s = each(lambda s, g: beta3 * s + share * g, state['s'], g)
        exp_avg = each(lambda m, g: beta1.average(m, d * g), state['exp_avg'], g)
        exp_avg_sq = each(lambda v, g: beta2.average(v, (d * g) ** 2), state['exp_avg_sq'], g)
        d_hat = hp.d_coef * divide(numerator, sum_of_sizes(s))
        d_max = jnp.maximum(state['d_max'], d_hat)
        grown = jnp.where(d == state['d0'], jnp.maximum(d, d_hat), d)  # the first rise is free
        d_next = jnp.minimum(d_max, self.limit(grown, hp))
        direction = each(
            lambda m, v, w, decay: rate * (divide(m, sqrt(v) + d_next * hp.eps) + decay * w),
            exp_avg,
            exp_avg_sq,
            w,
            hp.weight_decays,
        )
        estimate = {'d': d_next, 'd_max': d_max, 'd_numerator': numerator, 's': s}
        return direction, {**state, **estimate, 'exp_avg': exp_avg, 'exp_avg_sq': exp_avg_sq}


class DAdaptAdamW(DistanceAdapted):
    r"""AdamW by D-adaptation: its rate is an estimate of the distance to the solution, which grows from ``d0``.

    .. math::
        r_t &= \gamma r_{t-1} + (1 - \gamma) \eta d_t \left\langle g_t,
        \frac{s_{t-1}}{\sqrt{v_{t-1}} + \epsilon} \right\rangle, \quad
        s_t = \gamma s_{t-1} + (1 - \gamma) \eta d_t g_t, \quad \gamma = \sqrt{\beta_2} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        d_{t+1} &= \max\left(d_t, \frac{r_t}{(1 - \gamma) \lVert s_t \rVert_1}\right), \quad
        w_t = w_{t-1} - \eta \left( \frac{m_t}{\sqrt{v_t} + \epsilon} + \lambda d_t w_{t-1} \right)

    Each group has its own estimate, as in :class:`Prodigy`. The bias is not corrected by default, as in the
    paper; optax always corrects it. There lr is a factor on what enters :math:`m`, here on the whole step: the same
    for a constant lr, and a change acts on the next step.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        :math:`\eta`, a factor on the estimated rate. For what is not listed here see :class:`Optimizer`.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-8
        Added to the denominators; at least 0.
    weight_decay : float, default 0.0
        :math:`\lambda`, decoupled: it decays the weight itself.
    use_bias_correction, d0, growth_rate
        See :class:`Prodigy`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Defazio and Mishchenko (2023), Learning-Rate-Free Learning by D-Adaptation.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(1.0))
    >>> optimizer = DAdaptAdamW(d0=0.5, use_bias_correction=True).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(3.0)})  # the first step is as long as the first estimate
    >>> float(w.value.round(5))
    0.5
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        use_bias_correction: bool = False,
        d0: float = 1e-6,
        growth_rate: float = UNBOUNDED,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_group(self, w: Leaves, hp: Hyperparameters) -> State:
        state = self.start(w, hp.d0)
        return {**state, 'numerator_weighted': jnp.zeros_like(state['d'])}

    def group_direction(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, extra: Any
    ) -> tuple[Leaves, State]:
        beta1, beta2 = hp.betas
        root = jnp.sqrt(beta2.value)
        gamma = Decay(root, beta2.complement / (1 + root))
        rate = self.rate(state['d'], hp)
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
            hp.weight_decays,
        )
        estimate = {'d': d, 's': s, 'numerator_weighted': numerator}
        return direction, {**state, **estimate, 'exp_avg': exp_avg, 'exp_avg_sq': exp_avg_sq}


class DoG(GroupRule):
    r"""Distance over gradients: the greatest distance from the start over the root of all squared gradients.

    .. math::
        w_t = w_{t-1} - \eta \frac{\bar r_t}{\sqrt{G_t + \epsilon}} g_t, \quad
        \bar r_t = \max\Bigl(r_\epsilon (1 + \lVert w_0 \rVert), \max_{i < t} \lVert w_i - w_0 \rVert\Bigr), \quad
        G_t = \sum_{i \le t} \lVert g_i \rVert^2

    The norms are those of a whole group, so groups have rates of their own. The authors recommend it for the
    average of the weights.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        :math:`\eta`. For what is not listed here see :class:`Optimizer`.
    reps_rel : float, default 1e-6
        :math:`r_\epsilon`, above 0: the first step is small. With batch normalization the authors say 1e-4.
    init_eta : float, optional
        The first rate, above 0, in place of ``reps_rel``.
    eps : float, default 1e-8
        Added to :math:`G`; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    layerwise : bool, default False
        LDoG: the norms are those of each weight.
    decoupled_weight_decay : bool, default False
        Decay the weight itself.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Ivgi, Hinder and Carmon (2023), DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, -4.0]))
    >>> optimizer = DoG(reps_rel=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.0, -2.0])})  # the first step is 0.5 * (1 + 5) long
    >>> w.value.tolist()
    [3.0, -1.0]
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        reps_rel: float = 1e-6,
        init_eta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        layerwise: bool = False,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_group(self, w: Leaves, hp: Hyperparameters) -> State:
        zeros = each(lambda _: jnp.zeros((), jnp.result_type(*w.values())), w)
        return {'init_buffer': w, 'max_dist': zeros, 'G': zeros}

    def group_direction(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, extra: Any
    ) -> tuple[Leaves, State]:
        def squares(leaves: Leaves) -> Leaves:
            own = each(lambda x: jnp.sum(x * x), leaves)
            return own if hp.layerwise else dict.fromkeys(own, sum(own.values(), start=jnp.zeros(())))

        def rate(dist: Array, G: Array, start: Array) -> Array:
            if hp.init_eta is None:
                return divide(jnp.maximum(dist, hp.reps_rel * (1 + sqrt(start))), sqrt(G + hp.eps))
            return jnp.where(updates(hp) == 1, hp.init_eta, divide(dist, sqrt(G + hp.eps)))

        start = state['init_buffer']
        dist = squares(each(jnp.subtract, w, start))
        max_dist = each(lambda most, square: jnp.maximum(most, sqrt(square)), state['max_dist'], dist)
        G = each(jnp.add, state['G'], squares(g))
        direction = each(lambda g, *norms: g * rate(*norms), g, max_dist, G, squares(start))
        return direction, {'init_buffer': start, 'max_dist': max_dist, 'G': G}


class PolyakSGD(GroupRule):
    r"""Gradient descent with Polyak's step size, from how far the loss is above its least value.

    .. math:: w_t = w_{t-1} - \eta \min\left(\frac{\max(f_t - f_{\min}, 0)}{\lVert g_t \rVert^2 + \epsilon},
              \eta_{\max}\right) g_t

    It is told the loss, unscaled: ``update(grads, value=loss)``, or ``minimize(loss_fn)``. The norm is that of all
    groups' gradients before clipping. Unlike optax's default, it never ascends when the loss falls below ``f_min``, and
    lr is a factor on the step; there a scaling divides it.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        :math:`\eta`, a factor on the step. For what is not listed here see :class:`Optimizer`.
    max_learning_rate : float, default 1.0
        :math:`\eta_{\max}`, above 0.
    f_min : float, default 0.0
        The least value of the loss; with ``maximize`` the greatest.
    eps : float, default 0.0
        Added to the denominator; at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range, or an update is not told the loss.

    References
    ----------
    Polyak (1987), Introduction to Optimization. Loizou et al. (2021), Stochastic Polyak Step-size for SGD.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(4.0))
    >>> optimizer = PolyakSGD().register_trainable_weights({'w': w})
    >>> optimizer.minimize(lambda: w.value**2).item(), w.value.item()  # each step halves the way
    (16.0, 2.0)
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        max_learning_rate: float = 1.0,
        f_min: float = 0.0,
        eps: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def group_direction(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, extra: Any
    ) -> tuple[Leaves, State]:
        value = brainunit.get_mantissa(extra.get('value'))
        if value is None or jnp.shape(value) != ():
            raise ValueError(
                f'Invalid value={value}. PolyakSGD must be told the loss, a number: '
                'update(grads, value=loss) or minimize(loss_fn).'
            )
        gap = jnp.maximum(hp.f_min - value if hp.maximize else value - hp.f_min, 0)
        rate = jnp.minimum(divide(gap, hp.grad_norm**2 + hp.eps), hp.max_learning_rate)
        return each(lambda g: rate * g, g), state

    def _told(self, value: Any, value_fn: Any) -> dict[str, Any]:
        return {} if value is None else {'value': value}


def sum_of_sizes(leaves: Leaves) -> Array:
    return sum((jnp.sum(jnp.abs(x)) for x in leaves.values()), start=jnp.zeros(()))
