"""Schedules that begin low and rise: WarmupScheduler, and those that then fall in a way of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.options import Range, validate
from braintools_optim.schedulers.arguments import validate_choice, validate_within
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.curves import half_wave, line, ramp, root
from braintools_optim.schedulers.parts import as_part

__all__ = ['InverseSquareRootLR', 'WarmupCosineSchedule', 'WarmupScheduler', 'WarmupStableDecay']

Array = jax.Array


class WarmupScheduler(LRScheduler):
    r"""A line from ``warmup_start_lr`` up to the base rate, or up to another schedule, which then goes on.

    .. math:: \eta_t = s + (\eta_0 - s) \min(t / \text{warmup\_epochs}, 1)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`. ``base_lr`` may be a scheduler: it starts at its epoch 0 when the
        warm-up ends, and the rise goes to its first rate.
    warmup_epochs : int, default 5
        At least 0; 0 is no warm-up.
    warmup_start_lr : float, default 0.0
        :math:`s`, the rate at epoch 0. At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range, or the scheduler has left its epoch 0.

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
        self.warmup_start_lr = validate('warmup_start_lr', warmup_start_lr)
        self.after = as_part('base_lr', base_lr) if isinstance(base_lr, LRScheduler) else None
        super().__init__(base_lr.base_lrs if isinstance(base_lr, LRScheduler) else base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        since = jnp.maximum(epoch - self.warmup_epochs, 0)
        target = base_lr if self.after is None else self.after.lr_at(since, base_lr, group)
        return line(self.warmup_start_lr, target, ramp(epoch, self.warmup_epochs))


class WarmupCosineSchedule(LRScheduler):
    r"""A line up to the base rate, then half a cosine down to ``eta_min``, which then holds.

    .. math::
        \eta_t = \begin{cases}
            s + (\eta_0 - s) \, t / w & t < w \\
            \eta_{min} + \frac12 (\eta_0 - \eta_{min}) \left(1 + \cos \frac{\pi (t - w)}{T - w}\right) & w \le t \le T
        \end{cases}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    warmup_steps : int, default 1000
        :math:`w`, at least 0; 0 is no warm-up.
    total_steps : int, default 10000
        :math:`T`, above ``warmup_steps``.
    warmup_start_lr : float, default 0.0
        :math:`s`, the rate at epoch 0. At least 0.
    eta_min : float, default 0.0
        The least rate. At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> WarmupCosineSchedule(1.0, warmup_steps=2, total_steps=6).lr_at([0, 1, 2, 4, 6, 7]).round(3).tolist()
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        warmup_steps: int = 1000,
        total_steps: int = 10000,
        warmup_start_lr: float = 0.0,
        eta_min: float = 0.0,
        last_epoch: int = 0,
    ):
        self.warmup_steps = validate('warmup_steps', warmup_steps)
        self.total_steps = validate_within('total_steps', total_steps, Range(self.warmup_steps, low_open=True))
        self.warmup_start_lr = validate('warmup_start_lr', warmup_start_lr)
        self.eta_min = validate('eta_min', eta_min)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        left = ramp(self.total_steps - epoch, self.total_steps - self.warmup_steps)
        target = line(self.eta_min, base_lr, half_wave(left))
        return line(self.warmup_start_lr, target, ramp(epoch, self.warmup_steps))


class WarmupStableDecay(LRScheduler):
    r"""A line up to the base rate, which is held, then a fall to ``eta_min``, which then holds.

    .. math:: \eta_t = s + (\eta_0 - s) \, t / w, \quad \eta_0, \quad \eta_{min} + (\eta_0 - \eta_{min}) f(u)

    in turn, where :math:`u` is the share of ``decay_steps`` that has passed and :math:`f(u)` is
    :math:`1 - u` for ``decay='linear'``, :math:`(1 + \cos \pi u) / 2` for ``'cosine'`` and
    :math:`1 - \sqrt u` for ``'sqrt'``.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    warmup_steps : int, default 1000
        :math:`w`, at least 0; 0 is no warm-up.
    stable_steps : int, default 8000
        At least 0.
    decay_steps : int, default 1000
        Above 0.
    warmup_start_lr : float, default 0.0
        :math:`s`, the rate at epoch 0. At least 0.
    eta_min : float, default 0.0
        The last rate. At least 0.
    decay : {'linear', 'cosine', 'sqrt'}, default 'linear'
        The form of the fall.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Hu et al. (2024), MiniCPM: Unveiling the Potential of Small Language Models. Hägele et al. (2024),
    Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, for ``'sqrt'``.

    Examples
    --------
    >>> schedule = WarmupStableDecay(1.0, warmup_steps=2, stable_steps=2, decay_steps=4)
    >>> schedule.lr_at([0, 1, 2, 4, 5, 6, 8, 9]).tolist()
    [0.0, 0.5, 1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        warmup_steps: int = 1000,
        stable_steps: int = 8000,
        decay_steps: int = 1000,
        warmup_start_lr: float = 0.0,
        eta_min: float = 0.0,
        last_epoch: int = 0,
        *,
        decay: str = 'linear',
    ):
        self.warmup_steps = validate('warmup_steps', warmup_steps)
        self.stable_steps = validate('stable_steps', stable_steps)
        self.decay_steps = validate('decay_steps', decay_steps)
        self.warmup_start_lr = validate('warmup_start_lr', warmup_start_lr)
        self.eta_min = validate('eta_min', eta_min)
        self.decay = validate_choice('decay', decay, ('linear', 'cosine', 'sqrt'))
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        left = ramp(self.warmup_steps + self.stable_steps + self.decay_steps - epoch, self.decay_steps)
        if self.decay == 'cosine':
            left = half_wave(left)
        elif self.decay == 'sqrt':
            left = 1 - root(1 - left, 0.5)
        return line(self.warmup_start_lr, line(self.eta_min, base_lr, left), ramp(epoch, self.warmup_steps))


class InverseSquareRootLR(LRScheduler):
    r"""A line up to the base rate, then a fall with the root of the epoch.

    .. math:: \eta_t = s + (\eta_0 - s) \, t / w \ \text{ for } t < w, \quad \eta_0 \sqrt{\max(w, 1) / t} \text{ after}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    warmup_steps : int, default 1000
        :math:`w`, at least 0; 0 is no warm-up, and a fall from epoch 1 on.
    warmup_start_lr : float, default 0.0
        :math:`s`, the rate at epoch 0. At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Vaswani et al. (2017), Attention Is All You Need.

    Examples
    --------
    >>> InverseSquareRootLR(1.0, warmup_steps=4).lr_at([0, 1, 4, 16, 64]).tolist()
    [0.0, 0.25, 1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        warmup_steps: int = 1000,
        warmup_start_lr: float = 0.0,
        last_epoch: int = 0,
    ):
        self.warmup_steps = validate('warmup_steps', warmup_steps)
        self.warmup_start_lr = validate('warmup_start_lr', warmup_start_lr)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        first = max(self.warmup_steps, 1)
        target = base_lr * jnp.sqrt(first / jnp.maximum(epoch, first))
        return line(self.warmup_start_lr, target, ramp(epoch, self.warmup_steps))
