"""The table of optimizers, options and references that drives the tests, and the problem they are run on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo

STEPS = 200
RECORDED = (1, 2, 5, 6, 7, 10, 50, STEPS)
SCALES = (1e-6, 1e-3, 1.0, 1e3)
SHAPES = ((), (3,), (2, 2))


@dataclass(frozen=True)
class Case:
    optimizer: type[bo.Optimizer]
    torch: str  # the name of the class in torch.optim
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return '-'.join([self.optimizer.__name__, *(f'{k}={v}' for k, v in self.options)]).replace(' ', '')

    def build(self, **more: Any) -> bo.Optimizer:
        return self.optimizer(**dict(self.options), **more)


def combinations(optimizer: type[bo.Optimizer], torch: str, **choices: tuple[Any, ...]) -> Iterator[Case]:
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        if not (options.get('nesterov') and (options['momentum'] == 0 or options['dampening'] != 0)):
            yield Case(optimizer, torch, tuple(options.items()))


DECAY = (0.0, 0.1)
EPS = (1e-8, 1e-3)
FLAG = (False, True)

CASES: list[Case] = [
    *combinations(
        bo.Adam,
        'Adam',
        lr=(0.01,),
        eps=EPS,
        weight_decay=DECAY,
        amsgrad=FLAG,
        decoupled_weight_decay=FLAG,
        maximize=FLAG,
    ),
    *combinations(bo.Adam, 'Adam', lr=(0.01,), betas=((0.0, 0.5), (0.5, 0.99), (0.95, 0.9999))),
    *combinations(bo.AdamW, 'AdamW', lr=(0.01,), eps=EPS, weight_decay=DECAY, amsgrad=FLAG, maximize=FLAG),
    *combinations(
        bo.RAdam, 'RAdam', lr=(0.01,), eps=EPS, weight_decay=DECAY, decoupled_weight_decay=FLAG, maximize=FLAG
    ),
    *combinations(bo.RAdam, 'RAdam', lr=(0.01,), betas=((0.9, 0.3), (0.0, 0.9), (0.5, 0.99), (0.9, 0.9999))),
    *combinations(
        bo.RMSprop,
        'RMSprop',
        lr=(0.01,),
        eps=EPS,
        weight_decay=DECAY,
        momentum=(0.0, 0.9),
        centered=FLAG,
        maximize=FLAG,
    ),
    *combinations(bo.RMSprop, 'RMSprop', lr=(0.01,), alpha=(0.0, 0.5, 0.999), momentum=(0.5,)),
    *combinations(
        bo.SGD,
        'SGD',
        lr=(0.01,),
        momentum=(0.0, 0.9),
        dampening=(0.0, 0.3),
        weight_decay=DECAY,
        nesterov=FLAG,
        maximize=FLAG,
    ),
]
OPTIMIZERS = [
    bo.SGD, bo.Momentum, bo.MomentumNesterov, bo.Adam, bo.AdamW, bo.RAdam, bo.RMSprop, bo.OptaxOptimizer
]  # fmt: skip


def problem(steps: int = STEPS) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights, and gradients for every step: leaves of several shapes and scales, float32 numbers."""
    rng = np.random.default_rng(0)
    keys = {f'{i}{j}': (shape, scale) for i, shape in enumerate(SHAPES) for j, scale in enumerate(SCALES)}
    weights = {key: rng.normal(size=shape) for key, (shape, _) in keys.items()}
    gradients = {key: scale * rng.normal(size=(steps, *shape)) for key, (shape, scale) in keys.items()}
    return tuple({k: v.astype(np.float32).astype(np.float64) for k, v in d.items()} for d in (weights, gradients))


def run(case: Case, dtype: Any, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Our weights after every update, the starting point first; all updates in one compiled loop."""
    weights, gradients = problem(steps)
    states = {key: brainstate.ParamState(jnp.asarray(w, dtype)) for key, w in weights.items()}
    optimizer = case.build().register_trainable_weights(states)

    def update(gradient: dict[str, Any]) -> dict[str, Any]:
        optimizer.update(gradient)
        return {key: state.value for key, state in states.items()}

    path = brainstate.transform.for_loop(update, {key: jnp.asarray(g, dtype) for key, g in gradients.items()})
    return {key: np.concatenate([weights[key][None].astype(dtype), path[key]]) for key in weights}


def travelled(path: np.ndarray) -> np.ndarray:
    """How far a tensor has moved after each update, all steps added up."""
    return np.cumsum(np.max(np.abs(np.diff(path, axis=0)), axis=tuple(range(1, path.ndim))))


def deviation(path: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """The worst deviation at any step over the distance travelled so far, for each tensor."""
    worst = {}
    for key, exact in reference.items():
        error = np.max(np.abs(path[key].astype(np.float64) - exact), axis=tuple(range(1, exact.ndim)))[1:]
        worst[key] = float(np.max(error / travelled(exact)))
    return worst


def thinned(cases: Sequence[Any], name: str = 'case', one_in: int = 2) -> Any:
    """A test of each case, of which all but one in so many are left to `make slow`."""
    marked = [pytest.param(case, marks=[pytest.mark.slow] * bool(i % one_in)) for i, case in enumerate(cases)]
    return pytest.mark.parametrize(name, marked, ids=lambda case: getattr(case, 'name', None) or case.__name__)
