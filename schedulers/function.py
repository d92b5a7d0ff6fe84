"""Any function of the update count as a schedule; and what may be given as ``lr``, as a scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from brainstate import LongTermState

from braintools_optim.options import validate
from braintools_optim.schedulers.base import LRScheduler, as_float
from braintools_optim.schedulers.decay import ConstantLR

__all__ = ['OptaxSchedule', 'as_scheduler']

Array = jax.Array


class OptaxSchedule(LRScheduler):
    """A function of the update count, such as any optax schedule or another scheduler's ``lr_at``.

    It follows the count of its optimizer's updates by itself: there is nothing to step.

    Parameters
    ----------
    function : callable
        From the count of updates so far to the learning rate; traced.

    Raises
    ------
    TypeError
        If ``function`` is not callable.

    Examples
    --------
    >>> import optax
    >>> OptaxSchedule(optax.linear_schedule(1.0, 0.0, 4)).lr_at([0, 1, 4]).tolist()
    [1.0, 0.75, 0.0]
    """

    uses_base_lr = False

    def __init__(self, function: Callable[[Any], Any]):
        if not callable(function):
            raise TypeError(f'Invalid function={function!r}. Must be callable.')
        rate = jax.eval_shape(function, jnp.zeros((), jnp.int32))
        if getattr(rate, 'shape', None) != () or not jnp.issubdtype(rate.dtype, jnp.number):
            raise TypeError(f'Invalid function={function!r}. Must return a number, not {rate!r}.')
        self.function = function
        self.attached = False
        super().__init__(1.0)

    def lr_at(self, epoch: Any, base_lr: Any = None, group: int = 0) -> Array:
        """The function's rate at a count, which it is given as it is: an integer may be an index."""
        count = jnp.asarray(epoch)
        rate = self.function(count) * (1.0 if base_lr is None else base_lr)
        return jnp.broadcast_to(as_float(rate), count.shape)

    def step(self, epoch: int | None = None) -> None:
        """Refused: the update count is the clock."""
        raise TypeError('A schedule given as a function follows the update count by itself: do not step it.')

    def follow(self, step_count: LongTermState) -> None:
        """Take an optimizer's update count as the clock."""
        if self.attached:
            raise ValueError('A schedule given as a function follows one optimizer: make another one for this.')
        self.attached, self.last_epoch = True, step_count


def as_scheduler(lr: Any) -> LRScheduler:
    """A scheduler as it is, a callable as :class:`OptaxSchedule`, a number as a constant."""
    if isinstance(lr, LRScheduler):
        return lr
    return OptaxSchedule(lr) if callable(lr) else ConstantLR(validate('lr', lr), factor=1.0, total_iters=0)
