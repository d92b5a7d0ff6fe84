"""Count compilations by jax's own events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

COMPILATIONS: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILATIONS.append(event) if event.endswith('backend_compile_duration') else None
)


@contextmanager
def compilations(count: int) -> Iterator[None]:
    """Assert that the block compiles exactly this number of programs."""
    before = len(COMPILATIONS)
    yield
    assert len(COMPILATIONS) - before == count
