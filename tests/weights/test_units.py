"""Weights and gradients with units."""

from __future__ import annotations

from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import all_values, assert_same
from tables.optimizers import COMMON

import braintools_optim as bo

every_optimizer = pytest.mark.parametrize('optimizer', COMMON, ids=lambda o: o.__name__)
transform = brainstate.transform


@every_optimizer
def test_both_forms_of_gradients_with_units_agree(optimizer: type[bo.Optimizer]) -> None:
    results = []
    for unit_aware in (False, True):
        states = {
            'v': brainstate.ParamState({'rest': jnp.array([1.0, -2.0]) * u.mV, 'gain': jnp.array(3.0)}),
            'g': brainstate.ParamState(jnp.array(0.5) * u.nS),
        }
        opt = optimizer(lr=0.1).register_trainable_weights(states)

        def loss(states: Any = states) -> Any:
            current = states['v'].value['rest'] * states['g'].value * states['v'].value['gain']
            return jnp.sum(u.get_mantissa(current / u.pA) ** 2)

        for _ in range(3):
            opt.update(transform.grad(loss, states, unit_aware=unit_aware)())
        assert u.get_unit(states['v'].value['rest']) == u.mV
        results.append(jax.tree.map(np.array, [u.get_mantissa(x) for x in jax.tree.leaves(all_values(states))]))
    assert_same(*results, rtol=1e-9)


def test_gradient_on_another_scale_is_converted() -> None:
    w = brainstate.ParamState(jnp.array(1.0) * u.mV)
    opt = bo.SGD(1.0).register_trainable_weights({'w': w})
    opt.update({'w': jnp.array(0.0005) * u.volt})
    np.testing.assert_allclose(w.value.to_decimal(u.mV), 0.5)
    opt.update({'w': jnp.array(500.0) / u.volt})  # the loss has no unit: 0.5 / mV
    np.testing.assert_allclose(w.value.to_decimal(u.mV), 0.0, atol=1e-12)
    opt.update({'w': jnp.array(1.0) * u.nA}, loss_unit=u.nA * u.mV)
    np.testing.assert_allclose(w.value.to_decimal(u.mV), -1.0)
    for wrong in (jnp.array(1.0) * u.nA, jnp.array(1.0)):
        with pytest.raises(ValueError, match=r'gradient of w has the unit .*, its weight mV'):
            opt.update({'w': wrong})
    np.testing.assert_allclose(w.value.to_decimal(u.mV), -1.0)


def test_changed_unit_is_refused() -> None:
    w = brainstate.ParamState(jnp.array(1.0) * u.mV)
    opt = bo.SGD(1.0).register_trainable_weights({'w': w})
    w.value = w.value.to(u.volt)
    with pytest.raises(ValueError, match=r'w: .* is now'):
        opt.update({'w': jnp.array(0.5) * u.mV})


def test_float16_gradient_is_rescaled_without_overflow() -> None:
    w = brainstate.ParamState(jnp.ones(2, 'float16') * u.mV)
    opt = bo.SGD(1e-3).register_trainable_weights({'w': w})
    opt.update({'w': jnp.full(2, 100.0, 'float16') * u.volt})
    np.testing.assert_allclose(w.value.mantissa, -99.0)


@pytest.mark.parametrize('rule', [bo.SGD, bo.Adam, bo.Lion])
def test_lr_is_in_the_unit_of_the_weight(rule: Any) -> None:
    """Adam's steps are numbers in the unit of the weight; SGD's scale with its square."""
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
