"""The recorded weights of runs that continue elsewhere, and where the weights must arrive."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
from golden.record_states import GRADIENTS, START

import braintools_optim as bo

NAMES = ['w', 'b']  # in torch's order, which differs from the order of registration
Path = dict[str, Any]


def weights(start: Path = START) -> dict[str, brainstate.ParamState]:
    return {name: brainstate.ParamState(jnp.asarray(start[name])) for name in reversed(NAMES)}


def steps(opt: bo.Optimizer, states: dict[str, brainstate.ParamState], first: int, last: int) -> None:
    for t in range(first, last):
        opt.update({name: jnp.asarray(GRADIENTS[name][t]) for name in states})


def assert_at(states: dict[str, brainstate.ParamState], end: Path, start: Path = START) -> None:
    for name, state in states.items():
        travelled = np.max(np.abs(np.asarray(end[name]) - np.asarray(start[name])))
        assert np.max(np.abs(np.asarray(state.value) - np.asarray(end[name]))) < 1e-12 * max(travelled, 1)
