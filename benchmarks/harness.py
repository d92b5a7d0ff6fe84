"""Measure candidates in interleaved repetitions, so that noise affects all of them alike.

The order is shuffled in each repetition, because torch's threads keep the processor busy for a while after a call and
slow down the candidate that runs next.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

__all__ = ['medians']


def medians(candidates: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Return the median time of a call of each candidate in milliseconds, after one call to warm up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        jax.block_until_ready(run())
    order, shuffle = list(candidates.items()), random.Random(0).shuffle
    for _ in range(repetitions):
        shuffle(order)
        for name, run in order:
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}
