"""Clipping of gradients by norm and by value."""

from __future__ import annotations

from typing import Any

import brainstate
import brainunit as u
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import FOUR_LEAVES, gradients_by_name, updated

import braintools_optim as bo


def test_norm_spans_all_groups_in_float32_at_least() -> None:
    a, b = brainstate.ParamState(jnp.zeros(1, 'float16')), brainstate.ParamState(jnp.zeros(1))
    opt = bo.SGD(1.0, grad_clip_norm=1.0).register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, lr=10.0)
    opt.update({'a': jnp.full(1, 6e4, 'float16'), 'b': jnp.full(1, 8e4)})
    np.testing.assert_allclose([a.value[0], b.value[0]], [-0.6, -8.0], rtol=1e-3)
    assert np.isfinite(bo.global_norm([jnp.full(1000, 6e4, 'float16')]))


def test_clipping_is_by_norm_then_by_value() -> None:
    w = brainstate.ParamState(jnp.zeros(2))
    bo.SGD(1.0, grad_clip_norm=10.0, grad_clip_value=7.0).register_trainable_weights({'w': w}).update(
        {'w': jnp.array([30.0, 40.0])}
    )
    np.testing.assert_allclose(w.value, [-6.0, -7.0], rtol=1e-6)


def clipped(g: Any, limit: float) -> Any:
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in g.values()))
    return {name: x * min(1.0, limit / (norm + 1e-6)) for name, x in g.items()}


def test_clipping_over_groups_and_single_weights() -> None:
    g, groups = gradients_by_name(0), {'a.*': {}}
    parts = [{k: x for k, x in g.items() if k.startswith(first)} for first in 'ab']
    expected = {
        'all': clipped(g, 0.5),
        'group': clipped(parts[0], 0.5) | clipped(parts[1], 0.5),
        'weight': {name: clipped({name: x}, 0.5)[name] for name, x in g.items()},
    }
    for over, want in expected.items():
        after = updated(bo.SGD(1.0, grad_clip_norm=0.5, grad_clip_over=over, groups=groups), 1)
        for name, w in after.items():
            np.testing.assert_allclose(FOUR_LEAVES[name] - w, want[name], rtol=1e-9, err_msg=f'{over} {name}')
    with pytest.raises(ValueError, match=r"Invalid grad_clip_over='each'. Must be one of \('all', 'group', 'weight'\)"):
        bo.SGD(grad_clip_over='each')


def test_adaptive_clipping_equals_optax_between_norm_and_value() -> None:
    after = updated(bo.SGD(1.0, grad_clip_norm=2.0, grad_clip_adaptive=0.2, grad_clip_value=0.1), 1)
    tx = optax.adaptive_grad_clip(0.2)
    params = {name: jnp.asarray(w) for name, w in FOUR_LEAVES.items()}
    want, _ = tx.update(
        {n: jnp.asarray(g) for n, g in clipped(gradients_by_name(0), 2.0).items()}, tx.init(params), params
    )
    for name, w in after.items():
        np.testing.assert_allclose(FOUR_LEAVES[name] - w, np.clip(want[name], -0.1, 0.1), rtol=1e-9, err_msg=name)


def circuit() -> dict[str, brainstate.ParamState]:
    return {
        'v': brainstate.ParamState({'rest': jnp.array([1.0, -2.0]) * u.mV}),
        'g': brainstate.ParamState(jnp.array(0.5) * u.nS),
    }


SLOPES = {'v': {'rest': jnp.array([3.0, 0.0]) * u.mV}, 'g': jnp.array(4.0) * u.nS}


def test_norm_over_different_dimensions() -> None:
    opt = bo.SGD(1.0, grad_clip_norm=1.0).register_trainable_weights(circuit())
    with pytest.warns(UserWarning, match=r'different dimensions.*: v\.rest \(mV\), g \(nS\)'):
        opt.update(SLOPES)
    opt.update(SLOPES)  # warns only once
    expected = {
        'own': ([0.6, 0.0], 0.8),  # 3 mV and 4 nS are 3 and 4
        (u.mV, u.nS): ([0.6, 0.0], 0.8),
        (u.volt, u.nS): ([3 / np.hypot(3000, 4), 0.0], 4 / np.hypot(3000, 4)),  # dL/dV = 1000 dL/dmV
    }
    for norm_unit, (rest, g) in expected.items():
        states = circuit()
        bo.SGD(1.0, grad_clip_norm=1.0, norm_unit=norm_unit).register_trainable_weights(states).update(SLOPES)
        np.testing.assert_allclose(1.0 - states['v'].value['rest'][0] / u.mV, rest[0], rtol=1e-5)
        np.testing.assert_allclose(0.5 - states['g'].value / u.nS, g, rtol=1e-5)
    for options in ({'grad_clip_over': 'weight'}, {'grad_clip_over': 'group', 'groups': {'g': {}}}):
        states = circuit()
        bo.SGD(1.0, grad_clip_norm=1.0, **options).register_trainable_weights(states).update(SLOPES)
        np.testing.assert_allclose(states['v'].value['rest'][0] / u.mV, 0.0, atol=1e-5)
    with pytest.raises(ValueError, match=r"Must have the dimensions of all weights: \['g \(nS\)'\]"):
        bo.SGD(norm_unit=[u.mV]).register_trainable_weights(circuit())
