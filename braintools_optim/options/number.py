"""ReadsAsNumber: objects that compute, compare and format as the number that they stand for."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from braintools_optim.options.kinds import Scalar

__all__ = ['ReadsAsNumber']


class ReadsAsNumber:
    """A base class of objects that stand for a number: ``x * 2``, ``x < 1``, ``f'{x:.3f}'`` and ``round(x, 3)`` work.

    Two such objects are equal only if they are the same object, so that they remain usable as keys of dicts.
    """

    def as_number(self) -> Scalar:
        """Return the number: a Python number, or a traced array inside a transformation."""
        raise NotImplementedError

    def __float__(self) -> float:
        return float(self.as_number())

    def __format__(self, spec: str) -> str:
        return format(self.as_number(), spec) if spec else str(self)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.as_number(), digits)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.as_number())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        return np.asarray(self.as_number(), dtype)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> Any:
        return self.as_number() == other if is_number(other) else self is other

    def __ne__(self, other: object) -> Any:
        return self.as_number() != other if is_number(other) else self is not other

    def __lt__(self, other: Any) -> Any:
        return self.as_number() < plain(other)

    def __le__(self, other: Any) -> Any:
        return self.as_number() <= plain(other)

    def __gt__(self, other: Any) -> Any:
        return self.as_number() > plain(other)

    def __ge__(self, other: Any) -> Any:
        return self.as_number() >= plain(other)

    def __add__(self, other: Any) -> Any:
        return self.as_number() + plain(other)

    def __radd__(self, other: Any) -> Any:
        return other + self.as_number()

    def __sub__(self, other: Any) -> Any:
        return self.as_number() - plain(other)

    def __rsub__(self, other: Any) -> Any:
        return other - self.as_number()

    def __mul__(self, other: Any) -> Any:
        return self.as_number() * plain(other)

    def __rmul__(self, other: Any) -> Any:
        return other * self.as_number()

    def __truediv__(self, other: Any) -> Any:
        return self.as_number() / plain(other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.as_number()

    def __pow__(self, other: Any) -> Any:
        return self.as_number() ** plain(other)

    def __rpow__(self, other: Any) -> Any:
        return other ** self.as_number()

    def __neg__(self) -> Any:
        return -self.as_number()

    def __abs__(self) -> Any:
        return abs(self.as_number())


def is_number(x: object) -> bool:
    """Return whether ``x`` is a number or an array."""
    return isinstance(x, (numbers.Number, np.ndarray, jax.Array))


def plain(x: Any) -> Any:
    """Return the number that ``x`` stands for, anything else unchanged."""
    return x.as_number() if isinstance(x, ReadsAsNumber) else x
