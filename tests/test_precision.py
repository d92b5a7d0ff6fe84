"""Half precision, master weights, stochastic rounding, loss scaling, the dtype of the memory, and norms over units."""

from __future__ import annotations

import importlib.util
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo
from braintools_optim.precision import round_stochastically

RULES = [bo.SGD, bo.Momentum, bo.Adam, bo.AdamW, bo.Lion, bo.Adafactor, bo.Lamb, bo.LBFGS]


def registered(optimizer: bo.Optimizer, value: Any) -> brainstate.ParamState:
    state = brainstate.ParamState(value)
    optimizer.register_trainable_weights({'w': state})
    return state


# small steps in half precision


def relative_steps(dtype: Any, steps: int = 1000, **options: Any) -> np.ndarray:
    """The weights after many steps of 1e-4 of themselves."""
    opt = bo.SGD(1.0, **options)
    w = registered(opt, jnp.array([1.0, -3.0, 0.01, 100.0], dtype))
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
    if dtype == jnp.bfloat16:  # they stall without
        np.testing.assert_allclose(relative_steps(dtype), [1.0, -3.0, 0.01, 100.0], rtol=2e-3)


@pytest.mark.usefixtures('float32')
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average() -> None:
    x = jnp.array([1.0, 1.001, -1.001, 3e-5, 0.0, -70.3, 65504.0], jnp.float32)
    for dtype in (jnp.bfloat16, jnp.float16):
        draws = jax.vmap(lambda key: round_stochastically(x, dtype, key))(jax.random.split(jax.random.key(0), 4000))  # noqa: B023
        near, draws = np.float64(x.astype(dtype)), np.float64(draws)
        gap = np.abs(draws - near).max(0)
        assert (np.array([len(np.unique(column)) for column in draws.T]) <= 2).all()
        np.testing.assert_allclose(draws.mean(0), np.float64(x), atol=0.05 * gap.max() + 1e-12, rtol=1e-4)
        assert (draws[:, 0] == 1).all()
        assert (draws[:, 4] == 0).all()


def test_master_weights_follow_a_weight_that_is_assigned_and_are_saved() -> None:
    opt = bo.SGD(1e-3, master_weights=True)
    w = registered(opt, jnp.array([1.0, 2.0], jnp.bfloat16))
    assert opt.opt_state.value['master']['w'].dtype == jnp.float32
    for _ in range(3):
        opt.update({'w': jnp.ones(2, jnp.bfloat16)})
    np.testing.assert_allclose(opt.opt_state.value['master']['w'], [0.997, 1.997], rtol=1e-5)
    w.value = jnp.array([5.0, float(w.value[1])], jnp.bfloat16)
    opt.update({'w': jnp.ones(2, jnp.bfloat16)})
    np.testing.assert_allclose(opt.opt_state.value['master']['w'], [4.999, 1.996], rtol=1e-5)
    again = bo.SGD(1e-3, master_weights=True)
    registered(again, w.value)
    again.load_state_dict(opt.state_dict())
    np.testing.assert_array_equal(again.opt_state.value['master']['w'], opt.opt_state.value['master']['w'])
    full = bo.SGD(master_weights=True)
    registered(full, jnp.ones(2))
    assert 'master' not in full.opt_state.value  # nothing to add to full precision


@pytest.mark.slow
@pytest.mark.parametrize('rule', RULES)
def test_options_of_precision_serve_every_rule(rule: Any) -> None:
    start = jnp.array([[1.0, -2.0], [0.5, 3.0]], jnp.bfloat16)
    results = []
    for options in ({}, {'master_weights': True}, {'rounding': 'stochastic'}, {'state_dtype': 'bfloat16'}):
        if rule is bo.LBFGS and 'state_dtype' in options:
            with pytest.raises(ValueError, match=r'Invalid state_dtype. LBFGS'):
                rule(**options)
            continue
        opt = rule(lr=0.05, **options)
        w = registered(opt, start)
        for t in range(3):
            opt.update({'w': jnp.asarray(np.random.default_rng(t).normal(size=(2, 2)), jnp.bfloat16)})
        assert w.value.dtype == jnp.bfloat16
        results.append(np.asarray(w.value, np.float64))
        if 'state_dtype' in options:
            slots = [x for slot, x in opt.opt_state.value.items() if slot not in ('step', 'skipped')]
            assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(slots))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=0.06)


def test_the_dtype_of_the_memory_is_checked() -> None:
    for wrong in ('int32', 'nothing', 3):
        with pytest.raises(TypeError, match='Invalid state_dtype='):
            bo.Adam(state_dtype=wrong)
    for wrong, error in (('up', ValueError), (True, ValueError)):
        with pytest.raises(error, match='Invalid rounding='):
            bo.Adam(rounding=wrong)


# loss scaling


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='needs torch')
def test_the_dynamic_loss_scale_is_that_of_torch() -> None:
    import torch

    options = {'growth_factor': 3.0, 'backoff_factor': 0.25, 'growth_interval': 3}
    ours = bo.DynamicLossScale(init_scale=64.0, **options)
    scale, tracker = torch.tensor(64.0), torch.tensor(0, dtype=torch.int32)
    opt = bo.SGD(0.0, loss_scale=ours)
    registered(opt, jnp.zeros((), jnp.float32))
    for t in range(40):
        bad = t in (2, 3, 10, 17, 30, 31)
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(bad)), 3.0, 0.25, 3)
        opt.update({'w': jnp.asarray(np.inf if bad else 1.0, jnp.float32)})
        assert ours.current == float(scale), t


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('how', ['eager', 'jit', 'minimize'])
def test_gradients_that_vanish_in_float16_are_saved_by_loss_scaling(how: str) -> None:
    loss_scale = bo.DynamicLossScale(init_scale=2.0**24, growth_interval=5)
    opt = bo.Adam(0.125, eps=1e-15, loss_scale=loss_scale, grad_clip_norm=1.0)
    w = registered(opt, jnp.array([1.0, -1.0], jnp.float16))
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


def test_a_loss_scale_given_by_hand() -> None:
    opt = bo.SGD(1.0, grad_clip_norm=1.0, loss_scale=4.0)
    w = registered(opt, jnp.zeros(2))
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


def test_a_dynamic_loss_scale_is_found_saved_and_checked() -> None:
    def build() -> tuple[bo.Optimizer, bo.DynamicLossScale]:
        scale = bo.DynamicLossScale(init_scale=8.0)
        opt = bo.SGD(loss_scale=scale)
        registered(opt, jnp.zeros(()))
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


# shapes


@pytest.mark.parametrize('rule', [bo.SGD, bo.Adam, bo.Lamb, bo.Adafactor, bo.SM3])
def test_weights_beyond_two_to_the_31_elements(rule: Any) -> None:
    """In shapes alone."""
    tx = bo.to_optax(rule(lr=0.1, grad_clip_norm=1.0))
    params = {'w': jax.ShapeDtypeStruct((2**16, 2**16), jnp.bfloat16)}
    state = jax.eval_shape(tx.init, params)
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert (updates['w'].shape, updates['w'].dtype) == ((2**16, 2**16), jnp.bfloat16)


# units


def circuit() -> dict[str, brainstate.ParamState]:
    return {
        'v': brainstate.ParamState({'rest': jnp.array([1.0, -2.0]) * u.mV}),
        'g': brainstate.ParamState(jnp.array(0.5) * u.nS),
    }


SLOPES = {'v': {'rest': jnp.array([3.0, 0.0]) * u.mV}, 'g': jnp.array(4.0) * u.nS}


def test_a_norm_over_different_dimensions_is_a_choice() -> None:
    opt = bo.SGD(1.0, grad_clip_norm=1.0).register_trainable_weights(circuit())
    with pytest.warns(UserWarning, match=r'different dimensions.*: v\.rest \(mV\), g \(nS\)'):
        opt.update(SLOPES)
    opt.update(SLOPES)  # warns but once
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


@pytest.mark.parametrize('rule', [bo.SGD, bo.Adam, bo.Lion])
def test_a_model_in_volt_and_one_in_millivolt_behave_as_the_meaning_of_lr_says(rule: Any) -> None:
    """lr is in the weight's unit per direction: Adam's steps are numbers in that unit, SGD's scale with its square."""
    paths = {}
    for name, unit, scale in (('mV', u.mV, 1.0), ('V', u.volt, 1e-3)):
        lr = 0.1 * (scale**2 if rule is bo.SGD else scale)
        opt = rule(lr=lr, **({'eps': 1e-30} if rule is bo.Adam else {}), weight_decay=0.0)
        w = brainstate.ParamState((jnp.array([5.0, -3.0]) * u.mV).to(unit))
        opt.register_trainable_weights({'w': w})
        for _ in range(5):
            grads = brainstate.transform.grad(lambda: jnp.sum((w.value / u.mV) ** 2), {'w': w})()  # noqa: B023
            opt.update(grads)
        assert u.get_unit(w.value) == unit
        paths[name] = np.array(w.value / u.mV)
    np.testing.assert_allclose(paths['V'], paths['mV'], rtol=1e-9)


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('rule', [bo.Adam, bo.RMSprop, bo.Adadelta, bo.AdaBelief], ids=lambda rule: rule.__name__)
def test_a_second_moment_that_overflows_stops_the_weight(rule: type[bo.Optimizer]) -> None:
    """As in torch: the mean stays infinite, so the weight stands still, and does not become NaN."""
    w = brainstate.ParamState(jnp.ones(2, jnp.float32))
    optimizer = rule(lr=0.1).register_trainable_weights({'w': w})
    path = []
    for slope in (1.0, 1e25, 1.0, -1.0):
        optimizer.update({'w': jnp.full(2, slope, jnp.float32)})
        path.append(np.asarray(w.value))
    assert 0 < path[0][0] < 1
    np.testing.assert_array_equal(path[1:], path[:-1])
