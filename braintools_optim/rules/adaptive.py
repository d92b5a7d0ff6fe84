"""Optimizers that accumulate squared gradients: Adagrad, Adadelta, SM3."""

from __future__ import annotations

import functools
from typing import Annotated

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Hyperparameters, MomentumFactor, NonNegative, Number, WeightDecay
from braintools_optim.options.kinds import UNIT, Schedulable, is_on
from braintools_optim.step.counterparts import optax_state, torch_options
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt

__all__ = ['SM3', 'Adadelta', 'Adagrad']

Array = jax.Array


class Adagrad(Optimizer):
    r"""Adagrad: the gradient divided by the root of the sum of all squared gradients.

    .. math::
        s_t = s_{t-1} + g_t^2, \quad s_0 = \tau, \qquad
        w_t = w_{t-1} - \frac{\eta}{1 + (t - 1) \rho} \frac{g_t}{\sqrt{s_t} + \epsilon}

    As in torch, :math:`\epsilon` is added outside the root.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        Learning rate, see :class:`Optimizer`.
    lr_decay : float, default 0.0
        Decay :math:`\rho` of the learning rate, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    initial_accumulator_value : float, default 0.0
        Initial value :math:`\tau` of the sum of squared gradients, >= 0.
    eps : float, default 1e-10
        Number added to the denominator, >= 0.

    References
    ----------
    Duchi, Hazan and Singer (2011), Adaptive Subgradient Methods for Online Learning and Stochastic Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Adagrad(lr=0.5, initial_accumulator_value=16.0)
    >>> _ = optimizer.register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, 0.0])})
    >>> [round(x, 6) for x in w.value.tolist()]  # 1 - 0.5 * 3 / sqrt(16 + 9) = 0.7
    [0.7, 2.0]
    """

    torch_counterpart = torch_options('weight_decay eps lr_decay initial_accumulator_value')
    optax_slots = optax_state('ScaleByRssState', sum_of_squares='sum')
    lr: Rate = Rate(1e-2)
    lr_decay: NonNegative = 0.0
    weight_decay: WeightDecay = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: NonNegative = 1e-10

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'sum': jnp.full_like(w, hp.initial_accumulator_value)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {'shrinkage': 1 + (hp.step - 1) * hp.lr_decay}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        total = slots['sum'] + g * g
        return g / hp.shrinkage / (sqrt(total) + hp.eps), {'sum': total}


class Adadelta(Optimizer):
    r"""Adadelta: steps whose size follows the mean size of the previous steps instead of the size of the gradient.

    .. math::
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2, \quad
        \Delta_t = \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} g_t \\
        u_t &= \rho u_{t-1} + (1 - \rho) \Delta_t^2, \quad w_t = w_{t-1} - \eta \Delta_t

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Learning rate, see :class:`Optimizer`.
    rho : float, default 0.9
        Decay rate of the moving averages, in [0, 1].
    eps : float, default 1e-6
        Number added inside the roots, >= 0. This number determines the size of the first steps.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

    References
    ----------
    Zeiler (2012), ADADELTA: An Adaptive Learning Rate Method.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(1.0))
    >>> optimizer = Adadelta(rho=0.75, eps=0.25).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(3.0)})
    >>> round(float(w.value), 6)  # 1 - sqrt(0.25) / sqrt(0.25 * 9 + 0.25) * 3
    0.051317
    """

    torch_counterpart = torch_options('weight_decay rho eps')
    lr: Rate = Rate(1.0)
    rho: Annotated[Schedulable, Number(UNIT, decay=True)] = 0.9
    eps: NonNegative = 1e-6
    weight_decay: WeightDecay = 0.0

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return dict.fromkeys(('square_avg', 'acc_delta'), jnp.zeros_like(w))

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        square_avg = hp.rho.average(slots['square_avg'], g * g)
        past, present = slots['acc_delta'] + hp.eps, square_avg + hp.eps
        square = past * g * (g / present)  # delta**2 without the roots, which XLA would store for both results
        new = {'square_avg': square_avg, 'acc_delta': hp.rho.average(slots['acc_delta'], square)}
        return sqrt(past) / sqrt(present) * g, new


class SM3(Optimizer):
    r"""SM3: Adagrad with one accumulator per row, column, ... of a parameter instead of one per entry.

    .. math::
        \nu_t(i, j) &= \min(r_{t-1}(i), c_{t-1}(j)) + g_t(i, j)^2, \quad
        r_t(i) = \max_j \nu_t(i, j), \quad c_t(j) = \max_i \nu_t(i, j) \\
        b_t &= \mu b_{t-1} + (1 - \mu) g_t / \sqrt{\nu_t + \epsilon}, \quad w_t = w_{t-1} - \eta b_t

    The formulas hold for a matrix; a parameter with more dimensions has one set of accumulators per axis, and
    a vector or scalar is updated as in Adagrad. The algorithm is SM3-II of the paper with the
    :math:`\epsilon` of optax. The slots of the accumulators are ``accumulator_0``, ``accumulator_1``, ...

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Learning rate, see :class:`Optimizer`.
    momentum : float, default 0.9
        Decay rate :math:`\mu` of the averaged direction, in [0, 1].
    eps : float, default 1e-8
        Number added inside the root, >= 0.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

    References
    ----------
    Anil, Gupta, Koren and Singer (2019), Memory-Efficient Adaptive Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.zeros((2, 2)))
    >>> optimizer = SM3(lr=1.0, momentum=0.0, eps=0.0).register_trainable_weights({'w': w})
    >>> for _ in range(2):
    ...     optimizer.update({'w': jnp.array([[0.0, 2.0], [0.0, 0.0]])})
    >>> optimizer.opt_state.value['accumulator_0']['w'].tolist()  # one accumulator per row
    [[8.0], [0.0]]
    >>> round(float(w.value[0, 1]), 6)  # -1 - 2 / sqrt(8)
    -1.707107
    """

    lr: Rate = Rate(1.0)
    momentum: MomentumFactor = 0.9
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        zeros: Slots = jax.tree.map(jnp.zeros_like, jax.eval_shape(accumulators, w))
        return zeros | ({'momentum_buffer': jnp.zeros_like(w)} if is_on(hp.momentum) else {})

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        total = functools.reduce(jnp.minimum, [v for name, v in slots.items() if name != 'momentum_buffer']) + g * g
        root, new = sqrt(total + hp.eps), accumulators(total)
        direction = g / jnp.where(root == 0, 1.0, root)
        if 'momentum_buffer' in slots:
            direction = new['momentum_buffer'] = hp.momentum * slots['momentum_buffer'] + (1 - hp.momentum) * direction
        return direction, new


def accumulators(x: Array) -> Slots:
    """Return, for each axis, the maxima of ``x >= 0`` over all other axes; for a scalar, return ``x`` itself."""
    others = [tuple(j for j in range(x.ndim) if j != i) for i in range(max(x.ndim, 1))]
    return {f'accumulator_{i}': jnp.max(x, axes, keepdims=True, initial=0.0) for i, axes in enumerate(others)}
