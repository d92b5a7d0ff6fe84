"""Gradient descent, plain and with momentum: SGD, Momentum, MomentumNesterov."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Hyperparameters, MomentumFactor, Number, WeightDecay, option
from braintools_optim.options.kinds import UNIT, Schedulable, is_on
from braintools_optim.step.counterparts import optax_state, torch_options
from braintools_optim.step.rule import Slots

__all__ = ['SGD', 'Momentum', 'MomentumNesterov']

Array = jax.Array
Dampening = Annotated[Schedulable, Number(UNIT, decay=True)]


class SGD(Optimizer):
    r"""Stochastic gradient descent with optional momentum.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1, \quad
        w_t = w_{t-1} - \eta \begin{cases} g_t + \mu b_t & \text{nesterov} \\ b_t & \text{else} \end{cases}

    The first gradient is not dampened, as in torch.

    Parameters
    ----------
    momentum : float, default 0.0
        Momentum factor :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.
    nesterov : bool, default False
        Use Nesterov momentum. Requires ``momentum > 0`` and ``dampening == 0``.
    dampening : float, default 0.0
        Dampening :math:`\tau` of the gradient in the momentum, in [0, 1].

    Raises
    ------
    ValueError
        If ``nesterov`` is True although ``momentum`` is 0 or ``dampening`` is not.

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

    torch_counterpart = torch_options('weight_decay momentum dampening nesterov', counts=False)
    optax_slots = optax_state('TraceState', trace='momentum_buffer')
    momentum: MomentumFactor = 0.0
    weight_decay: WeightDecay = 0.0
    nesterov: bool = False
    _: KW_ONLY
    dampening: Dampening = 0.0

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
        share = jnp.where(hp.step == 1, 1.0, hp.dampening.complement)
        buffer = hp.momentum * slots['momentum_buffer'] + share * g
        return g + hp.momentum * buffer if hp.nesterov else buffer, {'momentum_buffer': buffer}


class Momentum(SGD):
    r"""Stochastic gradient descent with momentum, by default 0.9.

    .. math::
        b_t = \mu b_{t-1} + g_t, \quad w_t = w_{t-1} - \eta b_t

    Parameters
    ----------
    momentum : float, default 0.9
        Momentum factor :math:`\mu`, in [0, 1].
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

    Examples
    --------
    >>> Momentum(lr=0.1).momentum
    0.9
    """

    torch_counterpart, optax_slots = SGD.torch_counterpart, SGD.optax_slots
    momentum: MomentumFactor = 0.9
    nesterov: bool = option(False)
    dampening: Dampening = option(0.0)


class MomentumNesterov(SGD):
    r"""Stochastic gradient descent with Nesterov momentum, by default 0.9.

    .. math::
        b_t = \mu b_{t-1} + g_t, \quad w_t = w_{t-1} - \eta (g_t + \mu b_t)

    Parameters
    ----------
    momentum : float, default 0.9
        Momentum factor :math:`\mu`, in (0, 1].
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0.

    Raises
    ------
    ValueError
        If ``momentum`` is 0.

    Examples
    --------
    >>> MomentumNesterov(lr=0.1).nesterov
    True
    """

    torch_counterpart, optax_slots = SGD.torch_counterpart, SGD.optax_slots
    momentum: MomentumFactor = 0.9
    nesterov: bool = option(True)
    dampening: Dampening = option(0.0)
