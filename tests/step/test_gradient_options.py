"""Options of every optimizer that change gradients or updates: cautious and grokfast."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables.optimizers import STANDALONE, row_of
from two_weights import START, build, slopes

import braintools_optim as bo

SIMPLE = sorted(optimizer.__name__ for optimizer in STANDALONE if row_of(optimizer).kind != 'loss')


def test_cautious_updates_equal_the_paper() -> None:
    """u * 1[u g > 0] / mean(1[u g > 0]) (Liang et al., 2024)."""
    (opt, states), (plain, others) = build(cautious=True), build()
    momentum, disagreed = dict.fromkeys(START, 0.0), False
    for t in range(4):
        old = {key: np.array(state.value) for key, state in states.items()}
        reset = {key: jnp.asarray(w) for key, w in old.items()}
        for key, state in others.items():
            state.value = reset[key]
        opt.update(slopes(t))
        plain.update(slopes(t))
        for key, g in slopes(t).items():
            momentum[key] = 0.9 * momentum[key] + 0.1 * np.array(g)
            agrees = momentum[key] * np.array(g) > 0
            step = (np.array(others[key].value) - old[key]) * agrees / max(agrees.mean(), 1e-3)
            np.testing.assert_allclose(states[key].value - old[key], step, rtol=1e-7)
            disagreed |= not agrees.all()
    assert disagreed


def test_grokfast_adds_the_average_of_gradients() -> None:
    """g + lambda * h with h = alpha h + (1 - alpha) g, which begins at the first gradient (Lee et al., 2024)."""
    opt, states = build('SGD', lr=1.0, grokfast=2.0, grokfast_decay=0.9)
    expected, averages = dict(START), dict(slopes(0))
    for t in range(4):
        opt.update(slopes(t))
        for key, g in slopes(t).items():
            averages[key] = 0.9 * averages[key] + 0.1 * g
            expected[key] = expected[key] - (g + 2.0 * averages[key])
            np.testing.assert_allclose(states[key].value, expected[key], rtol=1e-12)
    with pytest.raises(ValueError, match='cannot be assigned once weights are registered'):
        opt.grokfast = None
    for options in ({'grokfast': 0.0}, {'grokfast_decay': 1.0}):
        with pytest.raises(ValueError, match='Invalid grokfast'):
            bo.SGD(**options)


@pytest.mark.slow
@pytest.mark.parametrize('name', SIMPLE)
def test_shared_options_work_with_every_optimizer(name: str) -> None:
    moved = []
    for options in ({}, {'cautious': True}, {'grokfast': 1.0}, {'state_dtype': 'float16'}):
        if name.startswith('ScheduleFree') and options.keys() & {'cautious', 'state_dtype'}:
            with pytest.raises(ValueError, match=r'Invalid (cautious|state_dtype)'):
                build(name, **options)
            continue
        opt, states = build(name, **options)
        with jax.disable_jit():
            for t in range(3):
                opt.update(slopes(t))
        assert all(jnp.isfinite(state.value).all() for state in states.values())
        moved.append([state.value for state in states.values()])
    np.testing.assert_allclose(moved[-1][1], moved[0][1], atol=0.5 if name.startswith('ScheduleFree') else 0.1)
