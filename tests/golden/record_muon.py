"""Record torch's Muon, computed in its weights' dtype: ``python tests/golden/record_muon.py`` (needs torch 2.13)."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from rule_table import RECORDED, STEPS, deviation, travelled  # noqa: E402

MATRICES = {'tall': ((4, 3), 1.0), 'wide': ((2, 5), 1e-3), 'square': ((3, 3), 1e3)}
MUON: dict[str, dict[str, Any]] = {
    'defaults': {},
    'momentum': {'nesterov': False, 'momentum': 0.5, 'adjust_lr_fn': 'original', 'weight_decay': 0.0},
    'coefficients': {'ns_steps': 3, 'ns_coefficients': (2.0, -1.5, 0.5), 'lr': 0.1},
    'match_rms_adamw': {'adjust_lr_fn': 'match_rms_adamw', 'weight_decay': 0.5, 'eps': 2.0, 'ns_steps': 1},
}


def muon_problem() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Matrices, and gradients for every step, as float32 numbers."""
    rng = np.random.default_rng(3)
    weights = {key: np.float64(np.float32(rng.normal(size=shape))) for key, (shape, _) in MATRICES.items()}
    return weights, {
        key: np.float64(np.float32(scale * rng.normal(size=(STEPS, *shape))))
        for key, (shape, scale) in MATRICES.items()
    }


@functools.cache
def torch_muon_path(case: str, dtype: str, half: bool = False) -> dict[str, np.ndarray]:
    """The weights after every update, the starting point first; with torch's cast to bfloat16, or without."""
    import torch

    weights, gradients = muon_problem()
    parameters = {key: torch.nn.Parameter(torch.tensor(w, dtype=getattr(torch, dtype))) for key, w in weights.items()}
    optimizer = torch.optim.Muon(list(parameters.values()), **MUON[case])
    path = {key: [w] for key, w in weights.items()}
    cast = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = cast if half else torch.Tensor.clone  # type: ignore[method-assign]
    for t in range(STEPS):
        for key, p in parameters.items():
            p.grad = torch.tensor(gradients[key][t], dtype=p.dtype)
        optimizer.step()
        for key, p in parameters.items():
            path[key].append(p.detach().numpy().copy())
    torch.Tensor.bfloat16 = cast  # type: ignore[method-assign]
    return {key: np.stack(rows) for key, rows in path.items()}


def main() -> None:
    recorded = {}
    for case in MUON:
        exact = torch_muon_path(case, 'float64')
        for key, p in exact.items():
            recorded[f'{case}/{key}'] = p[list(RECORDED)]
            recorded[f'{case}/{key}/travelled'] = travelled(exact)[key][np.array(RECORDED) - 1]
        for name, path in {
            'float32': torch_muon_path(case, 'float32'),
            'bfloat16': torch_muon_path(case, 'float32', half=True),
        }.items():
            recorded[f'{case}/{name}'] = max(deviation(path, exact).values())
            print(case, name, recorded[f'{case}/{name}'])
    np.savez_compressed(HERE / 'muon.npz', **recorded)


if __name__ == '__main__':
    main()
