"""Hyperparameters: the form in which the rules of a compiled step read options."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from braintools_optim.options.types import OptionValue, Structure, Tree

__all__ = ['Decay', 'Hyperparameters', 'Packed', 'finite', 'is_flag', 'replace', 'values_of']

Array = jax.Array
Aux = tuple[tuple[str, ...], tuple[tuple[str, OptionValue], ...]]
"""The names of the numbers, and the flags, of hyperparameters."""


class Decay(NamedTuple):
    """The decay rate of a moving average, together with ``complement = 1 - value``.

    In float32 ``1 - 0.999`` has lost three digits; computed from the Python float it has lost none.
    """

    value: float | Array
    complement: float | Array

    @classmethod
    def of(cls, value: OptionValue) -> Decay:
        """Return the decay rate ``value`` with its complement."""
        return cls(value, 1 - value)

    def average(self, mean: Array, sample: Array) -> Array:
        """Return the moving average ``mean`` after one more ``sample``."""
        # value * mean would use a rounded value; a mean that has overflowed stays infinite instead of NaN
        average: Array = (mean - finite(self.complement * mean)) + self.complement * sample
        return average

    def correction(self, step: Array) -> Array:
        """Return ``1 - value**step``, the share of data in an average that started at zero."""
        # in float64 this is torch's formula to the bit
        correction: Array = 1 - self.value**step if self.in_double() else -jnp.expm1(step * self.log())
        return correction

    def debias(self, step: Array) -> Array:
        """Return the factor that removes the bias of an average that started at zero."""
        return 1 / self.correction(step)

    def in_double(self) -> bool:
        """Return whether the textbook formulas have enough digits."""
        return bool(jnp.result_type(self.value) == jnp.float64)

    def log(self) -> Array:
        """Return the logarithm of the decay rate."""
        return jnp.log1p(-jnp.asarray(self.complement))


def finite(x: Array) -> Array:
    """Return ``x``, but at most the greatest finite number."""
    return jnp.minimum(x, np.finfo(x.dtype).max)


def is_flag(value: object) -> bool:
    """Return whether a hyperparameter is fixed when a step is compiled (``True``, ``None``, a name)."""
    return value is None or isinstance(value, (bool, str))


class Hyperparameters:
    """The options as a rule reads them: ``hp.lr``, ``hp.betas``, ``hp.step``, ``hp.amsgrad`` and so on.

    Numbers are arrays (decay rates are :class:`Decay`), flags are Python values. Attributes shadow the methods here,
    so that an option may have any name; other modules use the functions ``values_of`` and ``replace``.
    """

    __slots__ = ('__dict__', '_flat')

    def __init__(self, values: Mapping[str, OptionValue]):
        self.__dict__.update(values)
        self._flat: tuple[tuple[OptionValue, ...], Aux] | None = None  # flattened often, never changed

    def __getattr__(self, name: str) -> OptionValue:  # called only for names that are not hyperparameters
        raise AttributeError(f'{name!r} is not a hyperparameter. Must be among {sorted(self.__dict__)}.')

    def __repr__(self) -> str:
        return f'Hyperparameters({", ".join(f"{name}={value}" for name, value in self.__dict__.items())})'

    def flatten(self) -> tuple[tuple[OptionValue, ...], Aux]:
        if self._flat is None:
            numbers = {name: value for name, value in self.__dict__.items() if not is_flag(value)}
            flags = tuple((name, value) for name, value in self.__dict__.items() if is_flag(value))
            self._flat = tuple(numbers.values()), (tuple(numbers), flags)
        return self._flat

    def flatten_with_keys(self) -> tuple[list[tuple[object, OptionValue]], Aux]:
        children, aux = Hyperparameters.flatten(self)
        return [(jax.tree_util.GetAttrKey(name), child) for name, child in zip(aux[0], children, strict=True)], aux

    @classmethod
    def unflatten(cls, aux: Aux, children: Iterable[OptionValue]) -> Hyperparameters:
        names, flags = aux
        return cls({**dict(flags), **dict(zip(names, children, strict=True))})


jax.tree_util.register_pytree_with_keys(
    Hyperparameters, Hyperparameters.flatten_with_keys, Hyperparameters.unflatten, Hyperparameters.flatten
)


def values_of(hp: Hyperparameters) -> dict[str, OptionValue]:
    """Return the hyperparameters by name."""
    return vars(hp)


def replace(hp: Hyperparameters, **values: OptionValue) -> Hyperparameters:
    """Return hyperparameters in which these values replace the former ones or are added."""
    return Hyperparameters({**vars(hp), **values})


@functools.partial(jax.tree_util.register_dataclass, data_fields=['numbers'], meta_fields=['layout'])
@dataclass(slots=True, eq=False, repr=False)
class Packed:
    """A tree of hyperparameters in the form that a State holds, with all numbers in one vector.

    Each array that is passed to a compiled function costs microseconds per call.
    """

    layout: Layout
    numbers: Array

    @classmethod
    def of(cls, tree: Tree) -> Packed:
        """Pack the numbers of ``tree``."""
        leaves, structure = jax.tree.flatten(tree)
        stacked = jnp.stack(leaves) if any(isinstance(x, Tracer) for x in leaves) else jnp.asarray(np.stack(leaves))
        return cls(layout_of(structure), stacked)

    @property
    def tree(self) -> Tree:
        """The tree; its numbers are NumPy's unless they are traced."""
        traced = isinstance(self.numbers, Tracer)
        numbers = jnp.unstack(self.numbers, axis=-1) if traced else np.moveaxis(np.asarray(self.numbers), -1, 0)
        return self.layout.tree(list(numbers))

    @property
    def flags(self) -> Tree:
        """The tree without its numbers."""
        return self.layout.flags

    def __repr__(self) -> str:
        return f'Packed({self.layout.tree(["..."] * self.layout.size)}, {self.numbers})'


class Layout:
    """The places of the numbers of a tree in a vector, and its flags. There is one object for each structure."""

    def __init__(self, structure: Structure):
        self.size: int = structure.num_leaves
        self.tree: Callable[[Iterable[object]], Tree] = structure.unflatten
        self.flags = self.tree([None] * self.size)


layout_of = functools.cache(Layout)
