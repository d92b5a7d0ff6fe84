"""Record state_dicts of torch in the middle of runs: ``python tests/golden/record_states.py`` (needs torch 2.13)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).parent / 'torch_states.json'
HALF = 50
START = {'w': np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.5]]), 'b': np.array([1.0, -0.2, 0.1])}
GRADIENTS = {
    name: np.random.default_rng(i).normal(size=(2 * HALF, *w.shape)) for i, (name, w) in enumerate(START.items())
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    'SGD': ('SGD', {'lr': 0.01, 'weight_decay': 0.1, 'maximize': True}),
    'SGD-momentum': ('SGD', {'lr': 0.01, 'momentum': 0.8, 'dampening': 0.1}),
    'SGD-nesterov': ('SGD', {'lr': 0.01, 'momentum': 0.9, 'nesterov': True}),
    'Adam': ('Adam', {'lr': 0.01, 'betas': (0.8, 0.95), 'eps': 1e-6, 'weight_decay': 0.1}),
    'Adam-amsgrad': ('Adam', {'lr': 0.01, 'amsgrad': True, 'decoupled_weight_decay': True, 'weight_decay': 0.1}),
    'AdamW': ('AdamW', {'lr': 0.01, 'weight_decay': 0.3}),
    'RAdam': ('RAdam', {'lr': 0.01, 'betas': (0.8, 0.99)}),
    'RMSprop': ('RMSprop', {'lr': 0.01, 'alpha': 0.9}),
    'RMSprop-centered': ('RMSprop', {'lr': 0.01, 'momentum': 0.5, 'centered': True}),
    'Adagrad': ('Adagrad', {'lr': 0.1, 'lr_decay': 0.1, 'initial_accumulator_value': 0.5}),
    'Adadelta': ('Adadelta', {'lr': 0.5, 'rho': 0.8}),
    'Adamax': ('Adamax', {'lr': 0.01, 'betas': (0.8, 0.99)}),
    'NAdam': ('NAdam', {'lr': 0.01, 'momentum_decay': 0.1}),
    'ASGD': ('ASGD', {'lr': 0.02, 't0': 20.0, 'lambd': 0.01, 'alpha': 0.5}),
    'Rprop': ('Rprop', {'lr': 0.02, 'etas': (0.4, 1.3), 'step_sizes': (1e-5, 0.5)}),
    'Adafactor': ('Adafactor', {'lr': 0.1, 'beta2_decay': -0.7, 'weight_decay': 0.1}),
    'Adafactor-eps': ('Adafactor', {'lr': 0.1, 'eps': (1e-4, 0.01), 'd': 2.0}),
}


def torch_run(case: str, first: int, last: int, start: dict[str, np.ndarray], state: Any = None) -> tuple[Any, Any]:
    """Return torch's weights and state_dict after some steps from ``state``."""
    import torch

    name, options = CASES[case]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # also for the scalars that torch keeps
    weights = {key: torch.nn.Parameter(torch.tensor(w)) for key, w in start.items()}
    optimizer = getattr(torch.optim, name)(list(weights.values()), **(options if state is None else {}))
    if state is not None:
        optimizer.load_state_dict(state)
    for t in range(first, last):
        for key, w in weights.items():
            w.grad = torch.tensor(GRADIENTS[key][t])
        optimizer.step()
    torch.set_default_dtype(default)
    return {key: w.detach().numpy().copy() for key, w in weights.items()}, optimizer.state_dict()


def numbers(x: Any) -> Any:
    """Convert tensors to lists of numbers."""
    if hasattr(x, 'tolist'):
        return x.tolist()
    if isinstance(x, dict):
        return {key: numbers(value) for key, value in x.items()}
    return [numbers(value) for value in x] if isinstance(x, (list, tuple)) else x


def recorded() -> dict[str, Any]:
    records = {}
    for case in CASES:
        (_, start), (half, state), (end, _) = (torch_run(case, 0, n, START) for n in (0, HALF, 2 * HALF))
        records[case] = {'start_state': start, 'half': half, 'state': state, 'end': end}
    found: dict[str, Any] = numbers(records)
    return found


if __name__ == '__main__':
    FILE.write_text(json.dumps(recorded()))
    print(f'{len(CASES)} runs in {FILE}')
