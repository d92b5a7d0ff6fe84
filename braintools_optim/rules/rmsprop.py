"""RMSprop: the gradient divided by the root of its mean square."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import DecayRate, Hyperparameters, MomentumFactor, NonNegative, WeightDecay
from braintools_optim.options.kinds import is_on
from braintools_optim.step.counterparts import optax_state, torch_options
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt

__all__ = ['RMSprop']

Array = jax.Array


class RMSprop(Optimizer):
    r"""RMSprop: the gradient divided by the root of its mean square, or by its standard deviation.

    .. math::
        v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2, \quad
        \tilde v_t = v_t - [\text{centered}]\, \bar g_t^2, \quad \bar g_t = \alpha \bar g_{t-1} + (1 - \alpha) g_t \\
        b_t &= \mu b_{t-1} + g_t / (\sqrt{\tilde v_t} + \epsilon), \quad w_t = w_{t-1} - \eta b_t

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        Learning rate, see :class:`Optimizer`.
    alpha : float, default 0.99
        Decay rate of the moving averages, in [0, 1).
    eps : float, default 1e-8
        Number added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    momentum : float, default 0.0
        Momentum factor :math:`\mu`, in [0, 1].
    centered : bool, default False
        Divide by the standard deviation of the gradient instead of the root of its mean square.

    References
    ----------
    Hinton (2012), Neural Networks for Machine Learning, lecture 6. Graves (2013), Generating Sequences
    With Recurrent Neural Networks, introduced the centered version.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(1.0))
    >>> optimizer = RMSprop(lr=0.1, alpha=0.75).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(3.0)})
    >>> round(float(w.value), 6)  # 1 - 0.1 * 3 / sqrt(0.25 * 9)
    0.8
    """

    torch_counterpart = torch_options('weight_decay alpha eps momentum centered')
    optax_slots = optax_state('ScaleByRmsState', nu='square_avg')
    lr: Rate = Rate(1e-2)
    alpha: DecayRate = 0.99
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0
    momentum: MomentumFactor = 0.0
    centered: bool = False

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        names = ['square_avg', *['grad_avg'] * hp.centered, *['momentum_buffer'] * is_on(hp.momentum)]
        return {name: jnp.zeros_like(w) for name in names}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = {'square_avg': hp.alpha.average(slots['square_avg'], g * g)}
        square = new['square_avg']
        if hp.centered:
            new['grad_avg'] = hp.alpha.average(slots['grad_avg'], g)
            square = jnp.maximum(square - new['grad_avg'] ** 2, 0.0)  # rounding can make the variance negative
        direction = g / (sqrt(square) + hp.eps)
        if 'momentum_buffer' in slots:
            direction = new['momentum_buffer'] = hp.momentum * slots['momentum_buffer'] + direction
        return direction, new
