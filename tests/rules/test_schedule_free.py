"""Schedule-free averaging."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import registered
from tables import papers

import braintools_optim as bo

SLOPES = np.random.default_rng(2).normal(size=(40, 3))
START = np.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize('way', ['eager', 'jit'])
@pytest.mark.parametrize(
    ('optimizer', 'paper', 'options'),
    [
        (bo.ScheduleFreeSGD, papers.schedule_free, {'momentum': 0.7}),
        (bo.ScheduleFreeAdamW, papers.schedule_free_adamw, {'betas': (0.8, 0.99), 'eps': 1e-3}),
    ],
)
def test_average_equals_the_paper_under_a_schedule(
    optimizer: Any, paper: Any, options: dict[str, Any], way: str
) -> None:
    """``x`` and ``y`` equal the paper's while the rate rises and falls."""
    rates = 0.1 * np.concatenate([np.linspace(0.2, 1, 10), np.linspace(1, 0.1, 30)])
    built = optimizer(lambda t: jnp.asarray(rates)[t], **options)
    w = registered(built, w=START)['w']

    def update(slope: Any) -> Any:
        built.update({'w': slope})
        with built.eval_weights():
            return w.value

    if way == 'jit':
        update = brainstate.transform.jit(update)
    y, state = START, {}
    for t, slope in enumerate(SLOPES, 1):
        x = update(jnp.asarray(slope))
        y = paper(y, slope, t, state, lr=rates[t - 1], **options)
        np.testing.assert_allclose(w.value, y, rtol=1e-12)
        np.testing.assert_allclose(x, state['x'], rtol=1e-12)


def test_average_equals_optax() -> None:
    built, tx = bo.ScheduleFreeAdamW(0.1), optax.contrib.schedule_free_adamw(0.1)
    w, params = registered(built, w=START)['w'], jnp.asarray(START)
    state = tx.init(params)
    for slope in SLOPES:
        built.update({'w': jnp.asarray(slope)})
        changes, state = tx.update(jnp.asarray(slope), state, params)
        params = optax.apply_updates(params, changes)
    with built.eval_weights():
        np.testing.assert_allclose(w.value, optax.contrib.schedule_free_eval_params(state, params), rtol=1e-12)


@pytest.mark.parametrize('rate', [0.0, 1e-30])
def test_vanishing_rate_moves_nothing(rate: float) -> None:
    """Updates at a rate of zero leave no trace in the average, at the start of a run and later."""
    path = []
    for rates in ([1.0, 1.0, 0.5], [rate, 1.0, 1.0, rate, 0.5]):
        optimizer = bo.ScheduleFreeSGD(0.1, weight_lr_power=2.0)
        w = registered(optimizer, w=START)['w']
        for t, lr in enumerate(rates):
            optimizer.lr = 0.1 * lr
            before = w.value
            optimizer.update({'w': jnp.asarray(SLOPES[t if lr == rate else 0])})
            assert (lr != rate or rate) or (w.value == before).all()
        path.append(np.array(w.value))
    if not rate:
        np.testing.assert_array_equal(*path)
    assert np.isfinite(path[1]).all()


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'constraints': {'w': bo.constraints.non_negative()}}, 'Invalid constraints of ScheduleFreeSGD'),
        ({'state_dtype': jnp.bfloat16}, 'Invalid state_dtype=.* Must be float32 or wider'),
        ({'cautious': True}, 'Invalid cautious=True'),
    ],
)
def test_options_that_break_the_average_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bo.ScheduleFreeSGD(**options)
