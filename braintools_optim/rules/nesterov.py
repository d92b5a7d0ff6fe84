"""Adam that looks ahead along its momentum: Nadam, NAdamW, Adan."""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, given
from braintools_optim.options import Hyperparameters
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.rules.adam import Moments
from braintools_optim.shared_options import SharedOptions

__all__ = ['Adan', 'NAdam', 'NAdamW', 'Nadam']

Array = jax.Array


class Nadam(Moments):
    r"""Adam with Nesterov momentum whose weight grows with the updates; also called ``NAdam``.

    .. math::
        \mu_t &= \beta_1 (1 - \tfrac12 0.96^{t \psi}), \quad M_t = \prod_{i \le t} \mu_i \\
        w_t &= w_{t-1} - \eta \left( \frac{\mu_{t+1} m_t}{1 - M_{t+1}} + \frac{(1 - \mu_t) g_t}{1 - M_t} \right)
        \Big/ \left( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \right)

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 2e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    momentum_decay : float, default 4e-3
        :math:`\psi`, at least 0.
    decoupled_weight_decay : bool, default False
        Decay the weight itself.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Dozat (2016), Incorporating Nesterov Momentum into Adam.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Nadam(lr=0.5, betas=(0.5, 0.9), momentum_decay=0.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})  # 0.5 * (0.25 * 0.5 / (1 - 0.25**2) + 0.75 / 0.75)
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.433333, 2.566667]
    """

    def __init__(
        self,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'mu_product': jnp.ones((), w.dtype)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        mu, mu_next = (
            hp.betas[0].value * (1 - 0.5 * 0.96 ** (step * hp.momentum_decay)) for step in (hp.step, hp.step + 1)
        )
        return super().prepare(hp) | {'mu': mu, 'mu_next': mu_next}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new, product = self.moments(g, slots, hp), slots['mu_product'] * hp.mu
        mean = hp.mu_next / (1 - product * hp.mu_next) * new['exp_avg'] + (1 - hp.mu) / (1 - product) * g
        return mean / (sqrt(hp.debias2 * new['exp_avg_sq']) + hp.eps), new | {'mu_product': product}


NAdam = Nadam


class NAdamW(Moments):
    r"""Adam with Nesterov momentum of constant weight, and decoupled weight decay.

    .. math::
        w_t = w_{t-1} - \eta \left( \frac{\beta_1 m_t / (1 - \beta_1^{t+1}) + (1 - \beta_1) g_t / (1 - \beta_1^t)}
        {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda w_{t-1} \right)

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 1e-4
        :math:`\lambda`, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Dozat (2016), Incorporating Nesterov Momentum into Adam. Loshchilov and Hutter (2019), Decoupled
    Weight Decay Regularization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = NAdamW(lr=0.5, betas=(0.5, 0.9), weight_decay=0.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})  # 0.5 * (0.5 * 0.5 / 0.75 + 0.5 / 0.5)
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.333333, 2.666667]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()), decoupled_weight_decay=True)

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return super().prepare(hp) | {'debias1_next': hp.betas[0].debias(hp.step + 1)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new, beta1 = self.moments(g, slots, hp), hp.betas[0]
        mean = beta1.value * hp.debias1_next * new['exp_avg'] + beta1.complement * hp.debias1 * g
        return mean / (sqrt(hp.debias2 * new['exp_avg_sq']) + hp.eps), new


class Adan(Moments):
    r"""Adan: Nesterov momentum from the difference of successive gradients.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad d_t = \beta_2 d_{t-1} + (1 - \beta_2) (g_t - g_{t-1}) \\
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) (g_t + \beta_2 (g_t - g_{t-1}))^2 \\
        u_t &= \left( \frac{m_t}{1 - \beta_1^t} + \frac{\beta_2 d_t}{1 - \beta_2^t} \right)
        \Big/ \left( \sqrt{\frac{n_t}{1 - \beta_3^t}} + \epsilon \right), \quad
        w_t = \frac{w_{t-1} - \eta u_t}{1 + \eta \lambda}

    with :math:`g_0 = g_1`. With weight decay the step is not proportional to lr. The decay rates are
    1 minus the paper's; the look-ahead factor is :math:`\beta_2`, as in the paper and the authors' code, where
    optax has :math:`1 - \beta_2`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : three floats, default (0.98, 0.92, 0.99)
        Decay rates of the gradient, the difference and the square, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Xie, Zhou, Li, Lin and Yan (2022), Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Adan(lr=0.5, weight_decay=2.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})  # (1 - 0.5) / 2, (2 + 0.5) / 2
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.25, 1.25]
    """

    decays: ClassVar[bool] = True

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return dict.fromkeys(('exp_avg', 'exp_avg_diff', 'exp_avg_sq', 'pre_grad'), jnp.zeros_like(w))

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        beta1, beta2, beta3 = hp.betas
        ahead, change = beta2.value, jnp.where(hp.step == 1, 0.0, g - slots['pre_grad'])
        new = {
            'exp_avg': beta1.average(slots['exp_avg'], g),
            'exp_avg_diff': beta2.average(slots['exp_avg_diff'], change),
            'exp_avg_sq': beta3.average(slots['exp_avg_sq'], (g + ahead * change) ** 2),
        }
        mean = hp.debias1 * new['exp_avg'] + ahead * hp.debias2 * new['exp_avg_diff']
        u = mean / (sqrt(hp.debias3 * new['exp_avg_sq']) + hp.eps)
        if hp.weight_decay is not None:
            u = (u + hp.weight_decay * w) / (1 + hp.lr * hp.weight_decay)
        return u, new | {'pre_grad': g}
