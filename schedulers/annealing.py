"""Schedules that fall along a cosine: CosineAnnealingLR, CosineAnnealingWarmRestarts, SWALR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from brainstate import LongTermState
from jax.core import Tracer

from braintools_optim.options.kinds import Scalar, as_number
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import Tree
from braintools_optim.schedulers.arguments import COUNT, FLAG, FRACTION, NON_NEGATIVE, PERIOD, POSITIVE, OneOf
from braintools_optim.schedulers.base import DerivedValue, LRScheduler, Position
from braintools_optim.schedulers.curves import as_float, half_cosine, interpolate, precise_power

__all__ = ['SWALR', 'CosineAnnealingLR', 'CosineAnnealingWarmRestarts']

Array = jax.Array


class CosineAnnealingLR(LRScheduler):
    r"""Anneal the base rate to ``eta_min`` along half a cosine and then hold it.

    .. math:: \eta_t = \eta_{min} + \tfrac12 (\eta_0 - \eta_{min}) \left(1 + \cos\frac{\pi t}{T_{max}}\right)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    T_max : int, default 50
        Epoch at which the rate reaches ``eta_min``, > 0.
    eta_min : float, default 0.0
        Minimum rate, >= 0.
    periodic : bool, default False
        Continue the cosine after ``T_max``, as torch does, instead of holding ``eta_min``.

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
        self.T_max = POSITIVE.check('T_max', T_max)
        self.eta_min = NON_NEGATIVE.check('eta_min', eta_min)
        self.periodic = FLAG.check('periodic', periodic)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        remaining = self.T_max - epoch if self.periodic else jnp.maximum(self.T_max - epoch, 0)
        return interpolate(self.eta_min, base_lr, half_cosine(remaining / self.T_max))


class SWALR(LRScheduler):
    r"""Anneal the base rate to ``swa_lr`` and hold it, for stochastic weight averaging (:class:`SWA`).

    .. math:: \eta_t = \eta_{swa} + (\eta_0 - \eta_{swa}) (1 - a_t)

    where :math:`a_t` rises from 0 to 1 in ``anneal_epochs``, along half a cosine or linearly. As a part of a
    :class:`SequentialLR`, the schedule begins at its own base rate.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    swa_lr : float, default 1e-3
        Rate :math:`\eta_{swa}` at the end, >= 0.
    anneal_epochs : int, default 10
        Number of epochs until the rate is reached, >= 0.
    anneal_strategy : {'cos', 'linear'}, default 'cos'
        The shape of the transition.

    References
    ----------
    Izmailov et al. (2018), Averaging Weights Leads to Wider Optima and Better Generalization.

    Examples
    --------
    >>> SWALR(1.0, swa_lr=0.5, anneal_epochs=4, anneal_strategy='linear').lr_at([0, 2, 4, 6]).tolist()
    [1.0, 0.75, 0.5, 0.5]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        swa_lr: float = 1e-3,
        anneal_epochs: int = 10,
        anneal_strategy: str = 'cos',
        last_epoch: int = 0,
    ):
        self.swa_lr = NON_NEGATIVE.check('swa_lr', swa_lr)
        self.anneal_epochs = COUNT.check('anneal_epochs', anneal_epochs)
        self.anneal_strategy = OneOf(('cos', 'linear')).check('anneal_strategy', anneal_strategy)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        remaining = jnp.maximum(self.anneal_epochs - epoch, 0) / max(self.anneal_epochs, 1)
        share = half_cosine(remaining) if self.anneal_strategy == 'cos' else remaining
        return interpolate(self.swa_lr, base_lr, share)


class CosineAnnealingWarmRestarts(LRScheduler):
    r"""Anneal the rate to ``eta_min`` along half a cosine, then restart; each cycle is ``T_mult`` times longer.

    .. math::
        \eta_t = \eta_{min} + \tfrac12 (\eta_0 - \eta_{min}) \, d^n
        \left(1 + \cos\frac{\pi T_{cur}}{T_i}\right), \quad T_i = T_0 \, T_{mult}^n

    where :math:`n` is the number of restarts so far and :math:`T_{cur}` is the number of epochs since the last
    restart. ``T_cur.value`` and ``T_i.value`` return the present values. ``step(epoch=2.5)`` goes to an epoch
    between two whole epochs.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    T_0 : int, default 10
        Length of the first cycle in epochs, >= 1.
    T_mult : int, default 1
        Factor by which each cycle is longer than the previous cycle, >= 1.
    eta_min : float, default 0.0
        Minimum rate, >= 0.
    decay : float, default 1.0
        Factor :math:`d` by which each restart lowers the height of the peak above ``eta_min``, in [0, 1].

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
        self.T_0 = PERIOD.check('T_0', T_0)
        self.T_mult = PERIOD.check('T_mult', T_mult)
        self.eta_min = NON_NEGATIVE.check('eta_min', eta_min)
        self.decay = FRACTION.check('decay', decay)
        self.fraction = LongTermState(jnp.zeros(()))
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        restarts, *parts = self.cycle(epoch)
        current, length = map(as_float, parts)
        height = precise_power(self.decay, restarts) * half_cosine((length - current) / length)
        return interpolate(self.eta_min, base_lr, height)

    def cycle(self, epoch: Array) -> tuple[Array, Array, Array]:
        """Return the number of restarts up to ``epoch``, the epochs since the last restart, and the cycle's length."""
        first_cycles = epoch // self.T_0  # the number of cycles if all were as long as the first one
        if not isinstance(self.T_mult, Tracer) and self.T_mult == 1:
            return first_cycles, epoch % self.T_0, jnp.full(epoch.shape, self.T_0)
        starts, lengths = self.in_first_cycles()
        restarts = jnp.sum(first_cycles[..., None] >= starts.astype(epoch.dtype), axis=-1, dtype=jnp.int32) - 1
        start, length = starts[restarts].astype(epoch.dtype), lengths[restarts]
        if isinstance(self.T_mult, Tracer):
            restarts = jnp.where(self.T_mult == 1, first_cycles, restarts.astype(epoch.dtype))
            start = jnp.where(self.T_mult == 1, first_cycles, start)
        return restarts, epoch - self.T_0 * start, self.T_0 * length

    def in_first_cycles(self) -> tuple[Array, Array]:
        """Return the starts and lengths of cycles up to epoch 2^31, in units of the length of the first cycle."""
        if isinstance(self.T_mult, Tracer):
            traced = jnp.asarray(self.T_mult, float) ** jnp.arange(31)
            return jnp.cumsum(traced) - traced, traced
        lengths, starts = [1], [0]
        while starts[-1] + lengths[-1] < 2**31:
            starts.append(starts[-1] + lengths[-1])
            lengths.append(lengths[-1] * self.T_mult)
        return jnp.asarray(starts), jnp.asarray(lengths, float)

    @property
    def T_cur(self) -> DerivedValue[Scalar]:  # noqa: N802
        """The number of epochs since the last restart, as ``T_cur.value``."""

        def go_to(epoch_of_cycle: Scalar) -> None:
            self.step(epoch=as_number(self.epoch_at(self.position())) - self.T_cur.value + epoch_of_cycle)

        return DerivedValue(lambda: as_integer_if_whole(self.cycle(self.epoch_at(self.position()))[1]), go_to)

    @property
    def T_i(self) -> DerivedValue[Scalar]:  # noqa: N802
        """The length of the present cycle in epochs, as ``T_i.value``."""

        def refuse_others(length: Scalar) -> None:
            if length != self.T_i.value:
                raise ValueError(
                    f'Invalid T_i={length!r}. The length of a cycle follows from the epoch: call step(epoch).'
                )

        return DerivedValue(lambda: as_integer_if_whole(self.cycle(self.epoch_at(self.position()))[2]), refuse_others)

    def sources(self) -> dict[str, LongTermState]:
        return {**super().sources(), 'fraction': self.fraction}

    def epoch_at(self, position: Position) -> Array:
        epoch: Array = as_float(position['epoch']) + position['fraction']
        return epoch

    @explicit_transfers
    def step(self, epoch: Scalar | None = None) -> None:
        """Advance by one epoch, or go to ``epoch``, which may lie between two whole epochs."""
        super().step(None if epoch is None else epoch // 1)
        if epoch is not None:
            self.fraction.value = jnp.asarray(epoch % 1, jnp.result_type(float))
            self.store_rates()

    def state_dict(self) -> dict[str, Tree]:
        return {**super().state_dict(), 'T_cur': self.T_cur.value, 'T_i': self.T_i.value}

    @explicit_transfers
    def load_state_dict(self, state_dict: Mapping[str, Tree]) -> None:
        super().load_state_dict(state_dict)
        self.fraction.value = jnp.asarray(state_dict['T_cur'] % 1, jnp.result_type(float))


def as_integer_if_whole(x: Array) -> Scalar:
    """Return a whole number as an int, another number as a float, and a tracer unchanged."""
    number: Scalar = as_number(x)
    return number if isinstance(number, Tracer) or number % 1 else int(number)
