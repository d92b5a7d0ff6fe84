"""Constraints hold after every update."""

from __future__ import annotations

from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo
from braintools_optim import constraints

HOLDS = {
    'non_negative': (constraints.non_negative(), lambda w, first: (w >= 0).all()),
    'box': (constraints.box(-0.25, 0.5), lambda w, first: ((w >= -0.25) & (w <= 0.5)).all()),
    'floor': (constraints.box(lower=0.125), lambda w, first: (w >= 0.125).all()),
    'unit_norm': (constraints.unit_norm(), lambda w, first: abs(np.linalg.norm(w) - 1) < 1e-6),
    'unit_rows': (constraints.unit_norm(1), lambda w, first: (abs(np.linalg.norm(w, axis=1) - 1) < 1e-6).all()),
    'simplex': (constraints.simplex(), lambda w, first: (w >= 0).all() and abs(w.sum() - 1) < 1e-6),
    'simplex_columns': (constraints.simplex(0), lambda w, first: (w >= 0).all() and (abs(w.sum(0) - 1) < 1e-6).all()),
    'keep_sign': (constraints.keep_sign(), lambda w, first: (w * first >= 0).all() and (w[first == 0] == 0).all()),
    'Dale': (constraints.keep_sign([[1], [-1]]), lambda w, first: (w[0] >= 0).all() and (w[1] <= 0).all()),
    'keep_zeros': (constraints.keep_zeros(), lambda w, first: (w[first == 0] == 0).all()),
    'mask': (constraints.keep_zeros([True, False, True]), lambda w, first: (w[:, 1] == 0).all()),
    'function': (lambda w: jnp.round(w, 1), lambda w, first: np.allclose(w, np.round(w, 1))),
}


@pytest.mark.parametrize('name', HOLDS)
@pytest.mark.parametrize('unit', [None, u.mV], ids=['plain', 'mV'])
def test_constraints_hold_and_leave_slots_alone(name: str, unit: Any) -> None:
    constraint, holds = HOLDS[name]
    first = np.array([[0.5, -0.25, 0.0], [-1.0, 0.75, 0.125]])
    with_unit = (lambda x: x * unit) if unit else (lambda x: x)
    states = [brainstate.ParamState({'w': with_unit(jnp.asarray(first, jnp.float32))}) for _ in range(2)]
    free, bounded = bo.Momentum(0.3), bo.Momentum(0.3, constraints={'w': constraint})
    with jax.disable_jit():
        for opt, state in zip((free, bounded), states, strict=True):
            opt.register_trainable_weights({'layer': state})
        for t in range(6):
            g = {'layer': {'w': with_unit(jnp.asarray(np.random.default_rng(t).normal(size=first.shape), jnp.float32))}}
            free.update(g)
            bounded.update(g)
            assert holds(np.asarray(u.get_mantissa(states[1].value['w'])), first), t
    assert (u.get_mantissa(states[0].value['w']) != u.get_mantissa(states[1].value['w'])).any()
    assert states[1].value['w'].dtype == jnp.float32
    slots = [opt.opt_state.value['momentum_buffer']['layer.w'] for opt in (free, bounded)]
    np.testing.assert_array_equal(*slots)


@pytest.mark.parametrize('rule', [bo.Adam, bo.LBFGS, bo.Lookahead])
def test_several_constraints_hold_compiled_in_half_precision(rule: Any) -> None:
    opt = rule(**({'base_optimizer': optax.sgd(0.5)} if rule is bo.Lookahead else {'lr': 0.5}),
               constraints={'w': constraints.box(0.0, 0.3), '*': constraints.keep_zeros([1, 0, 1])})  # fmt: skip
    w = brainstate.ParamState(jnp.full(3, 0.2, jnp.bfloat16))
    opt.register_trainable_weights({'w': w})
    update = brainstate.transform.jit(lambda g: opt.update({'w': g}))
    for slope in (-1.0, 1.0, -3.0):
        update(jnp.full(3, slope, jnp.bfloat16))
        assert ((w.value >= 0) & (w.value <= jnp.bfloat16(0.3)))[jnp.array([0, 2])].all()
        assert w.value[1] == 0


def test_box_in_another_unit_of_the_same_dimension() -> None:
    tau = brainstate.ParamState(5.0 * u.ms)
    opt = bo.SGD(1.0, constraints={'tau': constraints.box(0.004 * u.second, 0.0055 * u.second)})
    opt.register_trainable_weights({'tau': tau})
    opt.update({'tau': -3.0 * u.ms})
    assert abs(tau.value / u.ms - 5.5) < 1e-12


def test_wrong_constraints_are_refused() -> None:
    real, z = brainstate.ParamState(jnp.ones(2) * u.mV), brainstate.ParamState(jnp.ones(2) * 1j)
    for constraint, state, error, match in (
        (constraints.box(1.0 * u.ms), real, ValueError, 'Must have the dimension of the weight'),
        (jnp.sum, real, ValueError, r'Invalid constraint of w, of shape \[2\]: it makes '),
        (constraints.keep_zeros([1, 0, 1]), real, ValueError, r'Invalid constraint of w, of shape \[2\]: Incompatible'),
        (constraints.non_negative(), z, TypeError, 'Invalid constraint of w, which is complex128'),
    ):
        opt = bo.SGD(0.1, constraints={'w': constraint})
        with pytest.raises(error, match=match):
            opt.register_trainable_weights({'w': state})
        assert opt.opt_state is None
    with pytest.raises(ValueError, match=r'Invalid lower=2\.0 of a box'):
        constraints.box(2.0, 1.0)
    with pytest.raises(ValueError, match='An optax transformation cannot have it'):
        bo.to_optax(bo.SGD(0.1, constraints={'w': constraints.non_negative()}))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
@pytest.mark.parametrize('start', [1e-4, 300.0, 1e30])
def test_norm_constraints_are_exact_in_half_precision(dtype: str, start: float) -> None:
    if start == 1e30 and dtype == 'float16':
        pytest.skip('out of its range')
    with jax.disable_jit():
        for constraint, expected in (
            (constraints.unit_norm(), np.full(4, 0.5)),
            (constraints.simplex(), np.full(4, 0.25)),
        ):
            w = brainstate.ParamState(jnp.full(4, start, dtype))
            optimizer = bo.SGD(0.1, constraints={'w': constraint}).register_trainable_weights({'w': w})
            optimizer.update({'w': jnp.zeros(4, dtype)})
            np.testing.assert_array_equal(np.asarray(w.value, float), expected)


def test_long_simplex_in_half_precision() -> None:
    w = brainstate.ParamState(jnp.linspace(0, 1, 3000).astype('float16'))
    optimizer = bo.SGD(0.0, constraints={'w': constraints.simplex()}).register_trainable_weights({'w': w})
    optimizer.update({'w': jnp.zeros(3000, 'float16')})
    np.testing.assert_allclose(np.sum(w.value, dtype=float), 1.0, atol=1e-3)
