"""Record torch's trajectories for the table of cases: ``python tests/golden/record.py`` (needs torch 2.13)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from table import CASES, RECORDED, Case, deviation, problem, travelled  # noqa: E402


def torch_path(case: Case, dtype: str, steps: int) -> dict[str, np.ndarray]:
    """The weights after every update, the starting point first."""
    import torch

    weights, gradients = problem(steps)
    parameters = {k: torch.nn.Parameter(torch.tensor(v, dtype=getattr(torch, dtype))) for k, v in weights.items()}
    optimizer = getattr(torch.optim, case.torch)(list(parameters.values()), **dict(case.options))
    path = {k: [p.detach().numpy().copy()] for k, p in parameters.items()}
    for t in range(steps):
        for k, p in parameters.items():
            p.grad = torch.tensor(gradients[k][t], dtype=p.dtype)
        optimizer.step()
        for k, p in parameters.items():
            path[k].append(p.detach().numpy().copy())
    return {k: np.stack(v) for k, v in path.items()}


def main() -> None:
    recorded = {}
    for case in CASES:
        exact, rounded = torch_path(case, 'float64', RECORDED[-1]), torch_path(case, 'float32', RECORDED[-1])
        recorded[f'{case.name}/path'] = np.concatenate(
            [exact[k][list(RECORDED)].reshape(len(RECORDED), -1) for k in exact], axis=1
        )
        recorded[f'{case.name}/travelled'] = np.stack([travelled(exact[k])[np.array(RECORDED) - 1] for k in exact])
        recorded[f'{case.name}/float32'] = np.array(list(deviation(rounded, exact).values()))
    np.savez_compressed(HERE / 'torch.npz', **recorded)
    print(f'{len(CASES)} trajectories in {HERE / "torch.npz"}')


if __name__ == '__main__':
    main()
