"""Tests run in float64 where they ask for it; brainstate's import switches that off, so it comes first."""

import brainstate  # noqa: F401
import jax
import pytest

jax.config.update('jax_enable_x64', True)


@pytest.fixture
def float32():
    """Run the test without ``jax_enable_x64``."""
    jax.config.update('jax_enable_x64', False)
    yield
    jax.config.update('jax_enable_x64', True)
