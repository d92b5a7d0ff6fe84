"""Runs that stop half way and continue elsewhere: ``python tests/saving/resuming.py run|resume DIRECTORY``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from tables.optimizers import OPTIMIZERS, ROWS
from tables.schedules import DISTINCT

import braintools_optim as bo
from braintools_optim import files, rules
from braintools_optim.saving.trees import encode

HALF = 50  # half of the steps
NEED_THE_LOSS = tuple(row.optimizer for row in ROWS if row.kind == 'loss')
Weights = dict[str, brainstate.ParamState]


class Run(NamedTuple):
    optimizer: Callable[[], bo.Optimizer]
    weights: str
    groups: int = 1
    jit: bool = False


def runs() -> Iterator[tuple[str, Run]]:
    """Yield runs of every optimizer and schedule, with one and three groups, eagerly and under ``jit``."""
    more = {rules.Lookahead: {'base_optimizer': bo.Adam(0.1)}, rules.Adam: {'amsgrad': True}}
    for cls in OPTIMIZERS:
        options = more.get(cls, {})

        def make(cls: Any = cls, options: Any = options) -> bo.Optimizer:
            common = {'lr': bo.StepLR(0.1, 20, 0.5), 'grad_clip_norm': 1.0}
            built: bo.Optimizer = cls(bo.Adam(**common)) if cls is rules.SAM else cls(**common, **options)
            return built

        yield cls.__name__, Run(make, 'ab')
        if cls in (rules.RAdam, rules.Lookahead):
            yield f'{cls.__name__} in three groups', Run(make, 'abc', groups=3)
            yield f'{cls.__name__} in three groups under jit', Run(make, 'abc', groups=3, jit=True)

    def rich() -> bo.Optimizer:
        return bo.RMSprop(
            bo.StepLR(0.1, 2, 0.5),
            weight_decay=0.1,
            no_decay='b',
            grokfast=1.0,
            cautious=True,
            constraints={'a': bo.constraints.keep_sign()},
            loss_scale=bo.DynamicLossScale(4.0, growth_interval=2),
            master_weights=True,
            metrics=True,
        )

    yield 'shared options', Run(rich, 'abc')
    for case in DISTINCT:

        def descend(build: Any = case.build) -> bo.Optimizer:
            return bo.SGD(build(), weight_decay=bo.StepLR(0.1, 2, 0.5))

        yield case.name, Run(descend, 'a')


def build(run: Run) -> tuple[bo.Optimizer, Weights]:
    """Build an optimizer of weights in float32 and bfloat16."""
    values = {'a': jnp.full((2, 2), 1.5), 'b': jnp.full((2, 2), 0.7, jnp.bfloat16), 'c': jnp.full((2, 2), -0.3)}
    weights = {name: brainstate.ParamState(value) for name, value in values.items() if name in run.weights}
    optimizer = run.optimizer()
    if run.groups == 1:
        return optimizer.register_trainable_weights(weights), weights
    optimizer.register_trainable_weights({'a': weights['a']})
    optimizer.add_param_group({'b': weights['b']}, weight_decay=0.1)
    optimizer.add_param_group({'c': weights['c']}, lr_scale=0.5, maximize=True)
    return optimizer, weights


@functools.cache
def slopes(t: int) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    dtypes = {'a': np.float32, 'b': jnp.bfloat16, 'c': np.float32}
    return {name: jnp.asarray(rng.normal(size=(2, 2)), dtype) for name, dtype in dtypes.items()}


def train(run: Run, optimizer: bo.Optimizer, weights: Weights, first: int, last: int) -> None:
    def loss(slope: Any) -> Any:
        return sum(jnp.sum((w.value - slope[name]) ** 2) for name, w in weights.items())

    def update(slope: Any) -> None:
        optimizer.minimize(loss, slope) if isinstance(optimizer, NEED_THE_LOSS) else optimizer.update(slope)

    update = brainstate.transform.jit(update) if run.jit else update
    for t in range(first, last):
        update({name: slopes(t)[name] for name in weights})
        if not isinstance(optimizer.lr, bo.OptaxSchedule):
            optimizer.lr.step(*[1.0] * isinstance(optimizer.lr, bo.ReduceLROnPlateau))


def values(weights: Weights) -> dict[str, Any]:
    return {name: np.asarray(w.value) for name, w in weights.items()}


def run_all(where: Path) -> None:
    for i, (name, run) in enumerate(runs()):
        optimizer, weights = build(run)
        train(run, optimizer, weights, 0, HALF)
        optimizer.lr = 0.07
        optimizer.save(where / f'{i}.npz')
        files.save(where / f'{i}-weights.npz', values(weights))
        train(run, optimizer, weights, HALF, 2 * HALF)
        files.save(where / f'{i}-end.npz', {'weights': values(weights), 'optimizer': optimizer.state_dict()})
        print(name)


def resume_all(where: Path) -> None:
    for i, (name, run) in enumerate(runs()):
        optimizer, weights = build(run)
        optimizer.load(where / f'{i}.npz')
        for key, value in files.load(where / f'{i}-weights.npz').items():
            weights[key].value = jnp.asarray(value)
        train(run, optimizer, weights, HALF, 2 * HALF)
        expected = files.load(where / f'{i}-end.npz')
        found = {'weights': values(weights), 'optimizer': optimizer.state_dict()}
        differing = [
            path
            for (path, a), b in zip(encode(expected)[0].items(), encode(found)[0].values(), strict=True)
            if a.tobytes() != b.tobytes()
        ]
        print(name, 'differs in' if differing else 'continues', *differing)


if __name__ == '__main__':
    jax.config.update('jax_compilation_cache_dir', str(Path(sys.argv[2]) / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    {'run': run_all, 'resume': resume_all}[sys.argv[1]](Path(sys.argv[2]))
