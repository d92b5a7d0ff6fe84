"""The path of each optimizer on Rosenbrock's function and in a noisy valley, with the best rate of the same sweep.

    python -m benchmarks.paths --output benchmarks/results/paths.json

The rates of one optimizer are swept in one compiled function. The script takes two minutes.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import braintools_optim as optim

__all__ = ['FAMILIES', 'PROBLEMS', 'best_path']

Array = jax.Array
N_UPDATES, N_SEEDS, N_SHOWN = 200, 4, 101
RATES = np.geomspace(1e-4, 10.0, 51)

FAMILIES: dict[str, dict[str, Callable[[Any], optim.Optimizer]]] = {
    'Gradient descent and signs': {
        'SGD': lambda lr: optim.SGD(lr),
        'Momentum': lambda lr: optim.Momentum(lr),
        'MomentumNesterov': lambda lr: optim.MomentumNesterov(lr),
        'SignSGD': lambda lr: optim.SignSGD(lr),
        'Signum': lambda lr: optim.Signum(lr),
        'Lion': lambda lr: optim.Lion(lr),
        'Rprop': lambda lr: optim.Rprop(lr),
    },
    'Adam and its variants': {
        'Adam': lambda lr: optim.Adam(lr),
        'RAdam': lambda lr: optim.RAdam(lr),
        'Adamax': lambda lr: optim.Adamax(lr),
        'Nadam': lambda lr: optim.Nadam(lr),
        'NAdamW': lambda lr: optim.NAdamW(lr),
        'Adan': lambda lr: optim.Adan(lr),
    },
    'Other second moments': {
        'AdaBelief': lambda lr: optim.AdaBelief(lr),
        'Yogi': lambda lr: optim.Yogi(lr),
        'ADOPT': lambda lr: optim.ADOPT(lr),
        'AdEMAMix': lambda lr: optim.AdEMAMix(lr),
    },
    'Adaptive rates': {
        'Adagrad': lambda lr: optim.Adagrad(lr),
        'Adadelta': lambda lr: optim.Adadelta(lr),
        'RMSprop': lambda lr: optim.RMSprop(lr),
        'SM3': lambda lr: optim.SM3(lr),
        'Adafactor': lambda lr: optim.Adafactor(lr),
    },
    'Layerwise rates': {
        'Lamb': lambda lr: optim.Lamb(lr),
        'Lars': lambda lr: optim.Lars(lr, trust_coefficient=1.0),
        'Novograd': lambda lr: optim.Novograd(lr),
        'Fromage': lambda lr: optim.Fromage(lr),
    },
    'Matrices': {
        'Muon': lambda lr: optim.Muon(lr, adamw_lr=lr, weight_decay=0.0),
        'SOAP': lambda lr: optim.SOAP(lr),
    },
    'Averaged weights': {
        'ASGD': lambda lr: optim.ASGD(lr),
        'MADGRAD': lambda lr: optim.MADGRAD(lr),
        'ScheduleFreeSGD': lambda lr: optim.ScheduleFreeSGD(lr),
        'ScheduleFreeAdamW': lambda lr: optim.ScheduleFreeAdamW(lr),
        'Lookahead': lambda lr: optim.Lookahead(optim.Adam(1.0), lr=lr),
    },
    'Estimated step sizes': {
        'Prodigy': lambda lr: optim.Prodigy(lr),
        'DAdaptAdamW': lambda lr: optim.DAdaptAdamW(lr),
        'DoG': lambda lr: optim.DoG(lr),
        'PolyakSGD': lambda lr: optim.PolyakSGD(lr),
    },
    'Curvature': {
        'LBFGS': lambda lr: optim.LBFGS(lr),
    },
}


class Problem(NamedTuple):
    """A function of two numbers, where to start, and the standard deviation of the noise of its gradients."""

    loss: Callable[[Array, Array], Array]
    start: tuple[float, float]
    noise: float


PROBLEMS = {
    'Rosenbrock': Problem(lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, (-1.5, 1.8), 0.0),
    'noisy valley': Problem(lambda x, y: 0.5 * (0.05 * (x - 2) ** 2 + 5.0 * (y - 1) ** 2), (-6.0, 3.0), 0.5),
}


def path(make: Callable[[Any], optim.Optimizer], problem: Problem, rate: Array, key: Array) -> Array:
    """Return the points that an optimizer visits."""
    loss = lambda w: problem.loss(w[0, 0], w[0, 1])  # noqa: E731
    tx, start = optim.to_optax(make(rate)), jnp.array([problem.start])  # one row, so that Muon takes it as a matrix

    def update(carry: tuple[Array, Any], key: Array) -> tuple[tuple[Array, Any], Array]:
        w, state = carry
        value, grads = jax.value_and_grad(loss)(w)
        grads += problem.noise * jax.random.normal(key, w.shape)
        updates, state = tx.update(grads, state, w, value=value)
        new = optax.apply_updates(w, updates)
        return (new, state), new[0]

    _, visited = jax.lax.scan(update, (start, tx.init(start)), jax.random.split(key, N_UPDATES))
    return jnp.concatenate([start, visited])


def best_path(make: Callable[[Any], optim.Optimizer], problem: Problem) -> dict[str, Any]:
    """Return the rate with the smallest mean log of all losses, its last losses, and the path of the first seed."""
    keys = jax.random.split(jax.random.key(0), N_SEEDS)
    over_seeds = jax.vmap(lambda rate, key: path(make, problem, rate, key), (None, 0))
    paths = jax.jit(jax.vmap(over_seeds, (0, None)))(jnp.asarray(RATES, jnp.float32), keys)
    losses = problem.loss(paths[..., 0], paths[..., 1])
    best = int(jnp.nanargmin(jnp.log10(losses + 1e-3).mean(axis=(1, 2))))
    last = losses[best, :, -N_UPDATES // 10 :].mean()
    shown = np.asarray(paths[best, 0])[:: N_UPDATES // (N_SHOWN - 1)]
    points = [[float(f'{x:.4g}') for x in point] for point in shown]
    return {'rate': float(f'{RATES[best]:.3g}'), 'loss': float(f'{last:.3g}'), 'path': points}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--output', type=Path, required=True, help='file for the results')
    output = parser.parse_args().output
    found: dict[str, Any] = {problem: {} for problem in PROBLEMS}
    for name, make in (item for family in FAMILIES.values() for item in family.items()):
        for problem in PROBLEMS:
            found[problem][name] = best_path(make, PROBLEMS[problem])
            print(f'{name} on {problem}: rate {found[problem][name]["rate"]}, loss {found[problem][name]["loss"]}')
    versions = {'braintools_optim': optim.__version__, 'jax': jax.__version__}
    result = {'date': f'{datetime.date.today()}', 'versions': versions, 'paths': found}
    output.write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
    main()
