"""Loss scaling."""

from __future__ import annotations

import importlib.util
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo


def register_one(optimizer: bo.Optimizer, value: Any) -> brainstate.ParamState:
    state = brainstate.ParamState(value)
    optimizer.register_trainable_weights({'w': state})
    return state


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='needs torch')
def test_dynamic_loss_scale_equals_torch() -> None:
    import torch

    options = {'growth_factor': 3.0, 'backoff_factor': 0.25, 'growth_interval': 3}
    ours = bo.DynamicLossScale(init_scale=64.0, **options)
    scale, tracker = torch.tensor(64.0), torch.tensor(0, dtype=torch.int32)
    opt = bo.SGD(0.0, loss_scale=ours)
    register_one(opt, jnp.zeros((), jnp.float32))
    for t in range(40):
        bad = t in (2, 3, 10, 17, 30, 31)
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(bad)), 3.0, 0.25, 3)
        opt.update({'w': jnp.asarray(np.inf if bad else 1.0, jnp.float32)})
        assert ours.current == float(scale), t


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('how', ['eager', 'jit', 'minimize'])
def test_loss_scaling_saves_gradients_that_vanish_in_float16(how: str) -> None:
    loss_scale = bo.DynamicLossScale(init_scale=2.0**24, growth_interval=5)
    opt = bo.Adam(0.125, eps=1e-15, loss_scale=loss_scale, grad_clip_norm=1.0)
    w = register_one(opt, jnp.array([1.0, -1.0], jnp.float16))
    loss = lambda: jnp.sum(w.value.astype(jnp.float32) ** 2) * 1e-8  # noqa: E731
    assert (brainstate.transform.grad(loss, {'w': w})()['w'] == 0).all()

    def train() -> None:
        grads = brainstate.transform.grad(lambda: loss_scale.scale(loss()), {'w': w})()
        opt.update(grads)

    run = {'eager': train, 'jit': brainstate.transform.jit(train), 'minimize': lambda: opt.minimize(loss)}[how]
    for _ in range(4):
        run()
    np.testing.assert_allclose(w.value, [0.5, -0.5], atol=2e-2)
    before = w.value
    opt.update({'w': jnp.array([jnp.inf, 1.0], jnp.float16)})
    assert (w.value == before).all()
    assert (int(opt.skipped_count), int(opt.step_count.value), loss_scale.current) == (1, 4, 2.0**23)


def test_constant_loss_scale() -> None:
    opt = bo.SGD(1.0, grad_clip_norm=1.0, loss_scale=4.0)
    w = register_one(opt, jnp.zeros(2))
    opt.update({'w': jnp.array([1.2, 1.6])})
    np.testing.assert_allclose(w.value, [-0.3, -0.4])
    opt.update({'w': jnp.array([6.0, 8.0])}, loss_scale=2.0)
    np.testing.assert_allclose(w.value, [-0.9, -1.2], rtol=1e-5)
    assert opt.minimize(lambda: jnp.sum(w.value)) == pytest.approx(-2.1, rel=1e-5)
    np.testing.assert_allclose(w.value, np.array([-0.9, -1.2]) - np.sqrt(0.5), rtol=1e-5)
    for wrong, error in ((0.0, ValueError), (-1.0, ValueError), ('big', TypeError)):
        with pytest.raises(error, match='Invalid loss_scale='):
            opt.update({'w': jnp.zeros(2)}, loss_scale=wrong)
        with pytest.raises(error, match='Invalid loss_scale='):
            bo.SGD(loss_scale=wrong)


def test_dynamic_loss_scale_is_saved_and_checked() -> None:
    def build() -> tuple[bo.Optimizer, bo.DynamicLossScale]:
        scale = bo.DynamicLossScale(init_scale=8.0)
        opt = bo.SGD(loss_scale=scale)
        register_one(opt, jnp.zeros(()))
        return opt, scale

    (opt, scale), (again, restored) = build(), build()
    opt.update({'w': jnp.asarray(np.nan)})
    assert ('loss_scale', 'state') in brainstate.graph.states(opt)
    again.load_state_dict(opt.state_dict())
    assert restored.current == scale.current == 4.0
    for name, wrong in (
        ('init_scale', 0.0),
        ('growth_factor', 0.5),
        ('backoff_factor', 1.0),
        ('growth_interval', 0),
    ):
        with pytest.raises(ValueError, match=f'Invalid {name}='):
            bo.DynamicLossScale(**{name: wrong})
