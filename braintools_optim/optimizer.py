"""Optimizer: the shell that owns the States. Registers weights, updates them, holds groups and lr."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

import brainstate
import jax
import jax.numpy as jnp
from brainstate.graph import Node
from jax.core import Tracer

from braintools_optim import checkpoint, conversion, evaluation
from braintools_optim.attributes import OptimizerMeta, admitted
from braintools_optim.buffers import Made
from braintools_optim.diagnosis import Diagnosis
from braintools_optim.groups import Group, ParamGroup, divided
from braintools_optim.learning_rate import LearningRate, Scheduled
from braintools_optim.loss_scale import DynamicLossScale
from braintools_optim.metrics import first_metrics
from braintools_optim.options import Hyperparameters
from braintools_optim.registration import add_groups, set_frozen
from braintools_optim.selection import Predicate
from braintools_optim.settings import OptimState, Settings
from braintools_optim.shared_options import FIXED, OF_ALL, SHARED, check_fixed
from braintools_optim.signatures import constructor_arguments, constructor_signature, given
from braintools_optim.states import inside_transformation
from braintools_optim.step import first_slots
from braintools_optim.summary import summary
from braintools_optim.treatment import Treatment
from braintools_optim.updates import Functions, Updates
from braintools_optim.weights import UniqueStateManager, Weights

__all__ = ['LearningRate', 'Optimizer', 'given']

COPY = 'An optimizer holds the weights of one model and cannot be copied: build another one.'


class Optimizer(Updates, Scheduled, Node, metaclass=OptimizerMeta):
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
    cautious : bool, default False
        Only entries whose direction agrees with the sign of the gradient move, and those further
        (Liang et al., 2024).
    grokfast : float, optional
        How much of its own moving average is added to the gradient, above 0 (Lee et al., 2024).
    grokfast_decay : float, default 0.98
        The decay rate of that average, in [0, 1).
    grad_clip_over : {'all', 'group', 'weight'}, default 'all'
        Whose norm ``grad_clip_norm`` bounds: that of all gradients, of a group's, of each weight's.
    grad_clip_adaptive : float, optional
        The greatest norm of a unit's gradient over that of its weights, above 0 (Brock et al., 2021).
        Clipping goes by norm, then adaptively, then by value.
    norm_unit : 'own' or list of units, optional
        How weights of different dimensions count in one norm: by the numbers in their own units, or as if
        they were written in these units. Not given, clipping such weights by a norm warns.
    on_nonfinite : {'ignore', 'skip', 'zero', 'raise'}, default 'ignore'
        What an update does that finds NaN or inf in gradients: nothing special; it leaves all as it was
        and counts; it takes those entries as zero; it leaves all as it was and raises ``FloatingPointError``
        (inside a transformation, an error of the compiled function).
    max_consecutive_skips : int, default 20
        After how many skipped updates in a row to warn.
    loss_scale : float or DynamicLossScale, optional
        What the loss was multiplied by: gradients are divided by it. Under a :class:`DynamicLossScale`,
        updates with gradients that are not finite are skipped.
    groups : dict from predicate to options, optional
        Groups of weights with options of their own. The first predicate that fits a weight takes it. A
        predicate is a pattern for the last parts of a dotted name, or a function ``(name, weight) -> bool``.
    no_decay : predicate, optional
        Weights without weight decay, such as :func:`usual_exclusions`.
    constraints : dict from predicate to Constraint or function, optional
        Projections that the weights obey after every update, see :mod:`braintools_optim.constraints`.
    state_dtype : dtype, optional
        What the memory is kept in. Default: the weight's dtype, float32 for half precision.
    rounding : {'nearest', 'stochastic'}, default 'nearest'
        How half-precision weights are rounded; stochastically, small steps add up on average.
    master_weights : bool, default False
        Keep a float32 copy of half-precision weights, so that small steps add up exactly.
    metrics : bool, default False
        Keep what each update saw and did, see :attr:`metrics`.
    **options
        The rule's own hyperparameters. Every option is an attribute; assigning it acts on the next
        update, in functions that are compiled already too.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.
    """

    __signature__: ClassVar[inspect.Signature]
    graph_invisible_attrs = ('_is_built', '_weights')  # so that brainstate does not copy them
    donate_weights: bool = False
    """Whether an update outside ``jit`` may reuse the weights' buffers: arrays got from ``w.value`` before are lost."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = constructor_signature(cls, SHARED)

    def __init__(
        self,
        lr: LearningRate,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        **options: Any,
    ):
        kinds = {name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()}
        if unknown := options.keys() - kinds.keys() - constructor_arguments(type(self)):
            raise TypeError(f'{type(self).__name__} has no option {sorted(unknown)}. Must be among {sorted(kinds)}.')
        options = SHARED | options
        shared = {'grad_clip_norm': grad_clip_norm, 'grad_clip_value': grad_clip_value}
        shared |= {name: options.pop(name) for name in OF_ALL}
        check_fixed(options)
        for name in FIXED.keys() - {'metrics'}:
            setattr(self, name, options[name])
        defaults = {
            **{name: value for name, value in options.items() if name not in FIXED},
            'weight_decay': weight_decay,
            'decoupled_weight_decay': decoupled_weight_decay,
            'lr_scale': 1.0,
            **self.group_options,
        }
        self.metrics_state = OptimState(first_metrics(0)) if options['metrics'] else None
        dtype = None if self.state_dtype is None else floating_dtype(self.state_dtype)
        self._treatment = Treatment(state_dtype=dtype, master_weights=self.master_weights, metrics=options['metrics'])
        self._freezing: list[tuple[Predicate, bool]] = []
        self.step_count = OptimState(jnp.zeros((), jnp.int32))
        self.opt_state: OptimState | None = None
        settings = Settings(lr, shared, defaults, kinds, self.step_count)
        self._admit(settings.options['defaults'].plain())
        self._weights = Weights()
        self._groups: list[Group] = []
        self._warned_of_units = False
        self._compiled: dict[tuple[int, ...], Callable[..., Any]] = {}
        self._jitted = Functions()
        self._made = Made()
        self.settings = settings  # last: from here on assigning an option goes through it

    # weights and groups

    def register_trainable_weights(self, param_states: Any) -> Self:
        """Take hold of weights: a tree of ``brainstate.State``, such as ``model.states(brainstate.ParamState)``.

        Weights that are registered already keep their memory; further ones become a group, or those of ``groups``.
        Returns the optimizer.
        """
        weights, keys = self._weights.extended(param_states, skip_known=bool(self._groups))
        if keys:
            named = weights.named()
            parts = divided({key: named[key] for key in keys}, self.groups or {})
            chosen = [Group(names, {name: weights.state_of(name) for name in names}) for names, _ in parts]
            chosen[0] = Group(parts[0][0], param_states) if len(parts) == 1 else chosen[0]
            add_groups(self, weights, chosen, [dict(options) for _, options in parts])
        return self

    def add_param_group(self, params: Any, **overrides: Any) -> None:
        """Take hold of more weights, with options of their own (``lr``, ``weight_decay``, ``betas``, ...).

        The schedule drives the group from its own ``lr``; options not given are the optimizer's.
        """
        if not self._groups:
            raise ValueError('register_trainable_weights must be called before add_param_group.')
        weights, keys = self._weights.extended(params)
        add_groups(self, weights, [Group(keys, params)], [overrides])

    def _parted(
        self, weights: Weights, groups: list[Group], overrides: list[dict[str, Any]]
    ) -> tuple[list[Group], list[dict[str, Any]]]:
        """Further groups and their options, as the rule needs them."""
        return groups, overrides

    def freeze(self, predicate: Predicate) -> None:
        """Leave weights as they are: no update, no decay, not in a norm; also those registered later.

        Weights that were never updated have no memory while they are frozen. Their gradients may be missing.
        """
        set_frozen(self, predicate, True)

    def unfreeze(self, predicate: Predicate) -> None:
        """Update weights again, with the memory that they had."""
        set_frozen(self, predicate, False)

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

    def update(
        self,
        grads: Any,
        *,
        loss_unit: Any = None,
        partial: bool = False,
        loss_scale: Any = None,
        value: Any = None,
        value_fn: Any = None,
    ) -> None:
        """Update the weights in place. ``grads`` has the registered keys, as ``brainstate.transform.grad`` returns it.

        A gradient of a weight with a unit wears that unit, or that of the loss divided by it (``unit_aware=True``;
        ``loss_unit`` says what unit the loss has, if it has one and the gradients alone do not tell).

        With ``partial`` gradients may be missing or None: their weights, memory and counts stay; and gradients of
        what is not registered are ignored. ``loss_scale`` is what the loss was multiplied by, by default the
        optimizer's own. ``value`` and ``value_fn``, the loss, are for optimizers that look at it
        (:class:`LBFGS`, :class:`PolyakSGD`, :class:`Sophia`); others need them not.

        Outside a brainstate transformation this runs one compiled function, which reuses the memory's
        buffers; inside it is traced. An error leaves every State as it was.
        """
        self._update(grads, loss_unit, self._told(value, value_fn), partial, loss_scale)

    def step(self, grads: Any, **arguments: Any) -> None:
        """The same as :meth:`update`."""
        self.update(grads, **arguments)

    def minimize(self, loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False) -> Any:
        """Take the gradient of ``loss_fn(*args)`` with respect to the weights, update them, return the loss (and aux).

        All in one compiled function, kept for ``loss_fn``: give the same function each time, not a new ``lambda``.
        Weights that the loss does not depend on have the gradient 0.
        The loss is multiplied by the loss scale, if there is one; an optimizer that looks at the loss is given it, too.
        """

        def run(*args: Any) -> Any:
            def loss_of() -> Any:
                returned = loss_fn(*args)
                if has_aux and not isinstance(returned, tuple):
                    raise TypeError(f'Invalid has_aux=True. loss_fn must return (loss, aux), not {returned!r}.')
                loss, *aux = returned if has_aux else (returned,)
                return self._scaled(loss), (loss, *aux)

            grads, results = self._gradient(loss_of, has_aux=True)
            self._update_knowing(grads, results[0], lambda: loss_of()[1][0])
            return tuple(results) if has_aux else results[0]

        if not callable(loss_fn):
            raise TypeError(f'Invalid loss_fn={loss_fn!r}. Must be callable.')
        if type(has_aux) is not bool:
            raise TypeError(f'Invalid has_aux={has_aux!r}. Must be a bool.')
        if self.opt_state is None:
            raise ValueError('register_trainable_weights must be called before minimize.')
        evaluation.refuse_inside(self, 'An update')
        if inside_transformation():
            return run(*args)
        return self._jit((loss_fn, has_aux), run)(*args)

    def _gradient(self, loss: Callable[[], Any], has_aux: bool = False) -> Any:
        """That of a loss by all weights."""

        def after_all_are_read() -> Any:
            self.param_states.to_pytree_value()  # brainstate takes no gradient by what is not read
            return loss()

        grad: Any = brainstate.transform.grad(after_all_are_read, self.param_states.to_pytree(), has_aux=has_aux)
        return grad()

    def _scaled(self, loss: Any) -> Any:
        if isinstance(self.loss_scale, DynamicLossScale):
            return self.loss_scale.scale(loss)
        return loss if self.loss_scale is None else loss * self.loss_scale

    def _update_knowing(self, grads: Any, value: Any, value_fn: Callable[[], Any]) -> None:
        """Update with a loss at hand."""
        self._update(grads, None, self._told(value, value_fn))

    def _told(self, value: Any, value_fn: Any) -> dict[str, Any]:
        """What the rule is told of the loss besides the gradients, as far as it is known."""
        return {}

    @property
    def skipped_count(self) -> int:
        """How many updates were skipped because of gradients that were not finite."""
        return 0 if self.opt_state is None else self.opt_state.value['skipped'][0]

    @property
    def metrics(self) -> dict[str, Any]:
        """What the last update saw and did, if ``metrics=True`` was given.

        ``lr`` and ``update_ratio`` (norm of the update over that of the weights) by group, ``grad_norm`` before
        clipping, whether it was ``clipped`` and the ``clipped_fraction`` of all updates, ``update_norm``, and the
        number ``skipped``. In a transformation the values are traced.
        """
        if self.metrics_state is None:
            raise ValueError('There are no metrics. Give metrics=True to the constructor.')
        return dict(self.metrics_state.value)

    def diagnose(self, grads: Any) -> Diagnosis:
        """Which gradients are not finite, zero or the largest, by name; readable when printed."""
        return Diagnosis.of(self._weights.match(grads, partial=True)[0])

    # options

    def __getattr__(self, name: str) -> Any:  # reached only by what is no ordinary attribute
        if name == '_weights':
            raise ValueError(f'{COPY} {type(self).__name__} is a copy.')
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
            super().__setattr__(name, admitted(self, name, value) if '_is_built' in self.__dict__ else value)

    def _admit(self, options: Hyperparameters) -> None:
        """Refuse options that do not go together; what is traced is not known."""
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(options)):
            self.check_options(options)
        if self.decays and options.decoupled_weight_decay:
            raise ValueError(f'Invalid decoupled_weight_decay=True. {type(self).__name__} applies weight_decay itself.')

    def _check_change(self, before: Hyperparameters, after: Hyperparameters) -> None:
        """Refuse options that do not go together, or change what the rule remembers of weights it has already."""
        self._admit(after)
        w = jnp.zeros((1, 1))
        old, new = (first_slots(self, w, hp, self._treatment) | self.init_slots(w, hp) for hp in (before, after))
        same = old.keys() == new.keys() and all(old[k] is new[k] or equal(old[k], new[k]) for k in old)
        if self._groups and not same:
            changed = {k: v for k, v in after.values().items() if v != before.values()[k]}
            raise ValueError(
                f'{changed} cannot be assigned once weights are registered: the memory of each '
                f'would begin as {sorted(new)}, and it is {sorted(old)}.'
            )

    # evaluation

    def eval_weights(self) -> AbstractContextManager[None]:
        """``with optimizer.eval_weights():`` the States hold the weights to evaluate, such as averages.

        Leaving the block, by an exception too, puts back the very arrays that were there. Inside it an update,
        a registration, a checkpoint and another ``eval_weights`` are errors. ``TypeError`` if the weights in
        training are those to evaluate.
        """
        return evaluation.eval_weights(self)

    # checkpoints

    state_dict = checkpoint.state_dict
    load_state_dict = checkpoint.load_state_dict
    save = checkpoint.save
    load = checkpoint.load
    reset = checkpoint.reset
    load_torch_state_dict = conversion.load_torch_state_dict
    torch_state_dict = conversion.torch_state_dict
    load_optax_state = conversion.load_optax_state
    load_braintools_state_dict = conversion.load_braintools_state_dict

    def __deepcopy__(self, memo: Any = None) -> Self:
        raise TypeError(COPY)

    def __str__(self) -> str:
        return summary(self)

    def __repr__(self) -> str:
        options = {**self.settings.plain('defaults'), **self.settings.plain('shared')}
        shown = ''.join(f', {k}={v!r}' for k, v in options.items() if k not in ('lr_scale', 'schedules'))
        return f'{type(self).__name__}(lr={self.lr_scheduler!r}{shown})'


Optimizer.__signature__ = constructor_signature(Optimizer, SHARED)


def equal(a: Any, b: Any) -> bool:
    """Whether two arrays are; while tracing, when that is not known, they are taken to be."""
    same = jnp.array_equal(a, b)
    return isinstance(same, Tracer) or bool(same)


def floating_dtype(dtype: Any) -> Any:
    refusal = f'Invalid state_dtype={dtype!r}. Must be a floating-point dtype.'
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(refusal) from None
    if not jnp.issubdtype(found, jnp.floating):
        raise TypeError(refusal)
    return found
