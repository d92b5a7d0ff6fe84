"""Averages of the parameters: ASGD, MADGRAD."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import (
    DecayRate,
    Fraction,
    Hyperparameters,
    NonNegative,
    Number,
    Range,
    WeightDecay,
)
from braintools_optim.options.kinds import Schedulable
from braintools_optim.options.types import Options
from braintools_optim.step.counterparts import ArraySlots, TorchCounterpart
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import divide

__all__ = ['ASGD', 'MADGRAD']

Array = jax.Array


class ASGDCounterpart(TorchCounterpart):
    """torch's ASGD, which also keeps numbers that follow from options and count."""

    def from_torch(self, slots: ArraySlots, lr: float) -> ArraySlots:
        return {name: x for name, x in slots.items() if name not in ('eta', 'mu')}

    def to_torch(self, slots: ArraySlots, count: int, options: Options) -> ArraySlots:
        lr = options['lr']
        eta = np.array(lr / (1 + options['lambd'] * lr * count) ** options['alpha'])
        return {**slots, 'eta': eta, 'mu': np.array(1 / max(1, count - options['t0']))}


class ASGD(Optimizer):
    r"""Averaged stochastic gradient descent: a decaying learning rate, and the mean of the parameters since ``t0``.

    .. math::
        \eta_t &= \frac{\eta}{(1 + \lambda \eta (t - 1))^\alpha}, \quad
        w_t = w_{t-1} - \eta_t (g_t + \lambda w_{t-1}) \\
        \bar w_t &= \bar w_{t-1} + \mu_t (w_t - \bar w_{t-1}), \quad \mu_t = \frac{1}{\max(1, t - 1 - t_0)}

    Inside ``with optimizer.eval_weights():`` the States hold the means :math:`\bar w`, which are the slot ``ax``.
    A step is not proportional to ``lr``, because the decay of the rate depends on ``lr``, too. A change of ``lr`` acts
    on the next update. In torch a change acts one update later.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        Learning rate :math:`\eta`, see :class:`Optimizer`.
    lambd : float, default 1e-4
        Factor :math:`\lambda` in the decay of the rate, and the strength of the decay of the parameters, >= 0.
    alpha : float, default 0.75
        Exponent :math:`\alpha` of the decay of the rate, in [0, 1).
    t0 : float, default 1e6
        Update count :math:`t_0`, >= 0, after which the mean is taken. Before, the mean equals the parameter.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

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

    torch_counterpart = ASGDCounterpart(
        ('maximize', 'weight_decay', 'lambd', 'alpha', 't0'), {'decoupled_weight_decay': False}
    )
    lr: Rate = Rate(1e-2)
    lambd: NonNegative = 1e-4
    alpha: DecayRate = 0.75
    t0: Annotated[Schedulable, Number(Range(0))] = 1e6
    weight_decay: WeightDecay = 0.0

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'ax': w}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        past = hp.step - 1
        return {'rate': (1 + hp.lambd * hp.lr * past) ** -hp.alpha.value, 'mu': 1 / jnp.maximum(past - hp.t0, 1)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        return (d := hp.rate * (g + hp.lambd * w)), {'ax': (1 - hp.mu) * slots['ax'] + hp.mu * (w - hp.lr * d)}

    def evaluation(self, w: Array, slots: Slots, hp: Hyperparameters) -> Array:
        return slots['ax']


class MADGRAD(Optimizer):
    r"""MADGRAD: dual averaging from the initial parameters, scaled by a cube root and smoothed by momentum.

    .. math::
        s_t &= s_{t-1} + \eta \sqrt t \, g_t, \quad v_t = v_{t-1} + \eta \sqrt t \, g_t^2 \\
        z_t &= w_0 - \frac{s_t}{\sqrt[3]{v_t} + \epsilon}, \quad w_t = \mu w_{t-1} + (1 - \mu) z_t

    The learning rate weighs the gradients, so a change of ``lr`` acts on the next update, but a step is not
    proportional to ``lr``. With an ``lr`` of 0 the parameters do not move. This is the formula of the paper; the
    authors' code adds ``eps`` to ``lr``.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        Learning rate :math:`\eta`, see :class:`Optimizer`.
    momentum : float, default 0.9
        Momentum factor :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    eps : float, default 1e-6
        Number :math:`\epsilon` that is added to the denominator, >= 0.
    decoupled_weight_decay : bool, default False
        Decay the parameters themselves instead of their gradients.

    References
    ----------
    Defazio and Jelassi (2022), Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient
    Method for Stochastic Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(2.0))
    >>> optimizer = MADGRAD(lr=1.0, momentum=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(8.0)})  # a step of 0.5 * 8 / 4
    >>> float(w.value.round(5))
    1.0
    """

    author_names: ClassVar = {'decouple_decay': 'decoupled_weight_decay'}
    lr: Rate = Rate(1e-2)
    momentum: Fraction = 0.9
    weight_decay: WeightDecay = 0.0
    eps: NonNegative = 1e-6
    _: KW_ONLY
    decoupled_weight_decay: bool = False

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'grad_sum_sq': jnp.zeros_like(w), 's': jnp.zeros_like(w), 'x0': w}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {'lamb': hp.lr * jnp.sqrt(hp.step)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        s, v = slots['s'] + hp.lamb * g, slots['grad_sum_sq'] + hp.lamb * g * g
        z = slots['x0'] - divide(s, cube_root(v) + hp.eps)
        return divide((1 - hp.momentum) * (w - z), hp.lr), {'grad_sum_sq': v, 's': s, 'x0': slots['x0']}


def cube_root(x: Array) -> Array:
    """Return the cube root, with derivative 0 at 0."""
    return jnp.where(x == 0, 0.0, jnp.cbrt(jnp.where(x == 0, 1.0, x)))
