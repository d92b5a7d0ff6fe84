"""Optimizer: the shell that registers weights, updates them, and shows options as attributes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import brainstate
import brainunit
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from braintools_optim.compiled.access import is_traced
from braintools_optim.compiled.evaluation import eval_weights
from braintools_optim.compiled.pure import PureStep
from braintools_optim.compiled.update import Updater, check_call
from braintools_optim.constraints import Constraint
from braintools_optim.core import Arguments, Core, check_options
from braintools_optim.groups.spec import GroupValue
from braintools_optim.learning_rate import LearningRate, Rate, Scheduled
from braintools_optim.loss_scale import DynamicLossScale, check_loss_scale
from braintools_optim.options.built import BuiltNode
from braintools_optim.options.fields import HasOptions, Option, bind, fields_of, signature_of
from braintools_optim.options.hints import hint_for_method
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.kinds import AT_LEAST_ONE, Argument, Choice, Flag, Number
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import ArrayOrQuantity, Options, OptionValue, Tree
from braintools_optim.param_groups import Grouped
from braintools_optim.saving.hooked import Hooked
from braintools_optim.saving.saved import Saved
from braintools_optim.saving.summary import one_line, summary
from braintools_optim.settings import OptimState, Settings, as_plain
from braintools_optim.step.accumulation import ACCUMULATOR
from braintools_optim.step.arguments import (
    check_axes,
    check_constraints,
    check_dtype,
    check_groups,
    check_metrics,
    check_no_decay,
    check_norm_unit,
    check_stages,
)
from braintools_optim.step.averages import Average, average_stage, check_average
from braintools_optim.step.diagnosis import Diagnosis
from braintools_optim.step.gradients import check_transform
from braintools_optim.step.metrics import first_metrics, flat
from braintools_optim.step.policy import Accumulation, WeightPolicy
from braintools_optim.step.rule import Extra, Rule
from braintools_optim.step.stage import Stage
from braintools_optim.step.stages import StageOptions, with_stages
from braintools_optim.weights.predicates import Predicate
from braintools_optim.weights.units import check_loss

__all__ = ['LearningRate', 'Optimizer']

COPY = 'An optimizer holds the weights of one model and cannot be copied: build another one.'


class Recorded(Option[OptionValue]):
    """The field ``metrics``: an argument of the constructor, which reads as the metrics of the last update."""

    def __get__(self, instance: Any, owner: type) -> dict[str, jax.Array]:
        metrics: dict[str, jax.Array] = self.default if instance is None else instance.recorded_metrics()
        return metrics

    def __set__(self, instance: HasOptions, value: bool | Literal['weights']) -> None:
        instance.write_option(self.name, value)


class States:
    """The attributes of an optimizer that hold its parts and its States.

    They are declared here because type checkers would take annotations in :class:`Optimizer` for options.
    """

    settings: Settings
    _core: Core
    _updater: Updater
    opt_state: OptimState | None
    """The State of the optimizer state, None before weights are registered."""
    step_count: OptimState
    """The State of the number of updates."""
    did_update_state: OptimState | None
    """The State of ``did_update``, None if gradients are not accumulated."""
    metrics_state: OptimState | None
    """The State of the metrics, None without ``metrics=True``."""


class Optimizer(StageOptions, States, Scheduled, Grouped, Saved, Hooked, Rule, BuiltNode):
    r"""Base class of all optimizers, which does everything except the rule.

    An update clips the gradients by their global norm and then by value, adds ``weight_decay`` times the weight, asks
    the rule for a direction, and subtracts ``lr`` times the direction. With ``decoupled_weight_decay`` the decay is
    added to the direction instead. A subclass declares its options as class fields and defines
    :meth:`~Rule.init_slots` and :meth:`~Rule.direction`; it needs no constructor.

    All options are checked: a value of the wrong type raises ``TypeError``, a value out of range ``ValueError``. Every
    option is an attribute; assigning it acts on the next update, also in functions that are already compiled. Numbers
    may be given as an LRScheduler or a function of the update count, which then drives them.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        Learning rate, >= 0, in units of the weight per unit of the direction. Call ``step()`` of a scheduler to
        advance it; a callable is a function of the update count and follows it by itself.
    grad_clip_norm : float, optional
        Clip the gradients to this global norm, > 0.
    grad_clip_value : float, optional
        Clip each entry of the gradients to this size, > 0, after clipping by norm.
    weight_decay : float, default 0.0
        Strength of the L2 penalty, >= 0. An argument of optimizers that list it.
    decoupled_weight_decay : bool, default False
        Decay the weights themselves instead of adding the penalty to the gradients. An argument of optimizers that
        list it.
    maximize : bool, default False
        Maximize the objective instead of minimizing it.
    cautious : bool, default False
        Move only entries whose direction agrees with the sign of the gradient, and those further (Liang et al., 2024).
    centralize : bool, default False
        Subtract from the gradient of each unit its mean over the unit's inputs (Yong et al., 2020): the mean over all
        axes but the last, where the layout of ``brainstate.nn`` has the outputs. ``optax.centralize`` takes the mean
        over all axes but the first, as for torch's layout. Vectors and scalars are left alone.
    grokfast : float, optional
        Add this multiple of the gradient's moving average to the gradient, > 0 (Lee et al., 2024).
    grokfast_decay : float, default 0.98
        Decay rate of this moving average, in [0, 1).
    grad_clip_over : {'all', 'group', 'weight'}, default 'all'
        Whether ``grad_clip_norm`` bounds the norm of all gradients, of each group's gradients, or of each gradient.
    grad_clip_adaptive : float, optional
        Clip the norm of each unit's gradient to this multiple of the norm of its weights, > 0 (Brock et al., 2021),
        after clipping by norm and before clipping by value.
    norm_unit : 'own' or list of units, optional
        How weights of different dimensions count in one norm: ``'own'`` takes the numbers in the unit of each weight,
        units take the numbers in these units. Without it, clipping such weights by one norm warns.
    on_nonfinite : {'ignore', 'skip', 'zero', 'raise'}, default 'ignore'
        The treatment of NaN and inf in gradients. ``'ignore'`` updates as usual, ``'skip'`` leaves everything as it was
        and counts the update as skipped, ``'zero'`` sets these entries to zero, and ``'raise'`` leaves everything as it
        was and raises a ``FloatingPointError`` (inside a transformation, an error of the compiled function).
    max_consecutive_skips : int, default 20
        Warn after this number of skipped updates in a row, >= 1.
    loss_scale : float or DynamicLossScale, optional
        Factor by which the loss was multiplied: gradients are divided by it. With a :class:`DynamicLossScale`, updates
        whose gradients are not finite are skipped.
    groups : dict from predicate to options or optimizer, optional
        Groups of weights that override options, or that have an unregistered optimizer with its algorithm, options and
        schedule. The first predicate that chooses a weight decides. A predicate is a pattern for the last parts of a
        dotted name, a unit such as ``u.ms`` for the weights of its dimension, ``float`` for the weights without a unit,
        or a function ``(name, weight) -> bool``. See :meth:`add_param_group` for the options.
    no_decay : predicate, optional
        The weights without weight decay, such as :func:`usual_exclusions`.
    constraints : dict from predicate to Constraint or function, optional
        Projections that are applied to the weights after every update, such as
        :func:`~braintools_optim.constraints.box`.
    state_dtype : dtype, optional
        The floating-point dtype of the slots. Default: the dtype of the weight, float32 for half precision.
    rounding : {'nearest', 'stochastic'}, default 'nearest'
        How new half-precision weights are rounded. With stochastic rounding small steps add up on average.
    master_weights : bool, default False
        Keep a float32 copy of half-precision weights, so that small steps add up exactly.
    metrics : bool or 'weights', default False
        Record norms, rates and skipped updates. The attribute ``metrics`` then is a dict of arrays: ``lr`` and
        ``update_ratio`` (the norm of the update over the norm of the weights) for each group, ``grad_norm`` before
        clipping, whether the norm was ``clipped`` and the ``clipped_fraction`` of all updates, ``update_norm``, and the
        number of updates ``skipped``. With ``'weights'`` it also has one entry for each weight, in the order of
        ``weight_names``: ``grad_norms`` before clipping, ``update_ratios``, ``weight_norms`` before the update, and
        ``clipped_entries``, the share of entries that ``grad_clip_value`` clipped. :meth:`log` names them.
    accumulate_steps : int, default 1
        Number of calls of :meth:`update` whose gradients make one update, >= 1. Only an update clips, decays, projects
        and counts. Gradients that are not finite are left out with ``on_nonfinite='skip'``.
    accumulate : {'mean', 'sum'}, default 'mean'
        Whether the accumulated gradients are averaged or added.
    gradient_transform : optax.GradientTransformation or callable, optional
        Transformation of the gradients before clipping, such as ``optax.add_noise(...)``, or a function from the dict
        of all gradients by name to such a dict, which may read and write States. A group may have one, too.
    norm_axis_name : str or tuple of str, optional
        Axes of a mesh over whose shards norms are summed, for updates inside ``jax.shard_map`` where each shard has
        other gradients.
    shard_memory_over : str, optional
        Axis of the mesh of the weights over which slots are split that would be replicated over this axis (ZeRO-1).
    on_spike : {'ignore', 'skip', 'clip'}, default 'ignore'
        The treatment of gradients whose norm is more than ``spike_factor`` times the running norm: the update is
        skipped and counted as skipped, or the gradients are scaled to this bound. The first 10 updates only observe.
    spike_factor : float, default 3.0
        Factor of the running norm above which a norm is a spike, > 0.
    spike_decay : float, default 0.98
        Decay rate of the running norm, in [0, 1). A spike enters the running norm as its bound.
    average : Average, optional
        Average of the weights to keep, such as ``EMA(0.999)``, ``SWA(start=1000)`` or ``Polyak()``, for
        :meth:`eval_weights`. Optimizers that have evaluation weights of their own refuse it.
    stages : sequence of Stage, optional
        Further stages of the update, just before or just after the direction of the rule, see :class:`Stage`.
    """

    __signature__: ClassVar[inspect.Signature]
    graph_invisible_attrs = ('_is_built', '_core', '_updater', 'groups', 'constraints')  # not copied, not sorted
    author_names: ClassVar[Mapping[str, str]] = {}
    """Names that the authors of the algorithm, torch or others use for options, for the error about an unknown one."""
    replaces_gradient: ClassVar[bool] = False
    """Whether an update replaces the given gradient by another one, as :class:`SAM` does."""

    lr: Rate = Rate(1e-3)
    _: KW_ONLY
    norm_unit: Annotated[
        Literal['own'] | brainunit.Unit | Sequence[brainunit.Unit] | None, Argument(check_norm_unit)
    ] = None
    loss_scale: Annotated[float | DynamicLossScale | None, Argument(check_loss_scale)] = None
    groups: Annotated[Mapping[Predicate, GroupValue] | None, Argument(check_groups)] = None
    no_decay: Annotated[Predicate | None, Argument(check_no_decay)] = None
    constraints: Annotated[
        Mapping[Predicate, Constraint | Callable[[jax.Array], jax.Array]] | None, Argument(check_constraints)
    ] = None
    state_dtype: Annotated[DTypeLike | None, Argument(check_dtype)] = None
    master_weights: Annotated[bool, Argument(Flag().check)] = False
    metrics: Recorded = Recorded(False, Argument(check_metrics))
    accumulate_steps: Annotated[int, Argument(Number(AT_LEAST_ONE, integer=True, static=True).check)] = 1
    accumulate: Annotated[Literal['mean', 'sum'], Argument(Choice(('mean', 'sum')).check)] = 'mean'
    average: Annotated[Average | None, Argument(check_average)] = None
    norm_axis_name: Annotated[str | tuple[str, ...] | None, Argument(check_axes)] = None
    shard_memory_over: Annotated[str | None, Argument(check_axes)] = None
    gradient_transform: Annotated[
        optax.GradientTransformation | Callable[[dict[str, jax.Array]], Mapping[str, jax.Array]] | None,
        Argument(check_transform),
    ] = None
    on_spike: Annotated[Literal['ignore', 'skip', 'clip'], Argument(Choice(('ignore', 'skip', 'clip')).check)] = (
        'ignore'
    )
    stages: Annotated[Sequence[Stage], Argument(check_stages)] = ()

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        cls.__signature__ = shown_signature(cls)

    if not TYPE_CHECKING:  # checkers and editors make the constructor from the fields

        def __init__(self, /, *args, **kwargs):
            cls = type(self)
            fields = fields_of(cls)
            options = self.resolve(bind(cls.__name__, signature_of(fields), args, kwargs, cls.author_names))
            options |= {name: field.default for name, field in fields.items() if not (field.init or field.init_only)}
            lr, fixed = options.pop('lr'), {name for name, field in fields.items() if field.kind.fixed}
            for name in fixed:
                self.__dict__[name] = fields[name].kind.check(name, options.pop(name))
            records = self.__dict__.pop('metrics')
            self.step_count = OptimState(jnp.zeros((), jnp.int32))
            self.opt_state = None
            self.metrics_state = OptimState(first_metrics(0, 0 if records == 'weights' else None)) if records else None
            settings = Settings(cls, lr, options, self.step_count)
            arguments = Arguments(
                self.no_decay,
                self.constraints,
                self.norm_unit,
                self.loss_scale,
                self.gradient_transform,
                self.groups,
                self.shard_memory_over,
            )
            steps = int(self.accumulate_steps)
            policy = WeightPolicy(
                with_stages(self.stages, last_stages(self.average, self.accumulate_steps)),
                state_dtype=None if self.state_dtype is None else jnp.dtype(self.state_dtype),
                master_weights=self.master_weights,
                metrics=records,
                on_spike=self.on_spike,
                norm_axis_name=self.norm_axis_name,
                accumulation=None if steps == 1 else Accumulation(steps, self.accumulate),
            )
            did_update = OptimState(jnp.ones((), bool))
            self.did_update_state = None if steps == 1 else did_update
            self._core = Core(self, settings, arguments, policy, self.step_count, self.metrics_state, did_update)
            check_options(self, Hyperparameters(as_plain(cls, settings.options.defaults)))
            if self.average is not None and self.has_evaluation:
                raise ValueError(f'Invalid average={self.average!r}. {cls.__name__} has evaluation weights of its own.')
            self._updater = Updater(self._core)
            self.settings = settings

    def resolve(self, options: Options) -> Options:
        """Return the arguments of the constructor, defaults included, in the form in which they are checked."""
        return options

    @property
    def donate_weights(self) -> bool:
        """Whether an update outside ``jit`` may reuse the buffers of the weights.

        Arrays that were read from ``w.value`` before an update are then deleted by the update.
        """
        donates: bool = self._updater.donate_weights
        return donates

    @donate_weights.setter
    def donate_weights(self, value: bool) -> None:
        self._updater.donate_weights = Flag().check('donate_weights', value)

    # one update

    def update(
        self,
        grads: Tree,
        *,
        loss_unit: brainunit.Unit | None = None,
        partial: bool = False,
        flush: bool = False,
        loss_scale: float | jax.Array | None = None,
        value: ArrayOrQuantity | None = None,
        value_fn: Callable[..., ArrayOrQuantity] | None = None,
    ) -> None:
        """Update the weights in place.

        Outside a brainstate transformation this calls one compiled function, which reuses the buffers of the optimizer
        state; inside a transformation the update is traced. An error leaves every State as it was.

        Parameters
        ----------
        grads : tree
            The gradients under the registered keys, as ``brainstate.transform.grad`` returns them. The gradient of a
            weight with a unit has that unit, or the unit of the loss divided by it (``unit_aware=True``).
        loss_unit : brainunit.Unit, optional
            The unit of the loss. Required if the loss has a unit that the gradients alone do not determine.
        partial : bool, default False
            Whether gradients may be missing or None: their weights, slots and counts stay. Gradients of weights that
            are not registered are then ignored.
        flush : bool, default False
            Whether to update now with the gradients that are accumulated, these included.
        loss_scale : float, optional
            Factor by which the loss was multiplied. Default: the loss scale of the optimizer.
        value, value_fn : optional
            The loss and the function that computes it, for optimizers that use them (:class:`LBFGS`,
            :class:`PolyakSGD`, :class:`Sophia`, :class:`SAM`). Other optimizers ignore them.
        """
        self.update_with(grads, self.extra_args(value, value_fn), loss_unit, partial, loss_scale, flush)

    def update_with(
        self,
        grads: Tree,
        extra: Extra,
        loss_unit: brainunit.Unit | None = None,
        partial: bool = False,
        loss_scale: float | jax.Array | None = None,
        flush: bool = False,
    ) -> None:
        """Update the weights as :meth:`update` does, given what :meth:`extra_args` would return."""
        hooks = self._core.hooks
        if not hooks.by_event:
            self._updater(grads, extra, check_call(loss_unit, partial, flush), loss_scale)
            return

        def step(
            grads: Tree,
            *,
            loss_unit: brainunit.Unit | None = None,
            partial: bool = False,
            loss_scale: float | jax.Array | None = None,
            flush: bool = False,
            **extra: Any,
        ) -> None:
            self._updater(grads, extra, check_call(loss_unit, partial, flush), loss_scale)

        call = {'loss_unit': loss_unit, 'partial': partial, 'loss_scale': loss_scale, 'flush': flush}
        hooks.run_step(self, (grads,), {**call, **extra}, step)

    def step(self, grads: Tree, **arguments: Any) -> None:
        """Call :meth:`update`."""
        self._core.registered('step')
        self.update(grads, **arguments)

    def minimize(self, loss_fn: Callable[..., Tree], *args: Tree, has_aux: bool = False) -> Tree:
        """Compute the gradient of ``loss_fn(*args)`` for the weights, update them, and return the loss (and aux).

        Outside a transformation ``loss_fn`` is traced in every call, so the step follows every variable, attribute or
        list that ``loss_fn`` reads. The step is compiled again only if the traced operations differ, or their shapes,
        or Python numbers inside a loop; other numbers and arrays may change, and ``loss_fn`` may be a new ``lambda``
        each time. If only States and ``args`` change, compile the step yourself, which saves the time of tracing:
        ``step = jit(lambda x: optimizer.minimize(loss_fn, x))``.

        Weights that the loss does not depend on have the gradient 0. The loss is multiplied by the loss scale, if there
        is one, and an optimizer that uses the loss is given it.
        """

        def loss_and_aux(*args: Tree) -> tuple[Tree, ...]:
            returned = loss_fn(*args)
            if has_aux and not isinstance(returned, tuple):
                raise TypeError(f'Invalid has_aux=True. loss_fn must return (loss, aux), not {returned!r}.')
            results = returned if has_aux else (returned,)
            check_loss(results[0])
            return results

        def step(of: Callable[..., tuple[Tree, ...]], *args: Tree) -> Tree:
            def scaled() -> tuple[ArrayOrQuantity, tuple[Tree, ...]]:
                results = of(*args)
                return self.scaled_loss(results[0]), results

            grads, results = self.gradient_of(scaled, has_aux=True)
            self.update_from_loss(grads, results[0], lambda: of(*args)[0])
            return tuple(results) if has_aux else results[0]

        if not callable(loss_fn):
            raise TypeError(f'Invalid loss_fn={loss_fn!r}. Must be callable.')
        Flag().check('has_aux', has_aux)
        self._core.registered('minimize')
        self._core.refuse_evaluating('An update')
        if is_traced() or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return step(loss_and_aux, *args)
        return self._updater.replay((type(self), has_aux), step, loss_and_aux, args, args)

    def extra_args(self, value: ArrayOrQuantity | None, value_fn: Callable[..., ArrayOrQuantity] | None) -> Extra:
        """Return the arguments of the rule, given the loss and its function or None; raise if one is needed."""
        return {}

    def update_from_loss(self, grads: Tree, value: ArrayOrQuantity, value_fn: Callable[[], ArrayOrQuantity]) -> None:
        """Update the weights, given the gradients, the loss, and a function that computes the loss again."""
        self.update_with(grads, self.extra_args(value, value_fn))

    def gradient_of(self, loss: Callable[[], Tree], has_aux: bool = False) -> Tree:
        """Return the gradient of a loss with respect to all registered weights."""

        def loss_after_reading_all() -> Tree:
            self.param_states.to_pytree_value()  # brainstate refuses gradients for States that the loss does not read
            return loss()

        states: Tree = self.param_states.to_pytree()
        grad: Any = brainstate.transform.grad(loss_after_reading_all, states, has_aux=has_aux)
        return grad()

    def scaled_loss(self, loss: ArrayOrQuantity) -> ArrayOrQuantity:
        """Return the loss times the loss scale."""
        if isinstance(self.loss_scale, DynamicLossScale):
            return self.loss_scale.scale(loss)
        return loss if self.loss_scale is None else loss * self.loss_scale

    @property
    def did_update(self) -> OptimState:
        """The State of whether the last call of :meth:`update` updated the weights; True without accumulation."""
        return self._core.did_update

    @property
    @explicit_transfers
    def skipped_count(self) -> int:
        """The number of updates that were skipped because gradients were not finite."""
        return 0 if self.opt_state is None else self.opt_state.value.skipped[0]

    def recorded_metrics(self) -> dict[str, jax.Array]:
        """Return the metrics of the last update; inside a transformation they are traced."""
        if self.metrics_state is None:
            raise ValueError('There are no metrics. Give metrics=True to the constructor.')
        return dict(self.metrics_state.value)

    def log(self) -> dict[str, float]:
        """Return the metrics of the last update, and the number of updates as ``step``, as floats by flat names.

        Names are ``grad_norm``, ``lr/0`` and ``update_ratio/group/0`` for groups, and ``grad_norm/encoder.weight`` for
        weights (``metrics='weights'``). The numbers come from the device in one transfer.
        """
        metrics = self.recorded_metrics()
        if is_traced():
            raise ValueError(
                'log() cannot be called inside a transformation. Return optimizer.metrics from it instead.'
            )
        values: dict[str, Any] = jax.device_get({'step': self.step_count.value, **metrics})
        return flat(values, self.weight_names)

    @explicit_transfers
    def diagnose(self, grads: Tree) -> Diagnosis:
        """Return which gradients are not finite, zero or largest, by name; print the result to read it."""
        diagnosis: Diagnosis = self._updater.diagnose(grads)
        return diagnosis

    def as_pure_step(self) -> PureStep:
        """Return the step as a pure function, with the present options and without the States."""
        return PureStep.of(self._core)

    def eval_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the States hold the weights to evaluate, such as averages.

        Leaving the ``with`` block, also by an exception, puts back the very arrays that were there. Inside the block an
        update, a registration, a checkpoint and another ``eval_weights`` raise.

        Raises
        ------
        TypeError
            If the algorithm has no evaluation weights besides the weights in training.
        """
        return eval_weights(self._core, self._updater)

    # options

    def read_option(self, name: str) -> OptionValue:
        """Return the present value of an option."""
        if name in self.__dict__:
            return self.__dict__[name]
        if 'settings' not in self.__dict__:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return self.settings.read(name)

    def write_option(self, name: str, value: OptionValue) -> None:
        """Assign an option, with effect from the next update."""
        if fields_of(type(self))[name].kind.fixed:
            if '_is_built' in self.__dict__:
                raise ValueError(f'{name} of {type(self).__name__} is fixed. Build another optimizer.')
            attributes: Any = self.__dict__
            attributes[name] = value
        else:
            self.settings.set(name, value, None, self._core.check_change)

    if not TYPE_CHECKING:  # checkers and editors refuse unknown names

        def __getattr__(self, name: str) -> object:  # called only if there is no such attribute
            if name in ('_core', '_updater'):
                raise ValueError(f'{COPY} {type(self).__name__} is a copy.')
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}{hint_for_method(name)}')

        def __setattr__(self, name: str, value: object) -> None:
            if '_is_built' in self.__dict__ and not isinstance(getattr(type(self), name, None), property):
                self._admit_attribute(name, value)
            super().__setattr__(name, value)

    def _admit_attribute(self, name: str, value: object) -> None:
        """Raise unless an attribute may be assigned after construction."""
        fields, old = fields_of(type(self)), self.__dict__.get(name)
        if name in fields:
            return
        if name in self.__dict__ and name in inspect.signature(type(self)).parameters:
            raise ValueError(f'{name} of {type(self).__name__} is fixed. Build another optimizer.')
        if not (name.startswith('_') or name in self.__dict__ or hasattr(type(self), name)):
            options = sorted(name for name, field in fields.items() if not (field.kind.fixed or field.init_only))
            close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
            raise AttributeError(
                f'Invalid {name}={value!r}. {type(self).__name__} has no such option. '
                f'Must be among {close or options}. Only a constructor can add other attributes.'
            )
        if isinstance(old, (brainstate.State, Settings)) and not isinstance(value, type(old)):
            raise TypeError(f'Invalid {name}={value!r}. Must be {type(old).__name__}. Only its value can change.')

    def __deepcopy__(self, memo: object = None) -> Self:
        raise TypeError(COPY)

    def __str__(self) -> str:
        return summary(self._core)

    def __repr__(self) -> str:
        return one_line(self._core)


def last_stages(average: Average | None, accumulate_steps: int) -> list[Stage]:
    """Return the stages of an average of the weights and of the accumulation of gradients, if they are on."""
    averaging = [] if average is None else [average_stage(average)]
    return [*averaging, ACCUMULATOR] if accumulate_steps > 1 else averaging


def shown_signature(cls: type[Optimizer]) -> inspect.Signature:
    """Return the signature of the constructor, which brainstate's Node hides, with the shared options last."""
    shared = fields_of(Optimizer) if cls is not Optimizer else {}
    fields = list(signature_of(fields_of(cls)).parameters.values())
    fields.sort(key=lambda p: p.kind is p.KEYWORD_ONLY and p.name in shared)
    if cls.__init__ is not Optimizer.__init__:
        declared = list(inspect.signature(cls.__init__).parameters.values())[1:]
        takes_shared = bool(declared) and declared[-1].kind is inspect.Parameter.VAR_KEYWORD
        more = [p for p in fields if p.kind is p.KEYWORD_ONLY and p.name in shared] if takes_shared else []
        taken = {p.name for p in declared}
        fields = [*declared[: -1 if takes_shared else None], *(p for p in more if p.name not in taken)]
    return inspect.Signature(fields)


Optimizer.__signature__ = shown_signature(Optimizer)
