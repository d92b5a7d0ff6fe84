"""The rate that an optimizer applies is the one it reports and the scheduled one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from tables.schedules import CASES, DISTINCT, STEPS, Case, expected

import braintools_optim as bo

RECORDS = np.load(Path(__file__).parents[1] / 'golden' / 'schedules.npz')
distinct_case = pytest.mark.parametrize('case', DISTINCT, ids=lambda case: case.name)


def assert_equal_rates(ours: Any, exact: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours, exact, rtol=tolerance, atol=tolerance * np.max(np.abs(exact)))


def trained(case: Case) -> tuple[bo.SGD, brainstate.ParamState]:
    weight = brainstate.ParamState(jnp.zeros(()))
    return bo.SGD(lr=case.build()).register_trainable_weights({'w': weight}), weight


def one_epoch(optimizer: bo.SGD, weight: brainstate.ParamState) -> tuple[Any, Any]:
    """Update with a gradient of 1, step the schedule, and return the reported rate and the weight."""
    reported = optimizer.current_lr
    optimizer.update({'w': jnp.ones(())})
    optimizer.lr.step()
    return reported, weight.value


@distinct_case
@pytest.mark.parametrize('how', ['eager', 'jit', 'for_loop'])
def test_applied_rate_equals_reported_and_expected(case: Case, how: str) -> None:
    optimizer, weight = trained(case)
    if how == 'for_loop':
        reported, path = brainstate.transform.for_loop(lambda _: one_epoch(optimizer, weight), jnp.arange(STEPS))
    else:
        run = brainstate.transform.jit(one_epoch, static_argnums=(0, 1)) if how == 'jit' else one_epoch
        pairs = [run(optimizer, weight) for _ in range(STEPS)]
        reported, path = np.array(pairs, float).T
    exact = expected(case, RECORDS)[0, :STEPS]
    assert_equal_rates(reported, exact, 1e-12)
    assert_equal_rates(-np.diff(path, prepend=0.0), exact, 1e-12)


@pytest.mark.parametrize('case', [case for case in CASES if len(case.base) > 1], ids=lambda case: case.name)
def test_groups_follow_their_base_rates(case: Case) -> None:
    weights = [brainstate.ParamState(jnp.zeros(())) for _ in case.base]
    schedule = case.build()
    vars(schedule).pop('cycle_momentum', None)  # without momentum the step is the rate
    optimizer = bo.SGD(lr=schedule).register_trainable_weights({'0': weights[0]})
    optimizer.add_param_group({'1': weights[1]})

    def epoch(_: Any) -> Any:
        before = [w.value for w in weights]
        optimizer.update({'0': jnp.ones(()), '1': jnp.ones(())})
        optimizer.lr.step()
        return optimizer.lr.lr_at(0), [b - w.value for b, w in zip(before, weights, strict=True)]

    _, applied = brainstate.transform.for_loop(epoch, jnp.arange(STEPS))
    assert_equal_rates(np.stack(applied), expected(case, RECORDS)[:, :STEPS], 1e-12)
