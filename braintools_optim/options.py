"""Hyperparameters: what each may be, checked in one place, and the form the step reads them in."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import brainunit
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from braintools_optim.precision import finite

__all__ = [
    'Decay',
    'Hyperparameters',
    'MissingKeyError',
    'Packed',
    'as_number',
    'from_leaf',
    'is_flag',
    'is_on',
    'to_leaf',
    'validate',
]

Array = jax.Array


class MissingKeyError(KeyError):
    """A ``KeyError`` that prints its message, not the message in quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


class Decay(NamedTuple):
    """The decay rate of a moving average, with ``complement = 1 - value`` kept apart.

    In float32 ``1 - 0.999`` has lost three digits; taken from the Python float it has lost none.
    """

    value: Any
    complement: Any

    @classmethod
    def of(cls, value: Any) -> Decay:
        return cls(value, 1 - value)

    def average(self, mean: Array, sample: Array) -> Array:
        """The next value of the moving average ``mean`` after ``sample``."""
        # value * mean would go by a rounded value; a mean that has overflowed stays infinite, rather than NaN
        average: Array = (mean - finite(self.complement * mean)) + self.complement * sample
        return average

    def correction(self, step: Array) -> Array:
        """``1 - value**step``, the share of a zero-started average that is data."""
        # in float64 to the bit what torch computes
        correction: Array = 1 - self.value**step if self.in_double() else -jnp.expm1(step * self.log())
        return correction

    def debias(self, step: Array) -> Array:
        """What a zero-started average is multiplied by to be that of the data alone."""
        return 1 / self.correction(step)

    def in_double(self) -> bool:
        """Whether there are digits to spare for the textbook formulas."""
        return bool(jnp.result_type(self.value) == jnp.float64)

    def log(self) -> Array:
        return jnp.log1p(-jnp.asarray(self.complement))


@dataclass(frozen=True)
class Range:
    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, x: float) -> bool:
        above = self.low < x if self.low_open else self.low <= x
        below = x < self.high if self.high_open else x <= self.high
        return above and below  # False for NaN

    def __str__(self) -> str:
        if self.high == math.inf:
            return f'{">" if self.low_open else ">="} {self.low:g}'
        return f'in {"(" if self.low_open else "["}{self.low:g}, {self.high:g}{")" if self.high_open else "]"}'


AT_LEAST_ZERO = Range(0, high_open=True)
POSITIVE = Range(0, low_open=True)
POSITIVE_AND_FINITE = Range(0, low_open=True, high_open=True)
AT_LEAST_ONE = Range(1)
UNIT = Range(0, 1)
BELOW_ONE = Range(0, 1, high_open=True)

RANGES = {
    'lr': AT_LEAST_ZERO,
    'base_lr': AT_LEAST_ZERO,
    'lr_scale': AT_LEAST_ZERO,
    'eps': AT_LEAST_ZERO,
    'weight_decay': AT_LEAST_ZERO,
    'grad_clip_norm': POSITIVE,
    'grad_clip_value': POSITIVE,
    'betas': BELOW_ONE,
    'alpha': BELOW_ONE,
    'momentum': UNIT,
    'dampening': UNIT,
    'rho': UNIT,
    'beta1': BELOW_ONE,
    'eps_root': AT_LEAST_ZERO,
    'lr_decay': AT_LEAST_ZERO,
    'momentum_decay': AT_LEAST_ZERO,
    'initial_accumulator_value': AT_LEAST_ZERO,
    'lambd': AT_LEAST_ZERO,
    't0': Range(0),
    'etas': POSITIVE_AND_FINITE,
    'step_sizes': Range(0),
    'clip_threshold': POSITIVE,
    'trust_coefficient': POSITIVE_AND_FINITE,
    'mixing': AT_LEAST_ZERO,
    'mixing_warmup': AT_LEAST_ZERO,
    'beta3_warmup': AT_LEAST_ZERO,
    'd0': POSITIVE,
    'd_coef': POSITIVE,
    'growth_rate': AT_LEAST_ONE,
    'beta3': BELOW_ONE,
    'reps_rel': POSITIVE,
    'init_eta': POSITIVE,
    'max_learning_rate': POSITIVE,
    'update_period': AT_LEAST_ONE,
    'seed': Range(0, 2**24),  # what a float32 tells apart
    'r': AT_LEAST_ZERO,
    'weight_lr_power': AT_LEAST_ZERO,
    'radius': AT_LEAST_ZERO,
    'adamw_lr': AT_LEAST_ZERO,
    'adamw_betas': BELOW_ONE,
    'adamw_eps': AT_LEAST_ZERO,
    'adamw_weight_decay': AT_LEAST_ZERO,
    'ns_steps': Range(0, 99),
    'shampoo_beta': BELOW_ONE,
    'precondition_frequency': AT_LEAST_ONE,
    'max_precondition_dim': AT_LEAST_ZERO,
    'factor': UNIT,
    'gamma': AT_LEAST_ZERO,
    'eta_min': AT_LEAST_ZERO,
    'step_size': AT_LEAST_ONE,
    'T_max': POSITIVE,
    'total_iters': AT_LEAST_ZERO,
    'warmup_epochs': AT_LEAST_ZERO,
    'start_factor': Range(0, 1, low_open=True),
    'end_factor': UNIT,
    'power': AT_LEAST_ZERO,
    'milestones': AT_LEAST_ZERO,
    'boundaries': AT_LEAST_ZERO,
    'values': AT_LEAST_ZERO,
    'decay_steps': POSITIVE,
    'transition_begin': AT_LEAST_ZERO,
    'end_value': AT_LEAST_ZERO,
    'T_0': AT_LEAST_ONE,
    'T_mult': AT_LEAST_ONE,
    'max_lr': AT_LEAST_ZERO,
    'min_lr': AT_LEAST_ZERO,
    'warmup_start_lr': AT_LEAST_ZERO,
    'step_size_up': POSITIVE,
    'step_size_down': POSITIVE,
    'base_momentum': BELOW_ONE,
    'max_momentum': BELOW_ONE,
    'total_steps': AT_LEAST_ONE,
    'epochs': AT_LEAST_ONE,
    'steps_per_epoch': AT_LEAST_ONE,
    'pct_start': Range(0, 1, low_open=True, high_open=True),
    'div_factor': POSITIVE,
    'final_div_factor': POSITIVE,
    'warmup_steps': AT_LEAST_ZERO,
    'stable_steps': AT_LEAST_ZERO,
    'patience': AT_LEAST_ZERO,
    'cooldown': AT_LEAST_ZERO,
    'threshold': AT_LEAST_ZERO,
    'last_epoch': Range(-1),
    'epoch': AT_LEAST_ZERO,
    'grokfast': POSITIVE_AND_FINITE,
    'grokfast_decay': BELOW_ONE,
    'grad_clip_adaptive': POSITIVE,
    'max_consecutive_skips': AT_LEAST_ONE,
    'loss_scale': POSITIVE_AND_FINITE,
    'init_scale': POSITIVE_AND_FINITE,
    'growth_factor': Range(1, high_open=True),
    'backoff_factor': Range(0, 1, low_open=True, high_open=True),
    'growth_interval': AT_LEAST_ONE,
    'num_bad_epochs': AT_LEAST_ZERO,
    'cooldown_counter': AT_LEAST_ZERO,
    'reduction': AT_LEAST_ZERO,
    'memory_size': AT_LEAST_ONE,
    'sync_period': AT_LEAST_ONE,
}
INTEGERS = {
    'step_size',
    'total_iters',
    'warmup_epochs',
    'last_epoch',
    'epoch',
    'milestones',
    'T_0',
    'T_mult',
    'total_steps',
    'epochs',
    'steps_per_epoch',
    'warmup_steps',
    'stable_steps',
    'patience',
    'cooldown',
    'mixing_warmup',
    'beta3_warmup',
    'max_consecutive_skips',
    'growth_interval',
    'update_period',
    'seed',
    'ns_steps',
    'precondition_frequency',
    'max_precondition_dim',
    'num_bad_epochs',
    'cooldown_counter',
    'memory_size',
    'sync_period',
}
OPTIONAL = {'grad_clip_norm', 'grad_clip_value', 'grad_clip_adaptive', 'grokfast', 'loss_scale'}
OPTIONAL |= {'beta1', 'beta3', 'init_eta', 'adamw_lr', 'shampoo_beta'}
DECAYS = {'betas', 'alpha', 'dampening', 'rho', 'beta1', 'grokfast_decay', 'adamw_betas', 'shampoo_beta'}
PAIRS = {'betas', 'adamw_betas'}
CHOICES: dict[str, tuple[Any, ...]] = {
    'on_nonfinite': ('ignore', 'skip', 'zero', 'raise'),
    'grad_clip_over': ('all', 'group', 'weight'),
    'rounding': ('nearest', 'stochastic'),
    'algorithm': ('muon', 'adamw'),
    'adjust_lr_fn': (None, 'original', 'match_rms_adamw'),
}
OFF_AT_ZERO = {'weight_decay'}  # None for a compiled step while they are 0: reading a weight costs time
ANY = Range(-math.inf)
ANY_FINITE = Range(-math.inf, math.inf, low_open=True, high_open=True)


def is_flag(value: Any) -> bool:
    """Whether a hyperparameter is fixed when a step is compiled (``True``, ``None``, a name)."""
    return value is None or isinstance(value, (bool, str))


def validate(name: str, value: Any, like: Any = 0.0, label: str = '', allowed: Range | None = None) -> Any:
    """``value`` as a Python number, a tuple of them or a flag; an error unless it is allowed.

    ``like`` is a value of the right kind: a flag stays a flag and a number a number. ``label`` is the name
    that an error tells, if that is another; ``allowed`` the range, if it is not that of ``RANGES``.
    """
    if value is None and name in OPTIONAL:
        return None
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f'Invalid {name}={value!r}. Must be one of {CHOICES[name]}.')
        return value
    if is_flag(like) and name not in OPTIONAL | RANGES.keys():
        if type(value) is not type(like):
            raise TypeError(f'Invalid {name}={value!r}. Must be a {type(like).__name__}.')
        return value
    if name in PAIRS or isinstance(like, tuple):
        return _validate_tuple(name, value, len(like) if isinstance(like, tuple) else 2)
    return _validate_number(name, label or name, value, allowed)


def _validate_tuple(name: str, value: Any, length: int) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != length:
        raise TypeError(f'Invalid {name}={value!r}. Must be {"a pair of" if length == 2 else length} numbers.')
    return tuple(_validate_number(name, f'{name}[{i}]', v) for i, v in enumerate(value))


def _validate_number(name: str, label: str, value: Any, allowed: Range | None = None) -> Any:
    if isinstance(value, Tracer):
        return value
    shown = repr(value) if len(repr(value)) < 80 else f'{repr(value)[:60]}...'
    if isinstance(value, (bool, np.bool_, str, brainunit.Quantity, Mapping)) or np.ndim(value) != 0:
        hint = ' Weights go to register_trainable_weights.' if name == 'lr' and isinstance(value, Mapping) else ''
        raise TypeError(f'Invalid {label}={shown}. Must be a number.{hint}')
    try:
        number = as_number(value)
    except (TypeError, ValueError, AttributeError):
        raise TypeError(f'Invalid {label}={shown}. Must be a number.') from None
    if name in INTEGERS and not float(number).is_integer():
        raise TypeError(f'Invalid {label}={shown}. Must be an integer.')
    allowed = allowed or RANGES.get(name, ANY_FINITE)
    if number not in allowed:
        meaning = ' (learning rate)' if name == 'lr' else ''
        finite = 'finite and ' if number == math.inf and allowed.low < number else ''
        raise ValueError(f'Invalid {label}={shown}{meaning}. Must be {finite}{allowed}.')
    return number


def is_on(value: Any) -> bool:
    """Whether a number asks for the memory that goes with it: above 0, or not known while tracing."""
    return isinstance(value, Tracer) or value > 0


def as_number(value: Any) -> Any:
    """A 0-d array as the shortest decimal it stands for (a float32 0.1 is 0.1); a tracer as it is."""
    if isinstance(value, Tracer) or type(value) in (float, int, bool):  # NumPy's float64 is a float, too
        return value
    scalar = np.asarray(value)[()]
    if np.issubdtype(scalar.dtype, np.integer):
        return int(scalar)
    return float(str(scalar))


def to_leaf(name: str, value: Any) -> Any:
    """A hyperparameter as a State holds it: numbers as arrays, decay rates as :class:`Decay`, flags as they are."""
    if is_flag(value):
        return value
    if name in OFF_AT_ZERO and not isinstance(value, (jax.Array, np.ndarray)) and value == 0:
        return None
    if isinstance(value, tuple):
        return tuple(to_leaf(name, v) for v in value)
    parts = Decay.of(value) if name in DECAYS else (value,)
    arrays = [as_array(part) for part in parts]
    return Decay(*arrays) if name in DECAYS else arrays[0]


def as_array(number: Any) -> Any:
    """A number in the default dtype of floats: NumPy's, unless it is jax's already."""
    dtype = jnp.result_type(float)
    return jnp.asarray(number, dtype) if isinstance(number, jax.Array) else np.asarray(number, dtype)


def from_leaf(name: str, leaf: Any) -> Any:
    """The inverse of :func:`to_leaf`."""
    if is_flag(leaf):
        return 0.0 if leaf is None and name in OFF_AT_ZERO else leaf
    if isinstance(leaf, Decay):
        return as_number(leaf.value)
    return tuple(from_leaf(name, v) for v in leaf) if isinstance(leaf, tuple) else as_number(leaf)


@jax.tree_util.register_pytree_with_keys_class
class Hyperparameters:
    """What a rule reads: ``hp.lr``, ``hp.betas``, ``hp.step``, ``hp.amsgrad``, ...

    Numbers are arrays (decay rates are :class:`Decay`); flags are Python values.
    """

    __slots__ = ('__dict__', '_flat')  # the attributes are the hyperparameters, and nothing else

    def __init__(self, values: Mapping[str, Any]):
        self.__dict__.update(values)
        self._flat: Any = None  # flattened often, and never changed

    def __getattr__(self, name: str) -> Any:  # reached only by what is none
        raise AttributeError(f'{name!r} is no hyperparameter; there are {sorted(self.__dict__)}.')

    def __repr__(self) -> str:
        return f'Hyperparameters({", ".join(f"{name}={value}" for name, value in self.__dict__.items())})'

    @classmethod
    def as_leaves(cls, values: Mapping[str, Any]) -> Hyperparameters:
        """With numbers as arrays."""
        return cls({name: to_leaf(name, value) for name, value in values.items()})

    def plain(self) -> Hyperparameters:
        """As Python numbers and flags."""
        return Hyperparameters({name: from_leaf(name, leaf) for name, leaf in self.__dict__.items()})

    def values(self) -> dict[str, Any]:
        return self.__dict__

    def with_values(self, **values: Any) -> Hyperparameters:
        return Hyperparameters({**self.__dict__, **values})

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        if self._flat is None:
            numbers = {name: value for name, value in self.__dict__.items() if not is_flag(value)}
            flags = tuple((name, value) for name, value in self.__dict__.items() if is_flag(value))
            self._flat = tuple(numbers.values()), (tuple(numbers), flags)
        flat: tuple[tuple[Any, ...], tuple[Any, ...]] = self._flat
        return flat

    def tree_flatten_with_keys(self) -> tuple[list[Any], tuple[Any, ...]]:
        children, aux = self.tree_flatten()
        return [(jax.tree_util.GetAttrKey(name), child) for name, child in zip(aux[0], children, strict=True)], aux

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], children: Any) -> Hyperparameters:
        names, flags = aux
        return cls({**dict(flags), **dict(zip(names, children, strict=True))})


@functools.partial(jax.tree_util.register_dataclass, data_fields=['numbers'], meta_fields=['layout'])
@dataclass(slots=True, eq=False, repr=False)
class Packed:
    """A tree of hyperparameters as a State holds it: all numbers in one vector.

    Each array that a compiled function is given takes microseconds at each call.
    """

    layout: Layout
    numbers: Any

    @classmethod
    def of(cls, tree: Any) -> Packed:
        leaves, structure = jax.tree.flatten(tree)
        stacked = jnp.stack(leaves) if any(isinstance(x, Tracer) for x in leaves) else jnp.asarray(np.stack(leaves))
        return cls(layout_of(structure), stacked)

    @property
    def tree(self) -> Any:
        """The tree with its numbers, as NumPy's unless they are traced."""
        traced = isinstance(self.numbers, Tracer)
        numbers = jnp.unstack(self.numbers, axis=-1) if traced else np.moveaxis(np.asarray(self.numbers), -1, 0)
        return self.layout.tree(list(numbers))

    @property
    def flags(self) -> Any:
        """The tree without its numbers."""
        return self.layout.flags

    def __repr__(self) -> str:
        return f'Packed({self.layout.tree(["..."] * self.layout.size)}, {self.numbers})'


class Layout:
    """Where the numbers of a tree stand in a vector, and its flags; one object for each, so that it compares fast."""

    def __init__(self, structure: Any):
        self.size: int = structure.num_leaves
        self.tree: Callable[[Sequence[Any]], Any] = structure.unflatten
        self.flags = self.tree([None] * self.size)


layout_of = functools.cache(Layout)
