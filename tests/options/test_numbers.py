"""Numbers that float32 cannot hold, and traced arrays that are no numbers, are refused."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import registered

import braintools_optim as bo

ABOVE = r'Must be at most 3\.40282e\+38, the largest float32'
TOO_LARGE = {
    'lr': lambda: bo.SGD(lr=1e39),
    'eps': lambda: bo.Adam(eps=1e39),
    'betas': lambda: bo.Rprop(etas=(0.5, 1e39)),
    'grad_clip_norm': lambda: bo.Adam(grad_clip_norm=1e39),
    'base_lr': lambda: bo.StepLR(1e39),
    'integer': lambda: bo.SGD(lr=10**400),
    'count': lambda: bo.StepLR(0.1, step_size=10**400),
    'loss_scale': lambda: bo.SGD(loss_scale=1e39),
    'array': lambda: bo.SGD(lr=np.float64(1e39)),
    'negative': lambda: bo.PolyakSGD(f_min=-1e39),
    'assigned': lambda: setattr(bo.SGD(), 'weight_decay', 1e39),
    'assigned lr': lambda: setattr(bo.SGD(), 'lr', 10**400),
}


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('build', TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_number_beyond_float32_is_refused(build: Any) -> None:
    with pytest.raises(ValueError, match=ABOVE if build is not TOO_LARGE['negative'] else r'Must be at least -3\.4'):
        build()


def test_with_x64_numbers_may_be_larger() -> None:
    assert bo.SGD(lr=1e39).current_lr == 1e39
    with pytest.raises(ValueError, match=r'Invalid lr=10+\.\.\..*Must be at most 1\.79769e\+308, the largest float64'):
        bo.SGD(lr=10**400)
    with pytest.raises(ValueError, match=r'Invalid init_scale=1e\+39\. Must be in \(0, 3\.40282e\+38\]'):
        bo.DynamicLossScale(1e39)


@pytest.mark.parametrize('value', [(1.0,), [1.0], np.ones(1), jnp.ones(1)])
def test_a_sequence_of_one_number_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r'Invalid grad_clip_norm=.*Must be a number'):
        bo.Adam(grad_clip_norm=value)


@pytest.mark.parametrize('shape', [(2,), (1,), (1, 2)])
def test_a_traced_array_is_no_loss_scale(shape: tuple[int, ...]) -> None:
    optimizer = bo.SGD(0.1)
    w = registered(optimizer, w=jnp.ones(2))['w']
    step = brainstate.transform.jit(lambda scale: optimizer.update({'w': jnp.ones(2)}, loss_scale=scale))
    with pytest.raises(TypeError, match=r'Invalid loss_scale=.*\. Must be a number, not an array of shape'):
        step(jnp.ones(shape))
    assert w.value.shape == (2,)


def test_a_traced_array_is_no_option() -> None:
    optimizer = bo.SGD(0.1)
    registered(optimizer, w=jnp.ones(2))

    def step(value: jax.Array) -> None:
        optimizer.weight_decay = value

    with pytest.raises(TypeError, match=r'Invalid weight_decay=.*Must be a number, not an array of shape'):
        brainstate.transform.jit(step)(jnp.ones(2))


@pytest.mark.parametrize('compile_', [None, bo.jit])
@pytest.mark.parametrize('value', [jnp.array([1, 2]), jnp.array([1j, 2])])
def test_an_assigned_weight_of_another_kind_is_refused(value: jax.Array, compile_: Any) -> None:
    optimizer = bo.Adam(0.1)
    w = registered(optimizer, w=jnp.ones(2, jnp.float32))['w']
    step = optimizer.update if compile_ is None else compile_(optimizer.update)
    step({'w': jnp.ones(2)})
    w.value = value
    with pytest.raises(TypeError, match=rf'The weight w was float32 .* and is {value.dtype} now'):
        step({'w': jnp.ones(2)})
    assert w.value is value
    w.value = jnp.ones(2, jnp.bfloat16)
    step({'w': jnp.ones(2)})
