"""Record torch's schedules for the table of cases: ``python tests/golden/record_schedules.py`` (needs torch 2.13)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from tables.schedules import CASES, EPOCHS, PLATEAUS, Case, Plateau  # noqa: E402


def torch_optimizer(rates: tuple[float, ...]) -> Any:
    import torch

    groups = [{'params': [torch.nn.Parameter(torch.zeros(()))], 'lr': rate} for rate in rates]
    return torch.optim.SGD(groups, momentum=0.5)


def torch_schedule(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the rate and the momentum of each group at each epoch."""
    from torch.optim import lr_scheduler

    assert case.torch is not None
    optimizer = torch_optimizer(case.base)
    schedule = case.torch(lr_scheduler, optimizer)
    rates, momenta = [], []
    for epoch in range(EPOCHS):
        rates.append([group['lr'] for group in optimizer.param_groups])
        momenta.append([group['momentum'] for group in optimizer.param_groups])
        optimizer.step()
        if epoch < case.holds_from:
            schedule.step()
    return np.array(rates).T, np.array(momenta).T


def torch_plateau(case: Plateau) -> np.ndarray:
    """Return the rate after each metric of each sequence."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    paths = []
    for sequence in case.metrics():
        optimizer = torch_optimizer((0.1,))
        schedule = ReduceLROnPlateau(optimizer, **dict(case.options))
        path = []
        for metric in sequence:
            schedule.step(float(metric))
            path.append(optimizer.param_groups[0]['lr'])
        paths.append(path)
    return np.array(paths)


def main() -> None:
    recorded = {}
    for case in CASES:
        if case.torch is not None:
            recorded[f'{case.name}/rates'], recorded[f'{case.name}/momenta'] = torch_schedule(case)
    for plateau in PLATEAUS:
        recorded[f'{plateau.name}/rates'] = torch_plateau(plateau)
    np.savez_compressed(HERE / 'schedules.npz', **recorded)
    print(f'{len(recorded)} curves in {HERE / "schedules.npz"}')


if __name__ == '__main__':
    main()
