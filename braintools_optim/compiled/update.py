"""The update of the States: one compiled function, the States that it reads and writes, and what it donates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import brainstate
import brainunit
import jax
import jax.numpy as jnp
import numpy as np

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
from braintools_optim.compiled.buffers import DonationCache, compiler_options, raise_if_lost
from braintools_optim.compiled.jit import Donating, donating
from braintools_optim.compiled.plan import Wanted, calls_python, jaxprs_of
from braintools_optim.compiled.replay import Replays, Step
from braintools_optim.core import Core, refuse_evaluating
from braintools_optim.loss_scale import LOSS_SCALE, DynamicLossScale
from braintools_optim.options.hyperparameters import Hyperparameters
from braintools_optim.options.kinds import Scalar
from braintools_optim.options.types import ArrayOrQuantity, Tree
from braintools_optim.settings import OptimState
from braintools_optim.step.accumulation import accumulating_step
from braintools_optim.step.diagnosis import Diagnosis
from braintools_optim.step.inputs import GroupInputs, Inputs, Outcome
from braintools_optim.step.metrics import next_metrics, warn_of_skips
from braintools_optim.step.policy import Accumulation
from braintools_optim.step.rule import Extra
from braintools_optim.step.state import OptimizerState
from braintools_optim.step.step import MANY, check_gradients, step
from braintools_optim.weights.precision import compute_dtype
from braintools_optim.weights.sharding import beside
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
    flush: bool = False
    """Whether the gradients so far are enough for an update."""
    dynamic: bool = False
    """Whether the loss scale adapts itself."""


DEFAULT_CALL = Call()
UNKNOWN: tuple[int, ...] = (-1,)
STATEFUL: tuple[int, ...] = (-2,)
"""In place of the arguments that are donated: functions of the user read States, so that brainstate has to compile."""
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
        except RuntimeError:
            raise_if_lost(self.named_states())
            raise
        except ValueError:
            if is_tree_of_jax(grads):
                raise
            named = self.core.weights.find(grads, call.partial, self.core.settings.frozen)
            finite = self.update_states(named, extra, call, loss_scale)
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
        core, given = self.core, call
        opt_state, settings, weights = core.registered('update'), core.settings, core.weights.states
        scaling = core.arguments.loss_scale if loss_scale is None else LOSS_SCALE.check('loss_scale', loss_scale)
        written = [opt_state, *weights, core.step_count]
        if scaling is not None:
            if isinstance(scaling, DynamicLossScale):
                written.append(scaling.state)
                scaling, call = None, call._replace(dynamic=True)
            else:
                scaling = as_scale(scaling)
        if core.metrics_state is not None:
            written.append(core.metrics_state)
        if core.policy.accumulation is not None:
            written.append(core.did_update)
        states = [*written, settings.values, *settings.sources()]
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
            if donated is STATEFUL:
                return self.update_with_states(grads, extra, given, loss_scale)
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
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return ()
        accessed = brainstate.StateTraceStack()
        try:
            with accessed:
                traced = self.compiled[wanted].trace(*arguments)
        finally:
            accessed.recovery_original_values()
        if accessed.states:
            return STATEFUL
        return () if calls_python(jaxprs_of(traced.jaxpr)) else wanted

    def update_with_states(self, grads: Tree, extra: Extra, call: Call, loss_scale: Scalar | None) -> jax.Array | None:
        """Update by functions of the user that read States, such as random ones, and may write them."""

        def update_states(grads: Tree, extra: Extra, loss_scale: Scalar | None) -> jax.Array | None:
            return self.update_states(grads, extra, call, loss_scale)

        return self.jit(('update', call), update_states)(grads, extra, loss_scale)

    def update_with_functions(
        self,
        grads: Tree,
        extra: Extra,
        functions: Mapping[str, Callable[..., ArrayOrQuantity]],
        call: Call,
        loss_scale: Scalar | None,
    ) -> None:
        """Update with functions such as the loss, which is traced in every call, as in :meth:`replay`."""
        self.core.registered('update')
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
        _, *values = read([core.registered('update'), *core.weights.states], direct=False)
        found, _ = core.weights.match(grads, call.loss_unit, call.partial, core.settings.frozen)
        check_gradients(core.weights.leaves(values), found)

    def named_states(self) -> Iterator[tuple[str, brainstate.State]]:
        """Return the registered States by name, and the States of the optimizer."""
        yield from self.core.weights.manager.to_dict().items()
        yield from self.core.named_states().items()

    def raise_unless(self, finite: jax.Array, grads: Tree) -> None:
        """Raise if the gradients are not finite."""
        if inside_transformation():
            # compiled code raises there after its results were written
            if any(sharding.num_devices > 1 for sharding in self.core.policy.layout.shardings.values()):
                raise ValueError(
                    "Invalid on_nonfinite='raise' inside a transformation, because the weights lie on several devices. "
                    "Use on_nonfinite='skip', or call update(grads) outside of jit and minimize."
                )
            brainstate.transform.jit_error_if(~finite, 'Gradients are not finite; all States are as they were.')
        elif not jax.device_get(finite):
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
        packed, *positions = others if core.policy.accumulation is None else others[1:]
        # brainstate's vmap probes a function with NumPy arrays
        options, at, count = jax.tree.map(jnp.asarray, (packed.tree, settings.positions(positions), count))
        shared = settings.part(options, at, 'shared')
        weights = core.weights.leaves(values)
        found = core.policy.layout.aligned(self.matched(gradients, weights, options.frozen, call), weights)
        parts = [settings.part(options, at, i) for i in range(len(core.groups))]
        groups = [GroupInputs(group.keys, hp, group.rule) for group, hp in zip(core.groups, parts, strict=True)]
        self.warn_of_units(shared)
        scale = scaling if scale_before is None else scale_before['scale']
        inputs = Inputs(shared, groups, weights, found, state, extra, scale, call.dynamic)
        new = self.stepped(inputs, call)
        count = count + (1 if new.applied is None else new.applied.astype(count.dtype))
        if inputs.counts_skips(core.policy):
            warn_of_skips(new.state.skipped[1], shared.max_consecutive_skips)
        # an update that raises leaves all States as they were
        required = new.finite if shared.on_nonfinite == 'raise' and not call.dynamic else None
        after = [count]
        if core.dynamic_loss_scale is not None and new.finite is not None and scale_before is not None:
            after.append(core.dynamic_loss_scale.after(scale_before, new.finite))
        if metrics_before is not None:
            after.append(self.metrics_after(metrics_before, new, [hp.lr for hp in parts], count, required))
        if core.policy.accumulation is not None:
            after.append(new.applied)
        layout, state = core.policy.layout, new.state
        if layout.shardings:  # the compiler may choose another layout
            state, new = beside(state, weights, layout), new._replace(weights=layout.kept(new.weights, found))
        leaves = [new.weights[key] for key in weights]
        return deferred((state, core.weights.structure.unflatten(leaves), after, required))

    def metrics_after(
        self,
        before: dict[str, jax.Array],
        new: Outcome,
        rates: Sequence[jax.Array],
        count: jax.Array,
        required: jax.Array | None,
    ) -> dict[str, jax.Array]:
        """Return the metrics after a step. They stay if the step raises, or if it only accumulates gradients."""
        metrics = next_metrics(before, new.metrics, rates, new.state.skipped[0], count, new.applied)
        kept = required if self.core.policy.accumulation is None else new.applied
        if kept is None:
            return metrics
        skipped = {} if required is not None else {'skipped': metrics['skipped']}
        return {name: jnp.where(kept, x, before[name]) for name, x in metrics.items()} | skipped

    def stepped(self, inputs: Inputs, call: Call) -> Outcome:
        """Return the outcome of a step, or of one batch of it if gradients are accumulated."""
        policy = self.core.policy
        if policy.accumulation is None:
            return step(policy, inputs)
        return accumulating_step(policy, inputs, policy.accumulation, call.flush)

    def matched(
        self, gradients: Tree, weights: Mapping[str, jax.Array], frozen: frozenset[str], call: Call
    ) -> dict[str, jax.Array]:
        """Return the gradients of the parameters that are not frozen by name, on the scales of the weights' units."""
        core = self.core
        check_accumulation(call, core.policy.accumulation)
        found, scales = core.weights.match(gradients, call.loss_unit, call.partial, frozen)
        for rule, keys in ((group.rule, set(group.keys)) for group in core.groups) if call.partial else ():
            if rule.couples_parameters and not keys <= found.keys() | frozen:
                raise ValueError(f'Invalid partial=True. {type(rule).__name__} needs the gradients of all weights.')
        for key, scale in scales.items():  # the product may leave the range of float16
            found[key] = jnp.asarray(found[key], compute_dtype(jnp.asarray(found[key]))) * scale
        # jax returns the conjugate of the direction in which the loss grows
        found = {key: jnp.conj(g) if jnp.iscomplexobj(g) else g for key, g in found.items() if key not in frozen}
        core.weights.check_unchanged(weights)
        return found

    def warn_of_units(self, shared: Hyperparameters) -> None:
        """Warn once of a norm over weights of different dimensions, while tracing, so that no update pays for it."""
        over = shared.grad_clip_over
        if shared.grad_clip_norm is None or over == 'weight' or self.core.arguments.norm_unit is not None:
            return
        weights = self.core.weights
        members = [group.keys for group in self.core.groups] if over == 'group' else [weights.keys]
        self.warned_of_units = self.warned_of_units or warn_of_mixed_norms(weights.units, members)


def check_accumulation(call: Call, accumulation: Accumulation | None) -> None:
    """Raise if the arguments of an update do not go with the accumulation of gradients."""
    if call.flush and accumulation is None:
        raise ValueError('Invalid flush=True. Nothing is accumulated: give accumulate_steps to the constructor.')
    if call.partial and accumulation is not None:
        raise ValueError('Invalid partial=True with accumulate_steps. The gradients of all weights are accumulated.')


def as_scale(number: Scalar) -> jax.Array:
    """Return a loss scale as an array; the transfer of a number to the device is explicit."""
    dtype = jnp.result_type(float)
    return jnp.asarray(number, dtype) if isinstance(number, jax.Array) else jax.device_put(np.asarray(number, dtype))


def is_tree_of_jax(tree: Tree) -> bool:
    """Return whether jax takes a tree. It refuses a dict with keys of several types, such as tuples and strings."""
    try:
        jax.tree.structure(tree)
    except ValueError:
        return False
    return True


def check_call(loss_unit: object, partial: object, flush: object = False) -> Call:
    """Return checked arguments of an update."""
    if loss_unit is None and partial is False and flush is False:
        return DEFAULT_CALL
    for name, flag in (('partial', partial), ('flush', flush)):
        if type(flag) is not bool:
            raise TypeError(f'Invalid {name}={flag!r}. Must be a bool.')
    if loss_unit is not None and not isinstance(loss_unit, brainunit.Unit):
        raise TypeError(f'Invalid loss_unit={loss_unit!r}. Must be a brainunit.Unit.')
    return Call(loss_unit, partial is True, flush is True)
