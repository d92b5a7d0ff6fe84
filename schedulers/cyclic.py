"""Schedules that rise and fall and may drive the momentum in the opposite direction: CyclicLR, OneCycleLR."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from braintools_optim.options.kinds import Number, Range, Scalar
from braintools_optim.schedulers.arguments import (
    FLAG,
    FRACTION_BELOW_ONE,
    NON_NEGATIVE,
    PERIOD,
    POSITIVE,
    Each,
    OneOf,
    expand_per_group,
)
from braintools_optim.schedulers.base import LRScheduler, as_epoch, value_of_group
from braintools_optim.schedulers.curves import as_float, half_cosine, interpolate, one_if_zero, precise_power, ratio

__all__ = ['CyclicLR', 'OneCycleLR']

Array = jax.Array


class CyclesMomentum(LRScheduler):
    """A schedule that may also drive the momentum, which is high where the rate is low."""

    def set_momentums(
        self,
        cycle_momentum: bool,
        base_momentum: float | Sequence[float],
        max_momentum: float | Sequence[float],
    ) -> None:
        """Check and store the arguments of the constructor that concern the momentum."""
        self.cycle_momentum = FLAG.check('cycle_momentum', cycle_momentum)
        low, high = expand_per_group(base_momentum=base_momentum, max_momentum=max_momentum)
        self.base_momentums = Each(FRACTION_BELOW_ONE).check('base_momentum', low)
        self.max_momentums = Each(FRACTION_BELOW_ONE).check('max_momentum', high)

    def momentum_at(self, epoch: ArrayLike | Sequence[float], group: int = 0) -> Array:
        """Return the momentum (Adam's first beta) of a parameter group at ``epoch``: a number, an array or a tracer."""
        if not self.cycle_momentum:
            raise ValueError(f'{type(self).__name__} does not cycle the momentum. Build it with cycle_momentum=True.')
        epoch = as_epoch(epoch)
        low, high = value_of_group(self.base_momentums, group), value_of_group(self.max_momentums, group)
        return jnp.broadcast_to(as_float(self.momentum_formula(epoch, low, high)), epoch.shape)

    def momentum_formula(self, epoch: Array, low: Scalar, high: Scalar) -> ArrayLike:
        """Return the momentum at ``epoch``, between ``low`` and ``high``."""
        raise NotImplementedError(f'{type(self).__name__} must define momentum_formula(epoch, low, high).')


class CyclicLR(CyclesMomentum):
    r"""Raise the rate linearly from the base rate to ``max_lr``, lower it linearly, and repeat.

    .. math:: \eta_t = \eta_0 + (\eta_{max} - \eta_0) \, h(t) \, \text{scale}

    where :math:`h` rises from 0 to 1 in ``step_size_up`` epochs and falls to 0 in ``step_size_down`` epochs.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    max_lr : float or sequence of float, default 1e-2
        Peak :math:`\eta_{max}`, or a sequence of peaks, one per parameter group; >= 0. In a group with another
        base rate the peak is scaled by the same factor.
    step_size_up : int, default 2000
        Epochs from the base rate to the peak, > 0.
    step_size_down : int, optional
        Epochs from the peak to the base rate, > 0. Defaults to ``step_size_up``.
    mode : {'triangular', 'triangular2', 'exp_range'}, default 'triangular'
        Scale of the cycles: always 1, halved after every cycle, or ``gamma**epoch``.
    gamma : float, default 1.0
        Base of the scale for ``mode='exp_range'``, >= 0.
    scale_fn : callable, optional
        Function that returns the scale and replaces ``mode``. It is traced, and may receive an array.
    scale_mode : {'cycle', 'iterations'}, default 'cycle'
        Argument of ``scale_fn``: the number of the cycle, counted from 1, or the epoch.
    cycle_momentum : bool, default False
        Whether the schedule also drives the momentum, which falls from ``max_momentum`` as the rate rises.
    base_momentum, max_momentum : float or sequence of float, default 0.8 and 0.9
        Limits of the momentum, in [0, 1), or sequences of limits, one per parameter group.

    Raises
    ------
    ValueError
        If sequences of values for the parameter groups differ in length.

    References
    ----------
    Smith (2017), Cyclical Learning Rates for Training Neural Networks.

    Examples
    --------
    >>> CyclicLR(0.5, max_lr=1.0, step_size_up=2, mode='triangular2').lr_at([0, 1, 2, 4, 6]).tolist()
    [0.5, 0.75, 1.0, 0.5, 0.75]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        max_lr: float | Sequence[float] = 1e-2,
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = 'triangular',
        gamma: float = 1.0,
        scale_fn: Callable[[Array], ArrayLike] | None = None,
        scale_mode: str = 'cycle',
        last_epoch: int = 0,
        *,
        cycle_momentum: bool = False,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
    ):
        rates, peaks = expand_per_group(base_lr=base_lr, max_lr=max_lr)
        self.max_lrs = Each(NON_NEGATIVE).check('max_lr', peaks)
        self.step_size_up = POSITIVE.check('step_size_up', step_size_up)
        step_size_down = step_size_up if step_size_down is None else step_size_down
        self.step_size_down = POSITIVE.check('step_size_down', step_size_down)
        self.mode = OneOf(('triangular', 'triangular2', 'exp_range')).check('mode', mode)
        self.gamma = NON_NEGATIVE.check('gamma', gamma)
        if scale_fn is not None and not callable(scale_fn):
            raise TypeError(f'Invalid scale_fn={scale_fn!r}. Must be callable.')
        self.scale_fn = scale_fn
        self.scale_mode = OneOf(('cycle', 'iterations')).check('scale_mode', scale_mode)
        self.set_momentums(cycle_momentum, base_momentum, max_momentum)
        super().__init__(rates, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> Scalar:
        peak = value_of_group(self.max_lrs, group) * ratio(base_lr, self.base_lr_of(group))
        return interpolate(base_lr, peak, self.height(epoch))

    def momentum_formula(self, epoch: Array, low: Scalar, high: Scalar) -> Scalar:
        return interpolate(high, low, self.height(epoch))

    def height(self, epoch: Array) -> Array:
        """Return the scaled height of the wave at ``epoch``: 0 at the base rate, 1 at ``max_lr``."""
        total = self.step_size_up + self.step_size_down
        cycle, place = epoch // total, epoch % total
        rising = place <= self.step_size_up
        height = jnp.where(rising, place / self.step_size_up, (total - place) / self.step_size_down)
        if self.scale_fn is not None:
            return height * self.scale_fn(as_float(cycle) + 1.0 if self.scale_mode == 'cycle' else epoch)
        if self.mode == 'triangular2':
            return height * precise_power(0.5, cycle)
        return height * precise_power(self.gamma, epoch) if self.mode == 'exp_range' else height


class OneCycleLR(CyclesMomentum):
    r"""Raise the rate from ``max_lr / div_factor`` to ``max_lr``, then lower it below its initial value.

    With :math:`T` steps and :math:`p` = ``pct_start``, the rate reaches ``max_lr`` at step :math:`pT - 1` and its
    final value, ``max_lr / div_factor / final_div_factor``, at step :math:`T - 1`; it then stays constant. Each
    phase follows half a cosine or a line. With ``three_phase`` the rate returns to its initial value at step
    :math:`2pT - 2` before it falls to its final value.

    Parameters
    ----------
    max_lr : float or sequence of float, default 1e-2
        Peak, or a sequence of peaks, one per parameter group; >= 0. The base rate is ``max_lr / div_factor``.
    total_steps : int, optional
        Number of steps :math:`T`, >= 1. Defaults to ``epochs * steps_per_epoch``.
    epochs, steps_per_epoch : int, optional
        Numbers whose product is the number of steps if ``total_steps`` is not given, >= 1.
    pct_start : float, default 0.3
        Fraction :math:`p` of the steps in which the rate rises, in (0, 1).
    anneal_strategy : {'cos', 'linear'}, default 'cos'
        Whether each phase follows half a cosine or a line.
    div_factor : float, default 25.0
        Ratio of ``max_lr`` to the initial rate, > 0.
    final_div_factor : float, default 1e4
        Ratio of the initial rate to the final rate, > 0.
    last_epoch
        See :class:`LRScheduler`.
    three_phase : bool, default False
        Whether the rate returns to its initial value before it falls to its final value.
    cycle_momentum : bool, default False
        Whether the schedule also drives the momentum, which falls from ``max_momentum`` as the rate rises.
    base_momentum, max_momentum : float or sequence of float, default 0.85 and 0.95
        Limits of the momentum, in [0, 1), or sequences of limits, one per parameter group.

    Raises
    ------
    ValueError
        If neither ``total_steps`` nor both ``epochs`` and ``steps_per_epoch`` are given, or if the limits of
        the momentum differ in length.

    References
    ----------
    Smith and Topin (2019), Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates.

    Examples
    --------
    >>> schedule = OneCycleLR(
    ...     1.0, 6, pct_start=0.5, anneal_strategy='linear', div_factor=2.0, final_div_factor=4.0
    ... )
    >>> schedule.lr_at([0, 1, 2, 5, 6]).tolist()
    [0.5, 0.75, 1.0, 0.125, 0.125]
    """

    def __init__(
        self,
        max_lr: float | Sequence[float] = 1e-2,
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = 'cos',
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        last_epoch: int = 0,
        *,
        three_phase: bool = False,
        cycle_momentum: bool = False,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
    ):
        for name, given in (('epochs', epochs), ('steps_per_epoch', steps_per_epoch)):
            if given is not None:
                PERIOD.check(name, given)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError(
                    'Invalid total_steps=None. Must be an integer unless both epochs and steps_per_epoch are given.'
                )
            total_steps = epochs * steps_per_epoch
        self.total_steps = PERIOD.check('total_steps', total_steps)
        self.pct_start = Number(Range(0, 1, low_open=True, high_open=True)).check('pct_start', pct_start)
        self.anneal_strategy = OneOf(('cos', 'linear')).check('anneal_strategy', anneal_strategy)
        self.div_factor = POSITIVE.check('div_factor', div_factor)
        self.final_div_factor = POSITIVE.check('final_div_factor', final_div_factor)
        self.three_phase = FLAG.check('three_phase', three_phase)
        self.set_momentums(cycle_momentum, base_momentum, max_momentum)
        peaks = Each(NON_NEGATIVE).check('max_lr', max_lr if isinstance(max_lr, (list, tuple)) else [max_lr])
        super().__init__([peak / self.div_factor for peak in peaks], last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        peak, final = base_lr * self.div_factor, base_lr / self.final_div_factor
        return self.anneal(epoch, [base_lr, peak, base_lr, final] if self.three_phase else [base_lr, peak, final])

    def momentum_formula(self, epoch: Array, low: Scalar, high: Scalar) -> Scalar:
        return self.anneal(epoch, [high, low, high, high] if self.three_phase else [high, low, high])

    def anneal(self, epoch: Array, levels: Sequence[Scalar]) -> Scalar:
        """Return the value at ``epoch`` of a curve that goes from each level to the next in one phase."""
        rise, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        times = [0.0, rise, 2 * rise, last] if self.three_phase else [0.0, rise, last]
        epoch = as_float(jnp.minimum(epoch, last))
        value = levels[-1]
        for i in reversed(range(len(times) - 1)):
            remaining = (times[i + 1] - epoch) / one_if_zero(times[i + 1] - times[i])
            fraction = half_cosine(remaining) if self.anneal_strategy == 'cos' else remaining
            phase = interpolate(levels[i + 1], levels[i], fraction)
            value = phase if i == len(times) - 2 else jnp.where(epoch <= times[i + 1], phase, value)
        return value
