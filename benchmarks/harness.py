"""Medians over interleaved repetitions: what is compared runs alternately, so that noise falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

__all__ = ['medians']


def medians(candidates: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """The median time of a call of each candidate, in milliseconds, after one call that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        jax.block_until_ready(run())
    for _ in range(repetitions):
        for name, run in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}
