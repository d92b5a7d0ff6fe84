"""Steps in proportion to the norm of the whole weight: Lamb, Lars, Novograd, Fromage."""

from __future__ import annotations

from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.rules.adam import Adam
from braintools_optim.rules.sgd import SGD
from braintools_optim.shared_options import SharedOptions

__all__ = ['Fromage', 'Lamb', 'Lars', 'Novograd']

Array = jax.Array


class Lamb(Adam):
    r"""LAMB: Adam's direction with weight decay, as long as the weight.

    .. math::
        u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda w_{t-1}, \quad
        w_t = w_{t-1} - \eta \frac{\lVert w_{t-1} \rVert}{\lVert u_t \rVert} u_t

    with the corrected moments of :class:`Adam`. Where one of the norms is 0, their ratio counts as 1.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-6
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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

    decays: ClassVar[bool] = True

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(lr, betas, eps, weight_decay, False, grad_clip_norm, grad_clip_value, **shared)

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        adam, new = super().direction(g, w, slots, hp)
        u = decayed(adam, w, hp)
        return ratio(norm(w), norm(u)) * u, new


class Lars(SGD):
    r"""LARS: gradient descent with momentum, each weight's gradient scaled to the weight.

    .. math::
        b_t = \mu b_{t-1} + \frac{\kappa \lVert w_{t-1} \rVert}
        {\lVert g_t \rVert + \lambda \lVert w_{t-1} \rVert + \epsilon} (g_t + \lambda w_{t-1}), \quad
        w_t = w_{t-1} - \eta b_t

    Where the norm of the weight is 0, the factor counts as 1. The denominator is the paper's; optax has
    :math:`\lVert g_t + \lambda w_{t-1} \rVert`. lr is outside of the momentum, so that a change of lr acts at once.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        See :class:`Optimizer`, as for all options not listed here.
    momentum : float, default 0.9
        :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0.
    trust_coefficient : float, default 1e-3
        :math:`\kappa`, above 0.
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    nesterov : bool, default False
        Look ahead along the momentum; needs ``momentum > 0``.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    You, Gitman and Ginsburg (2017), Large Batch Training of Convolutional Networks.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, 4.0]))
    >>> optimizer = Lars(lr=0.5, trust_coefficient=0.1, eps=0.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.0, 2.0])})  # 4 - 0.5 * 0.1 * 5 / 2 * 2
    >>> w.value.tolist()
    [3.0, 3.75]
    """

    decays: ClassVar[bool] = True

    def __init__(
        self,
        lr: LearningRate = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        nesterov: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super(SGD, self).__init__(
            lr,
            grad_clip_norm,
            grad_clip_value,
            weight_decay=weight_decay,
            **shared,
            momentum=momentum,
            nesterov=nesterov,
            dampening=0.0,
            trust_coefficient=trust_coefficient,
            eps=eps,
        )

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        size = norm(w)
        trust = ratio(hp.trust_coefficient * size, decayed(norm(g), size, hp) + hp.eps)
        return super().direction(trust * decayed(g, w, hp), w, slots, hp)


class Novograd(Optimizer):
    r"""NovoGrad: momentum of gradients divided by a running norm, one for each weight.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, \quad v_1 = \lVert g_1 \rVert^2 \\
        m_t &= \beta_1 m_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon} + \lambda w_{t-1}, \quad
        w_t = w_{t-1} - \eta m_t

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the momentum and of the norm, in [0, 1).
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

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'exp_avg': jnp.zeros_like(w), 'exp_avg_sq': jnp.zeros((), w.dtype)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        beta1, beta2 = hp.betas
        square = jnp.sum(g * g)
        square = jnp.where(hp.step == 1, square, beta2.average(slots['exp_avg_sq'], square))
        momentum = beta1.value * slots['exp_avg'] + decayed(g / (sqrt(square) + hp.eps), w, hp)
        return momentum, {'exp_avg': momentum, 'exp_avg_sq': square}


class Fromage(SGD):
    r"""Fromage: a step of lr times the norm of the weight, and back to where norms do not grow.

    .. math::
        b_t = \mu b_{t-1} + g_t, \quad
        w_t = \frac{1}{\sqrt{1 + \eta^2}}
        \left( w_{t-1} - \eta \frac{\lVert w_{t-1} \rVert}{\lVert b_t \rVert} b_t \right)

    The step is not proportional to lr. Where one of the norms is 0, their ratio counts as 1, as in the
    authors' code (optax keeps norms above 1e-6). The momentum, which the paper does not have, acts
    before the norm is taken: a step stays as long as lr says.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        See :class:`Optimizer`, as for all options not listed here.
    momentum : float, default 0.0
        :math:`\mu`, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Bernstein, Vahdat, Yue and Liu (2020), On the Distance Between Two Neural Networks and the Stability of Learning.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([3.0, 4.0]))
    >>> optimizer = Fromage(lr=0.75).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.0, 0.1])})  # (3, 4 - 0.75 * 5) / 1.25
    >>> [round(x, 6) for x in w.value.tolist()]
    [2.4, 0.2]
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        momentum: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(lr, momentum, 0.0, False, grad_clip_norm, grad_clip_value, **shared)

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        buffer, new = super().direction(g, w, slots, hp)
        growth = jnp.sqrt(1 + hp.lr**2)
        return (ratio(norm(w), norm(buffer)) * buffer + hp.lr / (1 + growth) * w) / growth, new


def decayed(u: Array, w: Array, hp: Hyperparameters) -> Array:
    """``u + weight_decay * w``; the weight is not read without decay."""
    return u if hp.weight_decay is None else u + hp.weight_decay * w


def norm(x: Array) -> Array:
    return sqrt(jnp.sum(x * x))


def ratio(a: Array, b: Array) -> Array:
    """``a / b``, and 1 where one of them is 0."""
    return jnp.where((a == 0) | (b == 0), 1.0, a / jnp.where(b == 0, 1.0, b))
