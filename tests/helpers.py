"""Helpers that several rooms of the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest
from internals import from_working, to_working

import braintools_optim as bo


def thinned(cases: Sequence[Any], name: str = 'case', one_in: int = 2) -> Any:
    """Parametrize a test by cases, of which one in ``one_in`` runs in ``make test`` and the others in ``make slow``."""
    marked = [pytest.param(case, marks=[pytest.mark.slow] * bool(i % one_in)) for i, case in enumerate(cases)]
    return pytest.mark.parametrize(name, marked, ids=lambda case: getattr(case, 'name', None) or case.__name__)


def registered(optimizer: Any, **start: Any) -> dict[str, brainstate.ParamState]:
    """Register new weights with an optimizer and return their States by name."""
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in start.items()}
    optimizer.register_trainable_weights(states)
    return states


def loss_arguments(optimizer: bo.Optimizer, grads: Any) -> dict[str, Any]:
    """Return the arguments of an update that the optimizer needs besides the gradients: a loss, or a Hessian."""

    def diagonal(g: Any) -> Any:
        return from_working(1e3 * (1 + jnp.abs(to_working(g))), g.dtype)

    if isinstance(optimizer, bo.PolyakSGD):
        return {'value': jnp.asarray(3.0)}
    return {'hessian': jax.tree.map(diagonal, grads)} if isinstance(optimizer, bo.Sophia) else {}


def update(optimizer: bo.Optimizer, grads: Any) -> None:
    """Update with the gradients and whatever else the optimizer needs."""
    optimizer.update(grads, **loss_arguments(optimizer, grads))


def run_script(script: Path, *arguments: Any, **environment: str) -> list[str]:
    """Run a script in another process and return the lines it prints."""
    path = os.pathsep.join(
        [str(Path(bo.__file__).parents[1]), str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    )
    command = [sys.executable, str(script), *map(str, arguments)]
    env = {**os.environ, **environment, 'PYTHONPATH': path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
