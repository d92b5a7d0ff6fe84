"""Optimizers with two bias-corrected moments of the gradient: Adam, AdamW, RAdam."""

from __future__ import annotations

import sys
import warnings
from dataclasses import KW_ONLY, InitVar

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Betas, Decay, Hyperparameters, NonNegative, WeightDecay, option
from braintools_optim.options.kinds import Scalar
from braintools_optim.options.types import Options
from braintools_optim.step.counterparts import optax_state, torch_options
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt

__all__ = ['Adam', 'AdamW', 'RAdam']

Array = jax.Array


class Moments(Optimizer):
    """Base of optimizers that average the gradient and its square and correct the bias of averages that start at 0."""

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'exp_avg': jnp.zeros_like(w), 'exp_avg_sq': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {f'debias{i}': beta.debias(hp.step) for i, beta in enumerate(hp.betas, 1)}

    def moments(self, g: Array, slots: Slots, hp: Hyperparameters) -> Slots:
        """Return both moments after one more gradient."""
        beta1, beta2, *_ = hp.betas
        return {
            'exp_avg': beta1.average(slots['exp_avg'], g),
            'exp_avg_sq': beta2.average(slots['exp_avg_sq'], g * g),
        }


class TwoMoments(Moments):
    """Base of optimizers with the positional arguments of Adam: one decay rate for each of the two moments."""

    betas: Betas = (0.9, 0.999)
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0


class AdamBase(TwoMoments):
    """Adam's rule. Subclasses choose which of its options are arguments and how the moments are computed."""

    amsgrad: bool = option(False)

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | ({'max_exp_avg_sq': jnp.zeros_like(w)} if hp.amsgrad else {})

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = self.moments(g, slots, hp)
        second = new['exp_avg_sq']
        if hp.amsgrad:
            second = new['max_exp_avg_sq'] = jnp.maximum(slots['max_exp_avg_sq'], second)
        return hp.debias1 * new['exp_avg'] / (sqrt(hp.debias2 * second) + hp.eps), new


class Adam(AdamBase):
    r"""Adam: the mean gradient divided by the root of the mean squared gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        w_t &= w_{t-1} - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    amsgrad : bool, default False
        Divide by the maximum of all past :math:`v`. As in torch, the bias is corrected after the maximum is taken.
    decoupled_weight_decay : bool, default False
        Decay the parameter itself, as :class:`AdamW` does, instead of adding the decay to the gradient.
    beta1, beta2 : float, optional
        Deprecated. Use ``betas``.

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

    torch_counterpart = torch_options('weight_decay betas eps amsgrad decoupled_weight_decay')
    optax_slots = optax_state('ScaleByAdamState', mu='exp_avg', nu='exp_avg_sq')
    amsgrad: bool = False
    _: KW_ONLY
    decoupled_weight_decay: bool = False
    beta1: InitVar[float | None] = None
    beta2: InitVar[float | None] = None

    def resolve(self, options: Options) -> Options:
        for i, name in enumerate(('beta1', 'beta2')):
            if (beta := options.pop(name)) is not None:
                warnings.warn(f'{name} is deprecated. Use betas.', DeprecationWarning, stacklevel=level_of_caller())
                betas = options['betas']
                options['betas'] = (*betas[:i], beta, *betas[i + 1 :])
        return options


class AdamW(AdamBase):
    r"""Adam with decoupled weight decay.

    .. math::
        w_t = w_{t-1} - \eta \left( \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}
        + \lambda w_{t-1} \right)

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`.

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.01
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.
    amsgrad : bool, default False
        Divide by the maximum of all past :math:`v`. As in torch, the bias is corrected after the maximum is taken.

    References
    ----------
    Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(2.0))
    >>> optimizer = AdamW(lr=0.5, weight_decay=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(1.0)})
    >>> float(w.value)  # 2 - 0.5 * (1 + 0.5 * 2)
    1.0
    """

    torch_counterpart = torch_options('weight_decay betas eps amsgrad decoupled_weight_decay')
    optax_slots = optax_state('ScaleByAdamState', mu='exp_avg', nu='exp_avg_sq')
    weight_decay: WeightDecay = 0.01
    _: KW_ONLY
    amsgrad: bool = False
    decoupled_weight_decay: bool = option(True)


class RAdam(TwoMoments):
    r"""Rectified Adam: plain momentum until the variance of the adaptive step size is tractable.

    .. math::
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \quad \hat m_t = \frac{m_t}{1 - \beta_1^t} \\
        w_t &= w_{t-1} - \eta \hat m_t \begin{cases}
        \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}
        \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \epsilon} & \rho_t > 5 \\ 1 & \text{else} \end{cases}

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`. The step is rectified where :math:`\rho_t > 5`, as in
    torch; the paper and braintools.optim use 4. As in torch's code, :math:`\epsilon` is added outside the root; the
    documentation of torch 1.x shows :math:`\epsilon` inside the root.

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    decoupled_weight_decay : bool, default False
        Decay the parameter itself instead of adding the decay to the gradient.

    References
    ----------
    Liu et al. (2020), On the Variance of the Adaptive Learning Rate and Beyond.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = RAdam(lr=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([1.0, -2.0])})  # plain momentum, since rho_1 < 5
    >>> w.value.round(5).tolist()
    [0.5, 3.0]
    """

    torch_counterpart = torch_options('weight_decay betas eps decoupled_weight_decay')
    optax_slots = optax_state('ScaleByAdamState', mu='exp_avg', nu='exp_avg_sq')
    _: KW_ONLY
    decoupled_weight_decay: bool = False

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        rho_inf, rho = sma_length(hp.betas[1], hp.step)
        rectified = rho > 5
        rho, rho_inf = jnp.where(rectified, rho, 6.0), jnp.where(rectified, rho_inf, 6.0)  # keeps derivatives finite
        ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        rate = jnp.sqrt(ratio * hp.betas[1].correction(hp.step))
        return super().prepare(hp) | {'rectified': rectified, 'rectified_rate': rate}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = self.moments(g, slots, hp)
        adaptive = hp.rectified_rate / (sqrt(new['exp_avg_sq']) + hp.eps)
        return hp.debias1 * new['exp_avg'] * jnp.where(hp.rectified, adaptive, 1.0), new


def sma_length(beta: Decay, step: Array) -> tuple[Scalar, Array]:
    r"""Return RAdam's :math:`\rho_\infty` and :math:`\rho_t`, computed without the cancellation in their formula.

    With :math:`y = -\tfrac12 \log \beta` the formula is :math:`\rho_\infty = \coth y` and
    :math:`\rho_t = \rho_\infty - 2t / (e^{2ty} - 1)`, which for small :math:`ty` subtracts two numbers
    of size :math:`1/y`. An equivalent formula is :math:`\rho_t = t + L(y) - t L(ty)` with
    :math:`L(x) = \coth x - 1/x`, whose continued fraction :math:`x / (3 + x^2 / (5 + \dots))` has only positive terms.
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


def level_of_caller() -> int:
    """Return the ``stacklevel`` at which a warning names the code that called the constructor."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get('__name__', '').partition('.')[0] in ('braintools_optim', 'brainstate'):
        level, frame = level + 1, frame.f_back
    return level
