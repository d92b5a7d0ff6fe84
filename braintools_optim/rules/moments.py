"""Adam with another mean or another second moment: Adamax, AdaBelief, Yogi, ADOPT, AdEMAMix."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, given
from braintools_optim.options import Decay, Hyperparameters
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.rules.adam import Adam, Moments
from braintools_optim.shared_options import SharedOptions

__all__ = ['ADOPT', 'AdEMAMix', 'AdaBelief', 'Adamax', 'Yogi']

Array = jax.Array


class Adamax(Moments):
    r"""Adamax: Adam with the decayed maximum of the gradient in place of its mean square.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon), \quad
        w_t = w_{t-1} - \eta \frac{m_t}{(1 - \beta_1^t) u_t}

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 2e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the mean and of the maximum, in [0, 1).
    eps : float, default 1e-8
        Added to the size of the gradient; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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
    >>> [round(x, 6) for x in w.value.tolist()]  # 1 - 0.5 - 0.5 * 1 / (0.5 * 4)
    [0.25, 3.0]
    """

    def __init__(
        self,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return dict.fromkeys(('exp_avg', 'exp_inf'), jnp.zeros_like(w))

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        beta1, beta2 = hp.betas
        mean = beta1.average(slots['exp_avg'], g)
        greatest = jnp.maximum(beta2.value * slots['exp_inf'], jnp.abs(g) + hp.eps)
        return hp.debias1 * mean / greatest, {'exp_avg': mean, 'exp_inf': greatest}


class AdaBelief(Adam):
    r"""AdaBelief: Adam that divides by how far gradients are from their mean, not from zero.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon_s \\
        w_t &= w_{t-1} - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \epsilon}

    with :math:`\epsilon_s = \epsilon` in the paper. The slot ``exp_avg_sq`` is :math:`s`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-16
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    eps_root : float, default 1e-16
        :math:`\epsilon_s`, added to :math:`s` at every update; at least 0.
    amsgrad : bool, default False
        Divide by the greatest :math:`s` so far.
    decoupled_weight_decay : bool, default False
        Decay the weight itself.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Zhuang et al. (2020), AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = AdaBelief(lr=0.5, betas=(0.5, 0.9)).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})  # the mean is half the gradient: sqrt(s) is too
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.0, 3.0]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        eps_root: float = 1e-16,
        amsgrad: bool = False,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super(Adam, self).__init__(
            lr,
            grad_clip_norm,
            grad_clip_value,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **shared,
            betas=betas,
            eps=eps,
            eps_root=eps_root,
            amsgrad=amsgrad,
        )

    def moments(self, g: Array, slots: Slots, hp: Hyperparameters) -> Slots:
        beta1, beta2 = hp.betas
        mean = beta1.average(slots['exp_avg'], g)
        return {'exp_avg': mean, 'exp_avg_sq': beta2.average(slots['exp_avg_sq'], (g - mean) ** 2) + hp.eps_root}


class Yogi(Adam):
    r"""Yogi: Adam whose second moment moves towards the square by the size of the square, not of the gap.

    .. math::
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2) g_t^2, \quad v_0 = \tau

    in place of the :math:`v_t` of :class:`Adam`. The mean starts at 0, as in the paper; optax starts it
    at :math:`\tau`. The moments are corrected for their start as Adam's, as in optax and the authors' code.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-3
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    initial_accumulator_value : float, default 1e-6
        :math:`\tau`, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Zaheer, Reddi, Sachan, Kale and Kumar (2018), Adaptive Methods for Nonconvex Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Yogi(lr=0.5, eps=0.0, initial_accumulator_value=0.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})
    >>> [round(x, 5) for x in w.value.tolist()]
    [0.5, 2.5]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        initial_accumulator_value: float = 1e-6,
        **shared: Unpack[SharedOptions],
    ):
        super(Adam, self).__init__(
            lr,
            grad_clip_norm,
            grad_clip_value,
            weight_decay=weight_decay,
            **shared,
            betas=betas,
            eps=eps,
            initial_accumulator_value=initial_accumulator_value,
            amsgrad=False,
        )

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'exp_avg_sq': jnp.full_like(w, hp.initial_accumulator_value)}

    def moments(self, g: Array, slots: Slots, hp: Hyperparameters) -> Slots:
        old, square = slots['exp_avg_sq'], g * g
        second = old - hp.betas[1].complement * jnp.sign(old - square) * square
        return {'exp_avg': hp.betas[0].average(slots['exp_avg'], g), 'exp_avg_sq': second}


class ADOPT(Moments):
    r"""ADOPT: Adam that divides a gradient by the second moment of those before it, then averages.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)
        \operatorname{clip}\left( \frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)}, \pm (t - 1)^{1/4} \right),
        \quad m_1 = 0 \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad v_1 = g_1^2, \quad w_t = w_{t-1} - \eta m_t

    The first update moves nothing (but for decoupled weight decay): it only measures :math:`v`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.9999)
        Decay rates of the two moments, in [0, 1).
    eps : float, default 1e-6
        The least denominator; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    use_clipping : bool, default True
        Clip, as the authors recommend since the paper's second version.
    decoupled_weight_decay : bool, default False
        Decay the weight itself.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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
    >>> w.value.tolist()  # 1 - 0.5 * 0.5 * 2 / 4
    [0.875, 2.125]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        use_clipping: bool = True,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {'bound': (hp.step - 1) ** 0.25}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        first = hp.step == 1
        scaled = jnp.where(first, 0.0, g / jnp.where(first, 1.0, jnp.maximum(sqrt(slots['exp_avg_sq']), hp.eps)))
        if hp.use_clipping:
            scaled = jnp.clip(scaled, -hp.bound, hp.bound)
        mean = hp.betas[0].average(slots['exp_avg'], scaled)
        second = jnp.where(first, g * g, hp.betas[1].average(slots['exp_avg_sq'], g * g))
        return mean, {'exp_avg': mean, 'exp_avg_sq': second}


class AdEMAMix(Moments):
    r"""AdEMAMix: AdamW with a second, much slower mean of the gradient.

    .. math::
        s_t = \beta_3(t) s_{t-1} + (1 - \beta_3(t)) g_t, \quad
        w_t = w_{t-1} - \eta \left( \frac{m_t / (1 - \beta_1^t) + \alpha(t) s_t}
        {\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda w_{t-1} \right)

    with the moments :math:`m_t`, :math:`v_t` of :class:`Adam`. While warming up,
    :math:`\alpha(t) = \alpha t / T_\alpha`, and the half-life of :math:`s` grows evenly from that of :math:`\beta_1`:
    :math:`1 / \log \beta_3(t) = (1 - t / T_\beta) / \log \beta_1 + t / T_\beta / \log \beta_3`.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : three floats, default (0.9, 0.999, 0.9999)
        Decay rates of the mean, the second moment and the slow mean, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0.
    mixing : float, default 5.0
        :math:`\alpha`, the weight of the slow mean, at least 0.
    mixing_warmup, beta3_warmup : int, default 0
        :math:`T_\alpha` and :math:`T_\beta`, updates of warming up; the paper takes those of the whole training.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Pagliardini, Ablin and Grangier (2024), The AdEMAMix Optimizer: Better, Faster, Older.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = AdEMAMix(lr=0.5, betas=(0.9, 0.999, 0.75), mixing=2.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, -0.1])})  # 0.5 * (1 + 2 * 0.25)
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.25, 2.75]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        mixing: float = 5.0,
        mixing_warmup: int = 0,
        beta3_warmup: int = 0,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()), decoupled_weight_decay=True)

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'exp_avg_slow': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        warm = [jnp.minimum(hp.step / jnp.maximum(t, 1), 1) for t in (hp.mixing_warmup, hp.beta3_warmup)]
        log_beta3 = 1 / ((1 - warm[1]) / hp.betas[0].log() + warm[1] / hp.betas[2].log())
        slow = {'beta3': jnp.exp(log_beta3), 'beta3_complement': -jnp.expm1(log_beta3)}
        return super().prepare(hp) | slow | {'mixed': hp.mixing * warm[0]}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = self.moments(g, slots, hp.with_values(betas=hp.betas[:2]))
        slow = Decay(hp.beta3, hp.beta3_complement).average(slots['exp_avg_slow'], g)
        mean = hp.debias1 * new['exp_avg'] + hp.mixed * slow
        return mean / (sqrt(hp.debias2 * new['exp_avg_sq']) + hp.eps), new | {'exp_avg_slow': slow}
