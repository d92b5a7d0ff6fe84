"""PolyakSGD."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations

import braintools_optim as bo

Leaves = dict[str, Any]
Options = dict[str, Any]


def polyak_update(w: Leaves, g: Leaves, value: float, **options: Any) -> Leaves:
    """Return the weights after one update; the second weight is in a second group."""
    optimizer = bo.PolyakSGD(**options)
    states = {key: brainstate.ParamState(jnp.asarray(x)) for key, x in w.items()}
    optimizer.register_trainable_weights({'a': states['a']})
    optimizer.add_param_group({'b': states['b']})
    optimizer.update(jax.tree.map(jnp.asarray, g), value=value)
    return {key: np.array(state.value) for key, state in states.items()}


def test_polyak_halves_the_distance_on_a_parabola() -> None:
    w = brainstate.ParamState(jnp.array(4.0))
    optimizer = bo.PolyakSGD().register_trainable_weights({'w': w})
    loss = lambda: w.value**2  # noqa: E731
    for t in range(10):
        with compilations(0) if t > 1 else nullcontext():
            optimizer.minimize(loss)
        assert w.value == 4.0 / 2 ** (t + 1)  # w - w**2 / (2 w)**2 * 2 w
    optimizer.lr = 0.5
    before = w.value
    optimizer.minimize(loss)
    assert w.value == before * 0.75
    value, aux = optimizer.minimize(lambda: (w.value**2, w.value), has_aux=True)
    assert value == aux**2 == (before * 0.75) ** 2


@pytest.mark.parametrize('options', [{}, {'eps': 0.5}, {'f_min': 0.7}, {'max_learning_rate': 0.05}])
def test_polyak_equals_optax_over_all_groups(options: Options) -> None:
    w, g = {'a': np.array([1.0, -2.0]), 'b': np.array(0.5)}, {'a': np.array([3.0, 0.5]), 'b': np.array(-2.0)}
    tx = optax.polyak_sgd(**options)
    changes, _ = tx.update(g, tx.init(w), w, value=2.0)
    for lr in (1.0, 0.3):
        for key, new in polyak_update(w, g, 2.0, lr=lr, **options).items():
            np.testing.assert_allclose(new, w[key] + lr * changes[key], rtol=1e-12)


def test_polyak_step_is_bounded() -> None:
    w, g = {'a': np.ones(2), 'b': np.array(1.0)}, {'a': np.ones(2), 'b': np.array(-1.0)}
    assert (polyak_update(w, g, 0.5, f_min=1.0)['a'] == 1).all()  # no step if the loss is below f_min
    up, down = polyak_update(w, g, -3.0, f_min=0.0, maximize=True), polyak_update(w, g, 3.0)
    np.testing.assert_allclose(up['a'] - 1, 1 - down['a'])
    clipped = polyak_update(w, g, 1.5, grad_clip_norm=np.sqrt(3) / 4)  # a step of 1/2 along a gradient of a quarter
    np.testing.assert_allclose(clipped['a'], 1 - 0.125, rtol=1e-5)
    assert (polyak_update(w, jax.tree.map(np.zeros_like, g), 1.0)['a'] == 1).all()


def test_polyak_needs_the_loss() -> None:
    optimizer = bo.PolyakSGD()
    w = brainstate.ParamState(jnp.ones(2) * u.mV)
    optimizer.register_trainable_weights({'w': w})
    for wrong in (None, np.ones(2)):
        with pytest.raises(ValueError, match=r'Invalid value=.* needs the loss'):
            optimizer.update({'w': jnp.ones(2) * u.mV}, value=wrong)
    assert optimizer.step_count.value == 0
    optimizer.update({'w': jnp.ones(2) / u.mV}, value=1.0)
    np.testing.assert_allclose(w.value / u.mV, 0.5)
