"""Record torch's trajectories for the table of rules: ``python tests/golden/record_rules.py`` (needs torch 2.13)."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from rule_table import CASES, RECORDED, STEPS, WATCHED, Case, deviation, problem, travelled  # noqa: E402

RENAMED = {'clip_threshold': 'd', 'decay_rate': 'beta2_decay'}


@functools.cache
def torch_path(case: Case, dtype: str) -> dict[str, np.ndarray]:
    """The weights after every update, the starting point first, and the watched slots."""
    import torch

    options = {RENAMED.get(name, name): value for name, value in case.options if name != 'relative_step'}
    if 'beta2_decay' in options:
        options['beta2_decay'] = -abs(options['beta2_decay'])
    weights, gradients = problem()
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # of the scalars that torch keeps, too
    parameters = {key: torch.nn.Parameter(torch.tensor(w, dtype=getattr(torch, dtype))) for key, w in weights.items()}
    optimizer = getattr(torch.optim, case.torch)(list(parameters.values()), **options)
    path = {key: [w] for key, w in weights.items()}
    for t in range(STEPS):
        for key, p in parameters.items():
            p.grad = torch.tensor(gradients[key][t], dtype=p.dtype)
        optimizer.step()
        for key, p in parameters.items():
            slots = {f'{slot}.{key}': optimizer.state[p][slot] for slot in WATCHED if slot in optimizer.state[p]}
            for name, value in {key: p, **slots}.items():
                path.setdefault(name, [weights[key]]).append(value.detach().numpy().copy())
    torch.set_default_dtype(default)
    return {name: np.stack(rows) for name, rows in path.items()}


def main() -> None:
    recorded = {}
    for case in CASES:
        if case.torch:  # the recorded steps, the distances until then, and the worst deviation of float32, by tensor
            exact = torch_path(case, 'float64')
            steps = [p[list(RECORDED)].ravel() for p in exact.values()]
            distances = [d[np.array(RECORDED) - 1] for d in travelled(exact).values()]
            deviations = list(deviation(torch_path(case, 'float32'), exact).values())
            recorded[case.name] = np.concatenate([*steps, *distances, deviations])
    np.savez_compressed(HERE / 'rules.npz', **recorded)
    print(f'{len(recorded)} trajectories in {HERE / "rules.npz"}')


if __name__ == '__main__':
    main()
