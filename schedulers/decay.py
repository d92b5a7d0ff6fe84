"""Schedules that fall by steps or by a factor: ConstantLR, StepLR, ExponentialLR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.options import validate
from braintools_optim.schedulers.base import LRScheduler

__all__ = ['ConstantLR', 'ExponentialLR', 'StepLR']

Array = jax.Array


class ConstantLR(LRScheduler):
    r"""``factor`` times the base rate for ``total_iters`` epochs, then the base rate.

    .. math:: \eta_t = \eta_0 \cdot (\text{factor} \text{ if } t < \text{total\_iters} \text{ else } 1)

    Parameters
    ----------
    base_lr : float or sequence of float, default 1e-3
        The base rate, or one for each parameter group. At least 0.
    factor : float, default 1/3
        In [0, 1].
    total_iters : int, default 5
        At least 0.
    last_epoch : int, default 0
        The epoch to begin at.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> ConstantLR(0.3, factor=0.5, total_iters=2).lr_at([0, 1, 2]).tolist()
    [0.15..., 0.15..., 0.3...]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        factor: float = 1 / 3,
        total_iters: int = 5,
        last_epoch: int = 0,
    ):
        self.factor = validate('factor', factor)
        self.total_iters = validate('total_iters', total_iters)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * jnp.where(epoch < self.total_iters, self.factor, 1.0)


class StepLR(LRScheduler):
    r"""The rate times ``gamma`` every ``step_size`` epochs.

    .. math:: \eta_t = \eta_0 \, \gamma^{\lfloor t / \text{step\_size} \rfloor}

    Parameters
    ----------
    base_lr : float or sequence of float, default 1e-3
        The base rate, or one for each parameter group. At least 0.
    step_size : int, default 30
        The period in epochs. At least 1.
    gamma : float, default 0.1
        At least 0.
    last_epoch : int, default 0
        The epoch to begin at.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> StepLR(1.0, step_size=2, gamma=0.5).lr_at([0, 1, 2, 4]).tolist()
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        step_size: int = 30,
        gamma: float = 0.1,
        last_epoch: int = 0,
    ):
        self.step_size = validate('step_size', step_size)
        self.gamma = validate('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * self.gamma ** (epoch // self.step_size)


class ExponentialLR(LRScheduler):
    r"""The rate times ``gamma`` every epoch.

    .. math:: \eta_t = \eta_0 \, \gamma^t

    Parameters
    ----------
    base_lr : float or sequence of float, default 1e-3
        The base rate, or one for each parameter group. At least 0.
    gamma : float, default 0.95
        At least 0.
    last_epoch : int, default 0
        The epoch to begin at.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> ExponentialLR(1.0, gamma=0.5).lr_at([0, 1, 2]).tolist()
    [1.0, 0.5, 0.25]
    """

    def __init__(self, base_lr: float | Sequence[float] = 1e-3, gamma: float = 0.95, last_epoch: int = 0):
        self.gamma = validate('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * self.gamma**epoch
