"""Schedules that fall along a cosine: CosineAnnealingLR, CosineAnnealingWarmRestarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from brainstate import LongTermState
from jax.core import Tracer

from braintools_optim.options import UNIT, as_number, validate
from braintools_optim.schedulers.arguments import validate_within
from braintools_optim.schedulers.base import LRScheduler, Position, Reading
from braintools_optim.schedulers.curves import half_wave, line, passed, power

__all__ = ['CosineAnnealingLR', 'CosineAnnealingWarmRestarts']

Array = jax.Array


class CosineAnnealingLR(LRScheduler):
    r"""Half a cosine from the base rate down to ``eta_min``, which then holds.

    .. math:: \eta_t = \eta_{min} + \tfrac12 (\eta_0 - \eta_{min}) \left(1 + \cos\frac{\pi t}{T_{max}}\right)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    T_max : int, default 50
        The epoch at which ``eta_min`` is reached. Above 0.
    eta_min : float, default 0.0
        The least rate. At least 0.
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
    >>> CosineAnnealingLR(1.0, T_max=4).lr_at([0, 2, 4, 6]).round(3).tolist()
    [1.0, 0.5, 0.0, 0.0]
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
        left = self.T_max - epoch if self.periodic else jnp.maximum(self.T_max - epoch, 0)
        return line(self.eta_min, base_lr, half_wave(left / self.T_max))


class CosineAnnealingWarmRestarts(LRScheduler):
    r"""Half a cosine down to ``eta_min``, again and again, each cycle ``T_mult`` times as long as the one before.

    .. math::
        \eta_t = \eta_{min} + \tfrac12 (\eta_0 - \eta_{min}) \, d^n
        \left(1 + \cos\frac{\pi T_{cur}}{T_i}\right), \quad T_i = T_0 \, T_{mult}^n

    where :math:`n` is the number of restarts so far and :math:`T_{cur}` the epochs since the last.
    ``T_cur.value`` and ``T_i.value`` read where the schedule stands; ``step(epoch=2.5)`` goes to an
    epoch between two.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    T_0 : int, default 10
        The length of the first cycle. At least 1.
    T_mult : int, default 1
        At least 1.
    eta_min : float, default 0.0
        The least rate. At least 0.
    decay : float, default 1.0
        :math:`d`, the height above ``eta_min`` of each peak over that of the one before. In [0, 1].

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    Loshchilov and Hutter (2017), SGDR: Stochastic Gradient Descent with Warm Restarts.

    Examples
    --------
    >>> schedule = CosineAnnealingWarmRestarts(1.0, T_0=2, T_mult=2, decay=0.5)
    >>> schedule.lr_at([0, 1, 2, 4, 6]).round(3).tolist()
    [1.0, 0.5, 0.5, 0.25, 0.25]
    >>> schedule.step(epoch=4.5)
    >>> schedule.T_cur.value, schedule.T_i.value
    (2.5, 4)
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        T_0: int = 10,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = 0,
        *,
        decay: float = 1.0,
    ):
        self.T_0 = validate('T_0', T_0)
        self.T_mult = validate('T_mult', T_mult)
        self.eta_min = validate('eta_min', eta_min)
        self.decay = validate_within('decay', decay, UNIT)
        self.fraction = LongTermState(jnp.zeros(()))
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        restarts, current, length = self.cycle(epoch)
        return line(self.eta_min, base_lr, power(self.decay, restarts) * half_wave((length - current) / length))

    def cycle(self, epoch: Array) -> tuple[Array, Array, Array]:
        """The number of restarts until ``epoch``, the epochs since the last, and the length of the cycle."""
        if self.T_mult == 1:
            return epoch // self.T_0, epoch % self.T_0, jnp.full(epoch.shape, self.T_0)
        lengths, starts = [self.T_0], [0]
        while starts[-1] + lengths[-1] < 2**31:
            starts.append(starts[-1] + lengths[-1])
            lengths.append(lengths[-1] * self.T_mult)
        restarts = passed(starts, epoch) - 1
        return restarts, epoch - jnp.asarray(starts)[restarts], jnp.asarray(lengths, float)[restarts]

    @property
    def T_cur(self) -> Reading:  # noqa: N802
        """The epochs since the last restart, by ``.value``."""
        return Reading(lambda: whole(self.cycle(self.epoch_at(self.position()))[1]))

    @property
    def T_i(self) -> Reading:  # noqa: N802
        """The length of the present cycle, by ``.value``."""
        return Reading(lambda: whole(self.cycle(self.epoch_at(self.position()))[2]))

    def sources(self) -> dict[str, LongTermState]:
        return {**super().sources(), 'fraction': self.fraction}

    def epoch_at(self, position: Position) -> Any:
        return position['epoch'] + position['fraction']

    def step(self, epoch: float | None = None) -> None:
        """Advance by one epoch, or go to ``epoch``, which may lie between two."""
        whole_epoch: Any = None if epoch is None else epoch // 1
        super().step(whole_epoch)
        if epoch is not None:
            self.fraction.value = jnp.asarray(epoch % 1, jnp.result_type(float))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), 'T_cur': self.T_cur.value, 'T_i': self.T_i.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.fraction.value = jnp.asarray(state_dict['T_cur'] % 1, jnp.result_type(float))


def whole(x: Array) -> Any:
    """A number, an int if it is whole; a tracer as it is."""
    number = as_number(x)
    return number if isinstance(number, Tracer) or number % 1 else int(number)
