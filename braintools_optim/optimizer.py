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

from braintools_optim import checkpoint
from braintools_optim.groups import Group, ParamGroup
from braintools_optim.options import Hyperparameters, constructor_signature
from braintools_optim.precision import compute_dtype
from braintools_optim.rule import Rule
from braintools_optim.schedulers.base import LRScheduler
from braintools_optim.settings import OptimState, Settings
from braintools_optim.step import Memory, init_memory, merge_memory, step
from braintools_optim.weights import Scales, UniqueStateManager, Weights, inside_transformation

__all__ = ['LearningRate', 'Optimizer', 'given']

LearningRate = float | LRScheduler | Callable[[Any], Any]


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
    donate_weights: bool = False
    """Whether an update outside ``jit`` may reuse the weights' buffers: arrays got from ``w.value`` before are lost."""

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
        defaults = {
            **options,
            'weight_decay': weight_decay,
            'decoupled_weight_decay': decoupled_weight_decay,
            'maximize': maximize,
            'lr_scale': 1.0,
        }
        shared = {'grad_clip_norm': grad_clip_norm, 'grad_clip_value': grad_clip_value}
        kinds = {name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()}
        self.step_count = OptimState(jnp.zeros((), jnp.int32))
        self.opt_state: OptimState | None = None
        settings = Settings(lr, shared, defaults, kinds, self.step_count)
        self._admit(settings.values.value['defaults'].plain())
        self._weights = Weights()
        self._groups: list[Group] = []
        self._compiled = [jax.jit(self._step, donate_argnums=d, static_argnums=5) for d in (0, (0, 1))]
        self._jitted: dict[Any, Any] = {}
        self.settings = settings  # last: from here on assigning an option goes through it

    # weights and groups

    def register_trainable_weights(self, param_states: Any) -> Self:
        """Take hold of weights: a tree of ``brainstate.State``, such as ``model.states(brainstate.ParamState)``.

        Weights that are registered already keep their memory; further ones become a group. Returns the optimizer.
        """
        weights, keys = self._weights.extended(param_states, skip_known=bool(self._groups))
        if keys:
            self._add_group(weights, keys, param_states, {})
        return self

    def add_param_group(self, params: Any, **overrides: Any) -> None:
        """Take hold of more weights, with options of their own (``lr``, ``weight_decay``, ``betas``, ...).

        The schedule drives the group from its own ``lr``; options not given are the optimizer's.
        """
        if not self._groups:
            raise ValueError('register_trainable_weights must be called before add_param_group.')
        self._add_group(*self._weights.extended(params), params, overrides)

    def _add_group(self, weights: Weights, keys: list[str], params: Any, overrides: dict[str, Any]) -> None:
        options, add_options = self.settings.added(overrides)
        self._admit(Hyperparameters(options))
        leaves = dict(zip(weights.keys, weights.read(), strict=True))
        own = {key: leaves[key] for key in keys}
        memory = init_memory(self, str(len(self._groups)), own, Hyperparameters(options))
        weights.settle()
        add_options()
        if self.opt_state is None:
            self.opt_state = OptimState(memory)
        else:
            self.opt_state.value = merge_memory(self.opt_state.value, memory)
        self._weights, self._groups = weights, [*self._groups, Group(keys, params)]

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups, each a mapping from option to value that can be assigned."""
        return [ParamGroup(self, i) for i in range(len(self._groups))]

    @property
    def param_states(self) -> UniqueStateManager:
        """The registered States, each once."""
        return self._weights.manager

    @property
    def weight_names(self) -> list[str]:
        """The names of the registered weights' leaves, such as ``'layers.0.weight.bias'``."""
        return self._weights.keys

    def group_names(self, group: int) -> list[str]:
        """Those of one group."""
        return self._groups[group].keys

    # one update

    def update(self, grads: Any, *, loss_unit: Any = None, value: Any = None, value_fn: Any = None) -> None:
        """Update the weights in place. ``grads`` has the registered keys, as ``brainstate.transform.grad`` returns it.

        A gradient of a weight with a unit wears that unit, or that of the loss divided by it (``unit_aware=True``;
        ``loss_unit`` says what unit the loss has, if it has one and the gradients alone do not tell).

        ``value`` and ``value_fn``, the loss, are for line searches; other optimizers take them and need them not.

        Outside a brainstate transformation this runs one compiled function, which reuses the memory's
        buffers; inside it is traced. An error leaves every State as it was.
        """
        self._update(grads, loss_unit, {})

    def step(self, grads: Any, **arguments: Any) -> None:
        """The same as :meth:`update`."""
        self.update(grads, **arguments)

    def minimize(self, loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False) -> Any:
        """Take the gradient of ``loss_fn(*args)`` with respect to the weights, update them, return the loss (and aux).

        All in one compiled function, kept for ``loss_fn``: give the same function each time, not a new ``lambda``.
        A line search is given the loss, too.
        """

        def run(*args: Any) -> Any:
            grad: Any = brainstate.transform.grad(
                lambda: loss_fn(*args), self.param_states.to_pytree(), return_value=True, has_aux=has_aux
            )
            grads, *results = grad()
            self._update_knowing(grads, results[0], lambda: loss_fn(*args)[0] if has_aux else loss_fn(*args))
            return tuple(results) if has_aux else results[0]

        if self.opt_state is None:
            raise ValueError('register_trainable_weights must be called before minimize.')
        if inside_transformation():
            return run(*args)
        return self._jit((loss_fn, has_aux), run)(*args)

    def _update_knowing(self, grads: Any, value: Any, value_fn: Callable[[], Any]) -> None:
        """Update with a loss at hand, for those who can use it."""
        self._update(grads, None, {})

    def _update(self, grads: Any, loss_unit: Any, extra: Mapping[str, Any]) -> None:
        if self.opt_state is None:
            raise ValueError('register_trainable_weights must be called before step.')
        functions = tuple((name, value) for name, value in extra.items() if callable(value))
        if functions and not inside_transformation():  # brainstate's jit follows the States that they read
            arrays = {name: value for name, value in extra.items() if not callable(value)}
            self._jit(
                (functions, loss_unit), lambda grads, arrays: self._update(grads, loss_unit, arrays | dict(functions))
            )(grads, arrays)
            return
        leaves = self._weights.read()
        gradients, scales = self._weights.match(grads, loss_unit)
        settings = (self.settings.values.value, self.settings.positions, self.step_count.value)
        run: Callable[..., Any] = self._compiled[self.donate_weights]
        if inside_transformation():
            run, settings = self._step, jax.tree.map(jnp.asarray, settings)  # vmap's trial run passes NumPy arrays
        memory, leaves, count = run(self.opt_state.value, leaves, gradients, settings, extra, scales)
        self.opt_state.value = memory
        self.step_count.value = count
        self._weights.write(leaves)

    def _jit(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function under brainstate's jit, kept by what it does."""
        if key not in self._jitted:
            self._jitted[key] = brainstate.transform.jit(function)
        jitted: Callable[..., Any] = self._jitted[key]
        return jitted

    def _step(
        self,
        memory: Memory,
        leaves: list[Any],
        gradients: list[Any],
        settings: tuple[Any, Any, Any],
        extra: Mapping[str, Any],
        scales: Scales,
    ) -> tuple[Memory, list[Any], Any]:
        """The update as a pure function of the values of the States."""
        hps, positions, count = settings
        if scales is not None:
            wide = [
                jnp.asarray(g, compute_dtype(jnp.asarray(g))) for g in gradients
            ]  # a scale may leave float16's range
            gradients = [g * scale for g, scale in zip(wide, scales, strict=True)]
        keys = self._weights.keys
        self._weights.check_shapes(leaves)
        groups = [(group.keys, self.settings.part(hps, positions, i)) for i, group in enumerate(self._groups)]
        weights, memory = step(
            self,
            self.settings.part(hps, positions, 'shared'),
            groups,
            dict(zip(keys, leaves, strict=True)),
            dict(zip(keys, gradients, strict=True)),
            memory,
            extra,
        )
        return memory, [weights[key] for key in keys], count + 1

    # learning rate

    @property
    def lr_scheduler(self) -> LRScheduler:
        """The schedule of the learning rate."""
        return self.settings.lr_scheduler

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
        return self.settings.lr_of(0)

    @current_lr.setter
    def current_lr(self, value: Any) -> None:
        self.settings.set_lr(value)

    @property
    def base_lr(self) -> Any:
        """The rate that the schedule starts from."""
        return self.lr_scheduler.base_lrs[0]

    def lr_apply(self, fn: Callable[[Any], Any]) -> None:
        """Set the rate to ``fn`` of the present one."""
        self.current_lr = fn(self.current_lr)

    def get_last_lr(self) -> list[Any]:
        """The rate of each group."""
        return [self.settings.lr_of(i) for i in range(max(len(self._groups), 1))]

    def add_scheduler(self, scheduler: LearningRate) -> None:
        """Follow another schedule from now on."""
        self.settings.follow(scheduler)

    # options

    def __getattr__(self, name: str) -> Any:  # reached only by what is no ordinary attribute
        part = self.settings.find(name) if 'settings' in self.__dict__ else None
        if part is None:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return self.settings.plain(part)[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if 'settings' in self.__dict__ and self.settings.find(name):
            self.settings.set(name, value, None, self._check_change)
        elif name in self.__dict__ and name in inspect.signature(type(self)).parameters:
            raise ValueError(f'{name} of {type(self).__name__} is fixed. Build another optimizer.')
        else:
            super().__setattr__(name, value)

    def _admit(self, options: Hyperparameters) -> None:
        """Refuse options that do not go together; what is traced is not known."""
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(options)):
            self.check_options(options)
        if self.decays and options.decoupled_weight_decay:
            raise ValueError(f'Invalid decoupled_weight_decay=True. {type(self).__name__} applies weight_decay itself.')

    def _check_change(self, before: Hyperparameters, after: Hyperparameters) -> None:
        """Refuse options that do not go together, or change what the rule remembers of weights it has already."""
        self._admit(after)
        old, new = (self.init_slots(jnp.zeros((1, 1)), hp) for hp in (before, after))
        same = old.keys() == new.keys() and all(old[k] is new[k] or equal(old[k], new[k]) for k in old)
        if self._groups and not same:
            changed = {k: v for k, v in after.values().items() if v != before.values()[k]}
            raise ValueError(
                f'{changed} cannot be assigned once weights are registered: the memory of each '
                f'would begin as {sorted(new)}, and it is {sorted(old)}.'
            )

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on but the weights: plain numbers and NumPy arrays by path."""
        return checkpoint.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> list[str]:
        """Go on from where :meth:`state_dict` was taken.

        All differences in names, shapes, dtypes and flags are one ``ValueError`` that changes nothing;
        with ``strict=False`` what fits is loaded and the differences are returned.
        """
        return checkpoint.load_state_dict(self, state_dict, strict)

    def __deepcopy__(self, memo: Any = None) -> Self:
        raise TypeError('An optimizer holds the weights of one model and cannot be copied: build another one.')

    def __repr__(self) -> str:
        options = {**self.settings.plain('defaults'), **self.settings.plain('shared')}
        shown = ''.join(f', {k}={v!r}' for k, v in options.items() if k not in ('lr_scale', 'schedules'))
        return f'{type(self).__name__}(lr={self.lr_scheduler!r}{shown})'


Optimizer.__signature__ = constructor_signature(Optimizer)


def equal(a: Any, b: Any) -> bool:
    """Whether two arrays are; while tracing, when that is not known, they are taken to be."""
    same = jnp.array_equal(a, b)
    return isinstance(same, Tracer) or bool(same)


def given(arguments: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """The arguments of a constructor by name, from its ``locals()``: each option goes on under its own name."""
    return {name: value for name, value in arguments.items() if name not in ('self', '__class__', *left_out)}
