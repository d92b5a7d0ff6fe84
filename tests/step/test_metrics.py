"""Metrics of updates, and the diagnosis of gradients."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_same, everything
from two_weights import build, slopes

import braintools_optim as bo


def test_metrics_equal_numpy() -> None:
    opt, states = build('SGD', lr=bo.StepLR(0.5, 1, 0.5), grad_clip_norm=1.0, metrics=True, on_nonfinite='skip',
                        groups={'b': {'lr_scale': 0.1}})  # fmt: skip
    update = brainstate.transform.jit(lambda g: opt.update(g))
    clipped = 0
    for t, call in enumerate((opt.update, update)):
        old = {key: np.array(state.value) for key, state in states.items()}
        call(slopes(t))
        steps = {key: np.array(state.value) - old[key] for key, state in states.items()}
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in slopes(t).values()))
        seen = opt.metrics
        np.testing.assert_allclose(seen['lr'], np.array([0.5, 0.05]) / 2**t, rtol=1e-6)
        np.testing.assert_allclose(seen['grad_norm'], norm, rtol=1e-6)
        assert bool(seen['clipped']) == (norm > 1)
        clipped += norm > 1
        total = np.sqrt(sum(np.sum(np.square(x)) for x in steps.values()))
        np.testing.assert_allclose(seen['update_norm'], total, rtol=1e-6)
        ratios = [np.linalg.norm(steps[key]) / np.linalg.norm(old[key]) for key in ('w', 'b')]
        np.testing.assert_allclose(seen['update_ratio'], ratios, rtol=1e-6)
        opt.lr.step()
    update({key: 1e-3 * g for key, g in slopes(3).items()})
    assert not opt.metrics['clipped']
    np.testing.assert_allclose(opt.metrics['clipped_fraction'], clipped / 3, rtol=1e-6)
    update(slopes(4, np.nan))
    assert int(opt.metrics['skipped']) == 1
    assert ('metrics_state',) in brainstate.graph.states(opt)
    with pytest.raises(ValueError, match='Give metrics=True'):
        _ = build()[0].metrics


@pytest.mark.parametrize('over', ['group', 'weight'])
def test_metrics_of_other_norms(over: str) -> None:
    opt, _ = build('SGD', grad_clip_norm=1e3, grad_clip_over=over, metrics=True)
    opt.update(slopes(0))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in slopes(0).values()))
    np.testing.assert_allclose(opt.metrics['grad_norm'], norm, rtol=1e-6)
    assert not opt.metrics['clipped']


def test_diagnosis_names_nonfinite_and_zero_gradients() -> None:
    opt, _ = build()
    found = opt.diagnose({'w': jnp.array([[np.nan, np.inf], [1.0, -np.inf]]), 'b': jnp.zeros(2)})
    assert found.not_finite == {'w': (1, 2, 4)}
    assert found.zero == ['b']
    assert opt.diagnose(slopes(0)).norms == pytest.approx({k: np.linalg.norm(g) for k, g in slopes(0).items()})
    assert str(found) == 'not finite: w (1 NaN, 2 inf of 4)\nall zero: b\nlargest norms: none'


def test_skipped_and_refused_updates_are_not_in_the_metrics() -> None:
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.SGD(0.1, grad_clip_norm=0.1, metrics=True, on_nonfinite='skip').register_trainable_weights({'w': w})
    with jax.disable_jit():
        for g in (1.0, np.inf, 1.0, np.nan, np.nan):
            optimizer.update({'w': jnp.full(2, g)})
        assert float(optimizer.metrics['clipped_fraction']) == 1.0
        optimizer.on_nonfinite = 'raise'
        before = everything(optimizer, {'w': w})
        with pytest.raises(FloatingPointError):
            optimizer.update({'w': jnp.full(2, np.inf)})
    assert_same(before, everything(optimizer, {'w': w}))
