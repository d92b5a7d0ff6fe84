"""Tests run in float64 where they ask for it; brainstate's import switches that off, so it comes first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import brainstate  # noqa: F401
import jax
import pytest

jax.config.update('jax_enable_x64', True)
LARGEST_CACHE = 2**29  # bytes


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs between sessions, and share them between workers; pytest --cache-clear removes them."""
    if hasattr(config, 'cache'):
        where = config.cache.mkdir('compiled')
        if not hasattr(config, 'workerinput') and sum(f.stat().st_size for f in where.iterdir()) > LARGEST_CACHE:
            shutil.rmtree(where)
            where = config.cache.mkdir('compiled')
        jax.config.update('jax_compilation_cache_dir', str(where))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


@pytest.fixture
def float32() -> Iterator[None]:
    """Run the test without ``jax_enable_x64``."""
    jax.config.update('jax_enable_x64', False)
    yield
    jax.config.update('jax_enable_x64', True)
