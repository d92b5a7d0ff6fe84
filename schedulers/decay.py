"""Schedules that multiply the base rate by steps, powers, lines or a given function of the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from braintools_optim.options.kinds import Scalar
from braintools_optim.schedulers.arguments import (
    COUNT,
    FLAG,
    FRACTION,
    NON_NEGATIVE,
    PERIOD,
    POSITIVE,
    POSITIVE_FRACTION,
    Each,
    expand_per_group,
)
from braintools_optim.schedulers.base import LRScheduler, value_of_group
from braintools_optim.schedulers.curves import as_float, count_passed, interpolate, precise_power, ramp, safe_power

__all__ = [
    'ConstantLR',
    'ExponentialDecayLR',
    'ExponentialLR',
    'LambdaLR',
    'LinearLR',
    'MultiStepLR',
    'MultiplicativeLR',
    'PiecewiseConstantSchedule',
    'PolynomialLR',
    'StepLR',
]

Array = jax.Array
Factor = Callable[[Array], ArrayLike]
"""A function from the epoch to a factor of the rate."""


class ConstantLR(LRScheduler):
    r"""Multiply the base rate by ``factor`` for ``total_iters`` epochs.

    .. math:: \eta_t = \eta_0 \cdot (\text{factor} \text{ if } t < \text{total\_iters} \text{ else } 1)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    factor : float, default 1/3
        Factor of the base rate, in [0, 1].
    total_iters : int, default 5
        Number of epochs at the reduced rate, >= 0. The rate is constant if it is 0.

    Examples
    --------
    >>> ConstantLR(0.5, factor=0.25, total_iters=2).lr_at([0, 1, 2]).tolist()
    [0.125, 0.125, 0.5]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        factor: float = 1 / 3,
        total_iters: int = 5,
        last_epoch: int = 0,
    ):
        self.factor = FRACTION.check('factor', factor)
        self.total_iters = COUNT.check('total_iters', total_iters)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Array:
        return base_lr * jnp.where(epoch < self.total_iters, self.factor, 1.0)

    @property
    def depends_on_epoch(self) -> bool:
        """Whether the factor applies to any epoch."""
        return isinstance(self.total_iters, Tracer) or self.total_iters != 0


class StepLR(LRScheduler):
    r"""Multiply the rate by ``gamma`` every ``step_size`` epochs.

    .. math:: \eta_t = \eta_0 \, \gamma^{\lfloor t / \text{step\_size} \rfloor}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    step_size : int, default 30
        Number of epochs between two changes of the rate, >= 1.
    gamma : float, default 0.1
        Factor of each change, >= 0.

    Examples
    --------
    >>> StepLR(1.0, step_size=2, gamma=0.5).lr_at([0, 1, 2, 4]).tolist()
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(
        self, base_lr: float | Sequence[float] = 1e-3, step_size: int = 30, gamma: float = 0.1, last_epoch: int = 0
    ):
        self.step_size = PERIOD.check('step_size', step_size)
        self.gamma = NON_NEGATIVE.check('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Array:
        return base_lr * precise_power(self.gamma, epoch // self.step_size)


class MultiStepLR(LRScheduler):
    r"""Multiply the rate by ``gamma`` at each of the ``milestones``.

    .. math:: \eta_t = \eta_0 \, \gamma^{|\{m \in \text{milestones} : m \le t\}|}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    milestones : iterable of int, default (30, 60, 90)
        Epochs at which the rate changes, increasing, >= 0. There may be no milestones.
    gamma : float, default 0.1
        Factor of each change, >= 0.

    Examples
    --------
    >>> MultiStepLR(1.0, milestones=[2, 3], gamma=0.5).lr_at([0, 1, 2, 3, 9]).tolist()
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        milestones: Iterable[int] = (30, 60, 90),
        gamma: float = 0.1,
        last_epoch: int = 0,
    ):
        self.milestones = Each(COUNT, increasing=True).check('milestones', milestones)
        self.gamma = NON_NEGATIVE.check('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Array:
        return base_lr * precise_power(self.gamma, count_passed(self.milestones, epoch))


class ExponentialLR(LRScheduler):
    r"""Multiply the rate by ``gamma`` every epoch.

    .. math:: \eta_t = \eta_0 \, \gamma^t

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    gamma : float, default 0.95
        Factor per epoch, >= 0.

    Examples
    --------
    >>> ExponentialLR(1.0, gamma=0.5).lr_at([0, 1, 2]).tolist()
    [1.0, 0.5, 0.25]
    """

    def __init__(self, base_lr: float | Sequence[float] = 1e-3, gamma: float = 0.95, last_epoch: int = 0):
        self.gamma = NON_NEGATIVE.check('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Array:
        return base_lr * precise_power(self.gamma, epoch)


class ExponentialDecayLR(LRScheduler):
    r"""Multiply the rate by ``decay_rate`` every ``decay_steps`` epochs, continuously or in steps.

    .. math:: \eta_t = \eta_0 \, \text{decay\_rate}^{\max(t - \text{transition\_begin}, 0) / \text{decay\_steps}}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    decay_steps : int, default 1000
        Number of epochs in which the rate changes by the factor ``decay_rate``, > 0.
    decay_rate : float, default 0.96
        Factor per ``decay_steps`` epochs, > 0.
    transition_begin : int, default 0
        Epoch at which the decay begins, >= 0.
    staircase : bool, default False
        Round the exponent down to an integer, so that the rate changes in steps.
    end_value : float, optional
        Rate at which the decay ends, or the growth if ``decay_rate`` > 1; >= 0.

    Examples
    --------
    >>> schedule = ExponentialDecayLR(1.0, decay_steps=2, decay_rate=0.25, end_value=0.125)
    >>> schedule.lr_at([0, 1, 2, 3]).tolist()
    [1.0, 0.5, 0.25, 0.125]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        decay_steps: int = 1000,
        decay_rate: float = 0.96,
        transition_begin: int = 0,
        staircase: bool = False,
        end_value: float | None = None,
        last_epoch: int = 0,
    ):
        self.decay_steps = POSITIVE.check('decay_steps', decay_steps)
        self.decay_rate = POSITIVE.check('decay_rate', decay_rate)
        self.transition_begin = NON_NEGATIVE.check('transition_begin', transition_begin)
        self.staircase = FLAG.check('staircase', staircase)
        self.end_value = None if end_value is None else NON_NEGATIVE.check('end_value', end_value)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Array:
        elapsed = jnp.maximum(epoch - self.transition_begin, 0)
        exponent = elapsed // self.decay_steps if self.staircase else elapsed / self.decay_steps
        rate = base_lr * precise_power(self.decay_rate, exponent)
        if self.end_value is None:
            return rate
        return jnp.where(self.decay_rate < 1, jnp.maximum(rate, self.end_value), jnp.minimum(rate, self.end_value))


class LinearLR(LRScheduler):
    r"""Multiply the base rate by a factor that goes linearly from ``start_factor`` to ``end_factor`` and then holds.

    .. math:: \eta_t = \eta_0 \left(s + (e - s) \min(t / \text{total\_iters}, 1)\right)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    start_factor : float, default 1/3
        Factor :math:`s` at epoch 0, in (0, 1].
    end_factor : float, default 1.0
        Factor :math:`e` from epoch ``total_iters`` on, in [0, 1].
    total_iters : int, default 5
        Number of epochs until the factor is ``end_factor``, >= 1.

    Examples
    --------
    >>> LinearLR(1.0, start_factor=0.5, total_iters=2).lr_at([0, 1, 2, 3]).tolist()
    [0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = 0,
    ):
        self.start_factor = POSITIVE_FRACTION.check('start_factor', start_factor)
        self.end_factor = FRACTION.check('end_factor', end_factor)
        self.total_iters = PERIOD.check('total_iters', total_iters)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Scalar:
        return base_lr * interpolate(self.start_factor, self.end_factor, ramp(epoch, self.total_iters))


class PolynomialLR(LRScheduler):
    r"""Multiply the base rate by a power of the fraction of epochs that remain, down to 0.

    .. math:: \eta_t = \eta_0 \left(1 - \min(t / \text{total\_iters}, 1)\right)^\text{power}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    total_iters : int, default 5
        Number of epochs until the rate is 0, >= 1.
    power : float, default 1.0
        Exponent, >= 0.

    Examples
    --------
    >>> PolynomialLR(1.0, total_iters=4, power=2.0).lr_at([0, 1, 2, 4, 5]).tolist()
    [1.0, 0.5625, 0.25, 0.0, 0.0]
    """

    def __init__(
        self, base_lr: float | Sequence[float] = 1e-3, total_iters: int = 5, power: float = 1.0, last_epoch: int = 0
    ):
        self.total_iters = PERIOD.check('total_iters', total_iters)
        self.power = NON_NEGATIVE.check('power', power)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Array:
        return base_lr * safe_power(ramp(self.total_iters - epoch, self.total_iters), self.power)


class LambdaLR(LRScheduler):
    r"""Multiply the base rate by a function of the epoch.

    .. math:: \eta_t = \eta_0 \, \lambda(t)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    lr_lambda : callable or sequence of callable
        Function :math:`\lambda`, or a sequence of functions, one per parameter group. A function is traced and
        may receive an array of epochs, so it must use ``jnp.where`` instead of ``if``.

    Raises
    ------
    ValueError
        If ``base_lr`` and ``lr_lambda`` are sequences of different lengths.

    Examples
    --------
    >>> LambdaLR(1.0, lambda epoch: 0.5 ** (epoch // 2)).lr_at([0, 1, 2, 4]).tolist()
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, base_lr: float | Sequence[float], lr_lambda: Factor | Sequence[Factor], last_epoch: int = 0):
        rates, self.lr_lambdas = expand_per_group(base_lr=base_lr, lr_lambda=lr_lambda)
        if wrong := [function for function in self.lr_lambdas if not callable(function)]:
            raise TypeError(f'Invalid lr_lambda={wrong[0]!r}. Must be callable.')
        super().__init__(rates, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> ArrayLike:
        rate: ArrayLike = base_lr * value_of_group(self.lr_lambdas, group)(epoch)
        return rate


class MultiplicativeLR(LambdaLR):
    r"""Multiply the rate by a function of the epoch at every epoch.

    .. math:: \eta_t = \eta_0 \prod_{k=1}^t \lambda(k)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    lr_lambda : callable or sequence of callable
        Function :math:`\lambda`, or a sequence of functions, one per parameter group. A function is traced and
        receives arrays of epochs, so it must use ``jnp.where`` instead of ``if``.

    Raises
    ------
    ValueError
        If ``base_lr`` and ``lr_lambda`` are sequences of different lengths.

    Examples
    --------
    >>> schedule = MultiplicativeLR(1.0, lambda epoch: jnp.where(epoch < 3, 0.5, 1.0))
    >>> schedule.lr_at([0, 1, 2, 3]).tolist()
    [1.0, 0.5, 0.25, 0.25]
    """

    def __init__(self, base_lr: float | Sequence[float], lr_lambda: Factor | Sequence[Factor], last_epoch: int = 0):
        super().__init__(base_lr, lr_lambda, last_epoch)
        self.products = [jax.jit(partial(cumulative_product, function)) for function in self.lr_lambdas]

    def formula(self, epoch: Array, base_lr: Scalar, group: int = 0) -> Array:
        rate: Array = base_lr * value_of_group(self.products, group)(epoch)
        return rate


def cumulative_product(function: Factor, epoch: Array) -> Array:
    """Return the product of ``function(k)`` for k from 1 to ``epoch``, computed in blocks of 256."""

    def multiply(i: Array, product: Array) -> Array:
        k = 256 * i.astype(int) + jnp.arange(1, 257)
        factors = jnp.broadcast_to(as_float(function(k)), k.shape)
        return product * jnp.prod(jnp.where(k.astype(epoch.dtype) <= epoch[..., None], factors, 1.0), axis=-1)

    blocks = (jnp.max(epoch, initial=0).astype(jnp.int32) + 255) // 256
    total: Array = jax.lax.fori_loop(0, blocks, multiply, jnp.ones(epoch.shape))
    return total


class PiecewiseConstantSchedule(LRScheduler):
    r"""Use a fixed sequence of rates, the same for all parameter groups.

    .. math:: \eta_t = \text{values}_k, \quad k = |\{b \in \text{boundaries} : b \le t\}|

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`. The base rate has no effect.
    boundaries : sequence of int, optional
        Epochs at which the rate changes, increasing, >= 0. Defaults to 1000 and 2000.
    values : sequence of float, optional
        Rates, one more than ``boundaries``, >= 0. Defaults to 1.0, 0.1 and 0.01.

    Raises
    ------
    ValueError
        If there is not exactly one value more than boundaries.

    Examples
    --------
    >>> schedule = PiecewiseConstantSchedule(boundaries=[2, 3], values=[1.0, 0.5, 2.0])
    >>> schedule.lr_at([0, 1, 2, 3]).tolist()
    [1.0, 1.0, 0.5, 2.0]
    """

    uses_base_lr = False

    def __init__(
        self,
        base_lr: float | Sequence[float] = 1e-3,
        boundaries: Sequence[int] | None = None,
        values: Sequence[float] | None = None,
        last_epoch: int = 0,
    ):
        self.boundaries = Each(NON_NEGATIVE, increasing=True).check(
            'boundaries', (1000, 2000) if boundaries is None else boundaries
        )
        self.values = Each(NON_NEGATIVE).check('values', (1.0, 0.1, 0.01) if values is None else values)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f'Invalid values={values!r}. Must be {len(self.boundaries) + 1} rates, one more than boundaries.'
            )
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Scalar) -> Array:
        return jnp.asarray(self.values, jnp.result_type(float))[count_passed(self.boundaries, epoch)]
