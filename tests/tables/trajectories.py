"""Trajectories of optimizers and of their references on a problem, and how far they deviate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from internals import slots_of

import braintools_optim as bo
from tables.optimizers import Case, Options
from tables.problems import Arrays, Data, Problem

__all__ = ['deviation', 'optax_path', 'paper_path', 'reference_path', 'run', 'travelled']

WATCHED = ('ax',)  # slots that belong to the trajectory
INITIAL = {'initial_accumulator_value', 'd0'}  # options that only the initial state depends on
Flags = tuple[tuple[str, Any], ...]


@functools.cache
def compiled(optimizer: type[bo.Optimizer], flags: Flags, problem: Problem, dtype: Any) -> Callable[[Options], Arrays]:
    """Return a function from numeric options to the trajectory that is compiled once for all numbers."""
    data = problem.data
    states = {key: brainstate.ParamState(jnp.asarray(w, dtype)) for key, w in data.weights.items()}
    built = optimizer(**dict(flags)).register_trainable_weights(states)
    watched = [slot for slot in WATCHED if slot in slots_of(built)]
    initial: Options = {}

    def update(inputs: Any) -> dict[str, Any]:
        gradients, extra = inputs
        built.update(gradients, **extra)
        values = {f'{slot}.{key}': slots_of(built)[slot][key] for slot in watched for key in states}
        return {key: state.value for key, state in states.items()} | values

    loop = brainstate.transform.jit(lambda inputs: brainstate.transform.for_loop(update, inputs))

    def trajectory(options: Options) -> Arrays:
        for key, state in states.items():
            state.value = jnp.asarray(data.weights[key], dtype)
        fresh = optimizer(**dict(flags) | options).register_trainable_weights(states)
        built.opt_state.value, built.step_count.value = fresh.opt_state.value, fresh.step_count.value
        numbers = {name: value for name, value in options.items() if name not in INITIAL and (name, value) not in flags}
        for name in numbers:
            initial.setdefault(name, built.current_lr if name == 'lr' else getattr(built, name))
        for name, value in (initial | numbers).items():
            setattr(built, name, value)
        for name, value in numbers.items():
            assert (fresh.current_lr if name == 'lr' else getattr(fresh, name)) == value
        inputs = jax.tree.map(lambda x: jnp.asarray(x, dtype), (data.gradients, data.extra))
        path = loop(inputs)
        start = data.weights | {f'{slot}.{key}': w for slot in watched for key, w in data.weights.items()}
        return {key: np.concatenate([w[None].astype(dtype), path[key]]) for key, w in start.items()}

    return trajectory


def run(case: Case, dtype: Any) -> Arrays:
    """Return the weights after every update, the starting point first; all updates run in one compiled loop."""
    return compiled(case.row.optimizer, case.flags, case.comparison.problem, dtype)(dict(case.options))


def travelled(path: Arrays) -> Arrays:
    """Return how far each tensor has moved after each update: the sum of the largest entries of all steps."""
    return {key: np.cumsum(np.max(np.abs(np.diff(p, axis=0)), axis=tuple(range(1, p.ndim)))) for key, p in path.items()}


def deviation(path: Arrays, exact: Arrays, rounding: float = 0.0) -> dict[str, float]:
    """Return each tensor's worst deviation at any step, divided by the distance travelled so far.

    Deviations that ``rounding`` explains, the relative error of rounding the weight once per step, do not count.
    """
    worst = {}
    for key, distance in travelled(exact).items():
        error = np.max(np.abs(np.float64(path[key]) - exact[key]), axis=tuple(range(1, exact[key].ndim)))[1:]
        allowed = rounding * np.arange(1, len(error) + 1) * np.max(np.abs(exact[key]))
        worst[key] = float(np.max(np.maximum(error - allowed, 0) / np.maximum(distance, 1e-300)))
    return worst


def reference_path(case: Case) -> Arrays:
    """Return the trajectory of the case's optax transformation or of its paper."""
    return optax_path(case) if case.comparison.optax else paper_path(case)


def turned(data: Data, maximize: bool) -> tuple[Any, Any]:
    """Return the gradients and extra arguments to descend along, negated to maximize."""
    return jax.tree.map(lambda x: -x if maximize else x, (data.gradients, data.extra))


def optax_path(case: Case) -> Arrays:
    """Return optax's trajectory in float64; scalar leaves go to optax as vectors of length one."""
    problem = case.comparison.problem
    flags = tuple((k, v) for k, v in case.options if k == 'momentum' or isinstance(v, (bool, type(None))))
    numbers = {k: v for k, v in case.options if (k, v) not in flags}
    path = compiled_optax(case.comparison.optax, flags, problem)(numbers)
    return {
        key: np.concatenate([w[None], np.reshape(path[key], (problem.steps, *w.shape))])
        for key, w in problem.data.weights.items()
    }


@functools.cache
def compiled_optax(build: Callable[..., optax.GradientTransformation], flags: Flags, problem: Problem) -> Any:
    """Return a compiled function from numeric options to optax's trajectory."""
    options = dict(flags)
    gradients, extra = turned(problem.data, options.pop('maximize', False))
    start = {key: jnp.atleast_1d(w) for key, w in problem.data.weights.items()}
    steps = {key: jnp.asarray(g).reshape(problem.steps, *start[key].shape) for key, g in gradients.items()}

    def trajectory(numbers: Options) -> Any:
        tx = optax.with_extra_args_support(build(**options, **numbers))

        def update(carry: Any, inputs: Any) -> Any:
            params, state = carry
            changes, state = tx.update(inputs[0], state, params, **inputs[1])
            params = optax.apply_updates(params, changes)
            return (params, state), params

        return jax.lax.scan(update, (start, tx.init(start)), (steps, extra))[1]

    return jax.jit(trajectory)


def paper_path(case: Case) -> Arrays:
    """Return the trajectory of the formula as published, in NumPy."""
    options, problem = dict(case.options), case.comparison.problem
    gradients, extra = turned(problem.data, options.pop('maximize', False))
    rows, state, leaf_states = [problem.data.weights], {}, {key: {} for key in gradients}
    for t in range(1, problem.steps + 1):
        weights, slopes = rows[-1], {key: gradients[key][t - 1] for key in problem.data.weights}
        if case.row.kind == 'group':
            rows.append(case.comparison.paper(weights, slopes, t, state, **options))
            continue
        new = {}
        for key, w in weights.items():
            given = {name: by_leaf[key][t - 1] for name, by_leaf in extra.items()}
            new[key] = case.comparison.paper(w, slopes[key], t, leaf_states[key], **given, **options)
        rows.append(new)
    return {key: np.stack([row[key] for row in rows]) for key in gradients}
