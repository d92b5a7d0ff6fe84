"""Averages of the weights themselves: ASGD."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['ASGD']

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
