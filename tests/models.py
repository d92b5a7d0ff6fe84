"""Small models that several rooms of the tests update."""

from __future__ import annotations

from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from internals import configuration

import braintools_optim as bo


def nested_model(dtype: Any = jnp.float32) -> dict[Any, brainstate.ParamState]:
    """Return a State of a dict under a tuple path, and a scalar."""
    return {
        ('layers', 0, 'weight'): brainstate.ParamState({'weight': jnp.ones((2, 3), dtype), 'bias': jnp.ones(3, dtype)}),
        ('scale',): brainstate.ParamState(jnp.asarray(2.0, dtype)),
    }


def nested_gradients(t: float = 0.0, dtype: Any = jnp.float32) -> dict[Any, Any]:
    """Return gradients of the nested model, different for each ``t``."""
    return {
        ('layers', 0, 'weight'): {
            'weight': jnp.asarray(np.sin(np.arange(6.0) + t).reshape(2, 3), dtype),
            'bias': jnp.asarray(np.cos(np.arange(3.0) + t), dtype),
        },
        ('scale',): jnp.asarray(0.5 + t, dtype),
    }


def all_values(states: dict[Any, brainstate.State]) -> Any:
    """Return copies of the values of States."""
    return jax.tree.map(np.array, [state.value for state in states.values()])


def all_states(optimizer: bo.Optimizer, states: dict[Any, brainstate.State]) -> Any:
    """Return copies of the values of a model's States and of its optimizer's."""
    return all_values(states), {
        k: jax.tree.map(np.array, s.value) for k, s in brainstate.graph.states(optimizer).items()
    }


def assert_same(a: Any, b: Any, **tolerance: float) -> None:
    """Assert that two trees of arrays are equal, or close within the tolerance."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{'rtol': 0.0, **tolerance}), a, b)


FOUR_LEAVES = {'a.weight': [[1.0, -2.0], [0.5, 3.0]], 'a.bias': [0.5, -1.0], 'b.weight': [[2.0, 0.0]], 'b.tau': 5.0}


def four_leaves() -> dict[Any, brainstate.ParamState]:
    """Return four leaves in two States of dicts, under tuple paths like those of modules."""
    value = {name: jnp.asarray(w) for name, w in FOUR_LEAVES.items()}
    return {
        ('a',): brainstate.ParamState({'weight': value['a.weight'], 'bias': value['a.bias']}),
        ('b',): brainstate.ParamState({'weight': value['b.weight'], 'tau': value['b.tau']}),
    }


def values_by_name(states: Any) -> dict[str, np.ndarray]:
    """Return copies of the four leaves by name."""
    return {f'{path[0]}.{name}': np.array(x) for path, state in states.items() for name, x in state.value.items()}


def four_gradients(t: int, *without: str) -> Any:
    """Return the gradients of the t-th update, with None for the weights left out."""
    rng = np.random.default_rng(t)
    g = {name: rng.normal(size=np.shape(w)) for name, w in FOUR_LEAVES.items()}
    leaf = lambda name: None if name in without else jnp.asarray(g[name])  # noqa: E731
    return {
        ('a',): {'weight': leaf('a.weight'), 'bias': leaf('a.bias')},
        ('b',): {'weight': leaf('b.weight'), 'tau': leaf('b.tau')},
    }


def updated(optimizer: bo.Optimizer, steps: int = 4, **update: Any) -> dict[str, np.ndarray]:
    """Return the four leaves after some updates by the optimizer."""
    states = four_leaves()
    optimizer.register_trainable_weights(states)
    for t in range(steps):
        optimizer.update(four_gradients(t), **update)
    return values_by_name(states)


def gradients_by_name(t: int) -> dict[str, np.ndarray]:
    """Return the gradients of the t-th update by name."""
    return {f'{path[0]}.{name}': np.array(g) for path, own in four_gradients(t).items() for name, g in own.items()}


def optimizer_in_use(cls: Any = bo.Adam, **options: Any) -> tuple[bo.Optimizer, dict[str, brainstate.ParamState]]:
    """Return an optimizer of two groups after its first update, and its weights."""
    states = {
        'w': brainstate.ParamState(jnp.ones((2, 3))),
        'b': brainstate.ParamState(jnp.full(3, 2.0) * u.mV),
        'v': brainstate.ParamState(jnp.ones(3)),
    }
    optimizer = cls(**{'lr': 0.1, **options}).register_trainable_weights({'w': states['w'], 'b': states['b']})
    optimizer.add_param_group({'v': states['v']})
    if not isinstance(optimizer, bo.LBFGS):
        optimizer.update(GRADS)
    return optimizer, states


def snapshot(optimizer: bo.Optimizer, states: dict[str, brainstate.State]) -> Any:
    """Return the values of all States of an optimizer and its model, and the configuration outside of States."""
    found = {str(key): state for key, state in {**brainstate.graph.states(optimizer), **states}.items()}
    besides = [*configuration(optimizer), optimizer.weight_names, str(optimizer), len(optimizer.param_groups)]
    return {key: jax.tree.map(np.array, state.value) for key, state in found.items()}, besides


GRADS = {'w': jnp.ones((2, 3)), 'b': jnp.ones(3) * u.mV, 'v': jnp.ones(3)}
