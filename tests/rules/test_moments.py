"""Bias corrections, rectification, and other numerics of moment estimates."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import registered
from internals import as_decay, sma_length
from tables import papers

import braintools_optim as bo
from braintools_optim import rules


@pytest.mark.parametrize('x64', [True, False])
def test_rectification_starts_at_torchs_step(x64: bool, request: pytest.FixtureRequest) -> None:
    """torch evaluates the formula in Python's float64."""

    if not x64:
        request.getfixturevalue('float32')
    steps = np.arange(1, 400)
    for beta in [0.3, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999]:
        rho_inf = 2 / (1 - beta) - 1
        rho = np.array([rho_inf - 2 * int(t) * beta ** int(t) / (1 - beta ** int(t)) for t in steps])
        ours_inf, ours = sma_length(as_decay(beta), jnp.asarray(steps))
        assert ((np.asarray(ours) > 5) == (rho > 5)).all()
        np.testing.assert_allclose(ours, rho, rtol=1e-9 if x64 else 1e-6)
        np.testing.assert_allclose(ours_inf, rho_inf, rtol=1e-9 if x64 else 1e-6)


@pytest.mark.usefixtures('float32')
def test_bias_corrections_in_float32_equal_float64() -> None:

    steps = np.arange(1, 2000)
    for beta in (0.3, 0.9, 0.999, 0.9999, 0.99999):
        exact = -np.expm1(steps * np.log(beta))
        ours = np.asarray(as_decay(beta).correction(jnp.asarray(steps)))
        assert np.max(np.abs(ours - exact)) < 1e-7
        np.testing.assert_allclose(ours, exact, rtol=5e-7)


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('rule', [bo.Adam, bo.RMSprop, bo.Adadelta, bo.AdaBelief], ids=lambda rule: rule.__name__)
def test_overflowing_second_moment_stops_the_weight(rule: type[bo.Optimizer]) -> None:
    """As in torch, the mean stays infinite, and the weight stops without becoming NaN."""
    w = brainstate.ParamState(jnp.ones(2, jnp.float32))
    optimizer = rule(lr=0.1).register_trainable_weights({'w': w})
    path = []
    for slope in (1.0, 1e25, 1.0, -1.0):
        optimizer.update({'w': jnp.full(2, slope, jnp.float32)})
        path.append(np.asarray(w.value))
    assert 0 < path[0][0] < 1
    np.testing.assert_array_equal(path[1:], path[:-1])


def test_eps_of_adabelief_counts_twice_unless_eps_root_is_given() -> None:
    """``AdaBelief(eps=1e-8)`` is the paper's with this eps, which matters where gradients are of size 1e-3."""
    assert (rules.AdaBelief().eps_root, rules.AdaBelief(eps=1e-8).eps_root) == (1e-16, 1e-8)
    assert rules.AdaBelief(eps=1e-8, eps_root=1e-12).eps_root == 1e-12
    optimizer = rules.AdaBelief(lr=0.1, eps=1e-8)
    w, state, expected = registered(optimizer, w=np.zeros(3))['w'], {}, np.zeros(3)
    for t in range(1, 6):
        slope = 1e-3 * np.cos(t + np.arange(3.0))
        optimizer.update({'w': jnp.asarray(slope)})
        expected = papers.adabelief(expected, slope, t, state, lr=0.1, eps=1e-8)
        np.testing.assert_allclose(w.value, expected, rtol=1e-12)


def test_asgd_keeps_the_mean_of_the_weights() -> None:
    optimizer = rules.ASGD(0.1, lambd=0.0, t0=2.0)
    w = registered(optimizer, w=1.0)['w']
    assert optimizer.opt_state.value['ax']['w'] == 1.0
    path = []
    for slope in (1.0, -2.0, 0.5, 3.0, -1.0):
        optimizer.update({'w': jnp.asarray(slope)})
        path.append(float(w.value))
    np.testing.assert_allclose(optimizer.opt_state.value['ax']['w'], np.mean(path[-2:]))


def test_adafactor_clips_the_root_mean_square() -> None:
    """The root mean square of a step is at most lr times the threshold."""
    for threshold, rms in ((1.0, 0.1), (0.5, 0.05), (float('inf'), 1.0)):
        optimizer = rules.Adafactor(0.1, clip_threshold=threshold, decay_rate=1.0)
        w = registered(optimizer, w=np.zeros(4))['w']
        for slope in (0.01, 1.0):
            before = w.value
            optimizer.update({'w': jnp.full(4, slope)})
        assert jnp.sqrt(jnp.mean((w.value - before) ** 2)) <= rms * 1.5
    assert jnp.max(jnp.abs(w.value - before)) > 0.1
