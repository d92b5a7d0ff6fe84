"""Moments of the gradient, corrected for their start: Adam, AdamW, RAdam."""

from __future__ import annotations

import warnings
from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Decay, Hyperparameters
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['Adam', 'AdamW', 'RAdam']

Array = jax.Array


class Moments(Optimizer):
    """The first and second moments of the gradient, and what takes the bias of their start at zero away."""

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'exp_avg': jnp.zeros_like(w), 'exp_avg_sq': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {f'debias{i}': beta.debias(hp.step) for i, beta in enumerate(hp.betas, 1)}

    def moments(self, g: Array, slots: Slots, hp: Hyperparameters) -> Slots:
        beta1, beta2 = hp.betas
        return {
            'exp_avg': beta1.average(slots['exp_avg'], g),
            'exp_avg_sq': beta2.average(slots['exp_avg_sq'], g * g),
        }


class Adam(Moments):
    r"""Adam: the mean gradient over the root of the mean squared gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        w_t &= w_{t-1} - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    amsgrad : bool, default False
        Divide by the greatest :math:`v` so far (as torch computes it: corrected afterwards).
    decoupled_weight_decay : bool, default False
        Decay the weight itself, as :class:`AdamW` does.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Kingma and Ba (2015), Adam: A Method for Stochastic Optimization. Reddi et al. (2018), On the
    Convergence of Adam and Beyond.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Adam(lr=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.1, -3.0])})
    >>> w.value.tolist()
    [0.5, 2.5]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        decoupled_weight_decay: bool = False,
        beta1: float | None = None,
        beta2: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        betas = with_deprecated(betas, beta1, beta2)
        super().__init__(**given(locals(), 'beta1', 'beta2'))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | ({'max_exp_avg_sq': jnp.zeros_like(w)} if hp.amsgrad else {})

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = self.moments(g, slots, hp)
        second = new['exp_avg_sq']
        if hp.amsgrad:
            second = new['max_exp_avg_sq'] = jnp.maximum(slots['max_exp_avg_sq'], second)
        return hp.debias1 * new['exp_avg'] / (sqrt(hp.debias2 * second) + hp.eps), new


class AdamW(Adam):
    r"""Adam with decoupled weight decay: :math:`w_t = w_{t-1} - \eta (\text{Adam's direction} + \lambda w_{t-1})`.

    Parameters
    ----------
    lr, betas, eps, amsgrad
        See :class:`Adam`; what is not listed there, :class:`Optimizer`.
    weight_decay : float, default 0.01
        :math:`\lambda`, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(2.0))
    >>> optimizer = AdamW(lr=0.5, weight_decay=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(1.0)})  # 2 - 0.5 * (1 + 0.5 * 2)
    >>> float(w.value)
    1.0
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        amsgrad: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()), decoupled_weight_decay=True)


class RAdam(Moments):
    r"""Rectified Adam: plain momentum until the variance of the adaptive rate is tractable.

    .. math::
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad \hat m_t = \frac{m_t}{1 - \beta_1^t} \\
        w_t &= w_{t-1} - \eta \hat m_t \begin{cases}
        \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}
        \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \epsilon} & \rho_t > 5 \\ 1 & \text{else} \end{cases}

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`. The rectification starts above 5, as in
    torch (the paper and braintools.optim say 4), and eps is added to :math:`\sqrt{v_t}`, as torch does
    (its 1.x page has it inside the root).

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    decoupled_weight_decay : bool, default False
        Decay the weight itself.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Liu et al. (2020), On the Variance of the Adaptive Learning Rate and Beyond.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = RAdam(lr=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([1.0, -2.0])})  # not rectified yet: plain momentum
    >>> w.value.round(5).tolist()
    [0.5, 3.0]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        rho_inf, rho = sma_length(hp.betas[1], hp.step)
        rectified = rho > 5
        rho, rho_inf = jnp.where(rectified, rho, 6.0), jnp.where(rectified, rho_inf, 6.0)  # no NaN in derivatives
        ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        rate = jnp.sqrt(ratio * hp.betas[1].correction(hp.step))
        return super().prepare(hp) | {'rectified': rectified, 'rectified_rate': rate}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = self.moments(g, slots, hp)
        adaptive = hp.rectified_rate / (sqrt(new['exp_avg_sq']) + hp.eps)
        return hp.debias1 * new['exp_avg'] * jnp.where(hp.rectified, adaptive, 1.0), new


def sma_length(beta: Decay, step: Array) -> tuple[Array, Array]:
    r"""RAdam's :math:`\rho_\infty` and :math:`\rho_t`, without the cancellation of its formula.

    With :math:`y = -\tfrac12 \log \beta` the formula is :math:`\rho_\infty = \coth y` and
    :math:`\rho_t = \rho_\infty - 2t / (e^{2ty} - 1)`, which for small :math:`ty` subtracts two numbers
    of size :math:`1/y`. The same is :math:`\rho_t = t + L(y) - t L(ty)` with :math:`L(x) = \coth x - 1/x`,
    whose continued fraction :math:`x / (3 + x^2 / (5 + \dots))` has only positive terms.
    """

    def langevin(x: Array) -> Array:
        tail = jnp.full_like(x, 21.0)
        for odd in range(19, 1, -2):
            tail = odd + x * x / tail
        return x / tail

    rho_inf = 2 / beta.complement - 1
    if beta.in_double():
        return rho_inf, rho_inf - 2 * step * beta.value**step / beta.correction(step)
    y = -beta.log() / 2
    ty = step * y
    small = jnp.minimum(ty, 1.0)
    late = rho_inf - 2 * step / jnp.expm1(2 * jnp.maximum(ty, 1.0))
    return rho_inf, jnp.where(ty < 1, step + langevin(small / step) - step * langevin(small), late)


def with_deprecated(betas: tuple[float, float], beta1: float | None, beta2: float | None) -> tuple[float, float]:
    """``betas`` with ``beta1`` and ``beta2``, as braintools.optim takes them, in their places."""
    for i, beta in enumerate((beta1, beta2)):
        if beta is not None:
            warnings.warn(f'beta{i + 1} is deprecated, give betas instead.', DeprecationWarning, stacklevel=3)
            betas = (beta, betas[1]) if i == 0 else (betas[0], beta)
    return betas
