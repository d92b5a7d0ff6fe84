"""Schedules that begin with a warmup: WarmupScheduler, and three schedules with different decays after the warmup."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from braintools_optim.options.kinds import Number, Range, Scalar
from braintools_optim.schedulers.arguments import COUNT, NON_NEGATIVE, POSITIVE, OneOf
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.curves import half_cosine, interpolate, ramp, safe_power
from braintools_optim.schedulers.parts import as_part

__all__ = ['InverseSquareRootLR', 'WarmupCosineSchedule', 'WarmupScheduler', 'WarmupStableDecay']

Array = jax.Array


class WarmupScheduler(LRScheduler):
    r"""Raise the rate linearly from ``warmup_start_lr`` to the base rate, or to another schedule that then takes over.

    .. math:: \eta_t = s + (\eta_0 - s) \min(t / \text{warmup\_epochs}, 1)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`. ``base_lr`` may be a schedule: the warmup then ends at the first rate of this
        schedule, and the schedule starts from its epoch 0 when the warmup ends.
    warmup_epochs : int, default 5
        Number of epochs of the warmup, >= 0. There is no warmup if it is 0.
    warmup_start_lr : float, default 0.0
        Rate :math:`s` at epoch 0, >= 0.

    Raises
    ------
    ValueError
        If ``base_lr`` is a schedule that is not a function of the epoch alone or has left epoch 0.

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
        self.warmup_epochs = COUNT.check('warmup_epochs', warmup_epochs)
        self.warmup_start_lr = NON_NEGATIVE.check('warmup_start_lr', warmup_start_lr)
        self.after = as_part('base_lr', base_lr) if isinstance(base_lr, LRScheduler) else None
        super().__init__(base_lr.base_lrs if isinstance(base_lr, LRScheduler) else base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> Scalar:
        since = jnp.maximum(epoch - self.warmup_epochs, 0)
        target = base_lr if self.after is None else self.after.lr_at(since, base_lr, group)
        return interpolate(self.warmup_start_lr, target, ramp(epoch, self.warmup_epochs))


class WarmupCosineSchedule(LRScheduler):
    r"""Raise the rate linearly to the base rate, anneal it to ``eta_min`` along half a cosine, and then hold it.

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
        Number of epochs :math:`w` of the warmup, >= 0. There is no warmup if it is 0.
    total_steps : int, default 10000
        Epoch :math:`T` at which the rate reaches ``eta_min``, > ``warmup_steps``.
    warmup_start_lr : float, default 0.0
        Rate :math:`s` at epoch 0, >= 0.
    eta_min : float, default 0.0
        Minimum rate, >= 0.

    Examples
    --------
    >>> schedule = WarmupCosineSchedule(1.0, warmup_steps=2, total_steps=6)
    >>> schedule.lr_at([0, 1, 2, 4, 6, 7]).round(3).tolist()
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
        self.warmup_steps = COUNT.check('warmup_steps', warmup_steps)
        least = 0 if isinstance(self.warmup_steps, Tracer) else self.warmup_steps
        after_warmup = Number(Range(least, low_open=True), integer=True)
        self.total_steps = after_warmup.check('total_steps', total_steps)
        self.warmup_start_lr = NON_NEGATIVE.check('warmup_start_lr', warmup_start_lr)
        self.eta_min = NON_NEGATIVE.check('eta_min', eta_min)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        remaining = ramp(self.total_steps - epoch, self.total_steps - self.warmup_steps)
        target = interpolate(self.eta_min, base_lr, half_cosine(remaining))
        return interpolate(self.warmup_start_lr, target, ramp(epoch, self.warmup_steps))


class WarmupStableDecay(LRScheduler):
    r"""Raise the rate linearly to the base rate, hold it, lower it to ``eta_min``, and hold it there.

    .. math:: \eta_t = s + (\eta_0 - s) \, t / w, \quad \eta_0, \quad \eta_{min} + (\eta_0 - \eta_{min}) f(u)

    in the three phases, where :math:`u` is the fraction of ``decay_steps`` that has passed and :math:`f(u)` is
    :math:`1 - u` for ``decay='linear'``, :math:`(1 + \cos \pi u) / 2` for ``'cosine'`` and
    :math:`1 - \sqrt u` for ``'sqrt'``.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    warmup_steps : int, default 1000
        Number of epochs :math:`w` of the warmup, >= 0. There is no warmup if it is 0.
    stable_steps : int, default 8000
        Number of epochs at the base rate, >= 0.
    decay_steps : int, default 1000
        Number of epochs of the decay, > 0.
    warmup_start_lr : float, default 0.0
        Rate :math:`s` at epoch 0, >= 0.
    eta_min : float, default 0.0
        Final rate, >= 0.
    decay : {'linear', 'cosine', 'sqrt'}, default 'linear'
        Shape of the decay.

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
        self.warmup_steps = COUNT.check('warmup_steps', warmup_steps)
        self.stable_steps = COUNT.check('stable_steps', stable_steps)
        self.decay_steps = POSITIVE.check('decay_steps', decay_steps)
        self.warmup_start_lr = NON_NEGATIVE.check('warmup_start_lr', warmup_start_lr)
        self.eta_min = NON_NEGATIVE.check('eta_min', eta_min)
        self.decay = OneOf(('linear', 'cosine', 'sqrt')).check('decay', decay)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        remaining = ramp(self.warmup_steps + self.stable_steps + self.decay_steps - epoch, self.decay_steps)
        if self.decay == 'cosine':
            remaining = half_cosine(remaining)
        elif self.decay == 'sqrt':
            remaining = 1 - safe_power(1 - remaining, 0.5)
        target = interpolate(self.eta_min, base_lr, remaining)
        return interpolate(self.warmup_start_lr, target, ramp(epoch, self.warmup_steps))


class InverseSquareRootLR(LRScheduler):
    r"""Raise the rate linearly to the base rate, then decay it with the inverse square root of the epoch.

    .. math:: \eta_t = s + (\eta_0 - s) \, t / w \ \text{ for } t < w, \quad \eta_0 \sqrt{\max(w, 1) / t} \text{ after}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    warmup_steps : int, default 1000
        Number of epochs :math:`w` of the warmup, >= 0. If it is 0, there is no warmup, and the decay begins at
        epoch 1.
    warmup_start_lr : float, default 0.0
        Rate :math:`s` at epoch 0, >= 0.

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
        self.warmup_steps = COUNT.check('warmup_steps', warmup_steps)
        self.warmup_start_lr = NON_NEGATIVE.check('warmup_start_lr', warmup_start_lr)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        first = jnp.maximum(self.warmup_steps, 1)
        target = base_lr * jnp.sqrt(first / jnp.maximum(epoch, first))
        return interpolate(self.warmup_start_lr, target, ramp(epoch, self.warmup_steps))
