"""The sign of the gradient alone: SignSGD, Signum, Lion, Rprop."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters
from braintools_optim.rule import Slots
from braintools_optim.rules.sgd import SGD
from braintools_optim.shared_options import SharedOptions

__all__ = ['Lion', 'Rprop', 'SignSGD', 'Signum']

Array = jax.Array


class SignSGD(SGD):
    r"""The sign of the gradient, or of its momentum.

    .. math::
        b_t = \mu b_{t-1} + g_t, \quad w_t = w_{t-1} - \eta (\operatorname{sign}(b_t) + \lambda w_{t-1})

    The paper averages, :math:`(1 - \mu) g_t`; the sign is the same.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    momentum : float, default 0.0
        :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super(SGD, self).__init__(
            lr,
            grad_clip_norm,
            grad_clip_value,
            weight_decay=weight_decay,
            decoupled_weight_decay=True,
            **shared,
            momentum=momentum,
            nesterov=False,
            dampening=0.0,
        )

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        buffer, new = super().direction(g, w, slots, hp)
        return jnp.sign(buffer), new


class Signum(SignSGD):
    """:class:`SignSGD` with momentum 0.9.

    Parameters
    ----------
    lr, momentum, weight_decay, grad_clip_norm, grad_clip_value
        See :class:`SignSGD`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    Examples
    --------
    >>> Signum(lr=0.1).momentum
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
        super().__init__(lr, momentum, weight_decay, grad_clip_norm, grad_clip_value, **shared)


class Lion(Optimizer):
    r"""Lion: the sign of a mean gradient that leans to the present one.

    .. math::
        c_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t \\
        w_t &= w_{t-1} - \eta (\operatorname{sign}(c_t) + \lambda w_{t-1})

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-4
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.99)
        Decay rates for the direction and for the memory, in [0, 1).
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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

    def __init__(
        self,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()), decoupled_weight_decay=True)

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'exp_avg': jnp.zeros_like(w)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        leaning, memory = (beta.average(slots['exp_avg'], g) for beta in hp.betas)
        return jnp.sign(leaning), {'exp_avg': memory}


class Rprop(Optimizer):
    r"""Resilient propagation: each weight has its own step size, which grows while the sign stays.

    .. math::
        s_t &= \operatorname{clip}(f_t s_{t-1}, \Gamma_{\min}, \Gamma_{\max}), \quad s_0 = \eta, \quad
        f_t = \eta_+, \eta_-, 1 \text{ for } g_t g_{t-1} > 0, < 0, = 0 \\
        w_t &= w_{t-1} - s_t \operatorname{sign}(g_t)

    where a gradient whose sign has changed counts as 0, now and at the next update. For full batches.
    The step sizes are kept in units of lr (the slot ``step_size`` is :math:`s_t / \eta`), so that
    a change of lr changes all of them; in torch lr is but their start.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-2
        The first step size. See :class:`Optimizer`, as for all options not listed here.
    etas : pair of float, default (0.5, 1.2)
        :math:`\eta_-` in (0, 1) and :math:`\eta_+` above 1.
    step_sizes : pair of float, default (1e-6, 50.0)
        :math:`\Gamma_{\min}` and :math:`\Gamma_{\max}`, the least and the greatest step; at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range, or a pair is not in order.

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
    >>> w.value.tolist()  # 1 - 0.25 - 0.5 - 1.0; 2 - 0.25 - 0 + 0.125
    [-0.75, 1.875]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

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
