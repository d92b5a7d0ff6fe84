"""Variants of Adam with Nesterov momentum: Nadam, NAdamW, Adan."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.options import Hyperparameters, NonNegative, Number, Numbers, WeightDecay, option
from braintools_optim.options.kinds import BELOW_ONE, Scalar
from braintools_optim.rules.adam import Moments, TwoMoments
from braintools_optim.step.counterparts import optax_state, torch_options
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt

__all__ = ['Adan', 'NAdam', 'NAdamW', 'Nadam']

Array = jax.Array


class Nadam(TwoMoments):
    r"""Adam with Nesterov momentum whose factor grows with the number of updates. ``NAdam`` is an alias.

    .. math::
        \mu_t &= \beta_1 (1 - \tfrac12 0.96^{t \psi}), \quad M_t = \prod_{i \le t} \mu_i \\
        w_t &= w_{t-1} - \eta \left( \frac{\mu_{t+1} m_t}{1 - M_{t+1}} + \frac{(1 - \mu_t) g_t}{1 - M_t} \right)
        \Big/ \left( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \right)

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 2e-3
        Learning rate, see :class:`Optimizer`.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    momentum_decay : float, default 4e-3
        Rate :math:`\psi` at which the momentum factor approaches :math:`\beta_1`, >= 0.
    decoupled_weight_decay : bool, default False
        Decay the parameter itself instead of adding the decay to the gradient.

    References
    ----------
    Dozat (2016), Incorporating Nesterov Momentum into Adam.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Nadam(lr=0.5, betas=(0.5, 0.9), momentum_decay=0.0)
    >>> _ = optimizer.register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})
    >>> [round(x, 6) for x in w.value.tolist()]  # 1 - 0.5 * (0.125 / (1 - 0.25**2) + 1)
    [0.433333, 2.566667]
    """

    torch_counterpart = torch_options('weight_decay betas eps momentum_decay decoupled_weight_decay')
    lr: Rate = Rate(2e-3)
    momentum_decay: NonNegative = 4e-3
    _: KW_ONLY
    decoupled_weight_decay: bool = False

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'mu_product': jnp.ones((), w.dtype)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        steps = {'mu': hp.step, 'mu_next': hp.step + 1}
        mus = {k: hp.betas[0].value * (1 - 0.5 * 0.96 ** (t * hp.momentum_decay)) for k, t in steps.items()}
        return super().prepare(hp) | mus

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new, product = self.moments(g, slots, hp), slots['mu_product'] * hp.mu
        mean = hp.mu_next / (1 - product * hp.mu_next) * new['exp_avg'] + (1 - hp.mu) / (1 - product) * g
        return mean / (sqrt(hp.debias2 * new['exp_avg_sq']) + hp.eps), new | {'mu_product': product}


NAdam = Nadam


class NAdamW(TwoMoments):
    r"""Adam with Nesterov momentum of constant strength and decoupled weight decay.

    .. math::
        w_t = w_{t-1} - \eta \left( \frac{\beta_1 m_t / (1 - \beta_1^{t+1}) + (1 - \beta_1) g_t / (1 - \beta_1^t)}
        {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda w_{t-1} \right)

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`.

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 1e-4
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.

    References
    ----------
    Dozat (2016), Incorporating Nesterov Momentum into Adam. Loshchilov and Hutter (2019), Decoupled
    Weight Decay Regularization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = NAdamW(lr=0.5, betas=(0.5, 0.9), weight_decay=0.0)
    >>> _ = optimizer.register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})
    >>> [round(x, 6) for x in w.value.tolist()]  # 1 - 0.5 * (0.5 * 0.5 / 0.75 + 0.5 / 0.5)
    [0.333333, 2.666667]
    """

    optax_slots = optax_state('ScaleByAdamState', mu='exp_avg', nu='exp_avg_sq')
    weight_decay: WeightDecay = 1e-4
    decoupled_weight_decay: bool = option(True)

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

    with :math:`g_0 = g_1`. With weight decay, the step is not proportional to lr. The decay rates are 1 minus
    the paper's. The difference is multiplied by :math:`\beta_2`, as in the paper and in the authors' code; optax
    multiplies it by :math:`1 - \beta_2`.

    Parameters
    ----------
    betas : three floats, default (0.98, 0.92, 0.99)
        Decay rates of the gradient, of the difference and of the square, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the weight decay, >= 0.

    References
    ----------
    Xie, Zhou, Li, Lin and Yan (2022), Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Adan(lr=0.5, weight_decay=2.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})
    >>> [round(x, 6) for x in w.value.tolist()]  # (1 - 0.5) / 2 and (2 + 0.5) / 2
    [0.25, 1.25]
    """

    decays: ClassVar[bool] = True
    betas: Annotated[tuple[Scalar, Scalar, Scalar], Numbers(Number(BELOW_ONE, decay=True), 3)] = (0.98, 0.92, 0.99)
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return dict.fromkeys(('exp_avg', 'exp_avg_diff', 'exp_avg_sq', 'pre_grad'), jnp.zeros_like(w))

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        beta1, beta2, beta3 = hp.betas
        ahead, change = beta2.value, jnp.where(hp.step == 1, 0.0, g - slots['pre_grad'])
        mean, diff = beta1.average(slots['exp_avg'], g), beta2.average(slots['exp_avg_diff'], change)
        square = beta3.average(slots['exp_avg_sq'], (g + ahead * change) ** 2)
        u = (hp.debias1 * mean + ahead * hp.debias2 * diff) / (sqrt(hp.debias3 * square) + hp.eps)
        u = (u + hp.weight_decay * w) / (1 + hp.lr * hp.weight_decay)
        return u, {'exp_avg': mean, 'exp_avg_diff': diff, 'exp_avg_sq': square, 'pre_grad': g}
