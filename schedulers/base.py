"""LRScheduler: the rate as a pure function of the epoch, and the States that hold the position of a schedule."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from brainstate import LongTermState, State
from jax.core import Tracer
from jax.typing import ArrayLike

from braintools_optim.options.built import BuiltNode, refuse_unknown
from braintools_optim.options.kinds import RATE, MissingKeyError, Number, Range, Scalar, as_number
from braintools_optim.options.number import ReadsAsNumber
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import Tree
from braintools_optim.schedulers.arguments import COUNT, NON_NEGATIVE, Each
from braintools_optim.schedulers.axes import new_axes
from braintools_optim.schedulers.curves import as_float, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['LRScheduler', 'Position', 'as_epoch', 'value_of_group']

T = TypeVar('T')
Array = jax.Array
Position = dict[str, Tree]
"""The values of the States that the present rate of a schedule depends on, by name."""
EPOCH = Number(Range(-1), integer=True)
NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


class FollowsSchedule(Protocol):
    """An object that can follow a schedule, such as an optimizer."""

    def add_scheduler(self, scheduler: LRScheduler, /) -> object: ...


class LRScheduler(ReadsAsNumber, BuiltNode):
    r"""The base class of learning rate schedules: a rate :math:`\eta(t, \eta_0)` of epoch :math:`t` and base rate.

    A subclass defines :meth:`formula`; this class provides the rest, inside and outside of compiled functions.
    Alternatively a subclass overrides :meth:`get_lr`, as in torch and braintools.optim. Such a schedule computes its
    rates when it is built and in each :meth:`step`, so ``get_lr`` may use Python's control flow as long as
    :meth:`step` is called outside of compiled functions. In a parameter group with another base rate, the rate is
    scaled by the same factor.

    Optimizers do not advance a schedule: call :meth:`step` once per epoch, or once per update if the schedule
    counts updates.

    A rate that is set by hand rescales the rest of the schedule by the same factor. If the schedule is at
    zero at that time, the rate stays as set until the schedule leaves zero.

    Every schedule checks its arguments when it is built: a wrong type raises a ``TypeError``, and a value
    out of range a ``ValueError``. Traced numbers are not checked.

    Parameters
    ----------
    base_lr : float or sequence of float, default 1e-3
        Base rate :math:`\eta_0`, or a sequence of base rates, one per parameter group; >= 0.
    last_epoch : int, default 0
        Epoch at which the schedule starts, >= -1. As in torch, -1 stands for the beginning, like 0.
    """

    __signature__: ClassVar[inspect.Signature]
    _takes_group: ClassVar[bool] = False
    _uses_get_lr: ClassVar[bool] = False
    uses_base_lr: ClassVar[bool] = True
    """Whether a parameter group may have an ``lr`` other than the base rates. Optimizers refuse one otherwise."""
    cycle_momentum: bool = False
    """Whether the schedule also drives the momentum, by :meth:`momentum_at`."""
    is_part: bool = False
    """Whether the schedule is a part of another schedule, which then holds the epoch for both."""
    last_epoch: LongTermState

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = constructor_signature(cls)
        cls._takes_group = 'group' in inspect.signature(cls.formula).parameters
        most_specific = next(base for base in cls.__mro__ if not vars(base).keys().isdisjoint({'formula', 'get_lr'}))
        cls._uses_get_lr = 'formula' not in vars(most_specific)
        if cls._uses_get_lr and (cls.rate is not LRScheduler.rate or cls.lr_at is not LRScheduler.lr_at):
            raise TypeError(
                f'{cls.__name__} cannot override get_lr(): its rates depend on more than the epoch and the base rates. '
                'Override rate() instead.'
            )

    def __init__(self, base_lr: float | Array | Sequence[float | Array] = 1e-3, last_epoch: int = 0):
        rates = base_lr if isinstance(base_lr, (list, tuple)) else [base_lr]
        if not rates:
            raise ValueError(f'Invalid base_lr={base_lr!r}. Must be a number or a sequence of at least one.')
        self.base_lrs: tuple[Scalar, ...] = tuple(NON_NEGATIVE.check('base_lr', rate) for rate in rates)
        if any(type(rate) is int and rate > 1 for rate in rates):
            warn_of_count(type(self), base_lr)
        self.last_epoch = Epoch(jnp.asarray(max(EPOCH.check('last_epoch', last_epoch), 0), jnp.int32))
        self.manual = LongTermState({'rate': as_float(1.0), 'reference': as_float(1.0)})
        if self._uses_get_lr:
            self.stored_rates = LongTermState(as_float(self.base_lrs))

    def _finish(self) -> None:
        self.store_rates()  # here, because get_lr() may need attributes that a constructor sets after this one returns

    def __setattr__(self, name: str, value: object) -> None:
        present = self.__dict__.get(name)
        if name == 'last_epoch' and isinstance(present, State) and not isinstance(value, State):
            epoch: Any = value
            self.step(epoch=epoch)
            return
        if '_is_built' in self.__dict__:
            self._admit_attribute(name, value)
        super().__setattr__(name, value)

    def _admit_attribute(self, name: str, value: object) -> None:
        """Raise unless an attribute may be assigned after construction."""
        cls = type(self)
        options = [*inspect.signature(cls).parameters]
        inherited = getattr(cls, name, None)
        if isinstance(self.__dict__.get(name), State):
            raise ValueError(f'{name} of a schedule is a State. Assign {name}.value instead.')
        followed = self._uses_get_lr and name != 'base_lrs'  # by get_lr(), but not by a compiled update
        is_value = inherited is not None and not callable(inherited) and not isinstance(inherited, property)
        if name in options or is_value or (name in self.__dict__ and not followed):
            raise ValueError(f'{name} of a schedule is fixed. Build another {cls.__name__} and assign it as lr.')
        if isinstance(inherited, property) and inherited.fset is None:
            raise AttributeError(
                f'{name} of a schedule is computed and cannot be assigned. '
                'set_rate(rate) sets the present rate, and step(epoch=epoch) goes to an epoch.'
            )
        if callable(inherited) and not callable(value):
            raise AttributeError(f'{name} of a schedule is a method and cannot be assigned.')
        if name in ('lr', 'current_lr', 'rate'):
            raise AttributeError(
                f'Invalid {name}={value!r}. A schedule has no such attribute. '
                f'Call set_rate({value!r}), or assign optimizer.lr.'
            )
        if not (name in self.__dict__ or inherited is not None or name.startswith('_')):
            refuse_unknown(self, name, value, {*self.__dict__, *options} - {'_is_built'})

    def formula(self, epoch: Array, base_lr: Scalar) -> ArrayLike:
        """Return the rate at ``epoch`` (a number or an array, traced or not) without manual changes.

        A schedule whose arguments differ between parameter groups takes the index of the group as a third
        parameter, ``group``.
        """
        raise NotImplementedError(f'{type(self).__name__} must define formula(epoch, base_lr) or get_lr().')

    @explicit_transfers
    def lr_at(self, epoch: ArrayLike | Sequence[float], base_lr: Scalar | None = None, group: int = 0) -> Array:
        """Return the scheduled rate at ``epoch``: a number, an array or list of epochs (a whole curve), or a tracer."""
        epoch = as_epoch(epoch)
        base_lr = self.base_lr_of(group) if base_lr is None else base_lr
        rate = self._get_lr_at(epoch, base_lr, group) if self._uses_get_lr else self._formula_at(epoch, base_lr, group)
        return jnp.broadcast_to(as_float(rate), epoch.shape)

    def _formula_at(self, epoch: Array, base_lr: Scalar, group: int) -> ArrayLike:
        formula: Callable[..., ArrayLike] = self.formula
        return formula(epoch, base_lr, group) if self._takes_group else formula(epoch, base_lr)

    def _get_lr_at(self, epochs: Array, base_lr: Scalar, group: int) -> Array:
        """Return the rates that ``get_lr`` of a subclass computes at some epochs from the base rate of a group."""
        place = min(group, len(self.base_lrs) - 1)
        base_lrs = [base_lr if i == place else other for i, other in enumerate(self.base_lrs)]

        def rate_at(epoch: Scalar) -> Array:
            return as_float(self._call_get_lr(epoch, base_lrs)[place])

        if isinstance(epochs, Tracer):
            rates: Array = jnp.vectorize(rate_at)(epochs)
            return rates
        return as_float([rate_at(epoch) for epoch in np.asarray(epochs).ravel().tolist()]).reshape(epochs.shape)

    def _call_get_lr(self, epoch: Scalar, base_lrs: Sequence[Scalar]) -> tuple[Scalar, ...]:
        """Return the rates that ``get_lr`` of a subclass computes as if the schedule were at ``epoch``."""
        name = f'{type(self).__name__}.get_lr()'
        present = {name: self.__dict__[name] for name in ('last_epoch', 'base_lrs')}
        self.__dict__.update(last_epoch=DerivedValue(lambda: epoch), base_lrs=tuple(base_lrs))
        try:
            rates: object = self.get_lr()
        except NOT_TRACEABLE as error:
            raise TypeError(
                f'{name} cannot be traced. Call step() outside of compiled functions, '
                'or write get_lr() with jax.numpy and jnp.where instead of math and if.'
            ) from error
        finally:
            self.__dict__.update(present)
        checked = Each(NON_NEGATIVE).check(name, rates if isinstance(rates, (list, tuple)) else [rates])
        if len(checked) != len(base_lrs):
            raise ValueError(f'{name} returned {len(checked)} rates. Must be {len(base_lrs)}, one per base rate.')
        return checked

    @explicit_transfers
    def store_rates(self) -> None:
        """Compute the rates of a schedule that overrides ``get_lr`` at the present epoch."""
        if self._uses_get_lr:
            self.stored_rates.value = as_float(self._call_get_lr(as_number(self.last_epoch.value), self.base_lrs))

    def base_lr_of(self, group: int) -> Scalar:
        """Return the base rate of a parameter group. Groups beyond the last base rate share the last base rate."""
        return value_of_group(self.base_lrs, group)

    def admitted(self, rates: Mapping[int, Scalar]) -> Callable[[], None]:
        """Return a function that admits groups with these base rates; raise if the schedule cannot drive them."""
        if rates and not self.uses_base_lr:
            raise ValueError(
                f'A group cannot have an lr of its own under {type(self).__name__}: '
                f'give it an lr_scale, or list the base rates of all groups in the schedule.'
            )
        return lambda: None

    @property
    def depends_on_epoch(self) -> bool:
        """Whether the rate depends on the epoch.

        If not, the epoch is not among the :meth:`sources`, and a compiled update takes one array less.
        """
        return True

    def sources(self) -> dict[str, LongTermState]:
        """Return the States that the present rate depends on, by name."""
        epoch = {'epoch': self.last_epoch} if self.depends_on_epoch else {}
        stored = {'stored': self.stored_rates} if self._uses_get_lr else {}
        return {**epoch, 'manual': self.manual, **stored}

    def position(self) -> Position:
        """Return the values of the :meth:`sources`."""
        return {name: state.value for name, state in self.sources().items()}

    def epoch_at(self, position: Position) -> Scalar:
        """Return the epoch of a position, which may lie between two whole epochs; 0 if the rate is constant."""
        epoch: Scalar = position['epoch'] if self.depends_on_epoch else 0
        return epoch

    def rate(self, position: Position, base_lr: Scalar | None = None, group: int = 0) -> Array:
        """Return the rate at a position, as a pure function of the position."""
        scheduled = self._scheduled_rate(position, base_lr, group)
        rate, reference = position['manual']['rate'], position['manual']['reference']
        scaled = scheduled / jnp.where(reference == 0, 1.0, reference) * rate
        return jnp.where(reference == 0, jnp.where(scheduled == 0, rate, scheduled), scaled)

    def _scheduled_rate(self, position: Position, base_lr: Scalar | None = None, group: int = 0) -> Array:
        """Return the rate at a position without manual changes."""
        if not self._uses_get_lr:
            return self.lr_at(self.epoch_at(position), base_lr, group)
        stored: Array = value_of_group(position['stored'], group)
        return stored if base_lr is None else stored * ratio(base_lr, self.base_lr_of(group))

    @explicit_transfers
    def set_rate(self, value: Scalar) -> None:
        """Set the present rate to ``value`` and rescale the rest of the schedule by the same factor."""
        self._refuse_if_part()
        scheduled = self._scheduled_rate(self.position())
        # stacked into one array so that vmap batches either both or neither
        rate, reference = jnp.stack(jnp.broadcast_arrays(as_float(RATE.check('lr', value)), scheduled))
        self.manual.value = {'rate': rate, 'reference': reference}

    def apply(self, apply_fn: Callable[[Scalar], Scalar]) -> None:
        """Set the present rate to ``apply_fn`` of the present rate, see :meth:`set_rate`."""
        self.set_rate(apply_fn(self()))

    @explicit_transfers
    def step(self, epoch: Scalar | None = None) -> None:
        """Advance by one epoch, or go to the integer ``epoch``."""
        self._refuse_if_part()
        following = self.last_epoch.value + 1 if epoch is None else COUNT.check('epoch', epoch)
        self.last_epoch.value = jnp.asarray(following, jnp.int32)
        self.store_rates()

    def _refuse_if_part(self) -> None:
        if self.is_part:
            raise ValueError(
                f'This {type(self).__name__} is a part of another schedule, which holds the epoch. '
                'Change the outer schedule instead.'
            )

    def step_epoch(self) -> None:
        """Advance by one epoch."""
        self.step()

    @explicit_transfers
    def __call__(self, count: Scalar | None = None) -> Scalar:
        """Return the present rate; with ``count``, the scheduled rate at that epoch."""
        rate: Scalar = as_number(self.rate(self.position()) if count is None else self.lr_at(count))
        return rate

    def as_number(self) -> Scalar:
        """Return the present rate."""
        return self()

    @explicit_transfers
    def get_lr(self) -> list[Scalar]:
        """Return the present rates, one per base rate."""
        if not self._uses_get_lr:
            return self.get_last_lr()
        epoch = as_epoch(self.epoch_at(self.position()))  # a subclass has called super().get_lr()
        return [as_number(self._formula_at(epoch, base_lr, group)) for group, base_lr in enumerate(self.base_lrs)]

    @explicit_transfers
    def get_last_lr(self) -> list[Scalar]:
        """Return the present rates, one per base rate."""
        if isinstance(self.last_epoch, DerivedValue):  # read inside get_lr(): without manual changes
            return [as_number(rate) for rate in self.stored_rates.value]
        position = self.position()
        return [as_number(self.rate(position, base_lr, group)) for group, base_lr in enumerate(self.base_lrs)]

    @property
    def current_lrs(self) -> DerivedValue[list[Scalar]]:
        """The present rates, one per base rate, as the list ``current_lrs.value``."""
        return DerivedValue(self.get_last_lr)

    def plot(self, epochs: int = 100, ax: Axes | None = None) -> Axes:
        """Plot the rate, and the momentum if the schedule drives it, from epoch 0 to ``epochs``.

        Return the matplotlib axes: ``ax`` if given, new axes otherwise.
        """
        ax = new_axes() if ax is None else ax
        at = jnp.arange(epochs + 1)
        ax.plot(at, self.lr_at(at), color='C0')
        ax.set(xlabel='epoch', ylabel='learning rate', ylim=(0, None))
        if self.cycle_momentum:
            twin = ax.twinx()
            twin.plot(at, self.momentum_at(at), color='C1', linestyle='--')
            twin.set_ylabel('momentum', color='C1')
        return ax

    def momentum_at(self, epoch: ArrayLike | Sequence[float], group: int = 0) -> Array:
        """Return the momentum at ``epoch``; raise a ``ValueError`` if the schedule does not drive the momentum."""
        raise ValueError(f'{type(self).__name__} does not cycle the momentum.')

    def waits_at_zero(self) -> bool:
        """Return whether the rate is 0 because the schedule was never stepped, as in a warmup that starts at 0."""
        position = self.position()
        at_start = self.depends_on_epoch and bool(self.epoch_at(position) == 0)
        return at_start and bool(self.lr_at(0) == 0) and bool(self.rate(position) == 0)

    @explicit_transfers
    def state_dict(self) -> dict[str, Tree]:
        """Return the position of the schedule, and the present rates, as plain numbers."""
        manual = {name: as_number(value) for name, value in self.manual.value.items()}
        state = {'last_epoch': int(self.last_epoch.value), 'manual': manual, 'current_lrs': self.get_last_lr()}
        return state | ({'stored_rates': self.stored_rates.value.tolist()} if self._uses_get_lr else {})

    @explicit_transfers
    def load_state_dict(self, state_dict: Mapping[str, Tree]) -> None:
        """Go to the position that :meth:`state_dict` returned."""
        for name, value in self.read_state(state_dict).items():
            getattr(self, name).value = value

    def read_state(self, state_dict: Mapping[str, Tree]) -> dict[str, Tree]:
        """Return the values of the States in a ``state_dict``, by name; raise if one is missing or not allowed."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f'Invalid state_dict={state_dict!r} of a {type(self).__name__}. Must be a mapping.')
        if missing := self.state_dict().keys() - state_dict.keys() - {'manual', 'current_lrs', 'stored_rates'}:
            raise MissingKeyError(f'The state_dict of a {type(self).__name__} must have {sorted(missing)}.')
        manual = state_dict.get('manual', {'rate': 1.0, 'reference': 1.0})
        if not isinstance(manual, Mapping) or manual.keys() != {'rate', 'reference'}:
            raise ValueError(f"Invalid manual={manual!r} of a state_dict. Must have 'rate' and 'reference'.")
        epoch = max(EPOCH.check('last_epoch', state_dict['last_epoch']), 0)
        numbers = {name: NON_NEGATIVE.check(name, value) for name, value in manual.items()}
        values: dict[str, Tree] = {
            'last_epoch': jnp.asarray(epoch, jnp.int32),
            'manual': {name: as_float(numbers[name]) for name in ('rate', 'reference')},
        }
        if self._uses_get_lr:
            stored = state_dict.get('stored_rates') or self._call_get_lr(epoch, self.base_lrs)
            values['stored_rates'] = as_float(Each(NON_NEGATIVE).check('stored_rates', stored))
        return values

    def attach_optimizer(self, optimizer: FollowsSchedule) -> None:
        """Make ``optimizer`` follow this schedule."""
        if not hasattr(optimizer, 'register_trainable_weights'):
            raise TypeError(f'Invalid optimizer={optimizer!r}. Must be an Optimizer, such as Adam or OptaxOptimizer.')
        optimizer.add_scheduler(self)

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self)).parameters if name not in ('base_lr', 'last_epoch')]
        options = {name: self.__dict__.get(name, self.__dict__.get(f'{name}s')) for name in names}
        shown = ''.join(f', {name}={value!r}' for name, value in options.items() if value is not None)
        base = self.base_lrs[0] if len(self.base_lrs) == 1 else self.base_lrs
        return f'{type(self).__name__}({base}{shown}; epoch {self.last_epoch.value}, lr {self()})'


class Epoch(LongTermState):
    """The State of the epoch of a schedule."""

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.value})'


class DerivedValue(Generic[T]):
    """A value that is computed from the position of a schedule and read like the value of a State, by ``.value``."""

    def __init__(self, compute: Callable[[], T], assign: Callable[[T], None] | None = None):
        self._compute, self._assign = compute, assign

    @property
    @explicit_transfers
    def value(self) -> T:
        """The value at the present position."""
        return self._compute()

    @value.setter
    @explicit_transfers
    def value(self, value: T) -> None:
        if self._assign is None:
            raise AttributeError(
                'This value is computed from the epoch and cannot be assigned. '
                'set_rate(rate) sets the present rate of a schedule, and step(epoch=epoch) goes to an epoch.'
            )
        self._assign(value)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.value})'


def warn_of_count(cls: type[LRScheduler], base_lr: object) -> None:
    """Warn of a whole number in the place of the learning rate, such as the 100 of ``CosineAnnealingLR(100)``."""
    second = list(cls.__signature__.parameters)[1]
    warnings.warn(
        f'{cls.__name__} has the learning rate {base_lr!r}: the first argument is base_lr, and {second} is the second. '
        f'If this rate is meant, give a float.',
        stacklevel=5,
    )


def constructor_signature(cls: type) -> inspect.Signature:
    """Return the signature of the constructor of a class, which brainstate's ``Node`` hides."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    parameters = list(signature.parameters.values())[1:]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def value_of_group(values: Sequence[T], group: int) -> T:
    """Return the value of a parameter group. Groups beyond the last value share the last value."""
    return values[min(group, len(values) - 1)]


def as_epoch(epoch: ArrayLike | Sequence[float]) -> Array:
    """Return an epoch as an array of the default integers or floats, because quotients of int32 would be float32."""
    epoch = jnp.asarray(epoch)
    kind = float if jnp.issubdtype(epoch.dtype, jnp.floating) else int
    return jnp.asarray(epoch, jnp.result_type(kind))


LRScheduler.__signature__ = constructor_signature(LRScheduler)
