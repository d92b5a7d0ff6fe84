"""Accumulated squares of the gradient: Adagrad, Adadelta, SM3."""

from __future__ import annotations

import functools
from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters, is_on
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['SM3', 'Adadelta', 'Adagrad']

Array = jax.Array


class Adagrad(Optimizer):
    r"""Adagrad: the gradient over the root of the sum of all squared gradients so far.

    .. math::
        s_t = s_{t-1} + g_t^2, \quad s_0 = \tau, \qquad
        w_t = w_{t-1} - \frac{\eta}{1 + (t - 1) \rho} \frac{g_t}{\sqrt{s_t} + \epsilon}

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        See :class:`Optimizer`, as for all options not listed here.
    lr_decay : float, default 0.0
        :math:`\rho`, at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    initial_accumulator_value : float, default 0.0
        :math:`\tau`, at least 0.
    eps : float, default 1e-10
        Added to the denominator (outside the root, as in torch); at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Duchi, Hazan and Singer (2011), Adaptive Subgradient Methods for Online Learning and Stochastic Optimization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = Adagrad(lr=0.5, initial_accumulator_value=16.0).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([3.0, 0.0])})  # 1 - 0.5 * 3 / sqrt(16 + 9)
    >>> [round(x, 6) for x in w.value.tolist()]
    [0.7, 2.0]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'sum': jnp.full_like(w, hp.initial_accumulator_value)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {'shrinkage': 1 + (hp.step - 1) * hp.lr_decay}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        total = slots['sum'] + g * g
        return g / hp.shrinkage / (sqrt(total) + hp.eps), {'sum': total}


class Adadelta(Optimizer):
    r"""Adadelta: steps whose mean size follows that of the steps before, not that of the gradient.

    .. math::
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2, \quad
        \Delta_t = \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} g_t \\
        u_t &= \rho u_{t-1} + (1 - \rho) \Delta_t^2, \quad w_t = w_{t-1} - \eta \Delta_t

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        See :class:`Optimizer`, as for all options not listed here.
    rho : float, default 0.9
        Decay rate of the averages, in [0, 1].
    eps : float, default 1e-6
        Added inside the roots; at least 0. It sets the size of the first steps.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Zeiler (2012), ADADELTA: An Adaptive Learning Rate Method.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(1.0))
    >>> optimizer = Adadelta(rho=0.75, eps=0.25).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array(3.0)})  # 1 - sqrt(0.25) / sqrt(0.25 * 9 + 0.25) * 3
    >>> round(float(w.value), 6)
    0.051317
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return dict.fromkeys(('square_avg', 'acc_delta'), jnp.zeros_like(w))

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        square_avg = hp.rho.average(slots['square_avg'], g * g)
        past, present = slots['acc_delta'] + hp.eps, square_avg + hp.eps
        square = past * g * (g / present)  # of delta, without its roots: XLA would keep them for both
        new = {'square_avg': square_avg, 'acc_delta': hp.rho.average(slots['acc_delta'], square)}
        return sqrt(past) / sqrt(present) * g, new


class SM3(Optimizer):
    r"""SM3: Adagrad with one accumulator a row, a column, ... instead of one a weight.

    .. math::
        \nu_t(i, j) &= \min(r_{t-1}(i), c_{t-1}(j)) + g_t(i, j)^2, \quad
        r_t(i) = \max_j \nu_t(i, j), \quad c_t(j) = \max_i \nu_t(i, j) \\
        b_t &= \mu b_{t-1} + (1 - \mu) g_t / \sqrt{\nu_t + \epsilon}, \quad w_t = w_{t-1} - \eta b_t

    for a matrix, and likewise for more dimensions; vectors and scalars are Adagrad's. This is SM3-II
    of the paper; :math:`\epsilon` is optax's. The accumulators are ``accumulator_0``, ``accumulator_1``, ...

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        See :class:`Optimizer`, as for all options not listed here.
    momentum : float, default 0.9
        :math:`\mu`, in [0, 1].
    eps : float, default 1e-8
        Added inside the root; at least 0.
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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
    >>> optimizer.opt_state.value['accumulator_0']['w'].tolist()  # a row each
    [[8.0], [0.0]]
    >>> round(float(w.value[0, 1]), 6)  # -1 - 2 / sqrt(8)
    -1.707107
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        zeros: Slots = jax.tree.map(jnp.zeros_like, jax.eval_shape(accumulators, w))
        return zeros | ({'momentum_buffer': jnp.zeros_like(w)} if is_on(hp.momentum) else {})

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        total = functools.reduce(jnp.minimum, [v for name, v in slots.items() if name != 'momentum_buffer']) + g * g
        root, new = sqrt(total + hp.eps), accumulators(total)
        direction = g / jnp.where(root == 0, 1.0, root)
        if 'momentum_buffer' in slots:
            direction = hp.momentum * slots['momentum_buffer'] + (1 - hp.momentum) * direction
            new['momentum_buffer'] = direction
        return direction, new


def accumulators(x: Array) -> Slots:
    """The maxima of ``x >= 0`` over all axes but one, for each axis; ``x`` itself for scalars."""
    others = [tuple(j for j in range(x.ndim) if j != i) for i in range(max(x.ndim, 1))]
    return {f'accumulator_{i}': jnp.max(x, axes, keepdims=True, initial=0.0) for i, axes in enumerate(others)}
