"""Helpers that several rooms of the tests share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
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


def in_other_process(script: Path, arguments: Sequence[Any], environment: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of ``subprocess`` that run a script with this package and the helpers of the tests."""
    path = os.pathsep.join(
        [str(Path(bo.__file__).parents[1]), str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    )
    command = [sys.executable, str(script), *map(str, arguments)]
    return {'args': command, 'env': {**os.environ, **environment, 'PYTHONPATH': path}, 'text': True}


def run_script(script: Path, *arguments: Any, **environment: str) -> list[str]:
    """Run a script in another process and return the lines it prints."""
    done = subprocess.run(**in_other_process(script, arguments, environment), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def run_scripts(script: Path, each: Sequence[Sequence[Any]], folder: Path, seconds: float, **environment: str) -> None:
    """Run a script in several processes at once, each with its own arguments, and write what they print to a folder.

    Processes that wait for one that failed are ended, and the error shows what all of them wrote to stderr.
    """
    names = [folder / f'process{i}' for i in range(len(each))]
    with contextlib.ExitStack() as stack:
        processes: list[subprocess.Popen[str]] = []
        for name, arguments in zip(names, each, strict=True):
            out, err = (stack.enter_context(open(name.with_suffix(end), 'w')) for end in ('.out', '.err'))
            command = in_other_process(script, arguments, environment)
            processes.append(stack.enter_context(subprocess.Popen(**command, stdout=out, stderr=err)))
            stack.callback(processes[-1].kill)
        end = time.monotonic() + seconds
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        codes = [p.poll() for p in processes]
    errors = [
        f'process {i}, exit status {code}:\n{names[i].with_suffix(".err").read_text()}' for i, code in enumerate(codes)
    ]
    assert codes == [0] * len(each), '\n'.join(errors)
