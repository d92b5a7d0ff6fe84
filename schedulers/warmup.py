"""Schedules that begin low and rise: WarmupScheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.options import validate
from braintools_optim.schedulers.base import LRScheduler

__all__ = ['WarmupScheduler']

Array = jax.Array


class WarmupScheduler(LRScheduler):
    r"""A line from ``warmup_start_lr`` up to the base rate, or up to another schedule, which then goes on.

    .. math:: \eta_t = s + (\eta_0 - s) \min(t / \text{warmup\_epochs}, 1)

    Parameters
    ----------
    base_lr : float, sequence of float or LRScheduler, default 1e-3
        The rate to rise to, or one for each parameter group; at least 0. A scheduler starts at its
        epoch 0 when the warm-up ends, and the rise goes to its first rate.
    warmup_epochs : int, default 5
        At least 0; 0 is no warm-up.
    warmup_start_lr : float, default 0.0
        The rate at epoch 0. At least 0.
    last_epoch : int, default 0
        The epoch to begin at.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> WarmupScheduler(1.0, warmup_epochs=4).lr_at([0, 1, 4, 9]).tolist()
    [0.0, 0.25, 1.0, 1.0]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] | LRScheduler = 1e-3,
        warmup_epochs: int = 5,
        warmup_start_lr: float = 0.0,
        last_epoch: int = 0,
    ):
        self.warmup_epochs = validate('warmup_epochs', warmup_epochs)
        self.warmup_start_lr = validate('lr', warmup_start_lr)
        self.after = base_lr if isinstance(base_lr, LRScheduler) else None
        super().__init__(base_lr.base_lrs if isinstance(base_lr, LRScheduler) else base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        since = jnp.maximum(epoch - self.warmup_epochs, 0)
        target = base_lr if self.after is None else self.after.formula(since, base_lr)
        rise = jnp.minimum(epoch / max(self.warmup_epochs, 1), 1.0) if self.warmup_epochs else 1.0
        return self.warmup_start_lr + (target - self.warmup_start_lr) * rise
