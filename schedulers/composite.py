"""Schedules made of schedules: SequentialLR, ChainedScheduler, PerUpdate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.options import validate
from braintools_optim.schedulers.arguments import validate_increasing
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.curves import proportion
from braintools_optim.schedulers.parts import as_part, as_parts, base_lrs_of

__all__ = ['ChainedScheduler', 'PerUpdate', 'SequentialLR']

Array = jax.Array


class SequentialLR(LRScheduler):
    r"""One schedule after another, each from its own epoch 0 on.

    .. math:: \eta_t = \eta^{(k)}_{t - m_k}, \quad m_k \le t < m_{k+1}

    The base rates are the first schedule's. In a parameter group with another base rate every schedule
    starts from its own in the same proportion: a group at half of the first's base rate runs all of
    them from half of theirs. A schedule with a single base rate has it for the first group.

    Parameters
    ----------
    schedulers : sequence of LRScheduler
        At least one, any but :class:`ReduceLROnPlateau`, each at its epoch 0. Their epochs stay there.
    milestones : sequence of int
        The epoch :math:`m_k` at which each but the first begins; increasing, at least 0.
    last_epoch
        See :class:`LRScheduler`.

    Raises
    ------
    TypeError
        If one is not an LRScheduler.
    ValueError
        If the milestones do not increase or are not one less than the schedulers, or a scheduler
        cannot be a part.

    Examples
    --------
    >>> from braintools_optim.schedulers import ConstantLR, ExponentialLR
    >>> warmup, decay = ConstantLR(1.0, factor=0.25, total_iters=9), ExponentialLR(1.0, gamma=0.5)
    >>> SequentialLR([warmup, decay], milestones=[2]).lr_at([0, 1, 2, 3, 4]).tolist()
    [0.25, 0.25, 1.0, 0.5, 0.25]
    """

    def __init__(self, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = 0):
        self.schedulers = as_parts('schedulers', schedulers)
        self.milestones = validate_increasing('milestones', milestones)
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f'Invalid milestones={milestones!r}. Must be {len(self.schedulers) - 1}, one less than schedulers.'
            )
        super().__init__(base_lrs_of(self.schedulers), last_epoch)

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        rate = self.schedulers[0].lr_at(epoch, base_lr, group)
        for milestone, scheduler in zip(self.milestones, self.schedulers[1:], strict=True):
            place = min(group, len(scheduler.base_lrs) - 1)
            own = proportion(base_lr, self.base_lr_of(place)) * scheduler.base_lr_of(place)
            following = scheduler.lr_at(jnp.maximum(epoch - milestone, 0), own, group)
            rate = jnp.where(epoch < milestone, rate, following)
        return rate


class ChainedScheduler(LRScheduler):
    r"""Several schedules at once: the first one's rate times the factor of each other on its own base rate.

    .. math:: \eta_t = \eta^{(1)}_t \prod_{k > 1} \eta^{(k)}_t / \eta^{(k)}_0

    where :math:`\eta^{(k)}_0` is a base rate. A parameter group's own base rate is that of the first.

    Parameters
    ----------
    schedulers : sequence of LRScheduler
        At least one, any but :class:`ReduceLROnPlateau`, each at its epoch 0, and all but the first
        with base rates above 0. Their epochs stay there.

    Raises
    ------
    TypeError
        If one is not an LRScheduler.
    ValueError
        If a scheduler cannot be a part.

    Examples
    --------
    >>> from braintools_optim.schedulers import ConstantLR, ExponentialLR
    >>> warmup, decay = ConstantLR(1.0, factor=0.25, total_iters=2), ExponentialLR(1.0, gamma=0.5)
    >>> ChainedScheduler([warmup, decay]).lr_at([0, 1, 2, 3]).tolist()
    [0.25, 0.125, 0.25, 0.125]
    """

    def __init__(self, schedulers: Sequence[LRScheduler]):
        self.schedulers = as_parts('schedulers', schedulers)
        for i, scheduler in enumerate(self.schedulers[1:], 1):
            if 0 in scheduler.base_lrs:
                raise ValueError(f'Invalid schedulers[{i}]={scheduler!r}. Must have base rates above 0.')
        super().__init__(base_lrs_of(self.schedulers))

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        rate = self.schedulers[0].lr_at(epoch, base_lr, group)
        for scheduler in self.schedulers[1:]:
            rate = rate * (scheduler.lr_at(epoch, group=group) / scheduler.base_lr_of(group))
        return rate


class PerUpdate(LRScheduler):
    r"""A schedule of epochs, stepped once an update: its epoch is the number of updates over those in an epoch.

    .. math:: \eta_t = \eta^{\text{schedule}}_{t / \text{steps\_per\_epoch}}

    Parameters
    ----------
    schedule : LRScheduler
        A function of the epoch, at its epoch 0; between epochs it is asked for fractions.
    steps_per_epoch : int
        Updates in an epoch. At least 1.
    last_epoch
        See :class:`LRScheduler`; it counts updates here.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its kind or out of range.

    Examples
    --------
    >>> from braintools_optim import WarmupScheduler
    >>> PerUpdate(WarmupScheduler(1.0, warmup_epochs=2), steps_per_epoch=4).lr_at([0, 4, 6, 8]).tolist()
    [0.0, 0.5, 0.75, 1.0]
    """

    def __init__(self, schedule: LRScheduler, steps_per_epoch: int, last_epoch: int = 0):
        self.schedule = as_part('schedule', schedule)
        self.steps_per_epoch = validate('steps_per_epoch', steps_per_epoch)
        super().__init__(schedule.base_lrs, last_epoch)

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        return self.schedule.lr_at(epoch / self.steps_per_epoch, base_lr, group)
