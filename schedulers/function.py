"""OptaxSchedule: any function of the update count as a schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
from brainstate import LongTermState
from jax.typing import ArrayLike

from braintools_optim.options.hints import hint_for
from braintools_optim.options.kinds import RATE, Scalar, Schedulable
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.curves import as_float
from braintools_optim.schedulers.decay import ConstantLR

__all__ = ['OptaxSchedule', 'as_scheduler']

Array = jax.Array


class OptaxSchedule(LRScheduler):
    """A function of the update count, such as an optax schedule or the ``lr_at`` method of another schedule.

    The schedule follows the update count of its optimizer; ``step`` raises a ``TypeError``.

    Parameters
    ----------
    function : callable
        Function from the number of updates so far to the learning rate. It is traced.

    Raises
    ------
    TypeError
        If ``function`` does not return a single number.

    Examples
    --------
    >>> import optax
    >>> OptaxSchedule(optax.linear_schedule(1.0, 0.0, 4)).lr_at([0, 1, 4]).tolist()
    [1.0, 0.75, 0.0]
    """

    uses_base_lr = False

    def __init__(self, function: Callable[[Array], ArrayLike]):
        if (hint := hint_for(function)) or not callable(function):
            raise TypeError(
                f'Invalid function={function!r:.60}. Must be a schedule or a function of the update count.{hint}'
            )
        rate = jax.eval_shape(function, jnp.zeros((), jnp.int32))
        if getattr(rate, 'shape', None) != () or not jnp.issubdtype(rate.dtype, jnp.number):
            raise TypeError(f'Invalid function={function!r}. Must return a number, not {rate!r}.')
        self.function = function
        self.attached = False
        super().__init__(1.0)

    def lr_at(self, epoch: ArrayLike | Sequence[float], base_lr: Scalar | None = None, group: int = 0) -> Array:
        """Return the rate at an update count, times ``base_lr`` if given. The function receives an integer as such."""
        count = jnp.asarray(epoch)
        rate = self.function(count) * (1.0 if base_lr is None else base_lr)
        return jnp.broadcast_to(as_float(rate), count.shape)

    def step(self, epoch: Scalar | None = None) -> NoReturn:
        """Raise a ``TypeError``: the schedule follows the update count of its optimizer."""
        raise TypeError('An OptaxSchedule follows the update count of its optimizer and cannot be stepped.')

    def detached(self) -> OptaxSchedule:
        """Return a schedule of the same function and the same manual rate that follows no optimizer yet."""
        schedule = OptaxSchedule(self.function)
        schedule.manual.value = self.manual.value
        return schedule

    def follow(self, step_count: LongTermState) -> None:
        """Read the epoch from the update count of an optimizer from now on; raise if it already follows one."""
        if self.attached:
            raise ValueError('An OptaxSchedule can follow only one optimizer. Build another one for this optimizer.')
        self.__dict__.update(attached=True, last_epoch=step_count)


def as_scheduler(lr: Schedulable) -> LRScheduler:
    """Return a schedule unchanged, any other callable as :class:`OptaxSchedule`, a number as a constant schedule."""
    if isinstance(lr, LRScheduler):
        return lr
    return OptaxSchedule(lr) if callable(lr) else ConstantLR(1.0 * RATE.check('lr', lr), factor=1.0, total_iters=0)
