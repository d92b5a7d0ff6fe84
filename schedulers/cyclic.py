"""Schedules that rise and fall, with the momentum the other way round: CyclicLR, OneCycleLR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintools_optim.options import validate
from braintools_optim.schedulers.arguments import validate_choice, validate_each, validate_per_group
from braintools_optim.schedulers.base import LRScheduler, as_epoch, as_float, entry
from braintools_optim.schedulers.curves import half_wave, line, power, proportion

__all__ = ['CyclicLR', 'OneCycleLR']

Array = jax.Array


class CyclesMomentum(LRScheduler):
    """A schedule that may also give the momentum, high where the rate is low."""

    def keep_momentums(self, cycle_momentum: bool, base_momentum: Any, max_momentum: Any) -> None:
        self.cycle_momentum = validate('cycle_momentum', cycle_momentum, like=False)
        low, high = validate_per_group(base_momentum=base_momentum, max_momentum=max_momentum)
        self.base_momentums = validate_each('base_momentum', low)
        self.max_momentums = validate_each('max_momentum', high)

    def momentum_at(self, epoch: Any, group: int = 0) -> Array:
        """The momentum (Adam's first beta) of a parameter group at ``epoch``: a number, an array or a tracer."""
        if not self.cycle_momentum:
            raise ValueError('This schedule has no momentum: give it cycle_momentum=True.')
        epoch = as_epoch(epoch)
        momentum = self.momentum_formula(epoch, entry(self.base_momentums, group), entry(self.max_momentums, group))
        return jnp.broadcast_to(as_float(momentum), epoch.shape)

    def momentum_formula(self, epoch: Array, low: Any, high: Any) -> Any:
        raise NotImplementedError(f'{type(self).__name__} must define momentum_formula(epoch, low, high).')


class CyclicLR(CyclesMomentum):
    r"""A line up from the base rate to ``max_lr`` and a line down, again and again.

    .. math:: \eta_t = \eta_0 + (\eta_{max} - \eta_0) \, h(t) \, \text{scale}

    where :math:`h` rises from 0 to 1 in ``step_size_up`` epochs and falls to 0 in ``step_size_down``.

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    max_lr : float or sequence of float, default 1e-2
        :math:`\eta_{max}`, or one for each parameter group; at least 0. It keeps its proportion to the
        base rate in a group that has a rate of its own.
    step_size_up : int, default 2000
        Above 0.
    step_size_down : int, optional
        Above 0; ``step_size_up`` if not given.
    mode : {'triangular', 'triangular2', 'exp_range'}, default 'triangular'
        The scale: 1; halved with every cycle; ``gamma**epoch``.
    gamma : float, default 1.0
        For ``mode='exp_range'``. At least 0.
    scale_fn : callable, optional
        A scale of one's own in place of ``mode``, a function of the cycle, counted from 1, or of the
        epoch. It is traced, and may be given an array.
    scale_mode : {'cycle', 'iterations'}, default 'cycle'
        What ``scale_fn`` is given: the cycle or the epoch.
    cycle_momentum : bool, default False
        Whether there is a momentum, which falls from ``max_momentum`` as the rate rises.
    base_momentum, max_momentum : float or sequence of float, default 0.8 and 0.9
        In [0, 1), one or one for each parameter group.

    Raises
    ------
    ValueError
        If an argument is out of range, or the lists differ in length.

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
        scale_fn: Callable[[Any], Any] | None = None,
        scale_mode: str = 'cycle',
        last_epoch: int = 0,
        *,
        cycle_momentum: bool = False,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
    ):
        base_lr, max_lr = validate_per_group(base_lr=base_lr, max_lr=max_lr)
        self.max_lrs = validate_each('max_lr', max_lr)
        self.step_size_up = validate('step_size_up', step_size_up)
        self.step_size_down = validate('step_size_down', step_size_up if step_size_down is None else step_size_down)
        self.mode = validate_choice('mode', mode, ('triangular', 'triangular2', 'exp_range'))
        self.gamma = validate('gamma', gamma)
        if scale_fn is not None and not callable(scale_fn):
            raise TypeError(f'Invalid scale_fn={scale_fn!r}. Must be callable.')
        self.scale_fn = scale_fn
        self.scale_mode = validate_choice('scale_mode', scale_mode, ('cycle', 'iterations'))
        self.keep_momentums(cycle_momentum, base_momentum, max_momentum)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        peak = entry(self.max_lrs, group) * proportion(base_lr, self.base_lr_of(group))
        return line(base_lr, peak, self.height(epoch))

    def momentum_formula(self, epoch: Array, low: Any, high: Any) -> Any:
        return line(high, low, self.height(epoch))

    def height(self, epoch: Array) -> Any:
        """Where the wave stands between the base rate, 0, and ``max_lr``, 1, scaled."""
        total = self.step_size_up + self.step_size_down
        cycle, place = epoch // total, epoch % total
        rising = place <= self.step_size_up
        height = jnp.where(rising, place / self.step_size_up, (total - place) / self.step_size_down)
        if self.scale_fn is not None:
            return height * self.scale_fn(cycle + 1.0 if self.scale_mode == 'cycle' else epoch)
        if self.mode == 'triangular2':
            return height * power(0.5, cycle)
        return height * power(self.gamma, epoch) if self.mode == 'exp_range' else height


class OneCycleLR(CyclesMomentum):
    r"""Up from ``max_lr / div_factor`` to ``max_lr``, then down to ``max_lr / div_factor / final_div_factor``.

    With :math:`T` steps and :math:`p` = ``pct_start``, the peak is reached at :math:`pT - 1` and the end,
    which then holds, at :math:`T - 1`; each way goes along half a cosine or a line. With
    ``three_phase`` the rate falls to its start as fast as it rose, by :math:`2pT - 2`, and only then to the end.

    Parameters
    ----------
    max_lr : float or sequence of float, default 1e-2
        The peak, or one for each parameter group; at least 0. The base rate is ``max_lr / div_factor``.
    total_steps : int, optional
        :math:`T`, at least 1; or ``epochs`` times ``steps_per_epoch``.
    epochs, steps_per_epoch : int, optional
        At least 1, in place of ``total_steps``.
    pct_start : float, default 0.3
        :math:`p`, in (0, 1).
    anneal_strategy : {'cos', 'linear'}, default 'cos'
        The form of each way.
    div_factor : float, default 25.0
        Above 0.
    final_div_factor : float, default 1e4
        Above 0.
    last_epoch
        See :class:`LRScheduler`.
    three_phase : bool, default False
        Whether to go back to the start before the end.
    cycle_momentum : bool, default False
        Whether there is a momentum, which falls from ``max_momentum`` as the rate rises.
    base_momentum, max_momentum : float or sequence of float, default 0.85 and 0.95
        In [0, 1), one or one for each parameter group.

    Raises
    ------
    ValueError
        If an argument is out of range, or there is neither ``total_steps`` nor both ``epochs`` and
        ``steps_per_epoch``.

    References
    ----------
    Smith and Topin (2019), Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates.

    Examples
    --------
    >>> schedule = OneCycleLR(1.0, 6, pct_start=0.5, anneal_strategy='linear', div_factor=2.0, final_div_factor=4.0)
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
                validate(name, given)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError('Invalid total_steps=None. Must be given, or else both epochs and steps_per_epoch.')
            total_steps = epochs * steps_per_epoch
        self.total_steps = validate('total_steps', total_steps)
        self.pct_start = validate('pct_start', pct_start)
        self.anneal_strategy = validate_choice('anneal_strategy', anneal_strategy, ('cos', 'linear'))
        self.div_factor = validate('div_factor', div_factor)
        self.final_div_factor = validate('final_div_factor', final_div_factor)
        self.three_phase = validate('three_phase', three_phase, like=False)
        self.keep_momentums(cycle_momentum, base_momentum, max_momentum)
        peaks = validate_each('max_lr', max_lr if isinstance(max_lr, (list, tuple)) else [max_lr])
        super().__init__([peak / self.div_factor for peak in peaks], last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        peak, end = base_lr * self.div_factor, base_lr / self.final_div_factor
        return self.travel(epoch, [base_lr, peak, base_lr, end] if self.three_phase else [base_lr, peak, end])

    def momentum_formula(self, epoch: Array, low: Any, high: Any) -> Any:
        return self.travel(epoch, [high, low, high, high] if self.three_phase else [high, low, high])

    def travel(self, epoch: Array, stations: Sequence[Any]) -> Any:
        """From each station to the next."""
        rise, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        times = [0.0, rise, 2 * rise, last] if self.three_phase else [0.0, rise, last]
        epoch = jnp.minimum(epoch, last)
        value = stations[-1]
        for i in reversed(range(len(times) - 1)):
            left = (times[i + 1] - epoch) / (times[i + 1] - times[i] or 1.0)
            share = half_wave(left) if self.anneal_strategy == 'cos' else left
            way = line(stations[i + 1], stations[i], share)
            value = way if i == len(times) - 2 else jnp.where(epoch <= times[i + 1], way, value)
        return value
