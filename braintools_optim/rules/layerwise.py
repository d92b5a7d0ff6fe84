"""Optimizers that scale the step by the norm of the whole parameter: Lamb, Lars, Novograd, Fromage."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import ClassVar

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import (
    Betas,
    Hyperparameters,
    MomentumFactor,
    NonNegative,
    PositiveFinite,
    WeightDecay,
    option,
)
from braintools_optim.rules.adam import AdamBase
from braintools_optim.rules.sgd import SGD, Dampening
from braintools_optim.step.counterparts import optax_state
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import divide, sqrt

__all__ = ['Fromage', 'Lamb', 'Lars', 'Novograd']

Array = jax.Array


class Lamb(AdamBase):
    r"""LAMB: Adam's direction with weight decay, rescaled to the norm of the parameter.

    .. math::
        u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda w_{t-1}, \quad
        w_t = w_{t-1} - \eta \frac{\lVert w_{t-1} \rVert}{\lVert u_t \rVert} u_t

    with the bias-corrected moments :math:`\hat m_t`, :math:`\hat v_t` of :class:`Adam`. If one of the two norms is 0,
    their ratio counts as 1.

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-6
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the weight decay, >= 0.

    References
    ----------
    You et al. (2020), Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, 4.0, 0.0, 0.0]))
    >>> optimizer = Lamb(lr=0.5, eps=0.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.1, -1.0, 7.0, 0.5])})  # Adam's direction is (1, -1, 1, 1)
    >>> [round(x, 5) for x in w.value.tolist()]
    [1.75, 5.25, -1.25, -1.25]
    """

    optax_slots = optax_state('ScaleByAdamState', mu='exp_avg', nu='exp_avg_sq')
    decays: ClassVar[bool] = True
    eps: NonNegative = 1e-6

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        adam, new = super().direction(g, w, slots, hp)
        u = adam + hp.weight_decay * w
        return ratio(norm(w), norm(u)) * u, new


class Lars(SGD):
    r"""LARS: gradient descent with momentum, where each gradient is scaled to the norm of its parameter.

    .. math::
        b_t = \mu b_{t-1} + \frac{\kappa \lVert w_{t-1} \rVert}
        {\lVert g_t \rVert + \lambda \lVert w_{t-1} \rVert + \epsilon} (g_t + \lambda w_{t-1}), \quad
        w_t = w_{t-1} - \eta b_t

    If the norm of the parameter is 0, the factor counts as 1. If the gradient is 0, the formula applies as it stands,
    so that weight decay moves the parameter by about :math:`\eta \kappa w_{t-1}` whatever :math:`\lambda` is; timm uses
    the factor 1 in this case. The denominator is the paper's; optax uses
    :math:`\lVert g_t + \lambda w_{t-1} \rVert`. The momentum does not include lr, so that a change of lr takes
    effect immediately.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Learning rate, see :class:`Optimizer`.
    momentum : float, default 0.9
        Momentum factor :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the weight decay, >= 0.
    trust_coefficient : float, default 1e-3
        Coefficient :math:`\kappa` of the ratio of norms, > 0.
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    nesterov : bool, default False
        Use Nesterov momentum. Requires ``momentum > 0``.

    Raises
    ------
    ValueError
        If ``nesterov`` is True although ``momentum`` is 0.

    References
    ----------
    You, Gitman and Ginsburg (2017), Large Batch Training of Convolutional Networks.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, 4.0]))
    >>> optimizer = Lars(lr=0.5, trust_coefficient=0.1, eps=0.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.0, 2.0])})
    >>> w.value.tolist()  # 4 - 0.5 * 0.1 * 5 / 2 * 2 = 3.75
    [3.0, 3.75]
    """

    decays: ClassVar[bool] = True
    lr: Rate = Rate(1.0)
    momentum: MomentumFactor = 0.9
    trust_coefficient: PositiveFinite = 1e-3
    eps: NonNegative = 1e-8
    _: KW_ONLY
    nesterov: bool = False
    dampening: Dampening = option(0.0)

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        size = norm(w)
        trust = ratio(hp.trust_coefficient * size, norm(g) + hp.weight_decay * size + hp.eps)
        return super().direction(trust * (g + hp.weight_decay * w), w, slots, hp)


class Novograd(Optimizer):
    r"""NovoGrad: momentum of gradients, each divided by a running average of its norm.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, \quad v_1 = \lVert g_1 \rVert^2 \\
        m_t &= \beta_1 m_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon} + \lambda w_{t-1}, \quad
        w_t = w_{t-1} - \eta m_t

    While :math:`v_{t-1} = 0`, because all gradients of the parameter were zero, :math:`v_t = \lVert g_t \rVert^2`, as
    in the code of the authors. optax sets :math:`v_1` alone in this way.

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the momentum and of the squared norm, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the weight decay, >= 0.

    References
    ----------
    Ginsburg et al. (2019), Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of
    Deep Networks.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Novograd(lr=0.5, eps=0.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, 4.0])})
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.7, 1.6]
    """

    decays: ClassVar[bool] = True
    betas: Betas = (0.9, 0.999)
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'exp_avg': jnp.zeros_like(w), 'exp_avg_sq': jnp.zeros((), w.dtype)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        beta1, beta2 = hp.betas
        square = jnp.sum(g * g)
        square = jnp.where(slots['exp_avg_sq'] == 0, square, beta2.average(slots['exp_avg_sq'], square))
        momentum = beta1.value * slots['exp_avg'] + (divide(g, sqrt(square) + hp.eps) + hp.weight_decay * w)
        return momentum, {'exp_avg': momentum, 'exp_avg_sq': square}


class Fromage(SGD):
    r"""Fromage: a step whose norm is lr times the norm of the parameter, rescaled so that norms do not grow.

    .. math::
        b_t = \mu b_{t-1} + g_t, \quad
        w_t = \frac{1}{\sqrt{1 + \eta^2}}
        \left( w_{t-1} - \eta \frac{\lVert w_{t-1} \rVert}{\lVert b_t \rVert} b_t \right)

    The step is not proportional to lr. If one of the two norms is 0, their ratio counts as 1, as in the authors'
    code; optax bounds the norms from below by 1e-6. The momentum, which is not part of the paper, is applied before
    the norm is taken, so that the length of a step depends on lr alone.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Learning rate, see :class:`Optimizer`.
    momentum : float, default 0.0
        Momentum factor :math:`\mu`, in [0, 1].

    References
    ----------
    Bernstein, Vahdat, Yue and Liu (2020), On the Distance Between Two Neural Networks and the Stability of Learning.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, 4.0]))
    >>> optimizer = Fromage(lr=0.75).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.0, 0.1])})
    >>> [round(x, 6) for x in w.value.tolist()]  # 3 / 1.25 and (4 - 0.75 * 5) / 1.25
    [2.4, 0.2]
    """

    lr: Rate = Rate(1.0)
    weight_decay: WeightDecay = option(0.0)
    nesterov: bool = option(False)
    dampening: Dampening = option(0.0)

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        buffer, new = super().direction(g, w, slots, hp)
        growth = jnp.sqrt(1 + hp.lr**2)
        return (ratio(norm(w), norm(buffer)) * buffer + hp.lr / (1 + growth) * w) / growth, new


def norm(x: Array) -> Array:
    """Return the Euclidean norm of all entries."""
    return sqrt(jnp.sum(x * x))


def ratio(a: Array, b: Array) -> Array:
    """Return ``a / b``, and 1 where one of them is 0."""
    return jnp.where((a == 0) | (b == 0), 1.0, a / jnp.where(b == 0, 1.0, b))
