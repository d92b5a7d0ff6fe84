"""ReduceLROnPlateau: a schedule that follows a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from brainstate import LongTermState
from jax.typing import ArrayLike

from braintools_optim.options.kinds import ANY, Number, Scalar, as_number
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import Tree
from braintools_optim.schedulers.arguments import (
    COUNT,
    FRACTION_BELOW_ONE,
    NON_NEGATIVE,
    Each,
    OneOf,
    expand_per_group,
)
from braintools_optim.schedulers.base import LRScheduler, Position, value_of_group
from braintools_optim.schedulers.curves import as_float
from braintools_optim.schedulers.parts import as_part

__all__ = ['ReduceLROnPlateau']

Array = jax.Array


class ReduceLROnPlateau(LRScheduler):
    r"""Multiply the rate by ``factor`` whenever a metric has not improved for more than ``patience`` epochs.

    .. math:: \eta_t = \max(\eta_0 \, \text{factor}^n, \eta_{min})

    after :math:`n` reductions. ``step(metric)`` ends an epoch. If ``base_lr`` is another schedule, the
    reductions multiply the rate of that schedule. The rate of a parameter group with another base rate is reduced at
    the same time, from that base rate, as in torch.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`. ``base_lr`` may be a schedule, which advances with the epochs.
    mode : {'min', 'max'}, default 'min'
        Whether a lower or a higher metric is better. NaN is never better.
    factor : float, default 0.1
        Factor of each reduction, in [0, 1).
    patience : int, default 10
        Number of consecutive epochs without improvement after which the next one reduces the rate, >= 0.
    threshold : float, default 1e-4
        Difference to the best metric that counts as an improvement, >= 0.
    threshold_mode : {'rel', 'abs'}, default 'rel'
        Whether ``threshold`` is relative to the absolute value of the best metric, or absolute.
    cooldown : int, default 0
        Number of epochs after a reduction in which a lack of improvement is not counted, >= 0.
    min_lr : float or sequence of float, default 0.0
        Minimum rate :math:`\eta_{min}` of the reductions, or a sequence of rates, one per parameter group; >= 0.
    eps : float, default 1e-8
        Reductions of the rate by no more than ``eps`` are skipped, >= 0.

    Raises
    ------
    ValueError
        If ``base_lr`` and ``min_lr`` are sequences of different lengths, or if ``base_lr`` is a schedule that is
        not a function of the epoch alone or has left epoch 0.

    Examples
    --------
    >>> schedule = ReduceLROnPlateau(1.0, factor=0.5, patience=1)
    >>> for loss in [3.0, 2.0, 2.0, 2.0]:
    ...     schedule.step(loss)
    >>> schedule()
    0.5
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] | LRScheduler = 1e-3,
        mode: str = 'min',
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = 'rel',
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
        last_epoch: int = 0,
    ):
        self.schedule = as_part('base_lr', base_lr) if isinstance(base_lr, LRScheduler) else None
        self.mode = OneOf(('min', 'max')).check('mode', mode)
        self.factor = FRACTION_BELOW_ONE.check('factor', factor)
        self.patience = COUNT.check('patience', patience)
        self.threshold = NON_NEGATIVE.check('threshold', threshold)
        self.threshold_mode = OneOf(('rel', 'abs')).check('threshold_mode', threshold_mode)
        self.cooldown = COUNT.check('cooldown', cooldown)
        self.eps = NON_NEGATIVE.check('eps', eps)
        given = base_lr.base_lrs if isinstance(base_lr, LRScheduler) else base_lr
        rates, minima = expand_per_group(base_lr=given, min_lr=min_lr)
        self.min_lrs = Each(NON_NEGATIVE).check('min_lr', minima)
        self.best = LongTermState(as_float(math.inf if mode == 'min' else -math.inf))
        self.num_bad_epochs = LongTermState(as_int32(0))
        self.cooldown_counter = LongTermState(as_int32(0))
        self.reduction = LongTermState(as_float([1.0] * len(rates)))
        super().__init__(rates, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> Scalar:
        """Return the rate at ``epoch`` without reductions."""
        return base_lr if self.schedule is None else self.schedule.lr_at(epoch, base_lr, group)

    def admitted(self, rates: Mapping[int, Scalar]) -> Callable[[], None]:
        """Return a function that lists these base rates of groups, from which the groups' rates are reduced."""
        known = len(self.base_lrs)
        for group, rate in rates.items():
            if group < known and rate != self.base_lrs[group]:
                raise ValueError(
                    f'Invalid lr={rate!r} of group {group}. Must be {self.base_lrs[group]}, the base rate that its '
                    f'{type(self).__name__} lists. A schedule serves two optimizers only if their groups agree.'
                )
        every = [rates.get(group, self.base_lr_of(group)) for group in range(max([known, *(i + 1 for i in rates)]))]
        minima = [value_of_group(self.min_lrs, group) for group in range(len(every))]

        def admit() -> None:
            more = as_float([self.reduction.value[-1]] * (len(every) - known))
            self.reduction.value = jnp.concatenate([self.reduction.value, more])
            self.__dict__.update(base_lrs=tuple(every), min_lrs=tuple(minima))

        return admit if len(every) > known else super().admitted({})

    def sources(self) -> dict[str, LongTermState]:
        return {**super().sources(), 'reduction': self.reduction}

    def rate(self, position: Position, base_lr: Scalar | None = None, group: int = 0) -> Array:
        unreduced = super().rate(position, base_lr, group)
        minimum = jnp.minimum(unreduced, value_of_group(self.min_lrs, group))
        return jnp.maximum(unreduced * value_of_group(position['reduction'], group), minimum)

    @explicit_transfers
    def set_rate(self, value: Scalar) -> None:
        """Set the present rate to ``value``, from which later reductions start."""
        super().set_rate(value)
        reduction = self.reduction.value
        self.reduction.value = jnp.where(reduction[0] == 0, 1.0, reduction / reduction[0])

    @explicit_transfers
    def step(  # type: ignore[override]  # the metric comes first, as in torch
        self, metric: ArrayLike | None = None, epoch: Scalar | None = None
    ) -> None:
        """End an epoch with the number ``metric``; with ``epoch`` alone, go to that epoch and change nothing else."""
        if metric is None and epoch is None:
            raise TypeError('step() of a ReduceLROnPlateau requires the metric, or an epoch.')
        if metric is not None:
            try:
                metric = as_float(metric)
            except (TypeError, ValueError):
                raise TypeError(f'Invalid metric={metric!r}. Must be a number.') from None
            if metric.size != 1:
                raise ValueError(f'Invalid metric of shape {metric.shape}. Must be a number.')
        super().step(epoch)
        if metric is not None:
            self.observe(metric.reshape(()))

    def observe(self, metric: Array) -> None:
        """Compare a metric with the best metric, and reduce the rates if it has not improved for too long."""
        waiting, better = self.cooldown_counter.value, self.is_better(metric)
        bad = jnp.where(better | (waiting > 0), 0, self.num_bad_epochs.value + 1)
        reduce = bad > self.patience
        rates = as_float([self.rate(self.position(), base_lr, i) for i, base_lr in enumerate(self.base_lrs)])
        change = rates - jnp.maximum(rates * self.factor, as_float(self.min_lrs))
        factor = jnp.where(reduce & (change > self.eps), self.factor, 1.0)
        self.best.value = jnp.where(better, metric, self.best.value)
        self.num_bad_epochs.value = as_int32(jnp.where(reduce, 0, bad))
        self.cooldown_counter.value = as_int32(jnp.where(reduce, self.cooldown, jnp.maximum(waiting - 1, 0)))
        self.reduction.value = as_float(self.reduction.value * factor)

    def is_better(self, metric: Array) -> Array:
        """Return whether ``metric`` is better than the best metric so far by more than the threshold."""
        best, sign = self.best.value, 1 if self.mode == 'max' else -1
        if self.threshold_mode == 'abs':
            target = best + sign * self.threshold
        else:
            outward = jnp.where(best < 0, 1 - sign * self.threshold, 1 + sign * self.threshold)
            target = jnp.where(jnp.isinf(best), best, best * outward)
        return jnp.greater(metric, target) if self.mode == 'max' else jnp.less(metric, target)

    def state_dict(self) -> dict[str, Tree]:
        counts = {name: as_number(getattr(self, name).value) for name in ('best', 'num_bad_epochs', 'cooldown_counter')}
        return {**super().state_dict(), **counts, 'reduction': self.reduction.value.tolist()}

    def read_state(self, state_dict: Mapping[str, Tree]) -> dict[str, Tree]:
        values = super().read_state(state_dict)
        for name in ('num_bad_epochs', 'cooldown_counter'):
            values[name] = as_int32(COUNT.check(name, state_dict[name]))
        values['best'] = as_float(Number(ANY).check('best', state_dict['best']))
        reduction = Each(NON_NEGATIVE).check('reduction', state_dict['reduction'])
        if len(reduction) != len(self.base_lrs):
            raise ValueError(
                f'Invalid reduction={list(reduction)}. Must be {len(self.base_lrs)} numbers, one per base rate.'
            )
        return values | {'reduction': as_float(reduction)}


def as_int32(x: ArrayLike) -> Array:
    """Return a number as an int32 array."""
    return jnp.asarray(x, jnp.int32)
