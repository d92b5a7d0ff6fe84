"""Optimizers that use only the sign of the gradient: SignSGD, Signum, Lion, Rprop."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import (
    Betas,
    Hyperparameters,
    MomentumFactor,
    Number,
    Numbers,
    Range,
    WeightDecay,
    option,
)
from braintools_optim.options.kinds import POSITIVE_AND_FINITE, Scalar
from braintools_optim.options.types import Options
from braintools_optim.rules.sgd import SGD, Dampening
from braintools_optim.step.counterparts import ArraySlots, TorchCounterpart, optax_state
from braintools_optim.step.rule import Slots

__all__ = ['Lion', 'Rprop', 'SignSGD', 'Signum']

Array = jax.Array


class SignSGD(SGD):
    r"""SignSGD: the sign of the gradient or of its momentum, with decoupled weight decay.

    .. math::
        b_t = \mu b_{t-1} + g_t, \quad w_t = w_{t-1} - \eta (\operatorname{sign}(b_t) + \lambda w_{t-1})

    The paper scales :math:`g_t` by :math:`1 - \mu`, which does not change the sign.

    Parameters
    ----------
    momentum : float, default 0.0
        Momentum factor :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.

    References
    ----------
    Bernstein et al. (2018), signSGD: Compressed Optimisation for Non-Convex Problems.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0, 3.0]))
    >>> optimizer = SignSGD(lr=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.1, -7.0, 0.0])})
    >>> w.value.tolist()
    [0.5, 2.5, 3.0]
    """

    nesterov: bool = option(False)
    dampening: Dampening = option(0.0)
    decoupled_weight_decay: bool = option(True)

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        buffer, new = super().direction(g, w, slots, hp)
        return jnp.sign(buffer), new


class Signum(SignSGD):
    """:class:`SignSGD` with momentum, by default 0.9.

    Parameters
    ----------
    momentum : float, default 0.9
        Momentum factor, in [0, 1].
    weight_decay : float, default 0.0
        Strength of the decoupled weight decay, >= 0.

    Examples
    --------
    >>> Signum(lr=0.1).momentum
    0.9
    """

    momentum: MomentumFactor = 0.9


class Lion(Optimizer):
    r"""Lion: the sign of a mean gradient that gives extra weight to the current gradient.

    .. math::
        c_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t \\
        w_t &= w_{t-1} - \eta (\operatorname{sign}(c_t) + \lambda w_{t-1})

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-4
        Learning rate, see :class:`Optimizer`.
    betas : pair of float, default (0.9, 0.99)
        Decay rates :math:`\beta_1` for the direction and :math:`\beta_2` for the stored mean, each in [0, 1).
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.

    References
    ----------
    Chen et al. (2023), Symbolic Discovery of Optimization Algorithms.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Lion(lr=0.25).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.1, -7.0])})
    >>> w.value.tolist()
    [0.75, 2.25]
    """

    optax_slots = optax_state('ScaleByLionState', mu='exp_avg')
    lr: Rate = Rate(1e-4)
    betas: Betas = (0.9, 0.99)
    weight_decay: WeightDecay = 0.0
    decoupled_weight_decay: bool = option(True)

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'exp_avg': jnp.zeros_like(w)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        leaning, stored = (beta.average(slots['exp_avg'], g) for beta in hp.betas)
        return jnp.sign(leaning), {'exp_avg': stored}


class RpropCounterpart(TorchCounterpart):
    """torch's Rprop, whose step sizes are not relative to lr."""

    def from_torch(self, slots: ArraySlots, lr: float) -> ArraySlots:
        if 'step_size' not in slots:
            return slots
        if lr == 0:
            raise ValueError('Invalid lr=0 of a group. Must be > 0: step sizes here are in units of lr.')
        return {**slots, 'step_size': slots['step_size'] / lr}

    def to_torch(self, slots: ArraySlots, count: int, options: Options) -> ArraySlots:
        sizes = {'step_size': slots['step_size'] * options['lr']} if 'step_size' in slots else {}
        return slots | sizes


class Rprop(Optimizer):
    r"""Resilient propagation: one step size per entry, which grows while the sign of the gradient stays the same.

    .. math::
        s_t &= \operatorname{clip}(f_t s_{t-1}, \Gamma_{\min}, \Gamma_{\max}), \quad s_0 = \eta, \quad
        f_t = \eta_+, \eta_-, 1 \text{ for } g_t g_{t-1} > 0, < 0, = 0 \\
        w_t &= w_{t-1} - s_t \operatorname{sign}(g_t)

    A gradient whose sign has changed counts as 0, in this update and in the next one. The algorithm is meant for
    gradients of the full data set, not of batches. The slot ``step_size`` holds :math:`s_t / \eta`, so that a change
    of lr scales all step sizes; in torch, lr is only the initial step size.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        Initial step size and scale of all step sizes, see :class:`Optimizer`.
    etas : pair of float, default (0.5, 1.2)
        Factors :math:`\eta_-`, in (0, 1), and :math:`\eta_+`, > 1.
    step_sizes : pair of float, default (1e-6, 50.0)
        Lower bound :math:`\Gamma_{\min}` and upper bound :math:`\Gamma_{\max}` of the step sizes, >= 0.

    Raises
    ------
    ValueError
        If ``etas`` are not on both sides of 1, or ``step_sizes`` are not in ascending order.

    References
    ----------
    Riedmiller and Braun (1993), A Direct Adaptive Method for Faster Backpropagation Learning.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Rprop(lr=0.25, etas=(0.5, 2.0)).register_trainable_weights({'w': w})
    >>> for sign in (1, -1, -1):
    ...     optimizer.update({'w': jnp.array([3.0, 4.0 * sign])})
    >>> w.value.tolist()  # 1 - 0.25 - 0.5 - 1.0 and 2 - 0.25 - 0 + 0.125
    [-0.75, 1.875]
    """

    torch_counterpart = RpropCounterpart(('maximize', 'etas', 'step_sizes'), {'weight_decay': 0.0})
    lr: Rate = Rate(1e-2)
    etas: Annotated[tuple[Scalar, Scalar], Numbers(Number(POSITIVE_AND_FINITE))] = (0.5, 1.2)
    step_sizes: Annotated[tuple[Scalar, Scalar], Numbers(Number(Range(0)))] = (1e-6, 50.0)

    def check_options(self, hp: Hyperparameters) -> None:
        if not hp.etas[0] < 1 < hp.etas[1]:
            raise ValueError(f'Invalid etas={hp.etas}. Must have etas[0] < 1 < etas[1].')
        if hp.step_sizes[0] > hp.step_sizes[1]:
            raise ValueError(f'Invalid step_sizes={hp.step_sizes}. Must have step_sizes[0] <= step_sizes[1].')

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'prev': jnp.zeros_like(w), 'step_size': jnp.ones_like(w)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        shrink, grow = hp.etas
        agreement = jnp.sign(g) * jnp.sign(slots['prev'])
        size = slots['step_size'] * jnp.where(agreement > 0, grow, jnp.where(agreement < 0, shrink, 1.0))
        low, high = (bound / jnp.where(hp.lr == 0, 1.0, hp.lr) for bound in hp.step_sizes)
        size = jnp.where(hp.lr == 0, size, jnp.clip(size, low, high))
        g = jnp.where(agreement < 0, 0.0, g)
        return size * jnp.sign(g), {'prev': g, 'step_size': size}
