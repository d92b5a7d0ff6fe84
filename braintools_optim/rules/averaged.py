"""Averages of the weights themselves: ASGD, MADGRAD."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters
from braintools_optim.precision import divide
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['ASGD', 'MADGRAD']

Array = jax.Array


class ASGD(Optimizer):
    r"""Averaged gradient descent: a decaying rate, and the mean of the weights since ``t0``.

    .. math::
        \eta_t &= \frac{\eta}{(1 + \lambda \eta (t - 1))^\alpha}, \quad
        w_t = w_{t-1} - \eta_t (g_t + \lambda w_{t-1}) \\
        \bar w_t &= \bar w_{t-1} + \mu_t (w_t - \bar w_{t-1}), \quad \mu_t = \frac{1}{\max(1, t - 1 - t_0)}

    The means :math:`\bar w`, the slot ``ax``, are what the States hold inside ``with optimizer.eval_weights():``.
    The step is not proportional to lr, which is also in the decay of the rate. A change of lr acts on the
    next update (in torch on the one after it).

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        See :class:`Optimizer`, as for all options not listed here.
    lambd : float, default 1e-4
        :math:`\lambda`, at least 0.
    alpha : float, default 0.75
        The power of the decay, in [0, 1).
    t0 : float, default 1e6
        The update count after which the mean is taken, at least 0; before, it is the weight.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Polyak and Juditsky (1992), Acceleration of Stochastic Approximation by Averaging. Xu (2011), Towards
    Optimal One Pass Large Scale Learning with Averaged Stochastic Gradient Descent.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(2.0))
    >>> optimizer = ASGD(lr=0.5, lambd=0.0, t0=0.0).register_trainable_weights({'w': w})
    >>> for _ in range(3):
    ...     optimizer.update({'w': jnp.array(1.0)})
    >>> with optimizer.eval_weights():
    ...     float(w.value)  # the mean of 1.0 and 0.5
    0.75
    """

    def __init__(
        self,
        lr: LearningRate = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'ax': w}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        past = hp.step - 1
        return {'rate': (1 + hp.lambd * hp.lr * past) ** -hp.alpha.value, 'mu': 1 / jnp.maximum(past - hp.t0, 1)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        direction = hp.rate * (g + hp.lambd * w)
        return direction, {'ax': (1 - hp.mu) * slots['ax'] + hp.mu * (w - hp.lr * direction)}

    def evaluation(self, w: Array, slots: Slots, hp: Hyperparameters) -> Array:
        return slots['ax']


class MADGRAD(Optimizer):
    r"""MADGRAD: dual averaging from the first weights, scaled by a cube root, and averaged by momentum.

    .. math::
        s_t &= s_{t-1} + \eta \sqrt t \, g_t, \quad v_t = v_{t-1} + \eta \sqrt t \, g_t^2 \\
        z_t &= w_0 - \frac{s_t}{\sqrt[3]{v_t} + \epsilon}, \quad w_t = \mu w_{t-1} + (1 - \mu) z_t

    The rate weighs gradients, so a change of lr acts on the next update but not in proportion; at 0 the weights
    stand still. This is the paper's formula; the authors' code adds eps to lr.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        :math:`\eta`. See :class:`Optimizer`, as for all options not listed here.
    momentum : float, default 0.9
        :math:`\mu`, in [0, 1].
    eps : float, default 1e-6
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
    Defazio and Jelassi (2022), Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient
    Method for Stochastic Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(2.0))
    >>> optimizer = MADGRAD(lr=1.0, momentum=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(8.0)})  # half of 8 / 4
    >>> float(w.value.round(5))
    1.0
    """

    def __init__(
        self,
        lr: LearningRate = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        decoupled_weight_decay: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'grad_sum_sq': jnp.zeros_like(w), 's': jnp.zeros_like(w), 'x0': w}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {'lamb': hp.lr * jnp.sqrt(hp.step.astype(hp.lr.dtype))}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        s, v = slots['s'] + hp.lamb * g, slots['grad_sum_sq'] + hp.lamb * g * g
        root = jnp.where(v == 0, 0.0, jnp.cbrt(jnp.where(v == 0, 1.0, v)))
        z = slots['x0'] - divide(s, root + hp.eps)
        step = (1 - hp.momentum) * (w - z)
        return divide(step, hp.lr), {'grad_sum_sq': v, 's': s, 'x0': slots['x0']}
