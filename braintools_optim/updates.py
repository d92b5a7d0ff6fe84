"""Updates: the compiled function, the States that it takes from and gives to, and what of them it passes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintools_optim import evaluation
from braintools_optim.buffers import compiler_options
from braintools_optim.diagnosis import Diagnosis
from braintools_optim.donation import donating
from braintools_optim.groups import Group
from braintools_optim.loss_scale import DynamicLossScale
from braintools_optim.metrics import next_metrics, warn_of_skips
from braintools_optim.options import Hyperparameters, Layout, Packed, validate
from braintools_optim.precision import compute_dtype
from braintools_optim.rule import Rule, TreeRule
from braintools_optim.settings import OptimState, Settings, frozen_names
from braintools_optim.states import are_hooked, inside_transformation, is_traced, is_undisturbed, read, write
from braintools_optim.step import MANY, Memory, step
from braintools_optim.treatment import Treatment
from braintools_optim.units import warn_of_mixed_norms
from braintools_optim.weights import Scales, Weights

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
        others: dict[str, brainstate.State] = {}
        if scaling is not None and isinstance(scaling, DynamicLossScale):
            others['loss_scale'] = scaling.state
        elif scaling is not None:
            scaling = jnp.asarray(scaling, jnp.result_type(float))
        if self.metrics_state is not None:
            others['metrics'] = self.metrics_state
        undisturbed = is_undisturbed()
        states = (self.opt_state, self.step_count, *others.values(), *self._weights.states)
        (options, memory, count, *values), direct = read((self.settings.values, *states), undisturbed)
        report = {'loss_scale': scaling, **dict(zip(others, values, strict=False))}
        leaves = self._weights.leaves(values[len(others) :])
        shared: Hyperparameters = options.flags['shared']
        frozen = frozen_names(shared)
        gradients, scales = self._weights.match(grads, loss_unit, partial, frozen)
        if partial and isinstance(self, TreeRule) and not self._weights.all_but(frozen, gradients):
            raise ValueError(f'Invalid partial=True. {type(self).__name__} needs the gradients of all weights.')
        settings = (options.numbers, self.settings.positions(undisturbed), count)
        if undisturbed or not is_traced():
            # what a hook may refuse to write is not donated
            donated = () if not direct and are_hooked(states) else (0, 1) if self.donate_weights else (0,)
            run = self._compiled[donated]
        else:
            run = self._step
        memory, leaves, count, report = run(
            memory, leaves, gradients, settings, extra, (options.layout, scales), report
        )
        new_values = self._weights.structure.unflatten(leaves)
        write(states, (memory, count, *(report[name] for name in others), *new_values), direct)
        if shared.on_nonfinite == 'raise' and 'loss_scale' not in others:
            self._raise_unless(report['finite'], grads)

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
        leaves: list[Any],
        gradients: list[Any],
        settings: tuple[Any, Any, Any],
        extra: Mapping[str, Any],
        fixed: tuple[Layout, Scales],
        report: dict[str, Any],
    ) -> tuple[Memory, list[Any], Any, dict[str, Any]]:
        """The update as a pure function of the values of the States."""
        evaluation.refuse_evaluated(memory, 'An update')
        numbers, positions, count = settings
        layout, scales = fixed
        keys = self._weights.keys
        # they are NumPy's where brainstate's vmap tries a function out
        hps, positions, count = jax.tree.map(jnp.asarray, (Packed(layout, numbers).tree, positions, count))
        weights = dict(zip(keys, leaves, strict=True))
        found = {key: g for key, g in zip(keys, gradients, strict=True) if g is not None}
        if scales is not None:  # which may leave float16's range
            factors = dict(zip(found, scales, strict=True))
            found = {key: jnp.asarray(g, compute_dtype(jnp.asarray(g))) * factors[key] for key, g in found.items()}
        found = {key: jnp.conj(g) if jnp.iscomplexobj(g) else g for key, g in found.items()}  # of jax, uphill otherwise
        self._weights.check_shapes(leaves)
        shared = self.settings.part(hps, positions, 'shared')
        groups = [(group.keys, self.settings.part(hps, positions, i)) for i, group in enumerate(self._groups)]
        self._check_norm(shared)
        frozen, scaling = frozen_names(shared), report.pop('loss_scale')
        dynamic = isinstance(scaling, dict)
        new = step(
            self,
            shared,
            groups,
            weights,
            {key: g for key, g in found.items() if key not in frozen},
            memory,
            extra,
            self._treatment,
            scaling['scale'] if dynamic else scaling,
            dynamic,
        )
        count = count + (1 if new.finite is None else new.finite)
        if new.finite is not None and (dynamic or shared.on_nonfinite == 'skip'):
            warn_of_skips(new.memory['skipped'][1], shared.max_consecutive_skips)
        after: dict[str, Any] = {'finite': new.finite}
        if dynamic:
            after['loss_scale'] = self.loss_scale.after(scaling, new.finite)
        if self.metrics_state is not None:
            rates = [hp.lr for _, hp in groups]
            skipped = new.memory['skipped'][0]
            before = report['metrics']
            after['metrics'] = next_metrics(before, new.metrics, rates, skipped, count, new.finite)
            raises = shared.on_nonfinite == 'raise' and not dynamic  # then all States are to be as they were
            if new.finite is not None and raises:
                after['metrics'] = {n: jnp.where(new.finite, x, before[n]) for n, x in after['metrics'].items()}
        return new.memory, [new.weights[key] for key in keys], count, after

    def _check_norm(self, shared: Hyperparameters) -> None:
        """Warn, once, of a norm over weights of different dimensions; while tracing, so that it costs nothing later."""
        if shared.grad_clip_norm is None or shared.grad_clip_over == 'weight' or self.norm_unit is not None:
            return
        members = [group.keys for group in self._groups] if shared.grad_clip_over == 'group' else [self._weights.keys]
        self._warned_of_units = self._warned_of_units or warn_of_mixed_norms(self._weights.named(), members)


class Functions(dict[Any, Any]):
    """Compiled functions by what they do. No plain dict: the graph would look into it, and sort its keys."""
