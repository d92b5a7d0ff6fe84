"""RMSprop: the gradient over the root of its mean square."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters, is_on
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['RMSprop']

Array = jax.Array


class RMSprop(Optimizer):
    r"""RMSprop: the gradient over the root of its mean square, or of its variance.

    .. math::
        v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2, \quad
        \tilde v_t = v_t - [\text{centered}]\, \bar g_t^2, \quad \bar g_t = \alpha \bar g_{t-1} + (1 - \alpha) g_t \\
        b_t &= \mu b_{t-1} + g_t / (\sqrt{\tilde v_t} + \epsilon), \quad w_t = w_{t-1} - \eta b_t

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        See :class:`Optimizer`, as for all options not listed here.
    alpha : float, default 0.99
        Decay rate of the averages, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    momentum : float, default 0.0
        :math:`\mu`, in [0, 1].
    centered : bool, default False
        Divide by the standard deviation.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Hinton (2012), Neural Networks for Machine Learning, lecture 6. Graves (2013), Generating Sequences
    With Recurrent Neural Networks, for the centered version.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(1.0))
    >>> optimizer = RMSprop(lr=0.1, alpha=0.75).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(3.0)})  # 1 - 0.1 * 3 / sqrt(0.25 * 9)
    >>> round(float(w.value), 6)
    0.8
    """

    def __init__(
        self,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        names = ['square_avg', *['grad_avg'] * hp.centered, *['momentum_buffer'] * is_on(hp.momentum)]
        return {name: jnp.zeros_like(w) for name in names}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = {'square_avg': hp.alpha.average(slots['square_avg'], g * g)}
        square = new['square_avg']
        if hp.centered:
            new['grad_avg'] = hp.alpha.average(slots['grad_avg'], g)
            square = jnp.maximum(square - new['grad_avg'] ** 2, 0.0)  # rounding can make it negative
        direction = g / (sqrt(square) + hp.eps)
        if 'momentum_buffer' in slots:
            direction = new['momentum_buffer'] = hp.momentum * slots['momentum_buffer'] + direction
        return direction, new
