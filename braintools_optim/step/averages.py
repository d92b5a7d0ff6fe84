"""Averages of the weights, which the optimizer keeps beside the weights in training: EMA, SWA, Polyak."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, get_args, get_type_hints

import jax
import jax.numpy as jnp

from braintools_optim.options.hyperparameters import Decay
from braintools_optim.options.kinds import AT_LEAST_ONE, BELOW_ONE, Flag, Kind, Number
from braintools_optim.step.stage import Leaf, Stage
from braintools_optim.weights.precision import to_working

__all__ = ['EMA', 'SWA', 'Average', 'Polyak', 'average_stage', 'check_average']

Array = jax.Array


@dataclass(frozen=True)
class Average(ABC):
    """An average of a weight over its updates. The average begins as the weight."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            kind: Kind = get_args(hint)[1]
            object.__setattr__(self, name, kind.check(name, getattr(self, name)))

    @abstractmethod
    def after(self, average: Array, w: Array, count: Array) -> Array:
        """Return the average after an update, given the new weight and the number of its updates so far."""


@dataclass(frozen=True)
class EMA(Average):
    r"""Exponential moving average of the weights.

    .. math:: \bar w_1 = w_1, \quad \bar w_t = d_t \bar w_{t-1} + (1 - d_t) w_t

    with :math:`d_t = d`, or :math:`d_t = \min(d, t / (9 + t))` with ``warmup``, so that early weights are
    forgotten sooner. As in ``torch.optim.swa_utils``, the average begins as a copy of the weights after the first
    update.

    Parameters
    ----------
    decay : float, default 0.999
        Decay rate :math:`d`, in [0, 1).
    warmup : bool, default False
        Let the decay rate grow with the number of updates.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD
    >>> w = brainstate.ParamState(jnp.array(0.0))
    >>> optimizer = SGD(1.0, average=EMA(0.75)).register_trainable_weights({'w': w})
    >>> for _ in range(2):
    ...     optimizer.update({'w': jnp.array(-1.0)})
    >>> with optimizer.eval_weights():
    ...     float(w.value)  # 0.75 * 1 + 0.25 * 2
    1.25
    """

    decay: Annotated[float, Number(BELOW_ONE)] = 0.999
    warmup: Annotated[bool, Flag()] = False

    def after(self, average: Array, w: Array, count: Array) -> Array:
        decay = Decay.of(self.decay)
        count = count.astype(average.dtype)
        share = jnp.maximum(decay.complement, 9 / (9 + count)) if self.warmup else decay.complement
        return jnp.where(count == 1, w, average + share * (w - average))


@dataclass(frozen=True)
class SWA(Average):
    r"""Stochastic weight averaging: the mean of the weights after every few updates.

    .. math:: \bar w = \frac{1}{n} \sum_{i=0}^{n-1} w_{s + i k}

    Before update :math:`s` the average is the weight.

    Parameters
    ----------
    start : int, default 1
        Number :math:`s` of the first update whose weights count, >= 1.
    every : int, default 1
        Number :math:`k` of updates from one to the next whose weights count, >= 1.

    References
    ----------
    Izmailov et al. (2018), Averaging Weights Leads to Wider Optima and Better Generalization.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD
    >>> w = brainstate.ParamState(jnp.array(0.0))
    >>> optimizer = SGD(1.0, average=SWA(start=2, every=2)).register_trainable_weights({'w': w})
    >>> for _ in range(4):
    ...     optimizer.update({'w': jnp.array(-1.0)})
    >>> with optimizer.eval_weights():
    ...     float(w.value)  # the mean of 2 and 4
    3.0
    """

    start: Annotated[int, Number(AT_LEAST_ONE, integer=True)] = 1
    every: Annotated[int, Number(AT_LEAST_ONE, integer=True)] = 1

    def after(self, average: Array, w: Array, count: Array) -> Array:
        since = count - int(self.start)
        number = jnp.maximum(since, 0) // int(self.every) + 1
        return jnp.where((since < 0) | (since % int(self.every) == 0), mean_with(average, w, number), average)


@dataclass(frozen=True)
class Polyak(Average):
    r"""Mean of the weights after every update, :math:`\bar w_t = \frac{1}{t} \sum_{i=1}^t w_i`.

    References
    ----------
    Polyak and Juditsky (1992), Acceleration of Stochastic Approximation by Averaging.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD
    >>> w = brainstate.ParamState(jnp.array(0.0))
    >>> optimizer = SGD(1.0, average=Polyak()).register_trainable_weights({'w': w})
    >>> for _ in range(3):
    ...     optimizer.update({'w': jnp.array(-1.0)})
    >>> with optimizer.eval_weights():
    ...     float(w.value)  # the mean of 1, 2 and 3
    2.0
    """

    def after(self, average: Array, w: Array, count: Array) -> Array:
        return mean_with(average, w, count)


def mean_with(mean: Array, x: Array, number: Array) -> Array:
    """Return the mean of some samples with one more, ``x``, of ``number`` samples in all."""
    return jnp.where(number == 1, x, mean + (x - mean) / number.astype(mean.dtype))


def average_stage(average: Average) -> Stage:
    """Return the stage that keeps an average of the new weights, in the dtype of the arithmetic."""

    def follow(leaf: Leaf) -> Leaf:
        before = to_working(leaf.stage_slots['average'])
        return leaf.with_slot('average', average.after(before, to_working(leaf.result), leaf.step))

    return Stage(follow, slot='average', init=lambda w, hp: w, in_state_dtype=False)


def check_average(name: str, value: object) -> object:
    """Return an average of the weights, or None."""
    if value is not None and not isinstance(value, Average):
        raise TypeError(f'Invalid {name}={value!r}. Must be an average such as EMA(0.999), SWA(start=100) or Polyak().')
    return value
