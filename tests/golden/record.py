"""Record torch's trajectories for the table of optimizers: ``python tests/golden/record.py`` (needs torch 2.13)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from tables.optimizers import CASES, Case  # noqa: E402
from tables.problems import Arrays, Problem  # noqa: E402
from tables.trajectories import WATCHED, deviation, travelled  # noqa: E402

FILE = HERE / 'optimizers.npz'


@contextmanager
def torch_precision(dtype: str, bfloat16: bool) -> Iterator[None]:
    """Let torch keep its scalars in ``dtype``, and cast to bfloat16 within an update (as Muon does) only if told."""
    import torch

    default, cast = torch.get_default_dtype(), torch.Tensor.bfloat16
    torch.set_default_dtype(getattr(torch, dtype))
    torch.Tensor.bfloat16 = cast if bfloat16 else torch.Tensor.clone  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.bfloat16 = cast  # type: ignore[method-assign]


@functools.lru_cache(maxsize=8)
def torch_path(case: Case, dtype: str, bfloat16: bool = False) -> Arrays:
    """Return torch's weights after every update, the starting point first, and the watched slots."""
    import torch

    data, steps = case.comparison.problem.data, case.comparison.problem.steps
    with torch_precision(dtype, bfloat16):
        parameters = {
            key: torch.nn.Parameter(torch.tensor(w, dtype=getattr(torch, dtype))) for key, w in data.weights.items()
        }
        options = case.comparison.adapt(dict(case.options))
        optimizer = getattr(torch.optim, case.comparison.torch)(list(parameters.values()), **options)
        path: dict[str, list[Any]] = {key: [w] for key, w in data.weights.items()}
        for t in range(steps):
            for key, p in parameters.items():
                p.grad = torch.tensor(data.gradients[key][t], dtype=p.dtype)
            optimizer.step()
            for key, p in parameters.items():
                slots = {f'{slot}.{key}': optimizer.state[p][slot] for slot in WATCHED if slot in optimizer.state[p]}
                for name, value in {key: p, **slots}.items():
                    path.setdefault(name, [data.weights[key]]).append(value.detach().numpy().copy())
    return {name: np.stack(rows) for name, rows in path.items()}


def encode(problem: Problem, exact: Arrays, rounded: Arrays) -> np.ndarray:
    """Return each tensor at the recorded steps, the distances until then, and the worst deviations of float32."""
    values = [p[list(problem.recorded)].ravel() for p in exact.values()]
    distances = [d[np.array(problem.recorded) - 1] for d in travelled(exact).values()]
    return np.concatenate([*values, *distances, list(deviation(rounded, exact).values())])


def compare(case: Case, record: np.ndarray, path: Arrays, rounding: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return each tensor's worst deviation from torch's float64, ours and that of torch's float32.

    ``rounding`` is the relative error of one rounding of the weight that is allowed per step.
    """
    steps = np.array(case.comparison.problem.recorded)
    parts = np.split(record, np.cumsum([len(steps) * p[0].size for p in path.values()]))
    distances, theirs = np.split(parts.pop(), [len(steps) * len(path)])
    ours = {}
    for (key, p), exact, distance in zip(path.items(), parts, np.split(distances, len(path)), strict=True):
        error = np.abs(p[steps].reshape(len(steps), -1) - exact.reshape(len(steps), -1)).max(axis=1)
        ours[key] = float(np.max(np.maximum(error - rounding * steps * np.abs(p).max(), 0) / distance))
    return ours, dict(zip(path, theirs, strict=True))


def main() -> None:
    recorded = {}
    for case in CASES:
        if case.comparison.torch:
            exact, rounded = torch_path(case, 'float64'), torch_path(case, 'float32')
            assert case.name not in recorded, f'{case.name} is in the table twice'
            recorded[case.name] = encode(case.comparison.problem, exact, rounded)
            if case.comparison.torch == 'Muon':
                half = deviation(torch_path(case, 'float32', bfloat16=True), exact)
                recorded[f'{case.name}/bfloat16'] = np.array(list(half.values()))
    np.savez_compressed(FILE, **recorded)
    print(f'{len(recorded)} records in {FILE}')


if __name__ == '__main__':
    main()
