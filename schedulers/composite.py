"""Schedules that combine other schedules: SequentialLR, ChainedScheduler, PerUpdate."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from braintools_optim.options.kinds import Scalar
from braintools_optim.schedulers.arguments import COUNT, PERIOD, Each
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.curves import ratio
from braintools_optim.schedulers.parts import as_part, as_parts, base_lrs_of

__all__ = ['ChainedScheduler', 'PerUpdate', 'SequentialLR']

Array = jax.Array


class SequentialLR(LRScheduler):
    r"""Run several schedules one after another, each from its epoch 0.

    .. math:: \eta_t = \eta^{(k)}_{t - m_k}, \quad m_k \le t < m_{k+1}

    The base rates are those of the first schedule. If a parameter group has another base rate, all schedules
    start from their base rates scaled by the same factor: a group with half the base rate of the first
    schedule runs every schedule from half of its base rate. A schedule with a single base rate relates that rate
    to the first group.

    Parameters
    ----------
    schedulers : sequence of LRScheduler
        At least one schedule, each at epoch 0; :class:`ReduceLROnPlateau` is not allowed. The epochs of these
        schedules stay at 0.
    milestones : sequence of int
        Epochs :math:`m_k` at which the second and later schedules begin, increasing, >= 0.
    last_epoch
        See :class:`LRScheduler`.

    Raises
    ------
    TypeError
        If an element of ``schedulers`` is not an LRScheduler.
    ValueError
        If there is not exactly one milestone fewer than schedules, or if a schedule cannot be combined.

    Examples
    --------
    >>> from braintools_optim.schedulers import ConstantLR, ExponentialLR
    >>> warmup, decay = ConstantLR(1.0, factor=0.25, total_iters=9), ExponentialLR(1.0, gamma=0.5)
    >>> SequentialLR([warmup, decay], milestones=[2]).lr_at([0, 1, 2, 3, 4]).tolist()
    [0.25, 0.25, 1.0, 0.5, 0.25]
    """

    def __init__(self, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = 0):
        self.schedulers = as_parts('schedulers', schedulers)
        self.milestones = Each(COUNT, increasing=True).check('milestones', milestones)
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f'Invalid milestones={milestones!r}. Must be {len(self.schedulers) - 1} epochs, '
                f'one fewer than the {len(self.schedulers)} schedulers.'
            )
        super().__init__(base_lrs_of(self.schedulers), last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> Array:
        rate = self.schedulers[0].lr_at(epoch, base_lr, group)
        for milestone, scheduler in zip(self.milestones, self.schedulers[1:], strict=True):
            place = min(group, len(scheduler.base_lrs) - 1)
            scaled = ratio(base_lr, self.base_lr_of(place)) * scheduler.base_lr_of(place)
            following = scheduler.lr_at(jnp.maximum(epoch - milestone, 0), scaled, group)
            rate = jnp.where(epoch < milestone, rate, following)
        return rate


class ChainedScheduler(LRScheduler):
    r"""Run several schedules at once: multiply the rate of the first schedule by the factors of the others.

    .. math:: \eta_t = \eta^{(1)}_t \prod_{k > 1} \eta^{(k)}_t / \eta^{(k)}_0

    where :math:`\eta^{(k)}_0` is the base rate of schedule :math:`k`. The base rate of a parameter group
    replaces the base rate of the first schedule only.

    Schedules that multiply the base rate by a factor give the same rates as in torch. Schedules with a cosine may not:
    torch computes each rate from the rate before, to which all schedules have contributed, and torch's cosine subtracts
    ``eta_min`` from this rate before it multiplies. The result depends on the order of the schedules, and it is not a
    function of the epoch. The product above is one, so a chained schedule can be resumed at any epoch.

    Parameters
    ----------
    schedulers : sequence of LRScheduler
        At least one schedule, each at epoch 0; :class:`ReduceLROnPlateau` is not allowed. All but the first
        must have base rates > 0. The epochs of these schedules stay at 0.

    Raises
    ------
    TypeError
        If an element of ``schedulers`` is not an LRScheduler.
    ValueError
        If a schedule cannot be combined.

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
                raise ValueError(f'Invalid schedulers[{i}]={scheduler!r}. Must have base rates > 0.')
        super().__init__(base_lrs_of(self.schedulers))

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> Array:
        rate = self.schedulers[0].lr_at(epoch, base_lr, group)
        for scheduler in self.schedulers[1:]:
            rate = rate * (scheduler.lr_at(epoch, group=group) / scheduler.base_lr_of(group))
        return rate


class PerUpdate(LRScheduler):
    r"""Step a schedule of epochs once per update: its epoch is the number of updates over ``steps_per_epoch``.

    .. math:: \eta_t = \eta^{\text{schedule}}_{t / \text{steps\_per\_epoch}}

    Parameters
    ----------
    schedule : LRScheduler
        Schedule of epochs, at epoch 0. It is evaluated at fractions of epochs, too.
    steps_per_epoch : int
        Number of updates per epoch, >= 1.
    last_epoch
        See :class:`LRScheduler`. Here it counts updates.

    Raises
    ------
    TypeError
        If ``schedule`` is not an LRScheduler.
    ValueError
        If ``schedule`` is not a function of the epoch alone or has left epoch 0.

    Examples
    --------
    >>> from braintools_optim.schedulers import WarmupScheduler
    >>> schedule = PerUpdate(WarmupScheduler(1.0, warmup_epochs=2), steps_per_epoch=4)
    >>> schedule.lr_at([0, 4, 6, 8]).tolist()
    [0.0, 0.5, 0.75, 1.0]
    """

    def __init__(self, schedule: LRScheduler, steps_per_epoch: int, last_epoch: int = 0):
        self.schedule = as_part('schedule', schedule)
        self.steps_per_epoch = PERIOD.check('steps_per_epoch', steps_per_epoch)
        super().__init__(schedule.base_lrs, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> Array:
        return self.schedule.lr_at(epoch / self.steps_per_epoch, base_lr, group)
