"""Functions of the user that read or write States: transformations of gradients, constraints and stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations
from helpers import registered

import braintools_optim as bo

WAYS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    'eager': lambda update: update,
    'jit': bo.jit,
    "brainstate's jit": brainstate.transform.jit,
    'interpreted': lambda update: lambda grads: interpreted(update, grads),
}


def interpreted(update: Callable[..., Any], grads: Any) -> None:
    with jax.disable_jit():
        update(grads)


def noise(source: Any, scale: Callable[[], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a transformation that adds normal noise of a given scale."""
    return lambda grads: {key: g + scale() * source.normal(size=g.shape) for key, g in grads.items()}


@pytest.mark.parametrize('own', [True, False], ids=['own', 'global'])
@pytest.mark.parametrize('way', WAYS)
def test_noise_of_a_random_state_follows_its_seed_and_a_schedule(way: str, own: bool) -> None:
    source = brainstate.random.RandomState(0) if own else brainstate.random
    schedule = bo.StepLR(0.5, step_size=1, gamma=0.1)
    optimizer = bo.SGD(1.0, gradient_transform=noise(source, schedule))
    w = registered(optimizer, w=np.zeros(3))['w']
    update = WAYS[way](optimizer.update)
    source.seed(5)
    for _ in range(3):
        update({'w': jnp.ones(3)})
        schedule.step()
    source.seed(5)
    expected = [1 + 0.5 * 0.1**t * source.normal(size=3) for t in range(3)]
    np.testing.assert_allclose(w.value, -np.sum(expected, axis=0), rtol=1e-6)


def test_noise_continues_after_a_checkpoint(tmp_path: Path) -> None:
    def build() -> tuple[Any, Any, Any]:
        source = brainstate.random.RandomState(1)
        optimizer = bo.Adam(0.1, gradient_transform=noise(source, lambda: 0.1))
        return source, optimizer, registered(optimizer, w=np.zeros(3))

    source, optimizer, model = build()
    for t in range(6):
        if t == 3:
            bo.files.save_run(tmp_path / 'run.npz', model={**model, 'noise': source}, optimizer=optimizer)
        optimizer.update({'w': jnp.full(3, float(t))})
    again, continued, same = build()
    bo.files.load_run(tmp_path / 'run.npz', model={**same, 'noise': again}, optimizer=continued)
    for t in range(3, 6):
        continued.update({'w': jnp.full(3, float(t))})
    np.testing.assert_array_equal(same['w'].value, model['w'].value)
    np.testing.assert_array_equal(jax.random.key_data(again.value), jax.random.key_data(source.value))


@pytest.mark.parametrize('donate_weights', [False, True])
@pytest.mark.parametrize('options', [{}, {'metrics': True, 'loss_scale': 2.0}], ids=str)
def test_constraint_and_stage_follow_a_state(options: dict[str, Any], donate_weights: bool) -> None:
    bound, factor = brainstate.State(jnp.asarray(1.5)), brainstate.State(jnp.asarray(2.0))
    stage = bo.Stage(lambda leaf: replace(leaf, gradient=leaf.gradient * factor.value), lambda leaf: True)
    optimizer = bo.SGD(1.0, constraints={'w': lambda w: jnp.clip(w, -bound.value)}, stages=[stage], **options)
    w = registered(optimizer, w=np.zeros(1))['w']
    optimizer.donate_weights = donate_weights
    g = {'w': jnp.full(1, options.get('loss_scale', 1.0))}
    optimizer.update(g)
    assert w.value == -1.5
    bound.value, factor.value = jnp.asarray(3.0), jnp.asarray(1.0)
    with compilations(0):
        optimizer.update(g)
    assert w.value == -2.5
    optimizer.update(g)
    assert w.value == -3.0


def test_state_that_is_written_counts_updates() -> None:
    """An update that is refused leaves the State as it was, like all others."""
    count = brainstate.State(jnp.zeros((), jnp.int32))

    def counting(grads: dict[str, Any]) -> dict[str, Any]:
        count.value = count.value + 1
        return grads

    optimizer = bo.SGD(1.0, gradient_transform=counting, on_nonfinite='raise')
    w = registered(optimizer, w=np.zeros(1))['w']
    for _ in range(3):
        optimizer.update({'w': jnp.ones(1)})
    assert count.value == 3
    assert w.value == -3.0
    with pytest.raises(ValueError, match='shape'):
        optimizer.update({'w': jnp.ones(2)})
    assert count.value == 3
    with pytest.raises(FloatingPointError, match='Gradients are not finite'):
        optimizer.update({'w': jnp.full(1, jnp.nan)})
    assert w.value == -3.0
    optimizer.minimize(lambda: w.value.sum())
    assert w.value == -4.0
