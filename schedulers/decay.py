"""Schedules that fall by steps, by a factor, along a line or a power, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from brainstate import LongTermState
from jax.core import Tracer

from braintools_optim.options import AT_LEAST_ONE, POSITIVE, validate
from braintools_optim.schedulers.arguments import (
    validate_each,
    validate_increasing,
    validate_per_group,
    validate_within,
)
from braintools_optim.schedulers.base import LRScheduler, Position, entry
from braintools_optim.schedulers.curves import line, passed, power, ramp, root

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
Factor = Callable[[Any], Any]


class ConstantLR(LRScheduler):
    r"""``factor`` times the base rate for ``total_iters`` epochs, then the base rate.

    .. math:: \eta_t = \eta_0 \cdot (\text{factor} \text{ if } t < \text{total\_iters} \text{ else } 1)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    factor : float, default 1/3
        In [0, 1].
    total_iters : int, default 5
        At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

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
        self.factor = validate('factor', factor)
        self.total_iters = validate('total_iters', total_iters)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * jnp.where(epoch < self.total_iters, self.factor, 1.0)

    def sources(self) -> dict[str, LongTermState]:
        """Without ``total_iters`` the epoch does not matter: an array less for every update."""
        known = not isinstance(self.total_iters, Tracer)
        return {'manual': self.manual} if known and self.total_iters == 0 else super().sources()

    def epoch_at(self, position: Position) -> Any:
        return position.get('epoch', 0)


class StepLR(LRScheduler):
    r"""The rate times ``gamma`` every ``step_size`` epochs.

    .. math:: \eta_t = \eta_0 \, \gamma^{\lfloor t / \text{step\_size} \rfloor}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    step_size : int, default 30
        The period in epochs. At least 1.
    gamma : float, default 0.1
        At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> StepLR(1.0, step_size=2, gamma=0.5).lr_at([0, 1, 2, 4]).tolist()
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(
        self, base_lr: float | Sequence[float] = 1e-3, step_size: int = 30, gamma: float = 0.1, last_epoch: int = 0
    ):
        self.step_size = validate('step_size', step_size)
        self.gamma = validate('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * power(self.gamma, epoch // self.step_size)


class MultiStepLR(LRScheduler):
    r"""The rate times ``gamma`` at each of the ``milestones``.

    .. math:: \eta_t = \eta_0 \, \gamma^{|\{m \in \text{milestones} : m \le t\}|}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    milestones : iterable of int, default (30, 60, 90)
        Epochs, increasing, at least 0; there may be none.
    gamma : float, default 0.1
        At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range, or the milestones do not increase.

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
        self.milestones = validate_increasing('milestones', milestones)
        self.gamma = validate('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * power(self.gamma, passed(self.milestones, epoch))


class ExponentialLR(LRScheduler):
    r"""The rate times ``gamma`` every epoch.

    .. math:: \eta_t = \eta_0 \, \gamma^t

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    gamma : float, default 0.95
        At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> ExponentialLR(1.0, gamma=0.5).lr_at([0, 1, 2]).tolist()
    [1.0, 0.5, 0.25]
    """

    def __init__(self, base_lr: float | Sequence[float] = 1e-3, gamma: float = 0.95, last_epoch: int = 0):
        self.gamma = validate('gamma', gamma)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * power(self.gamma, epoch)


class ExponentialDecayLR(LRScheduler):
    r"""The rate times ``decay_rate`` every ``decay_steps`` epochs, all along or in steps.

    .. math:: \eta_t = \eta_0 \, \text{decay\_rate}^{\max(t - \text{transition\_begin}, 0) / \text{decay\_steps}}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    decay_steps : int, default 1000
        Above 0.
    decay_rate : float, default 0.96
        Above 0.
    transition_begin : int, default 0
        The epoch at which the decay begins. At least 0.
    staircase : bool, default False
        Round the exponent down.
    end_value : float, optional
        The rate at which the decay (or, with a ``decay_rate`` above 1, the growth) ends. At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> ExponentialDecayLR(1.0, decay_steps=2, decay_rate=0.25, end_value=0.125).lr_at([0, 1, 2, 3]).tolist()
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
        self.decay_steps = validate('decay_steps', decay_steps)
        self.decay_rate = validate_within('decay_rate', decay_rate, POSITIVE)
        self.transition_begin = validate('transition_begin', transition_begin)
        self.staircase = validate('staircase', staircase, like=False)
        self.end_value = None if end_value is None else validate('end_value', end_value)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        elapsed = jnp.maximum(epoch - self.transition_begin, 0)
        exponent = elapsed // self.decay_steps if self.staircase else elapsed / self.decay_steps
        rate = base_lr * power(self.decay_rate, exponent)
        if self.end_value is None:
            return rate
        return jnp.where(self.decay_rate < 1, jnp.maximum(rate, self.end_value), jnp.minimum(rate, self.end_value))


class LinearLR(LRScheduler):
    r"""A line from ``start_factor`` to ``end_factor`` times the base rate, which then holds.

    .. math:: \eta_t = \eta_0 \left(s + (e - s) \min(t / \text{total\_iters}, 1)\right)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    start_factor : float, default 1/3
        :math:`s`, in (0, 1].
    end_factor : float, default 1.0
        :math:`e`, in [0, 1].
    total_iters : int, default 5
        At least 1.

    Raises
    ------
    ValueError
        If an argument is out of range.

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
        self.start_factor = validate('start_factor', start_factor)
        self.end_factor = validate('end_factor', end_factor)
        self.total_iters = validate_within('total_iters', total_iters, AT_LEAST_ONE)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * line(self.start_factor, self.end_factor, ramp(epoch, self.total_iters))


class PolynomialLR(LRScheduler):
    r"""A power of the share of epochs that is left, down to 0.

    .. math:: \eta_t = \eta_0 \left(1 - \min(t / \text{total\_iters}, 1)\right)^\text{power}

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    total_iters : int, default 5
        At least 1.
    power : float, default 1.0
        At least 0.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> PolynomialLR(1.0, total_iters=4, power=2.0).lr_at([0, 1, 2, 4, 5]).tolist()
    [1.0, 0.5625, 0.25, 0.0, 0.0]
    """

    def __init__(
        self, base_lr: float | Sequence[float] = 1e-3, total_iters: int = 5, power: float = 1.0, last_epoch: int = 0
    ):
        self.total_iters = validate_within('total_iters', total_iters, AT_LEAST_ONE)
        self.power = validate('power', power)
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return base_lr * root(ramp(self.total_iters - epoch, self.total_iters), self.power)


class LambdaLR(LRScheduler):
    r"""The base rate times a function of the epoch.

    .. math:: \eta_t = \eta_0 \, \lambda(t)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    lr_lambda : callable or sequence of callable
        :math:`\lambda`, or one for each parameter group. It is traced, and may be given an array of
        epochs: choose with ``jnp.where`` rather than ``if``.

    Raises
    ------
    TypeError
        If ``lr_lambda`` is not callable.
    ValueError
        If an argument is out of range, or the lists differ in length.

    Examples
    --------
    >>> LambdaLR(1.0, lambda epoch: 0.5 ** (epoch // 2)).lr_at([0, 1, 2, 4]).tolist()
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, base_lr: float | Sequence[float], lr_lambda: Factor | Sequence[Factor], last_epoch: int = 0):
        base_lr, self.lr_lambdas = validate_per_group(base_lr=base_lr, lr_lambda=lr_lambda)
        if wrong := [function for function in self.lr_lambdas if not callable(function)]:
            raise TypeError(f'Invalid lr_lambda={wrong[0]!r}. Must be callable.')
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        return base_lr * entry(self.lr_lambdas, group)(epoch)


class MultiplicativeLR(LambdaLR):
    r"""The rate times a function of the epoch at every epoch.

    .. math:: \eta_t = \eta_0 \prod_{k=1}^t \lambda(k)

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`.
    lr_lambda : callable or sequence of callable
        :math:`\lambda`, or one for each parameter group. It is traced, and given arrays of epochs:
        choose with ``jnp.where`` rather than ``if``.

    Raises
    ------
    TypeError
        If ``lr_lambda`` is not callable.
    ValueError
        If an argument is out of range, or the lists differ in length.

    Examples
    --------
    >>> MultiplicativeLR(1.0, lambda epoch: jnp.where(epoch < 3, 0.5, 1.0)).lr_at([0, 1, 2, 3]).tolist()
    [1.0, 0.5, 0.25, 0.25]
    """

    def __init__(self, base_lr: float | Sequence[float], lr_lambda: Factor | Sequence[Factor], last_epoch: int = 0):
        super().__init__(base_lr, lr_lambda, last_epoch)
        self.products = [jax.jit(partial(product, function)) for function in self.lr_lambdas]

    def formula(self, epoch: Array, base_lr: Any, group: int = 0) -> Any:
        return base_lr * entry(self.products, group)(epoch)


def product(function: Factor, epoch: Array) -> Array:
    """The product of ``function`` of 1 to ``epoch``, worked out in blocks of 256."""

    def multiply(i: Array, product: Array) -> Array:
        k = 256 * i + jnp.arange(1, 257)
        factors = jnp.broadcast_to(function(k), k.shape)
        return product * jnp.prod(jnp.where(k <= epoch[..., None], factors, 1.0), axis=-1)

    blocks = (jnp.max(epoch, initial=0).astype(jnp.int32) + 255) // 256
    whole: Array = jax.lax.fori_loop(0, blocks, multiply, jnp.ones(epoch.shape))
    return whole


class PiecewiseConstantSchedule(LRScheduler):
    r"""One rate after another, the same for all parameter groups.

    .. math:: \eta_t = \text{values}_k, \quad k = |\{b \in \text{boundaries} : b \le t\}|

    Parameters
    ----------
    base_lr, last_epoch
        See :class:`LRScheduler`; the base rate has no effect on the rate.
    boundaries : sequence of int, optional
        Epochs, increasing, at least 0. 1000 and 2000 if not given.
    values : sequence of float, optional
        The rates, one more than boundaries, at least 0. 1.0, 0.1 and 0.01 if not given.

    Raises
    ------
    ValueError
        If an argument is out of range, or the lengths do not match.

    Examples
    --------
    >>> PiecewiseConstantSchedule(boundaries=[2, 3], values=[1.0, 0.5, 2.0]).lr_at([0, 1, 2, 3]).tolist()
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
        self.boundaries = validate_increasing('boundaries', (1000, 2000) if boundaries is None else boundaries)
        self.values = validate_each('values', (1.0, 0.1, 0.01) if values is None else values)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(f'Invalid values={values!r}. Must be one more than the {len(self.boundaries)} boundaries.')
        super().__init__(base_lr, last_epoch)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        return jnp.asarray(self.values, jnp.result_type(float))[passed(self.boundaries, epoch)]
