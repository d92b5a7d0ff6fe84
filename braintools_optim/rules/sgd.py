"""Gradient descent, plain and with momentum: SGD, Momentum, MomentumNesterov."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters, is_on
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['SGD', 'Momentum', 'MomentumNesterov']

Array = jax.Array


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1, \quad
        w_t = w_{t-1} - \eta \begin{cases} g_t + \mu b_t & \text{nesterov} \\ b_t & \text{else} \end{cases}

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    momentum : float, default 0.0
        :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        Added to the gradient, times the weight.
    nesterov : bool, default False
        Look ahead along the momentum; needs ``momentum > 0`` and ``dampening == 0``.
    dampening : float, default 0.0
        :math:`\tau`, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Sutskever et al. (2013), On the importance of initialization and momentum in deep learning.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = SGD(lr=0.5, momentum=0.5).register_trainable_weights({'w': w})
    >>> for _ in range(2):
    ...     optimizer.update({'w': jnp.array([1.0, 0.0])})
    >>> w.value.tolist()
    [-0.25, 2.0]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        dampening: float = 0.0,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def check_options(self, hp: Hyperparameters) -> None:
        if hp.nesterov and (hp.momentum == 0 or hp.dampening != 0):
            raise ValueError(
                f'Invalid nesterov=True with momentum={hp.momentum} and dampening={hp.dampening}. '
                f'Must have momentum > 0 and dampening == 0.'
            )

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'momentum_buffer': jnp.zeros_like(w)} if is_on(hp.momentum) else {}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        if 'momentum_buffer' not in slots:
            return g, {}
        share = jnp.where(hp.step == 1, 1.0, hp.dampening.complement)  # the first gradient is not dampened
        buffer = hp.momentum * slots['momentum_buffer'] + share * g
        return g + hp.momentum * buffer if hp.nesterov else buffer, {'momentum_buffer': buffer}


class Momentum(SGD):
    """:class:`SGD` with momentum 0.9.

    Parameters
    ----------
    lr, momentum, weight_decay, grad_clip_norm, grad_clip_value
        See :class:`SGD`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    Examples
    --------
    >>> Momentum(lr=0.1).momentum
    0.9
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(lr, momentum, weight_decay, False, grad_clip_norm, grad_clip_value, **shared)


class MomentumNesterov(SGD):
    """:class:`SGD` with Nesterov momentum 0.9.

    Parameters
    ----------
    lr, momentum, weight_decay, grad_clip_norm, grad_clip_value
        See :class:`SGD`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    Examples
    --------
    >>> MomentumNesterov(lr=0.1).nesterov
    True
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(lr, momentum, weight_decay, True, grad_clip_norm, grad_clip_value, **shared)
