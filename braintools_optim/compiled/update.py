"""The update of the States: one compiled function, the States that it reads and writes, and what it donates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import brainstate
import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.compiled.access import (
    Deferred,
    are_hooked,
    deferred,
    inside_transformation,
    is_traced,
    may_access_directly,
    read,
    receive,
    write,
)
from braintools_optim.compiled.buffers import DonationCache, compiler_options
from braintools_optim.compiled.jit import Donating, donating
from braintools_optim.compiled.plan import Wanted, calls_python, jaxprs_of
from braintools_optim.compiled.replay import Replays, Step
from braintools_optim.core import Core, refuse_evaluating
from braintools_optim.loss_scale import LOSS_SCALE, DynamicLossScale
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.kinds import Scalar
from braintools_optim.options.types import ArrayOrQuantity, Tree
from braintools_optim.settings import OptimState
from braintools_optim.step.diagnosis import Diagnosis
from braintools_optim.step.metrics import next_metrics, warn_of_skips
from braintools_optim.step.rule import Extra
from braintools_optim.step.state import OptimizerState
from braintools_optim.step.step import MANY, Inputs, check_gradients, step
from braintools_optim.weights.precision import compute_dtype
from braintools_optim.weights.units import warn_of_mixed_norms

__all__ = ['Call', 'Updater', 'check_call']

SMALL = 2**16
"""The number of entries of a parameter up to which compilation takes longer than the updates of a run."""


PATIENCE = 100
"""The number of updates after which a schedule that was never stepped is noticed."""


class Call(NamedTuple):
    """The arguments of an update that are fixed when a step is compiled."""

    loss_unit: brainunit.Unit | None = None
    partial: bool = False
    dynamic: bool = False
    """Whether the loss scale adapts itself."""


DEFAULT_CALL = Call()
UNKNOWN: tuple[int, ...] = (-1,)
Written = tuple[OptimizerState, list[Tree], list[Tree], jax.Array | None]
"""The new values of the States, and whether the gradients are finite, None if the update never raises."""
P = ParamSpec('P')
R = TypeVar('R')


class Updater:
    """The updates of the States of one optimizer, and the compiled functions that make them."""

    def __init__(self, core: Core):
        self.core = core
        self.donate_weights = False
        self.compiled: dict[tuple[int, ...], Any] = {}
        self.made = DonationCache()
        self.donations: dict[tuple[tuple[int, ...], object], tuple[int, ...]] = {}
        self.functions: dict[Hashable, Callable[..., Any]] = {}
        self.replays = Replays(
            lambda function: Donating(brainstate.transform.jit(function), 'minimize', self.donated())
        )
        self.warned_of_units = False
        self.calls = 0

    def compile(self) -> None:
        """Make functions for the registered weights, by the arguments that are donated; jax compiles at the first call.

        Quick compilation takes a third off the first update of many small parameters.
        """
        sizes = self.core.weights.sizes
        options = compiler_options(quickly=len(sizes) >= MANY and sum(sizes) <= SMALL * len(sizes))
        self.compiled = {
            donated: jax.jit(self.pure_update, donate_argnums=donated, static_argnums=5, compiler_options=options)
            for donated in ((), (0,), (0, 1))
        }
        self.donations.clear()

    def __call__(
        self,
        grads: Tree,
        extra: Extra,
        call: Call = DEFAULT_CALL,
        loss_scale: Scalar | None = None,
    ) -> None:
        functions = {name: value for name, value in extra.items() if callable(value)} if extra else {}
        if functions and not (jax.config.jax_disable_jit or inside_transformation()):  # type: ignore[attr-defined]
            self.update_with_functions(grads, extra, functions, call, loss_scale)
            return
        try:
            finite = self.update_states(grads, extra, call, loss_scale)
        except TypeError:
            self.name_wrong_gradient(grads, call)
            raise
        if finite is not None:
            self.raise_unless(finite, grads)

    def count_call(self, level: int) -> None:
        """Count a call; warn once if a schedule that was never stepped has kept the rate at 0 all the time."""
        self.calls += 1
        if self.calls == PATIENCE and self.core.settings.lr_scheduler.waits_at_zero():
            schedule = type(self.core.settings.lr_scheduler).__name__
            warnings.warn(
                f'{PATIENCE} updates had the learning rate 0, because the {schedule} was never stepped. '
                'Call optimizer.lr.step() after each update or epoch.',
                stacklevel=level,
            )

    def update_states(self, grads: Tree, extra: Extra, call: Call, loss_scale: Scalar | None) -> jax.Array | None:
        """Update the States; return whether the gradients are finite, None if the update never raises."""
        opt_state = self.core.registered('step')
        scaling = self.core.arguments.loss_scale if loss_scale is None else LOSS_SCALE.check('loss_scale', loss_scale)
        weights = self.core.weights.states
        written = [opt_state, *weights, self.core.step_count]
        if isinstance(scaling, DynamicLossScale):
            written.append(scaling.state)
            scaling, call = None, call._replace(dynamic=True)
        elif scaling is not None:
            scaling = jnp.asarray(scaling, jnp.result_type(float))
        if self.core.metrics_state is not None:
            written.append(self.core.metrics_state)
        states = [*written, self.core.settings.values, *self.core.settings.sources()]
        direct = may_access_directly(states)
        state, *values = read(states, direct)
        weight_values, others = values[: len(weights)], values[len(weights) :]
        donated: tuple[int, ...] = ()
        run: Callable[..., Any] = self.pure_update
        if direct or not is_traced():
            self.count_call(6)
            # States whose hooks may refuse a write are not donated
            wanted = () if not direct and are_hooked(written) else (0, 1) if self.donate_weights else (0,)
            layout = others[len(written) - 1 - len(weights)].layout
            donated = self.donations.get((wanted, layout), UNKNOWN)
            if donated is UNKNOWN:
                arguments = state, weight_values, grads, others, extra, call, scaling
                donated = self.donations[wanted, layout] = self.donation(wanted, arguments)
            run = self.compiled[donated]
            weight_values = self.made.unaliased(weight_values, grads) if donated == (0, 1) else weight_values

        def finish(returned: Written) -> jax.Array | None:
            state, weight_values, others, finite = returned
            write(written, [state, *weight_values, *others], direct)
            if donated == (0, 1):
                self.made.remember(weight_values)
            return finite

        return receive(run, (state, weight_values, grads, others, extra, call, scaling), finish, donated != ())

    def donation(self, wanted: tuple[int, ...], arguments: tuple[Any, ...]) -> tuple[int, ...]:
        """Return which arguments to donate: none if the compiled function calls Python, where it may fail.

        The answer depends on the flags of the options, and so on their layout.
        """
        if not wanted or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return ()
        traced = self.compiled[wanted].trace(*arguments)
        return () if calls_python(jaxprs_of(traced.jaxpr)) else wanted

    def update_with_functions(
        self,
        grads: Tree,
        extra: Extra,
        functions: Mapping[str, Callable[..., ArrayOrQuantity]],
        call: Call,
        loss_scale: Scalar | None,
    ) -> None:
        """Update with functions such as the loss, which is traced in every call, as in :meth:`replay`."""
        self.core.registered('step')
        arrays = {name: value for name, value in extra.items() if name not in functions}
        others = {name: value for name, value in functions.items() if name != 'value_fn'}
        loss = self.core.weights.reading(functions['value_fn']) if 'value_fn' in functions else None

        def step(of: Callable[[], Tree], grads: Tree, arrays: Extra, scale: Scalar | None) -> None:
            self(grads, {**arrays, **others, **({} if loss is None else {'value_fn': lambda: of()})}, call, scale)

        kind = call, tuple(others.items()), loss is None
        self.replay(kind, step, loss or (lambda: None), (), (grads, arrays, loss_scale))

    def name_wrong_gradient(self, grads: Tree, call: Call) -> None:
        """Raise an error that names a value or gradient that jax does not take, if there is one."""
        core = self.core
        _, *values = read([core.registered('step'), *core.weights.states], direct=False)
        found, _ = core.weights.match(grads, call.loss_unit, call.partial, core.settings.frozen)
        check_gradients(core.weights.leaves(values), found)

    def raise_unless(self, finite: jax.Array, grads: Tree) -> None:
        """Raise if the gradients are not finite."""
        if inside_transformation():
            brainstate.transform.jit_error_if(~finite, 'Gradients are not finite; all States are as they were.')
        elif not finite:
            raise FloatingPointError(f'Gradients are not finite; all States are as they were. {self.diagnose(grads)}')

    def diagnose(self, grads: Tree) -> Diagnosis:
        """Return which gradients are not finite, zero or largest."""
        return Diagnosis.of(self.core.weights.match(grads, partial=True)[0])

    def jit(self, key: Hashable, function: Callable[P, R]) -> Callable[P, R]:
        """Return a compiled function that donates the buffers that an update donates, kept under ``key``."""
        key = key, self.donate_weights, len(self.core.weights)
        if key not in self.functions:
            self.functions[key] = donating(function, self.donated())
        return self.functions[key]

    def donated(self) -> Wanted:
        """Return which States an update donates."""
        reused = self.core.weights.manager.seen_ids if self.donate_weights else set()
        return lambda state: isinstance(state, OptimState) or id(state) in reused

    def replay(
        self, kind: Hashable, step: Step, function: Callable[..., Tree], args: Sequence[Tree], inputs: Sequence[Tree]
    ) -> Tree:
        """Return ``step(function, *inputs)``, compiled, for a function of ``args`` that is traced in every call."""
        self.count_call(4)
        kind = kind, self.donate_weights, len(self.core.weights)
        return self.replays(kind, step, function, args, inputs, self.core.weights.manager.seen_ids)

    # the pure function

    def pure_update(
        self,
        state: OptimizerState,
        values: list[Tree],
        gradients: Tree,
        others: Sequence[Tree],
        extra: Extra,
        call: Call,
        scaling: jax.Array | None,
    ) -> Deferred:
        """Return the new values of the written States, and whether the gradients are finite, None if it never raises.

        ``others`` are the values of all States except the optimizer state and the weights, with written States first.
        """
        refuse_evaluating(state, 'An update')
        core, settings = self.core, self.core.settings
        count, *others = others
        scale_before = others.pop(0) if call.dynamic else None
        metrics_before = others.pop(0) if core.metrics_state is not None else None
        packed, *positions = others
        # brainstate's vmap probes a function with NumPy arrays
        options, at, count = jax.tree.map(jnp.asarray, (packed.tree, settings.positions(positions), count))
        shared = settings.part(options, at, 'shared')
        weights = core.weights.leaves(values)
        found = self.matched(gradients, weights, options.frozen, call)
        groups = [(group.keys, settings.part(options, at, i)) for i, group in enumerate(core.groups)]
        self.warn_of_units(shared)
        scale = scaling if scale_before is None else scale_before['scale']
        new = step(core.rule, core.policy, Inputs(shared, groups, weights, found, state, extra, scale, call.dynamic))
        count = count + (1 if new.finite is None else new.finite)
        if new.finite is not None and (call.dynamic or shared.on_nonfinite == 'skip'):
            warn_of_skips(new.state.skipped[1], shared.max_consecutive_skips)
        # an update that raises leaves all States as they were
        required = new.finite if shared.on_nonfinite == 'raise' and not call.dynamic else None
        after = [count]
        if core.dynamic_loss_scale is not None and new.finite is not None and scale_before is not None:
            after.append(core.dynamic_loss_scale.after(scale_before, new.finite))
        if metrics_before is not None:
            rates = [hp.lr for _, hp in groups]
            metrics = next_metrics(metrics_before, new.metrics, rates, new.state.skipped[0], count, new.finite)
            if required is not None:
                metrics = {name: jnp.where(required, x, metrics_before[name]) for name, x in metrics.items()}
            after.append(metrics)
        leaves = [new.weights[key] for key in weights]
        return deferred((new.state, core.weights.structure.unflatten(leaves), after, required))

    def matched(
        self, gradients: Tree, weights: Mapping[str, jax.Array], frozen: frozenset[str], call: Call
    ) -> dict[str, jax.Array]:
        """Return the gradients of the parameters that are not frozen by name, on the scales of the weights' units."""
        core = self.core
        found, scales = core.weights.match(gradients, call.loss_unit, call.partial, frozen)
        if call.partial and core.rule.couples_parameters and not weights.keys() <= found.keys() | frozen:
            raise ValueError(f'Invalid partial=True. {core.name} needs the gradients of all weights.')
        for key, scale in scales.items():  # the product may leave the range of float16
            found[key] = jnp.asarray(found[key], compute_dtype(jnp.asarray(found[key]))) * scale
        # jax returns the conjugate of the direction in which the loss grows
        found = {key: jnp.conj(g) if jnp.iscomplexobj(g) else g for key, g in found.items() if key not in frozen}
        core.weights.check_shapes(weights)
        return found

    def warn_of_units(self, shared: Hyperparameters) -> None:
        """Warn once of a norm over weights of different dimensions, while tracing, so that no update pays for it."""
        over = shared.grad_clip_over
        if shared.grad_clip_norm is None or over == 'weight' or self.core.arguments.norm_unit is not None:
            return
        weights = self.core.weights
        members = [group.keys for group in self.core.groups] if over == 'group' else [weights.keys]
        self.warned_of_units = self.warned_of_units or warn_of_mixed_norms(weights.named(), members)


def check_call(loss_unit: object, partial: object) -> Call:
    """Return checked arguments of an update."""
    if loss_unit is None and partial is False:
        return DEFAULT_CALL
    if type(partial) is not bool:
        raise TypeError(f'Invalid partial={partial!r}. Must be a bool.')
    if loss_unit is not None and not isinstance(loss_unit, brainunit.Unit):
        raise TypeError(f'Invalid loss_unit={loss_unit!r}. Must be a brainunit.Unit.')
    return Call(loss_unit, partial)
