"""Variants of Adam with another mean or another second moment: Adamax, AdaBelief, Yogi, ADOPT, AdEMAMix."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.options import (
    Betas,
    Count,
    Decay,
    Hyperparameters,
    NonNegative,
    Number,
    Numbers,
    WeightDecay,
    option,
)
from braintools_optim.options.hyperparameters import replace
from braintools_optim.options.kinds import AT_LEAST_ZERO, BELOW_ONE, Scalar, Schedulable
from braintools_optim.options.types import Options
from braintools_optim.rules.adam import AdamBase, Moments, TwoMoments
from braintools_optim.step.counterparts import optax_state, torch_options
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt

__all__ = ['ADOPT', 'AdEMAMix', 'AdaBelief', 'Adamax', 'Yogi']

Array = jax.Array


class Adamax(TwoMoments):
    r"""Adamax: Adam with the decayed maximum of the gradient's size in place of the mean square.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon), \quad
        w_t = w_{t-1} - \eta \frac{m_t}{(1 - \beta_1^t) u_t}

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 2e-3
        Learning rate, see :class:`Optimizer`.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the mean and of the maximum, each in [0, 1).
    eps : float, default 1e-8
        Number added to the size of the gradient, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

    References
    ----------
    Kingma and Ba (2015), Adam: A Method for Stochastic Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Adamax(lr=0.5, betas=(0.0, 0.5)).register_trainable_weights({'w': w})
    >>> for scale in (4.0, 1.0):
    ...     optimizer.update({'w': jnp.array([scale, -0.1])})
    >>> [round(x, 6) for x in w.value.tolist()]  # 1 - 0.5 - 0.5 * 1 / (0.5 * 4) = 0.25
    [0.25, 3.0]
    """

    torch_counterpart = torch_options('weight_decay betas eps')
    optax_slots = optax_state('ScaleByAdamState', mu='exp_avg', nu='exp_inf')
    lr: Rate = Rate(2e-3)

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return dict.fromkeys(('exp_avg', 'exp_inf'), jnp.zeros_like(w))

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        beta1, beta2 = hp.betas
        mean = beta1.average(slots['exp_avg'], g)
        greatest = jnp.maximum(beta2.value * slots['exp_inf'], jnp.abs(g) + hp.eps)
        return hp.debias1 * mean / greatest, {'exp_avg': mean, 'exp_inf': greatest}


class AdaBelief(AdamBase):
    r"""AdaBelief: Adam that divides by the deviation of gradients from their mean instead of from zero.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon_s \\
        w_t &= w_{t-1} - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \epsilon}

    In the paper, :math:`\epsilon_s = \epsilon`. The slot ``exp_avg_sq`` holds :math:`s`.

    The authors' release (adabelief-pytorch 0.2) has two further options, which are on by default: ``rectify`` rectifies
    the step as :class:`RAdam` does, which this class never does, and ``weight_decouple`` is
    ``decoupled_weight_decay``, which is off here.

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-16
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    eps_root : float, optional
        Number :math:`\epsilon_s` added to :math:`s` at every update, >= 0. Default: the value of ``eps`` that is given
        to the constructor.
    amsgrad : bool, default False
        Divide by the maximum of all past :math:`s`.
    decoupled_weight_decay : bool, default False
        Decay the parameter itself instead of adding the decay to the gradient.

    References
    ----------
    Zhuang et al. (2020), AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = AdaBelief(lr=0.5, betas=(0.5, 0.9)).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})  # sqrt(s) is half the mean
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.0, 3.0]
    """

    author_names: ClassVar = {'weight_decouple': 'decoupled_weight_decay'}
    eps: NonNegative = 1e-16
    _: KW_ONLY
    eps_root: Annotated[Schedulable | None, Number(AT_LEAST_ZERO)] = None
    amsgrad: bool = False
    decoupled_weight_decay: bool = False

    def resolve(self, options: Options) -> Options:
        return {**options, 'eps_root': options['eps'] if options['eps_root'] is None else options['eps_root']}

    def moments(self, g: Array, slots: Slots, hp: Hyperparameters) -> Slots:
        beta1, beta2 = hp.betas
        mean = beta1.average(slots['exp_avg'], g)
        return {'exp_avg': mean, 'exp_avg_sq': beta2.average(slots['exp_avg_sq'], (g - mean) ** 2) + hp.eps_root}


class Yogi(AdamBase):
    r"""Yogi: Adam whose second moment changes by an amount that depends only on the squared gradient.

    .. math::
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2) g_t^2, \quad v_0 = \tau

    replaces the :math:`v_t` of :class:`Adam`. The mean starts at 0, as in the paper; in optax the mean starts
    at :math:`\tau`. By default the moments are corrected for bias before :math:`\epsilon` is added, as in Adam and in
    optax. The authors' code adds :math:`\epsilon` first, as ``eps_before_correction`` does:

    .. math:: w_t = w_{t-1} - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-3
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    initial_accumulator_value : float, default 1e-6
        Initial value :math:`\tau` of the second moment, >= 0.
    eps_before_correction : bool, default False
        Add ``eps`` to the root of the second moment before the bias is corrected, as the authors' code does.

    References
    ----------
    Zaheer, Reddi, Sachan, Kale and Kumar (2018), Adaptive Methods for Nonconvex Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Yogi(lr=0.5, eps=0.0, initial_accumulator_value=0.0)
    >>> _ = optimizer.register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})
    >>> [round(x, 5) for x in w.value.tolist()]
    [0.5, 2.5]
    """

    eps: NonNegative = 1e-3
    _: KW_ONLY
    initial_accumulator_value: NonNegative = 1e-6
    eps_before_correction: bool = False

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'exp_avg_sq': jnp.full_like(w, hp.initial_accumulator_value)}

    def moments(self, g: Array, slots: Slots, hp: Hyperparameters) -> Slots:
        old, square = slots['exp_avg_sq'], g * g
        second = old - hp.betas[1].complement * jnp.sign(old - square) * square
        return {'exp_avg': hp.betas[0].average(slots['exp_avg'], g), 'exp_avg_sq': second}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        eps = hp.eps * sqrt(hp.debias2) if hp.eps_before_correction else hp.eps
        return super().direction(g, w, slots, replace(hp, eps=eps))


class ADOPT(TwoMoments):
    r"""ADOPT: Adam that first divides each gradient by the previous second moment and then averages.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)
        \operatorname{clip}\left( \frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)}, \pm (t - 1)^{1/4} \right),
        \quad m_1 = 0 \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad v_1 = g_1^2, \quad w_t = w_{t-1} - \eta m_t

    The first update only initializes :math:`v`; the parameter changes only by decoupled weight decay. This is the
    second version of the paper. The present code of the authors no longer clips: the lower bound of the denominator is
    :math:`\max(\epsilon, 0.9^{t-2})` there, and :math:`m_2` is the whole second scaled gradient.

    Parameters
    ----------
    betas : pair of float, default (0.9, 0.9999)
        Decay rates of the two moments, each in [0, 1).
    eps : float, default 1e-6
        Lower bound of the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    use_clipping : bool, default True
        Clip the scaled gradients, as the authors recommend since the second version of the paper.
    decoupled_weight_decay : bool, default False
        Decay the parameter itself instead of adding the decay to the gradient.

    References
    ----------
    Taniguchi et al. (2024), ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = ADOPT(lr=0.5, betas=(0.5, 0.9)).register_trainable_weights({'w': w})
    >>> for scale in (1.0, 0.5):
    ...     optimizer.update({'w': jnp.array([4.0, -0.5]) * scale})
    >>> w.value.tolist()  # 1 - 0.5 * 0.5 * 2 / 4 = 0.875
    [0.875, 2.125]
    """

    author_names: ClassVar = {'decouple': 'decoupled_weight_decay', 'clip_lambda': 'use_clipping'}
    betas: Betas = (0.9, 0.9999)
    eps: NonNegative = 1e-6
    _: KW_ONLY
    use_clipping: bool = True
    decoupled_weight_decay: bool = False

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {'bound': (hp.step - 1) ** 0.25}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        first = hp.step == 1
        scaled = jnp.where(first, 0.0, g / jnp.where(first, 1.0, jnp.maximum(sqrt(slots['exp_avg_sq']), hp.eps)))
        clipped = jnp.clip(scaled, -hp.bound, hp.bound) if hp.use_clipping else scaled
        mean = hp.betas[0].average(slots['exp_avg'], clipped)
        second = jnp.where(first, g * g, hp.betas[1].average(slots['exp_avg_sq'], g * g))
        return mean, {'exp_avg': mean, 'exp_avg_sq': second}


class AdEMAMix(Moments):
    r"""AdEMAMix: AdamW with a second, much slower mean of the gradient.

    .. math::
        s_t = \beta_3(t) s_{t-1} + (1 - \beta_3(t)) g_t, \quad
        w_t = w_{t-1} - \eta \left( \frac{m_t / (1 - \beta_1^t) + \alpha(t) s_t}
        {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda w_{t-1} \right)

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`. During warmup :math:`\alpha(t) = \alpha t / T_\alpha`,
    and the half-life of :math:`s` grows linearly from the half-life that belongs to :math:`\beta_1`:
    :math:`1 / \log \beta_3(t) = (1 - t / T_\beta) / \log \beta_1 + t / T_\beta / \log \beta_3`.

    Parameters
    ----------
    betas : three floats, default (0.9, 0.999, 0.9999)
        Decay rates of the mean, of the second moment and of the slow mean, each in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.
    mixing : float, default 5.0
        Coefficient :math:`\alpha` of the slow mean, >= 0. The authors call it ``alpha``; their code has the default 2.
    mixing_warmup, beta3_warmup : int, default 0
        Numbers :math:`T_\alpha` and :math:`T_\beta` of warmup updates, >= 0. The paper uses the number of updates of
        the whole training. The authors call the first one ``alpha_warmup``.

    References
    ----------
    Pagliardini, Ablin and Grangier (2024), The AdEMAMix Optimizer: Better, Faster, Older.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = AdEMAMix(lr=0.5, betas=(0.9, 0.999, 0.75), mixing=2.0)
    >>> _ = optimizer.register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})
    >>> [round(x, 6) for x in w.value.tolist()]  # 1 - 0.5 * (1 + 2 * 0.25) = 0.25
    [0.25, 2.75]
    """

    author_names: ClassVar = {'alpha': 'mixing', 'alpha_warmup': 'mixing_warmup'}
    betas: Annotated[tuple[Scalar, Scalar, Scalar], Numbers(Number(BELOW_ONE, decay=True), 3)] = (0.9, 0.999, 0.9999)
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0
    _: KW_ONLY
    mixing: NonNegative = 5.0
    mixing_warmup: Count = 0
    beta3_warmup: Count = 0
    decoupled_weight_decay: bool = option(True)

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'exp_avg_slow': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        warm = [jnp.minimum(hp.step / jnp.maximum(t, 1), 1) for t in (hp.mixing_warmup, hp.beta3_warmup)]
        log_beta3 = 1 / ((1 - warm[1]) / hp.betas[0].log() + warm[1] / hp.betas[2].log())
        slow = {'beta3': jnp.exp(log_beta3), 'beta3_complement': -jnp.expm1(log_beta3)}
        return super().prepare(hp) | slow | {'mixed': hp.mixing * warm[0]}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = self.moments(g, slots, hp)
        slow = Decay(hp.beta3, hp.beta3_complement).average(slots['exp_avg_slow'], g)
        mean = hp.debias1 * new['exp_avg'] + hp.mixed * slow
        return mean / (sqrt(hp.debias2 * new['exp_avg_sq']) + hp.eps), new | {'exp_avg_slow': slow}
