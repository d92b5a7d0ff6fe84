"""Trajectories are torch's for every combination of options: recorded, and live where torch is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from golden.record import FILE, compare, torch_path
from helpers import thinned
from tables.optimizers import CASES, Case
from tables.trajectories import deviation, run

RECORDS = np.load(FILE)
HAS_TORCH = importlib.util.find_spec('torch') is not None
WITH_TORCH = [case for case in CASES if case.comparison.torch]


@thinned(WITH_TORCH)
def test_float64_equals_torch(case: Case) -> None:
    path, rounding = run(case, np.float64), case.comparison.problem.rounding
    assert max(compare(case, RECORDS[case.name], path, rounding)[0].values()) < 1e-12
    if HAS_TORCH:
        assert max(deviation(path, torch_path(case, 'float64'), rounding).values()) < 1e-12


@thinned(WITH_TORCH, one_in=3)
@pytest.mark.usefixtures('float32')
def test_float32_is_as_exact_as_torch(case: Case) -> None:
    """At most twice as far from torch's float64 as torch's float32 is, but for a few roundings of a small tensor."""
    path = run(case, np.float32)
    comparisons = [compare(case, RECORDS[case.name], path, 0.0)]
    if HAS_TORCH:
        exact = torch_path(case, 'float64')
        comparisons.append((deviation(path, exact), deviation(torch_path(case, 'float32'), exact)))
    for ours, theirs in comparisons:
        assert max(ours.values()) <= 2 * max(theirs.values())
        assert all(ours[key] <= max(2 * theirs[key], 1e-6) for key in ours)


def test_every_record_belongs_to_a_case() -> None:
    assert {name.removesuffix('/bfloat16') for name in RECORDS.files} == {case.name for case in WITH_TORCH}
