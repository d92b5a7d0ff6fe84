"""Schedules that follow a cosine: CosineAnnealingLR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.options import validate
from braintools_optim.schedulers.base import LRScheduler

__all__ = ['CosineAnnealingLR']

Array = jax.Array


class CosineAnnealingLR(LRScheduler):
    r"""Half a cosine from the base rate down to ``eta_min``, which then holds.

    .. math:: \eta_t = \eta_{min} + \tfrac12 (\eta_0 - \eta_{min}) \left(1 + \cos\frac{\pi t}{T_{max}}\right)

    Parameters
    ----------
    base_lr : float or sequence of float, default 1e-3
        The base rate, or one for each parameter group. At least 0.
    T_max : int, default 50
        The epoch at which ``eta_min`` is reached. At least 1.
    eta_min : float, default 0.0
        The least rate. At least 0.
    last_epoch : int, default 0
        The epoch to begin at.
    periodic : bool, default False
        Go on with the wave past ``T_max``, as torch does.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Loshchilov and Hutter (2017), SGDR: Stochastic Gradient Descent with Warm Restarts.

    Examples
    --------
    >>> CosineAnnealingLR(1.0, T_max=4).lr_at([0, 2, 4, 6]).tolist()
    [1.0, 0.5..., 0.0, 0.0]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        T_max: int = 50,
        eta_min: float = 0.0,
        last_epoch: int = 0,
        *,
        periodic: bool = False,
    ):
        self.T_max = validate('T_max', T_max)
        self.eta_min = validate('eta_min', eta_min)
        self.periodic = validate('periodic', periodic, like=False)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        if not self.periodic:
            epoch = jnp.minimum(epoch, self.T_max)
        return self.eta_min + (base_lr - self.eta_min) * (1 + jnp.cos(jnp.pi * epoch / self.T_max)) / 2
