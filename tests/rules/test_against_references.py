"""Trajectories are those of optax or of the paper for every combination of options."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from helpers import thinned
from tables.optimizers import CASES, OPTIMIZERS, ROWS, Case
from tables.trajectories import deviation, reference_path, run

import braintools_optim as bo
from braintools_optim import rules

SINGLE = float(np.finfo(np.float32).eps)
OTHERS = [case for case in CASES if not case.comparison.torch]


@thinned(OTHERS)
def test_float64_equals_reference(case: Case) -> None:
    assert (
        max(deviation(run(case, np.float64), reference_path(case), case.comparison.problem.rounding).values()) < 1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize('case', OTHERS, ids=lambda case: case.name)
@pytest.mark.usefixtures('float32')
def test_float32_is_close_to_reference(case: Case) -> None:
    jax.config.update('jax_enable_x64', True)
    exact = reference_path(case)
    jax.config.update('jax_enable_x64', False)
    assert max(deviation(run(case, np.float32), exact, SINGLE).values()) < 1e-5


def test_every_optimizer_has_one_row() -> None:
    assert sorted(OPTIMIZERS, key=str) == sorted(
        {getattr(rules, name) for name in rules.__all__} | {bo.OptaxOptimizer}, key=str
    )
    assert rules.NAdam is rules.Nadam
    compared_elsewhere = {bo.LBFGS, bo.Lookahead, bo.SAM}
    assert {row.optimizer for row in ROWS if not row.comparisons} == compared_elsewhere
