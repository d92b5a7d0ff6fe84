"""Optimizer: the shell that owns the States. Registers weights, updates them, holds groups and lr."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import brainstate
import jax
import jax.numpy as jnp
from brainstate.graph import Node
from jax.core import Tracer

from braintools_optim.groups import Group, ParamGroup
from braintools_optim.options import Hyperparameters, as_number, constructor_signature, to_leaf, validate
from braintools_optim.rule import Rule
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.schedulers.function import OptaxSchedule, as_scheduler
from braintools_optim.step import Memory, init_memory, merge_memory, step
from braintools_optim.weights import Scales, UniqueStateManager, Weights, inside_transformation

__all__ = ['LearningRate', 'OptimState', 'Optimizer']

LearningRate = float | LRScheduler | Callable[[Any], Any]


class OptimState(brainstate.LongTermState):
    """A State that an optimizer owns: its memory, its counter, its hyperparameters."""


class Optimizer(Rule, Node):
    r"""Base of all optimizers: everything but the rule.

    One update clips the gradients by their global norm, then by value, adds ``weight_decay`` times
    the weight, asks the rule for a direction, and subtracts ``lr`` times the direction. With
    ``decoupled_weight_decay`` the decay is added to the direction instead. A subclass defines
    :meth:`~Rule.init_slots` and :meth:`~Rule.direction`, and hands its options to this constructor.

    Parameters
    ----------
    lr : float, LRScheduler or callable
        The learning rate, at least 0, in units of the weight per unit of direction. A scheduler is
        advanced by its own ``step()``; a callable is a function of the update count.
    grad_clip_norm : float, optional
        The greatest norm that all gradients together keep, above 0.
    grad_clip_value : float, optional
        The greatest size that an entry of a gradient keeps, above 0; after clipping by norm.
    weight_decay : float, default 0.0
        At least 0.
    decoupled_weight_decay : bool, default False
        Decay the weight itself rather than its gradient.
    maximize : bool, default False
        Ascend.
    **options
        The rule's own hyperparameters. Every option is an attribute; assigning it acts on the next
        update, in functions that are compiled already too.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.
    """

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = constructor_signature(cls)

    def __init__(
        self,
        lr: LearningRate,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        **options: Any,
    ):
        options |= {
            'weight_decay': weight_decay,
            'decoupled_weight_decay': decoupled_weight_decay,
            'maximize': maximize,
            'lr_scale': 1.0,
        }
        kinds = {name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()}
        defaults = {name: validate(name, value, like=kinds.get(name, value)) for name, value in options.items()}
        clipping = {'grad_clip_norm': grad_clip_norm, 'grad_clip_value': grad_clip_value}
        shared = {name: validate(name, value) for name, value in clipping.items()}
        self.check_options(Hyperparameters(defaults))
        self.step_count = OptimState(jnp.zeros((), jnp.int32))
        self.opt_state: OptimState | None = None
        self._follow(as_scheduler(lr))
        # Flags, and which schedule it is, are part of the structure of this value: functions compiled
        # already are compiled anew when they change. Numbers are leaves, and change without that.
        self.hyperparameters = OptimState(
            {
                'shared': Hyperparameters.as_leaves({**shared, 'schedule': 'first'}),
                'defaults': Hyperparameters.as_leaves(defaults),
                'groups': [],
            }
        )
        self._weights = Weights()
        self._groups: list[Group] = []
        self._compiled = jax.jit(self._step, donate_argnums=0, static_argnums=(5, 6))

    # weights and groups

    def register_trainable_weights(self, param_states: Any) -> Self:
        """Take hold of weights: a tree of ``brainstate.State``, such as ``model.states(brainstate.ParamState)``.

        Weights that are registered already keep their memory; further ones become a group. Returns the optimizer.
        """
        weights, keys = self._weights.extended(param_states, skip_known=bool(self._groups))
        if keys:
            self._add_group(weights, Group(keys, param_states), {})
        return self

    def add_param_group(self, params: Any, **overrides: Any) -> None:
        """Take hold of more weights, with options of their own (``lr``, ``weight_decay``, ``betas``, ...).

        The schedule drives the group from its own ``lr``; options not given are the optimizer's.
        """
        if not self._groups:
            raise ValueError('register_trainable_weights must be called before add_param_group.')
        options = {'lr': 0.0, **self.hyperparameters.value['defaults'].plain().values()}
        if unknown := overrides.keys() - options.keys():
            raise TypeError(f'Unknown options of a group: {sorted(unknown)}. Must be among {sorted(options)}.')
        if 'lr' in overrides and isinstance(self.lr_scheduler, OptaxSchedule):
            raise ValueError('A schedule given as a function has no base rate: give the group an lr_scale, not an lr.')
        overrides = {name: validate(name, value, like=options[name]) for name, value in overrides.items()}
        self.check_options(Hyperparameters({**options, **overrides}))
        weights, keys = self._weights.extended(params)
        self._add_group(weights, Group(keys, params, set(overrides)), overrides)

    def _add_group(self, weights: Weights, group: Group, overrides: Mapping[str, Any]) -> None:
        hps = self.hyperparameters.value
        options = {**hps['defaults'].plain().values(), 'lr': self._base_lr(len(self._groups)), **overrides}
        leaves = dict(zip(weights.keys, weights.read(), strict=True))
        own = {key: leaves[key] for key in group.keys}
        fresh = init_memory(self, str(len(self._groups)), own, Hyperparameters(options))
        if self.opt_state is None:
            self.opt_state = OptimState(fresh)
        else:
            self.opt_state.value = merge_memory(self.opt_state.value, fresh)
        self._weights, self._groups = weights, [*self._groups, group]
        self.hyperparameters.value = {**hps, 'groups': [*hps['groups'], Hyperparameters.as_leaves(options)]}

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, each a mapping from option to value that can be assigned."""
        return [ParamGroup(self, i) for i in range(len(self._groups))]

    @property
    def param_states(self) -> UniqueStateManager:
        """The registered States, each once."""
        return self._weights.manager

    # one update

    def update(self, grads: Any, *, loss_unit: Any = None) -> None:
        """Update the weights in place. ``grads`` has the registered keys, as ``brainstate.transform.grad`` returns it.

        A gradient of a weight with a unit wears that unit, or that of the loss divided by it (``unit_aware=True``;
        ``loss_unit`` says what unit the loss has, if it has one and the gradients alone do not tell).

        Outside a brainstate transformation this runs one compiled function, which reuses the memory's
        buffers; inside it is traced. An error leaves every State as it was.
        """
        self._update(grads, loss_unit, {})

    def step(self, grads: Any, *, loss_unit: Any = None) -> None:
        """The same as :meth:`update`."""
        self.update(grads, loss_unit=loss_unit)

    def _update(self, grads: Any, loss_unit: Any, extra: Mapping[str, Any]) -> None:
        if self.opt_state is None:
            raise ValueError('register_trainable_weights must be called before step.')
        leaves = self._weights.read()
        gradients, scales = self._weights.match(grads, loss_unit)
        arrays = {name: value for name, value in extra.items() if not callable(value)}
        functions = tuple((name, value) for name, value in extra.items() if callable(value))
        settings = (self.hyperparameters.value, self.lr_scheduler.position, self.step_count.value)
        run: Callable[..., Any] = self._compiled
        if inside_transformation():
            run, settings = self._step, jax.tree.map(jnp.asarray, settings)  # vmap's trial run passes NumPy arrays
        memory, leaves, count = run(self.opt_state.value, leaves, gradients, settings, arrays, functions, scales)
        self.opt_state.value = memory
        self.step_count.value = count
        self._weights.write(leaves)

    def _step(
        self,
        memory: Memory,
        leaves: list[Any],
        gradients: list[Any],
        settings: tuple[Any, Any, Any],
        arrays: Mapping[str, Any],
        functions: tuple[tuple[str, Any], ...],
        scales: Scales,
    ) -> tuple[Memory, list[Any], Any]:
        """The update as a pure function of the values of the States."""
        hps, position, count = settings
        if scales is not None:
            gradients = [g * scale for g, scale in zip(gradients, scales, strict=True)]
        keys = self._weights.keys
        groups = [
            (group.keys, hp.with_values(lr=hp.lr_scale * self.lr_scheduler.rate(position, hp.lr)))
            for group, hp in zip(self._groups, hps['groups'], strict=True)
        ]
        weights, memory = step(
            self,
            hps['shared'],
            groups,
            dict(zip(keys, leaves, strict=True)),
            dict(zip(keys, gradients, strict=True)),
            memory,
            {**arrays, **dict(functions)},
        )
        return memory, [weights[key] for key in keys], count + 1

    # learning rate

    @property
    def lr(self) -> Any:
        """The scheduler, which reads as a number; assigning a number sets the rate, from the next update on."""
        return self.lr_scheduler

    @lr.setter
    def lr(self, value: Any) -> None:
        if callable(value):
            self.add_scheduler(value)
        else:
            self.current_lr = value

    @property
    def current_lr(self) -> Any:
        """The rate that the next update applies (to the first group), as a number."""
        return self._group_lr(0)

    @current_lr.setter
    def current_lr(self, value: Any) -> None:
        self.lr_scheduler.set_rate(value)

    @property
    def base_lr(self) -> Any:
        """The rate that the schedule starts from."""
        return self.lr_scheduler.base_lrs[0]

    def lr_apply(self, fn: Callable[[Any], Any]) -> None:
        """Set the rate to ``fn`` of the present one."""
        self.lr_scheduler.apply(fn)

    def get_last_lr(self) -> list[Any]:
        """The rate of each group."""
        return [self._group_lr(i) for i in range(max(len(self._groups), 1))]

    def add_scheduler(self, scheduler: LearningRate) -> None:
        """Follow another schedule from now on."""
        self._follow(as_scheduler(scheduler))
        hps = self.hyperparameters.value
        groups = [
            hp if 'lr' in group.own else hp.with_values(lr=to_leaf('lr', self._base_lr(i)))
            for i, (group, hp) in enumerate(zip(self._groups, hps['groups'], strict=True))
        ]
        shared = hps['shared'].with_values(schedule=f'after the {hps["shared"].schedule}')
        self.hyperparameters.value = {**hps, 'shared': shared, 'groups': groups}

    def _follow(self, scheduler: LRScheduler) -> None:
        if isinstance(scheduler, OptaxSchedule):
            scheduler.follow(self.step_count)
        self.lr_scheduler = scheduler

    def _base_lr(self, index: int) -> Any:
        """The rate from which the schedule drives a group that has no ``lr`` of its own."""
        rates = self.lr_scheduler.base_lrs
        return rates[min(index, len(rates) - 1)]

    def _group_lr(self, index: int) -> Any:
        if not self._groups:
            return self.lr_scheduler()
        hp = self.hyperparameters.value['groups'][index]
        return as_number(hp.lr_scale * self.lr_scheduler.rate(self.lr_scheduler.position, hp.lr))

    def _set_group_lr(self, index: int, value: Any) -> None:
        if len(self._groups) == 1:
            self.current_lr = value
            return
        hp = self.hyperparameters.value['groups'][index]
        scheduled = as_number(self.lr_scheduler.rate(self.lr_scheduler.position, hp.lr))
        if not isinstance(scheduled, Tracer) and scheduled == 0:
            raise ValueError(f'Invalid lr={value!r} of group {index}. The schedule stands at zero: no factor gives it.')
        self._set_option('lr_scale', validate('lr', value) / scheduled, index)

    # hyperparameters

    def __getattr__(self, name: str) -> Any:  # reached only by what is no ordinary attribute
        hps = self.__dict__['hyperparameters'].value if 'hyperparameters' in self.__dict__ else {}
        for part in ('shared', 'defaults'):
            if part in hps and name in hps[part].values():
                return hps[part].plain().values()[name]
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')

    def __setattr__(self, name: str, value: Any) -> None:
        hps = self.__dict__['hyperparameters'].value if 'hyperparameters' in self.__dict__ else {}
        if any(name in hps[part].values() for part in ('shared', 'defaults') if part in hps):
            self._set_option(name, value)
        else:
            super().__setattr__(name, value)

    def _set_option(self, name: str, value: Any, index: int | None = None) -> None:
        """Change an option, of one group or of all that have not their own, from the next update on."""
        hps = self.hyperparameters.value
        if name in hps['shared'].values():
            shared = hps['shared'].with_values(**{name: to_leaf(name, validate(name, value))})
            self.hyperparameters.value = {**hps, 'shared': shared}
            return
        old = hps['defaults'].plain().values()
        if name not in old:
            raise KeyError(f'{name!r} is no hyperparameter. Must be among {sorted(old)}.')
        value = validate(name, value, like=old[name])

        def changed(hp: Hyperparameters) -> Hyperparameters:
            before, after = hp.plain(), hp.plain().with_values(**{name: value})
            if not inside_transformation():
                self.check_options(after)
                self._check_memory(before, after, name)
            return hp.with_values(**{name: to_leaf(name, value)})

        chosen = [(index is None and name not in group.own) or index == i for i, group in enumerate(self._groups)]
        groups = [changed(hp) if own else hp for own, hp in zip(chosen, hps['groups'], strict=True)]
        defaults = changed(hps['defaults']) if index is None else hps['defaults']
        if index is not None:
            self._groups[index].own.add(name)
        self.hyperparameters.value = {**hps, 'defaults': defaults, 'groups': groups}

    def _check_memory(self, before: Hyperparameters, after: Hyperparameters, name: str) -> None:
        """Refuse a change of what the rule remembers of weights that are registered already."""
        old, new = (sorted(self.init_slots(jnp.zeros(()), hp)) for hp in (before, after))
        if self._groups and old != new:
            raise ValueError(
                f'{name} cannot change to {getattr(after, name)!r} once weights are registered: '
                f'the memory of each would be {new} instead of {old}.'
            )

    def __deepcopy__(self, memo: Any = None) -> Self:
        raise TypeError('An optimizer holds the weights of one model and cannot be copied: build another one.')

    def __repr__(self) -> str:
        hps = self.hyperparameters.value
        options = {**hps['defaults'].plain().values(), **hps['shared'].plain().values()}
        shown = ''.join(
            f', {name}={value!r}' for name, value in options.items() if name not in ('lr_scale', 'schedule')
        )
        return f'{type(self).__name__}(lr={self.lr_scheduler!r}{shown})'


Optimizer.__signature__ = constructor_signature(Optimizer)
