"""Options of the training loop under ``vmap``: each member equals a separate run."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo

OPTIONS: dict[str, dict[str, Any]] = {
    'accumulation': {'accumulate_steps': 2},
    'averages': {'average': bo.SWA(2, every=2)},
    'spikes': {'on_spike': 'skip', 'accumulate_steps': 3},
    'transforms': {'gradient_transform': optax.add_noise(0.1, 0.55, 3)},
    'groups': {'groups': {'w': bo.SGD(0.1)}},
}


def run(lr: Any, options: dict[str, Any]) -> Any:
    w = brainstate.ParamState(jnp.arange(3.0))
    optimizer = bo.Adam(lr, **options).register_trainable_weights({'w': w})

    def step(t: Any) -> Any:
        optimizer.update({'w': jnp.sin(w.value + t)})
        return w.value

    path = brainstate.transform.for_loop(step, jnp.arange(6.0))
    if 'average' not in options:
        return path
    with optimizer.eval_weights():
        return w.value + 0.0


@pytest.mark.parametrize('name', OPTIONS)
def test_members_equal_separate_runs(name: str) -> None:
    rates = np.array([0.1, 0.02])
    together = brainstate.transform.vmap(lambda lr: run(lr, OPTIONS[name]))(jnp.asarray(rates))
    for member, rate in zip(together, rates, strict=True):
        np.testing.assert_allclose(member, run(float(rate), OPTIONS[name]), rtol=1e-12)
