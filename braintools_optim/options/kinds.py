"""Kinds of options: which values an option may have, and the form in which a compiled step holds them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import brainunit
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from braintools_optim.options.hints import hint_for
from braintools_optim.options.hyperparameters import Decay
from braintools_optim.options.types import OptionValue, Tree

__all__ = [
    'ANY',
    'AT_LEAST_ONE',
    'AT_LEAST_ZERO',
    'BELOW_ONE',
    'POSITIVE',
    'POSITIVE_AND_FINITE',
    'RATE',
    'SWEPT',
    'UNIT',
    'Argument',
    'Betas',
    'Choice',
    'Count',
    'DecayRate',
    'Flag',
    'Fraction',
    'Kind',
    'LearningRate',
    'MissingKeyError',
    'MomentumFactor',
    'NonNegative',
    'Number',
    'Numbers',
    'Period',
    'Positive',
    'PositiveFinite',
    'Range',
    'Scalar',
    'Schedulable',
    'Schedule',
    'WeightDecay',
    'as_number',
    'is_on',
]


class MissingKeyError(KeyError):
    """A ``KeyError`` that prints its message instead of the message in quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Range:
    """An interval of numbers. NaN lies in no range."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, x: float) -> bool:
        above = self.low < x if self.low_open else self.low <= x
        below = x < self.high if self.high_open else x <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f'{">" if self.low_open else ">="} {self.low:g}'
        return f'in {"(" if self.low_open else "["}{self.low:g}, {self.high:g}{")" if self.high_open else "]"}'


ANY = Range(-math.inf)
ANY_FINITE = Range(-math.inf, math.inf, low_open=True, high_open=True)
AT_LEAST_ZERO = Range(0, high_open=True)
AT_LEAST_ONE = Range(1)
POSITIVE = Range(0, low_open=True)
POSITIVE_AND_FINITE = Range(0, low_open=True, high_open=True)
UNIT = Range(0, 1)
BELOW_ONE = Range(0, 1, high_open=True)
SWEPT: dict[int, Sequence[float]] = {}
"""The numbers that tracers stand for, by the ids of the tracers, while a sweep is traced."""


NO_NUMBERS = (bool, np.bool_, str, brainunit.Quantity, Mapping)


class Kind(ABC):
    """The values that an option may have. A field is annotated with a kind: ``eps: Annotated[float, kind]``."""

    schedulable = False
    """Whether a schedule may drive the option."""
    fixed = False
    """Whether the value is an argument of the constructor that no update reads as a hyperparameter."""

    @abstractmethod
    def check(self, name: str, value: object) -> OptionValue:
        """Return ``value`` as a Python number, a tuple of numbers or a flag; raise if it is not allowed."""

    def to_leaf(self, value: OptionValue) -> Tree:
        """Return the form in which a State holds a checked value: numbers are arrays, flags stay as they are."""
        return value

    def from_leaf(self, leaf: Tree) -> OptionValue:
        """Invert :meth:`to_leaf`."""
        return leaf


@dataclass(frozen=True)
class Number(Kind):
    """A real number in a range.

    ``decay`` marks the decay rate of an average, which a step holds as ``Decay``. ``off_at_zero`` marks a
    number whose stage or slot is left out of the compiled step while the number is 0, and
    ``static`` one that cannot be traced.
    """

    allowed: Range = ANY_FINITE
    integer: bool = False
    optional: bool = False
    decay: bool = False
    off_at_zero: bool = False
    static: bool = False
    meaning: str = ''
    schedulable = True

    def check(self, name: str, value: OptionValue) -> OptionValue:
        if value is None and self.optional:
            return None
        shown = repr(value) if len(repr(value)) < 80 else f'{repr(value)[:60]}...'
        if isinstance(value, Tracer):
            return self.check_traced(name, value, shown)
        try:
            if value is None or isinstance(value, NO_NUMBERS) or np.ndim(value) != 0:
                raise TypeError
            number = as_number(value)
        except (TypeError, ValueError, AttributeError):
            raise TypeError(f'Invalid {name}={shown}. Must be a number.{hint_for(value)}') from None
        if self.integer and number % 1:
            raise TypeError(f'Invalid {name}={shown}. Must be an integer.')
        if number not in self.allowed:
            meaning = f' ({self.meaning})' if self.meaning else ''
            finite = 'finite and ' if number == math.inf and self.allowed.low < number else ''
            raise ValueError(f'Invalid {name}={shown}{meaning}. Must be {finite}{self.allowed}.')
        if refusal := beyond_floats(number):
            raise ValueError(f'Invalid {name}={shown}. {refusal}')
        return number

    def check_traced(self, name: str, value: OptionValue, shown: str) -> OptionValue:
        """Return a traced number; raise if the number must be known, or if those of a sweep are not allowed."""
        if value.ndim != 0:
            raise TypeError(f'Invalid {name}={shown}. Must be a number, not an array of shape {value.shape}.')
        if self.static:
            raise TypeError(f'Invalid {name}: it is traced. Must be a Python number, which decides what is compiled.')
        for number in SWEPT.get(id(value), ()):
            self.check(name, number)
        return value

    def to_leaf(self, value: OptionValue) -> Tree:
        if value is None or (self.off_at_zero and not isinstance(value, (jax.Array, np.ndarray)) and value == 0):
            return None
        return Decay(*map(as_array, Decay.of(value))) if self.decay else as_array(value)

    def from_leaf(self, leaf: Tree) -> OptionValue:
        if leaf is None:
            return 0.0 if self.off_at_zero else None
        return as_number(leaf.value if self.decay else leaf)


@dataclass(frozen=True)
class Numbers(Kind):
    """A tuple of numbers, each of the same kind."""

    entry: Number
    length: int = 2

    def check(self, name: str, value: object) -> tuple[OptionValue, ...]:
        if not isinstance(value, (tuple, list)) or len(value) != self.length:
            size = 'a pair of' if self.length == 2 else self.length
            raise TypeError(f'Invalid {name}={value!r}. Must be {size} numbers.')
        return tuple(self.entry.check(f'{name}[{i}]', x) for i, x in enumerate(value))

    def to_leaf(self, value: OptionValue) -> Tree:
        return tuple(map(self.entry.to_leaf, value))

    def from_leaf(self, leaf: Tree) -> OptionValue:
        return tuple(map(self.entry.from_leaf, leaf))


@dataclass(frozen=True)
class Flag(Kind):
    """A value of one type, ``bool`` unless said otherwise, that is fixed when a step is compiled."""

    type: type = bool

    def check(self, name: str, value: object) -> OptionValue:
        if type(value) is not self.type:
            raise TypeError(f'Invalid {name}={value!r}. Must be a {self.type.__name__}.')
        return value


@dataclass(frozen=True)
class Choice(Kind):
    """One of several values, fixed when a step is compiled."""

    values: tuple[object, ...]

    def check(self, name: str, value: object) -> OptionValue:
        if value not in self.values:
            raise ValueError(f'Invalid {name}={value!r}. Must be one of {self.values}.')
        return value


@dataclass(frozen=True)
class Argument(Kind):
    """An argument of the constructor that is kept as an attribute and cannot be assigned."""

    checked: Callable[[str, OptionValue], OptionValue] | None = None
    fixed = True

    def check(self, name: str, value: object) -> OptionValue:
        return value if self.checked is None else self.checked(name, value)


def is_on(value: OptionValue) -> bool:
    """Return whether the slot of a number is needed: True if the number is above 0, or unknown while tracing."""
    return isinstance(value, Tracer) or value > 0


def as_number(value: ArrayLike) -> OptionValue:
    """Return a 0-d array as the shortest decimal that it stands for (a float32 0.1 is 0.1), a tracer unchanged."""
    if isinstance(value, Tracer) or type(value) in (float, int, bool):  # NumPy's float64 is a float, too
        return value
    scalar = np.asarray(value)[()]
    if np.issubdtype(scalar.dtype, np.integer):
        return int(scalar)
    return float(str(scalar))


def beyond_floats(number: float) -> str:
    """Return the refusal of a finite number that is infinite in the default dtype of floats, '' for any other."""
    dtype = np.dtype(jnp.result_type(float))
    largest = float(np.finfo(dtype).max)
    if abs(number) <= largest or abs(number) == math.inf:
        return ''
    more = ' Larger numbers need jax_enable_x64.' if dtype == np.float32 else ''
    bound = f'at most {largest:g}' if number > 0 else f'at least {-largest:g}'
    return f'Must be {bound}, the largest {dtype} in size.{more}'


def as_array(number: ArrayLike) -> Tree:
    """Return a number in the default dtype of floats, as a NumPy array unless it is already a jax array."""
    dtype = jnp.result_type(float)
    return jnp.asarray(number, dtype) if isinstance(number, jax.Array) else np.asarray(number, dtype)


# the annotations of class fields

RATE = Number(AT_LEAST_ZERO, meaning='learning rate')

Schedule = Callable[[jax.Array], ArrayLike]
"""A function from a count, or an LRScheduler, to a number."""
Scalar = float | jax.Array
"""A number, traced or not."""
Schedulable = Scalar | Schedule
"""A number, or a schedule that drives it."""

LearningRate = Annotated[Schedulable, RATE]
"""A learning rate: a number >= 0, an LRScheduler, or a function of the update count."""
NonNegative = Annotated[Schedulable, Number(AT_LEAST_ZERO)]
"""A finite number >= 0."""
WeightDecay = Annotated[Schedulable, Number(AT_LEAST_ZERO, off_at_zero=True)]
"""A finite number >= 0; at 0 the compiled step does not read the weight."""
Positive = Annotated[Schedulable, Number(POSITIVE)]
"""A number > 0, infinity included."""
PositiveFinite = Annotated[Schedulable, Number(POSITIVE_AND_FINITE)]
"""A finite number > 0."""
Fraction = Annotated[Schedulable, Number(UNIT)]
"""A number in [0, 1]."""
MomentumFactor = Annotated[Schedulable, Number(UNIT, off_at_zero=True)]
"""A number in [0, 1]; at 0 the rule keeps no momentum, and the number cannot change while weights are registered."""
DecayRate = Annotated[Schedulable, Number(BELOW_ONE, decay=True)]
"""The decay rate of an average, in [0, 1); a rule reads a ``Decay``."""
Betas = Annotated[tuple[Scalar, Scalar], Numbers(Number(BELOW_ONE, decay=True))]
"""A pair of decay rates, each in [0, 1); a rule reads a pair of ``Decay``."""
Count = Annotated[Schedulable, Number(AT_LEAST_ZERO, integer=True)]
"""An integer >= 0."""
Period = Annotated[Schedulable, Number(AT_LEAST_ONE, integer=True)]
"""An integer >= 1."""
