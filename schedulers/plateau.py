"""ReduceLROnPlateau: a schedule that follows a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from brainstate import LongTermState

from braintools_optim.options import ANY, BELOW_ONE, as_number, validate
from braintools_optim.schedulers.arguments import (
    validate_choice,
    validate_each,
    validate_per_group,
    validate_within,
)
from braintools_optim.schedulers.base import LRScheduler, Position, as_float, entry
from braintools_optim.schedulers.parts import as_part

__all__ = ['ReduceLROnPlateau']

Array = jax.Array


class ReduceLROnPlateau(LRScheduler):
    r"""The rate times ``factor`` whenever a metric has not become better for more than ``patience`` epochs.

    .. math:: \eta_t = \max(\eta_0 \, \text{factor}^n, \eta_{min})

    after :math:`n` reductions. ``step(metric)`` ends an epoch. The reductions act on top of another
    schedule if there is one. A parameter group with a base rate of its own is reduced when the group
    at its place in ``base_lr`` is, and by as much.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`. ``base_lr`` may be a scheduler, which goes on from epoch to epoch.
    mode : {'min', 'max'}, default 'min'
        Whether a lower or a higher metric is better. NaN is not better than anything.
    factor : float, default 0.1
        In [0, 1).
    patience : int, default 10
        How many epochs in a row without a better metric are borne. At least 0.
    threshold : float, default 1e-4
        By how much a metric must be better to count. At least 0.
    threshold_mode : {'rel', 'abs'}, default 'rel'
        Whether ``threshold`` is a share of the size of the best metric, or a difference.
    cooldown : int, default 0
        The number of epochs after a reduction in which none counts as bad. At least 0.
    min_lr : float or sequence of float, default 0.0
        :math:`\eta_{min}`, or one for each parameter group: no reduction goes below. At least 0.
    eps : float, default 1e-8
        A reduction by no more than this is left out. At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range, or the lists differ in length.

    Examples
    --------
    >>> schedule = ReduceLROnPlateau(1.0, factor=0.5, patience=1)
    >>> for loss in [3.0, 2.0, 2.0, 2.0]:
    ...     schedule.step(loss)
    >>> schedule()
    0.5
    """

    uses_base_lr = False  # it reduces the rates that it has listed

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
        self.mode = validate_choice('mode', mode, ('min', 'max'))
        self.factor = validate_within('factor', factor, BELOW_ONE)
        self.patience = validate('patience', patience)
        self.threshold = validate('threshold', threshold)
        self.threshold_mode = validate_choice('threshold_mode', threshold_mode, ('rel', 'abs'))
        self.cooldown = validate('cooldown', cooldown)
        self.eps = validate('eps', eps)
        rates = base_lr.base_lrs if isinstance(base_lr, LRScheduler) else base_lr
        rates, min_lr = validate_per_group(base_lr=rates, min_lr=min_lr)
        self.min_lrs = validate_each('min_lr', min_lr)
        self.best = LongTermState(as_float(math.inf if mode == 'min' else -math.inf))
        self.num_bad_epochs = LongTermState(_int(0))
        self.cooldown_counter = LongTermState(_int(0))
        self.reduction = LongTermState(as_float([1.0] * len(rates)))
        super().__init__(rates, last_epoch)

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        """The rate without reductions."""
        return base_lr if self.schedule is None else self.schedule.lr_at(epoch, base_lr, group)

    def sources(self) -> dict[str, LongTermState]:
        return {**super().sources(), 'reduction': self.reduction}

    def rate(self, position: Position, base_lr: Any = None, group: int = 0) -> Array:
        whole = super().rate(position, base_lr, group)
        least = jnp.minimum(whole, entry(self.min_lrs, group))
        return jnp.maximum(whole * entry(position['reduction'], group), least)

    def set_rate(self, value: Any) -> None:
        """Make ``value`` the rate from now on, which is reduced from there."""
        super().set_rate(value)
        reduction = self.reduction.value
        self.reduction.value = jnp.where(reduction[0] == 0, 1.0, reduction / reduction[0])

    def step(self, metric: Any = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """End an epoch with ``metric``, a number; or, with ``epoch`` alone, go there and change nothing else."""
        if metric is None and epoch is None:
            raise TypeError('step() of ReduceLROnPlateau must be given the metric.')
        if metric is not None:
            try:
                metric = as_float(metric)
            except (TypeError, ValueError):
                raise TypeError(f'Invalid metric={metric!r}. Must be a number.') from None
            if metric.size != 1:
                raise ValueError(f'Invalid metric of shape {metric.shape}. Must be a number.')
        super().step(epoch)
        if metric is not None:
            self.judge(metric.reshape(()))

    def judge(self, metric: Array) -> None:
        """Count a metric, and reduce the rates if it is one bad one too many."""
        waiting, better = self.cooldown_counter.value, self.is_better(metric)
        bad = jnp.where(better | (waiting > 0), 0, self.num_bad_epochs.value + 1)
        reduce = bad > self.patience
        rates = as_float([self.rate(self.position(), base_lr, i) for i, base_lr in enumerate(self.base_lrs)])
        change = rates - jnp.maximum(rates * self.factor, as_float(self.min_lrs))
        factor = jnp.where(reduce & (change > self.eps), self.factor, 1.0)
        self.best.value = jnp.where(better, metric, self.best.value)
        self.num_bad_epochs.value = _int(jnp.where(reduce, 0, bad))
        self.cooldown_counter.value = _int(jnp.where(reduce, self.cooldown, jnp.maximum(waiting - 1, 0)))
        self.reduction.value = as_float(self.reduction.value * factor)

    def is_better(self, metric: Array) -> Array:
        """Whether a metric is better than the best so far by more than the threshold."""
        best, sign = self.best.value, 1 if self.mode == 'max' else -1
        if self.threshold_mode == 'abs':
            target = best + sign * self.threshold
        else:
            outward = jnp.where(best < 0, 1 - sign * self.threshold, 1 + sign * self.threshold)
            target = jnp.where(jnp.isinf(best), best, best * outward)
        return jnp.greater(metric, target) if self.mode == 'max' else jnp.less(metric, target)

    def state_dict(self) -> dict[str, Any]:
        counts = {name: as_number(getattr(self, name).value) for name in ('best', 'num_bad_epochs', 'cooldown_counter')}
        return {**super().state_dict(), **counts, 'reduction': self.reduction.value.tolist()}

    def read_state(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        values = super().read_state(state_dict)
        for name in ('num_bad_epochs', 'cooldown_counter'):
            values[name] = _int(validate(name, state_dict[name]))
        values['best'] = as_float(validate('best', state_dict['best'], allowed=ANY))
        reduction = validate_each('reduction', state_dict['reduction'])
        if len(reduction) != len(self.base_lrs):
            raise ValueError(f'Invalid reduction={list(reduction)}. Must be {len(self.base_lrs)} numbers.')
        return values | {'reduction': as_float(reduction)}


def _int(x: Any) -> Array:
    return jnp.asarray(x, jnp.int32)
