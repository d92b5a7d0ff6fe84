"""Half precision: master weights, stochastic rounding, and the dtype of slots."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import master_copies, round_stochastically, slots_of

import braintools_optim as bo

RULES = [bo.SGD, bo.Momentum, bo.Adam, bo.AdamW, bo.Lion, bo.Adafactor, bo.Lamb, bo.LBFGS]


def register_one(optimizer: bo.Optimizer, value: Any) -> brainstate.ParamState:
    state = brainstate.ParamState(value)
    optimizer.register_trainable_weights({'w': state})
    return state


def relative_steps(dtype: Any, steps: int = 1000, **options: Any) -> np.ndarray:
    """Return the weights after many steps of 1e-4 of their size."""
    opt = bo.SGD(1.0, **options)
    w = register_one(opt, jnp.array([1.0, -3.0, 0.01, 100.0], dtype))
    slope = jnp.array([1e-4, -3e-4, 1e-6, 1e-2], dtype)
    brainstate.transform.for_loop(lambda _: opt.update({'w': slope}), jnp.arange(steps))
    return np.asarray(w.value, np.float64)


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_small_steps_add_up_with_master_weights_or_stochastic_rounding(dtype: Any) -> None:
    exact = relative_steps(jnp.float32)
    spacing = np.abs(exact) * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(relative_steps(dtype, master_weights=True), exact, rtol=0.01)
    stochastic = relative_steps(dtype, rounding='stochastic')
    assert (np.abs(stochastic - exact) < np.maximum(0.01 * np.abs(exact), 10 * spacing)).all()
    if dtype == jnp.bfloat16:  # the steps are lost
        np.testing.assert_allclose(relative_steps(dtype), [1.0, -3.0, 0.01, 100.0], rtol=2e-3)


@pytest.mark.usefixtures('float32')
def test_stochastic_rounding_is_unbiased() -> None:
    x = jnp.array([1.0, 1.001, -1.001, 3e-5, 0.0, -70.3, 65504.0], jnp.float32)
    for dtype in (jnp.bfloat16, jnp.float16):
        draws = jax.vmap(lambda key: round_stochastically(x, dtype, key))(jax.random.split(jax.random.key(0), 4000))  # noqa: B023
        near, draws = np.float64(x.astype(dtype)), np.float64(draws)
        gap = np.abs(draws - near).max(0)
        assert (np.array([len(np.unique(column)) for column in draws.T]) <= 2).all()
        np.testing.assert_allclose(draws.mean(0), np.float64(x), atol=0.05 * gap.max() + 1e-12, rtol=1e-4)
        assert (draws[:, 0] == 1).all()
        assert (draws[:, 4] == 0).all()


def test_master_weights_follow_assignments_and_are_saved() -> None:
    opt = bo.SGD(1e-3, master_weights=True)
    w = register_one(opt, jnp.array([1.0, 2.0], jnp.bfloat16))
    assert master_copies(opt)['w'].dtype == jnp.float32
    for _ in range(3):
        opt.update({'w': jnp.ones(2, jnp.bfloat16)})
    np.testing.assert_allclose(master_copies(opt)['w'], [0.997, 1.997], rtol=1e-5)
    w.value = jnp.array([5.0, float(w.value[1])], jnp.bfloat16)
    opt.update({'w': jnp.ones(2, jnp.bfloat16)})
    np.testing.assert_allclose(master_copies(opt)['w'], [4.999, 1.996], rtol=1e-5)
    again = bo.SGD(1e-3, master_weights=True)
    register_one(again, w.value)
    again.load_state_dict(opt.state_dict())
    np.testing.assert_array_equal(master_copies(again)['w'], master_copies(opt)['w'])
    full = bo.SGD(master_weights=True)
    register_one(full, jnp.ones(2))
    assert not master_copies(full)  # float32 weights need no copy


@pytest.mark.slow
@pytest.mark.parametrize('rule', RULES)
def test_precision_options_work_with_every_optimizer(rule: Any) -> None:
    start = jnp.array([[1.0, -2.0], [0.5, 3.0]], jnp.bfloat16)
    results = []
    for options in ({}, {'master_weights': True}, {'rounding': 'stochastic'}, {'state_dtype': 'bfloat16'}):
        if rule is bo.LBFGS and 'state_dtype' in options:
            with pytest.raises(ValueError, match=r'Invalid state_dtype. LBFGS'):
                rule(**options)
            continue
        opt = rule(lr=0.05, **options)
        w = register_one(opt, start)
        for t in range(3):
            opt.update({'w': jnp.asarray(np.random.default_rng(t).normal(size=(2, 2)), jnp.bfloat16)})
        assert w.value.dtype == jnp.bfloat16
        results.append(np.asarray(w.value, np.float64))
        if 'state_dtype' in options:
            slots = [slots_of(opt), master_copies(opt)]
            assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(slots))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=0.06)


def test_wrong_state_dtype_is_refused() -> None:
    for wrong in ('int32', 'nothing', 3):
        with pytest.raises(TypeError, match='Invalid state_dtype='):
            bo.Adam(state_dtype=wrong)
    for wrong, error in (('up', ValueError), (True, ValueError)):
        with pytest.raises(error, match='Invalid rounding='):
            bo.Adam(rounding=wrong)


@pytest.mark.parametrize('rule', [bo.SGD, bo.Adam, bo.Lamb, bo.Adafactor, bo.SM3])
def test_weights_beyond_two_to_the_31_elements(rule: Any) -> None:
    """Only shapes are evaluated."""
    tx = bo.to_optax(rule(lr=0.1, grad_clip_norm=1.0))
    params = {'w': jax.ShapeDtypeStruct((2**16, 2**16), jnp.bfloat16)}
    state = jax.eval_shape(tx.init, params)
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert (updates['w'].shape, updates['w'].dtype) == ((2**16, 2**16), jnp.bfloat16)
