"""The test of a range of learning rates, against formulas in NumPy and a problem whose largest rate is known."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo

CURVATURE = np.array([1.0, 4.0])


def run(lr: Any, steps: int = 100, sign: float = 1.0) -> dict[str, Any]:
    """Descend a parabola, which diverges for rates above 2 / 4 in the end."""
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.SGD(lr=lr).register_trainable_weights({'w': w})
    step = lambda _: optimizer.minimize(lambda: sign * jnp.sum(CURVATURE * w.value**2) / 2)  # noqa: E731
    return {'loss': brainstate.transform.for_loop(step, jnp.arange(steps))}


def test_rates_and_losses_equal_numpy() -> None:
    result = bo.lr_range_test(run, start_lr=1e-3, end_lr=1.0, steps=50)
    w, losses = np.ones(2), []
    rates = np.geomspace(1e-3, 1.0, 50)
    for rate in rates:
        losses.append(np.sum(CURVATURE * w**2) / 2)
        w = w - rate * CURVATURE * w
    np.testing.assert_allclose(result.lr, rates, rtol=1e-12)
    np.testing.assert_allclose(result.loss, losses, rtol=1e-9)
    weights = [0.9 ** np.arange(i, -1, -1.0) for i in range(result.kept)]
    averages = [np.average(losses[: i + 1], weights=x) for i, x in enumerate(weights)]
    np.testing.assert_allclose(result.average, averages, rtol=1e-9)
    steepest = np.argmin(np.diff(averages[5:]) / np.diff(np.log(rates[5 : result.kept])))
    assert result.suggestion == pytest.approx(rates[5 + steepest])


def test_divergence_is_left_out() -> None:
    result = bo.lr_range_test(run, start_lr=1e-4, end_lr=1e3)
    assert result.kept == len(result.average) < len(result.loss) == 100
    assert result.suggestion is not None
    assert 0.01 < result.suggestion < 0.5 < result.lr[result.kept]
    assert result.average.max() <= 4 * result.average.min() or result.average[0] == result.average.max()
    assert str(result).startswith('lr from 0.0001 to 1e+03: the loss diverges at ')
    assert f'suggestion: {result.suggestion:.2g}' in str(result)
    ax = result.plot()
    assert ax.get_xscale() == 'log'
    assert len(ax.lines) == 3
    assert result.plot(ax) is ax


def test_loss_that_never_falls_has_no_suggestion() -> None:
    result = bo.lr_range_test(lambda lr: {'loss': jnp.arange(1.0, 21.0)}, divergence=100.0)
    assert (result.suggestion, result.kept) == (None, 20)
    assert str(result).endswith('the loss does not diverge; no suggestion: the loss never falls')
    assert len(result.plot().lines) == 2
    assert bo.lr_range_test(lambda lr: {'loss': jnp.full(5, jnp.nan)}).suggestion is None


def test_negative_losses() -> None:
    assert bo.lr_range_test(lambda lr: {'loss': -jnp.arange(1.0, 21.0)}).kept == 20
    assert bo.lr_range_test(lambda lr: {'loss': jnp.array([-1.0, -2.0, 40.0])}, smoothing=0.0).kept == 2


MISTAKES: list[tuple[Any, type[Exception], str]] = [
    (lambda: bo.lr_range_test(run, start_lr=0.0), ValueError, 'Invalid start_lr=0.0. Must be > 0.'),
    (
        lambda: bo.lr_range_test(run, start_lr=1.0, end_lr=0.1),
        ValueError,
        'Invalid end_lr=0.1. Must be > start_lr=1.0.',
    ),
    (lambda: bo.lr_range_test(run, smoothing=1.0), ValueError, 'Invalid smoothing=1.0. Must be in [0, 1).'),
    (lambda: bo.lr_range_test(run, divergence=1.0), ValueError, 'Invalid divergence=1.0. Must be > 1.'),
    (lambda: bo.lr_range_test(lambda lr: {'a': 1.0}), ValueError, "run must return an array under the key 'loss'"),
    (lambda: bo.lr_range_test(lambda lr: {'loss': jnp.ones(1)}), ValueError, 'one loss per update, at least two'),
    (lambda: bo.lr_range_test(lambda lr: jnp.ones(3)), TypeError, 'Must be a dict of its measurements'),
]


@pytest.mark.parametrize(('call', 'error', 'message'), MISTAKES)
def test_mistakes_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
