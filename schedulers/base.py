"""LRScheduler: a pure function of the epoch, and the States that say where it stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from brainstate import LongTermState
from brainstate.graph import Node

from braintools_optim.options import AT_LEAST_ZERO, MissingKeyError, as_number, validate
from braintools_optim.signatures import constructor_signature

__all__ = ['LRScheduler', 'Position', 'as_epoch', 'as_float', 'entry']

Array = jax.Array
Position = dict[str, Any]


class LRScheduler(Node):
    r"""A learning rate :math:`\eta(t, \eta_0)` of the epoch :math:`t` and a base rate :math:`\eta_0`.

    A subclass defines :meth:`formula`; all else, traced or not, is here. ``step()`` advances the
    epoch and is the user's to call. A rate set by hand rescales the rest of the schedule in
    proportion (a rate set while the schedule stands at zero holds until it leaves zero).

    Parameters
    ----------
    base_lr : float or sequence of float
        The base rate, or one for each parameter group. At least 0.
    last_epoch : int, default 0
        The epoch to begin at; -1, torch's way to write it, is 0 as well.
    """

    __signature__: ClassVar[inspect.Signature]
    _by_group: ClassVar[bool] = False
    uses_base_lr: ClassVar[bool] = True
    """Whether the schedule can drive a group from an ``lr`` that it does not know; if not, that is refused."""
    last_epoch: LongTermState

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = constructor_signature(cls)
        cls._by_group = 'group' in inspect.signature(cls.formula).parameters

    def __init__(self, base_lr: float | Sequence[float] = 1e-3, last_epoch: int = 0):
        rates = base_lr if isinstance(base_lr, (list, tuple)) else [base_lr]
        if not rates:
            raise ValueError(f'Invalid base_lr={base_lr!r}. Must be a number or a sequence of at least one.')
        self.base_lrs: tuple[Any, ...] = tuple(validate('base_lr', rate) for rate in rates)
        self.last_epoch = LongTermState(jnp.asarray(max(validate('last_epoch', last_epoch), 0), jnp.int32))
        self.manual = LongTermState({'rate': as_float(1.0), 'reference': as_float(1.0)})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            options = inspect.signature(type(self)).parameters
            if name in {'base_lrs', *options, *(f'{option}s' for option in options)} - {'last_epoch'}:
                message = f'{name} of a schedule is fixed. Build another {type(self).__name__} and assign it as lr.'
                raise ValueError(message)
        super().__setattr__(name, value)

    def formula(self, epoch: Array, base_lr: Any) -> Any:
        """The rate at an epoch (a number or an array, traced or not), without manual changes.

        A schedule with options of each parameter group takes ``group``, its place, as a third argument.
        """
        raise NotImplementedError(f'{type(self).__name__} must define formula(epoch, base_lr).')

    def lr_at(self, epoch: Any, base_lr: Any = None, group: int = 0) -> Array:
        """The schedule's rate at ``epoch``: a number, an array (a whole curve) or a tracer."""
        epoch = as_epoch(epoch)
        base_lr = self.base_lr_of(group) if base_lr is None else base_lr
        formula: Callable[..., Any] = self.formula
        rate = formula(epoch, base_lr, group) if self._by_group else formula(epoch, base_lr)
        return jnp.broadcast_to(as_float(rate), epoch.shape)

    def base_lr_of(self, group: int) -> Any:
        """The base rate of a parameter group; those beyond the last have the last's."""
        return entry(self.base_lrs, group)

    def sources(self) -> dict[str, LongTermState]:
        """The States that the present rate depends on."""
        return {'epoch': self.last_epoch, 'manual': self.manual}

    def position(self) -> Position:
        """Their values."""
        return {name: state.value for name, state in self.sources().items()}

    def epoch_at(self, position: Position) -> Any:
        """The epoch of a position, which may lie between two."""
        return position['epoch']

    def rate(self, position: Position, base_lr: Any = None, group: int = 0) -> Array:
        """The rate at a position, a pure function of it."""
        scheduled = self.lr_at(self.epoch_at(position), base_lr, group)
        rate, reference = position['manual']['rate'], position['manual']['reference']
        scaled = scheduled / jnp.where(reference == 0, 1.0, reference) * rate
        return jnp.where(reference == 0, jnp.where(scheduled == 0, rate, scheduled), scaled)

    def set_rate(self, value: Any) -> None:
        """Make ``value`` the rate from now on; the rest of the schedule is rescaled in proportion."""
        self._refuse_as_part()
        scheduled = self.lr_at(self.epoch_at(self.position()))
        # by way of one array, so that vmap maps both or none
        rate, reference = jnp.stack(jnp.broadcast_arrays(as_float(validate('lr', value)), scheduled))
        self.manual.value = {'rate': rate, 'reference': reference}

    def apply(self, apply_fn: Callable[[Any], Any]) -> None:
        """Set the rate to ``apply_fn`` of the present one."""
        self.set_rate(apply_fn(self()))

    def step(self, epoch: int | None = None) -> None:
        """Advance by one epoch, or go to ``epoch``."""
        self._refuse_as_part()
        following = self.last_epoch.value + 1 if epoch is None else validate('epoch', epoch)
        self.last_epoch.value = jnp.asarray(following, jnp.int32)

    def _refuse_as_part(self) -> None:
        if self.__dict__.get('is_part'):
            raise ValueError(
                f'This {type(self).__name__} is a part of another schedule, which has the clock: use that.'
            )

    def step_epoch(self) -> None:
        """Advance by one epoch."""
        self.step()

    def __call__(self, count: Any = None) -> Any:
        """The present rate; with ``count``, the schedule's rate at that epoch."""
        return as_number(self.rate(self.position()) if count is None else self.lr_at(count))

    def __float__(self) -> float:
        return float(self())

    def get_lr(self) -> list[Any]:
        """The present rate for each base rate."""
        position = self.position()
        return [as_number(self.rate(position, base_lr, group)) for group, base_lr in enumerate(self.base_lrs)]

    get_last_lr = get_lr

    @property
    def current_lrs(self) -> Reading:
        """The present rates; ``.value`` is a list, one for each base rate."""
        return Reading(self.get_lr)

    def plot(self, epochs: int = 100, ax: Any = None) -> Any:
        """Draw the schedule's rate from epoch 0 on, and the momentum if it is cycled; return matplotlib's axes."""
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(4.5, 3), layout='constrained').add_subplot()
        at = jnp.arange(epochs + 1)
        ax.plot(at, self.lr_at(at), color='C0')
        ax.set(xlabel='epoch', ylabel='learning rate', ylim=(0, None))
        if getattr(self, 'cycle_momentum', False):
            twin = ax.twinx()
            twin.plot(at, self.momentum_at(at), color='C1', linestyle='--')
            twin.set_ylabel('momentum', color='C1')
        return ax

    def momentum_at(self, epoch: Any, group: int = 0) -> Array:
        """The momentum at ``epoch``, of a schedule that cycles it."""
        raise ValueError(f'{type(self).__name__} does not cycle the momentum.')

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, as plain numbers."""
        manual = {name: as_number(value) for name, value in self.manual.value.items()}
        return {'last_epoch': int(self.last_epoch.value), 'manual': manual, 'current_lrs': self.get_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where :meth:`state_dict` was taken."""
        for name, value in self.read_state(state_dict).items():
            getattr(self, name).value = value

    def read_state(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the States by name; an error if one is missing or no such value."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f'Invalid state_dict={state_dict!r} of a {type(self).__name__}. Must be a mapping.')
        if missing := self.state_dict().keys() - state_dict.keys() - {'manual', 'current_lrs'}:
            raise MissingKeyError(f'The state_dict of a {type(self).__name__} must have {sorted(missing)}.')
        manual = state_dict.get('manual', {'rate': 1.0, 'reference': 1.0})
        if not isinstance(manual, Mapping) or manual.keys() != {'rate', 'reference'}:
            raise ValueError(f"Invalid manual={manual!r} of a state_dict. Must have 'rate' and 'reference'.")
        epoch = max(validate('last_epoch', state_dict['last_epoch']), 0)
        numbers = {name: validate(name, value, allowed=AT_LEAST_ZERO) for name, value in manual.items()}
        return {
            'last_epoch': jnp.asarray(epoch, jnp.int32),
            'manual': {name: as_float(numbers[name]) for name in ('rate', 'reference')},
        }

    def attach_optimizer(self, optimizer: Any) -> None:
        """Make ``optimizer`` follow this schedule."""
        if not hasattr(optimizer, 'register_trainable_weights'):
            raise TypeError(f'optimizer must be an Optimizer such as OptaxOptimizer, not {type(optimizer).__name__}.')
        optimizer.add_scheduler(self)

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self)).parameters if name not in ('base_lr', 'last_epoch')]
        options = {name: self.__dict__.get(name, self.__dict__.get(f'{name}s')) for name in names}
        shown = ''.join(f', {name}={value!r}' for name, value in options.items() if value is not None)
        base = self.base_lrs[0] if len(self.base_lrs) == 1 else self.base_lrs
        return f'{type(self).__name__}({base}{shown}; epoch {self.last_epoch.value}, lr {self()})'


class Reading:
    """What reads as a State, by ``.value``, and is worked out from the schedule's position."""

    def __init__(self, read: Callable[[], Any]):
        self._read = read

    @property
    def value(self) -> Any:
        return self._read()

    def __repr__(self) -> str:
        return f'Reading({self.value})'


def entry(values: Sequence[Any], group: int) -> Any:
    """The value of a parameter group, of a list with one for each; those beyond the last have the last's."""
    return values[min(group, len(values) - 1)]


def as_epoch(epoch: Any) -> Array:
    """An epoch as an array of the default integers or floats: the quotients of int32 would be float32 at best."""
    epoch = jnp.asarray(epoch)
    kind = float if jnp.issubdtype(epoch.dtype, jnp.floating) else int
    return jnp.asarray(epoch, jnp.result_type(kind))


def as_float(x: Any) -> Array:
    """A number as an array of the default floats."""
    return jnp.asarray(x, jnp.result_type(float))


LRScheduler.__signature__ = constructor_signature(LRScheduler)
