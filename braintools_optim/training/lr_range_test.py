"""lr_range_test: one run of training in which the learning rate grows, to see which rates train and which diverge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from braintools_optim.compiled.trace import Trace
from braintools_optim.options.kinds import BELOW_ONE, POSITIVE_AND_FINITE, Number, Range
from braintools_optim.options.types import Tree
from braintools_optim.schedulers.axes import new_axes
from braintools_optim.training.sweep import returned_dict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['RangeTest', 'lr_range_test']

Curve = np.ndarray[Any, np.dtype[np.floating]]
POSITIVE = Number(POSITIVE_AND_FINITE)
SMOOTHING = Number(BELOW_ONE)
DIVERGENCE = Number(Range(1, low_open=True))


def lr_range_test(
    run: Callable[..., Mapping[str, Tree]],
    /,
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    **options: Any,
) -> RangeTest:
    r"""Call ``run(lr=rate, **options)`` with a rate that grows from update to update (Smith, 2017).

    .. math:: \eta_t = \eta_{start} (\eta_{end} / \eta_{start})^{t / (T - 1)}

    at update :math:`t` of :math:`T`. ``run`` is a function as for :func:`sweep`. It passes ``lr``, here a function of
    the update count, to its optimizer.

    Parameters
    ----------
    run : callable
        Function of ``lr`` and the ``options`` that returns a dict, in which ``'loss'`` has one loss per update.
    start_lr : float, default 1e-7
        First rate, > 0.
    end_lr : float, default 10.0
        Last rate, > ``start_lr``.
    smoothing : float, default 0.9
        Decay rate of the average of the losses, in [0, 1).
    divergence : float, default 4.0
        Losses are left out from where their average exceeds this multiple of its minimum so far, > 1, or is not finite.
    **options
        Further arguments of ``run``.

    Returns
    -------
    RangeTest
        The rates, the losses, their average, and a suggestion.

    References
    ----------
    Smith (2017), Cyclical Learning Rates for Training Neural Networks. The smoothing, the divergence and the suggestion
    follow fastai's ``lr_find`` with ``steep``.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD, lr_range_test
    >>> def run(lr):
    ...     w = brainstate.ParamState(jnp.ones(()))
    ...     optimizer = SGD(lr=lr).register_trainable_weights({'w': w})
    ...     step = lambda _: optimizer.minimize(lambda: w.value**2)
    ...     return {'loss': brainstate.transform.for_loop(step, jnp.arange(100))}
    >>> result = lr_range_test(run, start_lr=1e-4, end_lr=10.0)
    >>> 0.001 < result.suggestion < 1.0  # beyond a rate of 1 the loss grows
    True
    """
    start, end = POSITIVE.check('start_lr', start_lr), POSITIVE.check('end_lr', end_lr)
    if not start < end:
        raise ValueError(f'Invalid end_lr={end_lr!r}. Must be > start_lr={start_lr!r}.')
    beta, most = SMOOTHING.check('smoothing', smoothing), DIVERGENCE.check('divergence', divergence)

    def losses(last: jax.Array) -> Tree:
        def rate(count: ArrayLike) -> jax.Array:
            grown: jax.Array = start * (end / start) ** (count / last)
            return grown

        loss = returned_dict(run(lr=rate, **options)).get('loss')
        if loss is None or jnp.ndim(loss) != 1 or len(loss) < 2:
            raise ValueError("run must return an array under the key 'loss', with one loss per update, at least two.")
        return jnp.asarray(loss, float)

    trace = Trace.of(losses, (jnp.asarray(1.0),), 'lr_range_test')
    count = trace.shape_of_result()[0]
    call = jax.jit(lambda *inputs: trace.call(*inputs)[0])
    loss = np.asarray(call(trace.constants, (jnp.asarray(count - 1.0),), [state.value for state in trace.states]))
    rates = start * (end / start) ** (np.arange(count) / (count - 1))
    return RangeTest(rates, loss, *averaged(loss, beta, most))


def averaged(loss: Curve, beta: float, most: float) -> tuple[Curve, int]:
    """Return the average of the losses, and the number of losses before it diverges."""
    average = np.zeros_like(loss)
    mean, best = 0.0, np.inf
    for i, value in enumerate(loss):
        mean = beta * mean + (1 - beta) * value
        average[i] = mean / (1 - beta ** (i + 1))
        best = min(best, average[i])
        if not np.isfinite(average[i]) or average[i] > best + (most - 1) * abs(best):
            return average[:i], i
    return average, len(loss)


@dataclass(frozen=True)
class RangeTest:
    """The result of :func:`lr_range_test`."""

    lr: Curve
    """The rate of each update."""
    loss: Curve
    """The loss before each update."""
    average: Curve
    """The moving average of the losses, up to where it diverges."""
    kept: int
    """The number of losses before the average diverges."""

    @property
    def suggestion(self) -> float | None:
        """The rate at which the average falls most steeply over the logarithm of the rate, None if it never falls.

        The first tenth of the updates does not count.
        """
        first = len(self.lr) // 10
        average, rates = self.average[first:], self.lr[first : self.kept]
        if len(average) < 2:
            return None
        slopes = np.diff(average) / np.diff(np.log(rates))
        return float(rates[slopes.argmin()]) if slopes.min() < 0 else None

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot losses and average against the rate, with the suggestion, and return the matplotlib axes."""
        ax = new_axes() if ax is None else ax
        ax.semilogx(self.lr[: self.kept], self.loss[: self.kept], '.', color='C0', alpha=0.25)
        ax.semilogx(self.lr[: self.kept], self.average, color='C0')
        ax.set(xlabel='learning rate', ylabel='loss')
        if self.suggestion is not None:
            ax.axvline(self.suggestion, color='C1', linestyle='--', label=f'suggestion: {self.suggestion:.2g}')
            ax.legend()
        return ax

    def __str__(self) -> str:
        rate, diverges = self.suggestion, 'does not diverge'
        if self.kept < len(self.lr):
            diverges = f'diverges at {self.lr[self.kept]:.2g}'
        found = 'no suggestion: the loss never falls' if rate is None else f'suggestion: {rate:.2g}'
        return f'lr from {self.lr[0]:.2g} to {self.lr[-1]:.2g}: the loss {diverges}; {found}'
