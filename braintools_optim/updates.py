"""Updates: the compiled function, the States that it takes from and gives to, and what of them it passes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import brainstate
import brainunit
import jax
import jax.numpy as jnp

from braintools_optim import evaluation
from braintools_optim.buffers import Made, compiler_options
from braintools_optim.diagnosis import Diagnosis
from braintools_optim.donation import donating
from braintools_optim.groups import Group
from braintools_optim.loss_scale import DynamicLossScale
from braintools_optim.metrics import next_metrics, warn_of_skips
from braintools_optim.options import Hyperparameters, validate
from braintools_optim.precision import compute_dtype
from braintools_optim.rule import Rule, TreeRule
from braintools_optim.settings import OptimState, Settings, frozen_names
from braintools_optim.states import are_hooked, inside_transformation, is_traced, may_touch, read, write
from braintools_optim.step import MANY, Memory, check_gradients, step
from braintools_optim.treatment import Treatment
from braintools_optim.units import warn_of_mixed_norms
from braintools_optim.weights import Weights

__all__ = ['Updates']

SMALL = 2**16  # entries of a leaf, up to which compiling takes longer than the updates


class Updates(Rule):
    """How an optimizer updates its weights."""

    settings: Settings
    opt_state: OptimState | None
    step_count: OptimState
    metrics_state: OptimState | None
    loss_scale: Any
    norm_unit: Any
    donate_weights: bool
    diagnose: Callable[[Any], Diagnosis]
    _weights: Weights
    _groups: list[Group]
    _treatment: Treatment
    _warned_of_units: bool
    _compiled: dict[tuple[int, ...], Callable[..., Any]]
    _made: Made
    _jitted: Functions

    def _compile(self) -> None:
        """Functions for the weights that there are, by the arguments that are donated; compiled when first called."""
        sizes = self._weights.sizes
        options = compiler_options(quickly=len(sizes) >= MANY and sum(sizes) <= SMALL * len(sizes))
        self._compiled = {
            donated: jax.jit(self._step, donate_argnums=donated, static_argnums=5, compiler_options=options)
            for donated in ((), (0,), (0, 1))
        }

    def _update(
        self, grads: Any, loss_unit: Any, extra: Mapping[str, Any], partial: bool = False, loss_scale: Any = None
    ) -> None:
        if self.opt_state is None:
            raise ValueError('register_trainable_weights must be called before step.')
        if type(partial) is not bool:
            raise TypeError(f'Invalid partial={partial!r}. Must be a bool.')
        if loss_unit is not None and not isinstance(loss_unit, brainunit.Unit):
            raise TypeError(f'Invalid loss_unit={loss_unit!r}. Must be a brainunit.Unit.')
        functions = tuple((name, value) for name, value in extra.items() if callable(value)) if extra else ()
        if functions and not (jax.config.jax_disable_jit or inside_transformation()):  # type: ignore[attr-defined]
            # brainstate's jit follows the States that they read
            arrays = {name: value for name, value in extra.items() if not callable(value)}
            self._jit(
                (functions, loss_unit, partial),
                lambda grads, arrays, scale: self._update(grads, loss_unit, arrays | dict(functions), partial, scale),
            )(grads, arrays, loss_scale)
            return
        scaling = self.loss_scale if loss_scale is None else validate('loss_scale', loss_scale)
        weights = self._weights.states
        written = [self.opt_state, *weights, self.step_count]
        dynamic = False
        if scaling is not None:
            dynamic = isinstance(scaling, DynamicLossScale)
            written += [scaling.state] if dynamic else []
            scaling = None if dynamic else jnp.asarray(scaling, jnp.result_type(float))
        if self.metrics_state is not None:
            written.append(self.metrics_state)
        states = [*written, self.settings.values, *self.settings.sources()]
        direct = may_touch(states)
        memory, *values = read(states, direct)
        own, others = values[: len(weights)], values[len(weights) :]
        donated: tuple[int, ...] = ()
        if not direct and is_traced():
            run = self._step
        else:
            # what a hook may refuse to write is not donated
            donated = () if not direct and are_hooked(written) else (0, 1) if self.donate_weights else (0,)
            run = self._compiled[donated]
            own = self._made.separated(own, grads) if donated == (0, 1) else own
        try:
            memory, own, others, finite = run(memory, own, grads, others, extra, (loss_unit, partial, dynamic), scaling)
        except TypeError:  # if it was jax that did not take a value or a gradient, an error that names it
            own = read(states, direct=False)[1 : len(weights) + 1]
            found, _ = self._weights.match(grads, loss_unit, partial, self.settings.frozen)
            check_gradients(self._weights.leaves(own), found)
            raise
        write(written, [memory, *own, *others], direct)
        if donated == (0, 1):
            self._made.remember(own)
        if finite is not None:
            self._raise_unless(finite, grads)

    def _raise_unless(self, finite: Any, grads: Any) -> None:
        if inside_transformation():
            brainstate.transform.jit_error_if(~finite, 'Gradients are not finite; all States are as they were.')
        elif not finite:
            raise FloatingPointError(f'Gradients are not finite; all States are as they were. {self.diagnose(grads)}')

    def _jit(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled function that reuses the buffers that an update does, kept by what it does."""
        reused = self._weights.manager.seen_ids if self.donate_weights else set()
        key = key, self.donate_weights, len(self._weights)
        if key not in self._jitted:
            self._jitted[key] = donating(function, lambda s: isinstance(s, OptimState) or id(s) in reused)
        jitted: Callable[..., Any] = self._jitted[key]
        return jitted

    def _step(
        self,
        memory: Memory,
        values: list[Any],
        gradients: Any,
        others: Sequence[Any],
        extra: Mapping[str, Any],
        fixed: tuple[Any, bool, bool],
        scaling: Any,
    ) -> tuple[Memory, list[Any], list[Any], Any]:
        """The update as a pure function of the values of the States, and whether all is finite if that is to raise.

        ``others`` are the values of the States besides memory and weights; those that are written come first.
        """
        evaluation.refuse_evaluated(memory, 'An update')
        loss_unit, partial, dynamic = fixed
        count, *others = others
        scale_before = others.pop(0) if dynamic else None
        metrics_before = others.pop(0) if self.metrics_state is not None else None
        options, *positions = others
        # they are NumPy's where brainstate's vmap tries a function out
        hps, positions, count = jax.tree.map(jnp.asarray, (options.tree, self.settings.positions(positions), count))
        shared = self.settings.part(hps, positions, 'shared')
        frozen = frozen_names(shared)
        weights = self._weights.leaves(values)
        found, scales = self._weights.match(gradients, loss_unit, partial, frozen)
        if partial and isinstance(self, TreeRule) and not weights.keys() <= found.keys() | frozen:
            raise ValueError(f'Invalid partial=True. {type(self).__name__} needs the gradients of all weights.')
        for key, scale in scales.items():  # which may leave float16's range
            found[key] = jnp.asarray(found[key], compute_dtype(jnp.asarray(found[key]))) * scale
        found = {key: jnp.conj(g) if jnp.iscomplexobj(g) else g for key, g in found.items()}  # of jax, uphill otherwise
        self._weights.check_shapes(weights)
        groups = [(group.keys, self.settings.part(hps, positions, i)) for i, group in enumerate(self._groups)]
        self._check_norm(shared)
        new = step(
            self,
            shared,
            groups,
            weights,
            {key: g for key, g in found.items() if key not in frozen},
            memory,
            extra,
            self._treatment,
            scaling if scale_before is None else scale_before['scale'],
            dynamic,
        )
        count = count + (1 if new.finite is None else new.finite)
        if new.finite is not None and (dynamic or shared.on_nonfinite == 'skip'):
            warn_of_skips(new.memory['skipped'][1], shared.max_consecutive_skips)
        # if not, all States are to be as they were
        required = new.finite if shared.on_nonfinite == 'raise' and not dynamic else None
        after = [count]
        if dynamic:
            after.append(self.loss_scale.after(scale_before, new.finite))
        if metrics_before is not None:
            rates = [hp.lr for _, hp in groups]
            metrics = next_metrics(metrics_before, new.metrics, rates, new.memory['skipped'][0], count, new.finite)
            if required is not None:
                metrics = {name: jnp.where(required, x, metrics_before[name]) for name, x in metrics.items()}
            after.append(metrics)
        leaves = [new.weights[key] for key in weights]
        return new.memory, self._weights.structure.unflatten(leaves), after, required

    def _check_norm(self, shared: Hyperparameters) -> None:
        """Warn, once, of a norm over weights of different dimensions; while tracing, so that it costs nothing later."""
        if shared.grad_clip_norm is None or shared.grad_clip_over == 'weight' or self.norm_unit is not None:
            return
        members = [group.keys for group in self._groups] if shared.grad_clip_over == 'group' else [self._weights.keys]
        self._warned_of_units = self._warned_of_units or warn_of_mixed_norms(self._weights.named(), members)


class Functions(dict[Any, Any]):
    """Compiled functions by what they do. No plain dict: the graph would look into it, and sort its keys."""
