"""Record files of this version, for later ones to read: ``python tests/golden/record_formats.py [DIRECTORY]``.

Each run is trained for a few updates and saved, and trained on. Beside this script, in ``formats``, are then

- ``<run>.npz``, which ``optimizer.save`` wrote after ``HALF`` updates; of some runs the other formats, too;
- ``<run>.weights.npz`` with the weights at that point (``'half'``) and after ``END`` updates (``'end'``).

A later version that loads the former and sets the weights to ``'half'`` must arrive at ``'end'``. All is done in
float32, as it is without ``jax_enable_x64``. Files that were recorded once are kept as they are: to record them again
with a later version would leave out what they are for. New runs are added to ``RUNS``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import brainstate  # noqa: E402
import brainunit as u  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import braintools_optim as bo  # noqa: E402
from braintools_optim import constraints, files  # noqa: E402

HALF, END = 4, 7
SUFFIXES = ('.npz', '.safetensors', '.msgpack')
IN_ALL_FORMATS = ('rmsprop', 'muon')  # the other runs are recorded in the first one
Weights = dict[str, brainstate.ParamState]


class Run(NamedTuple):
    """An optimizer with its weights, and what is done at time ``t``, which is the same in every process."""

    optimizer: Any
    weights: Weights
    update: Callable[[int], Any]


# weights and gradients


def states(**shapes: Any) -> Weights:
    """Weights of these shapes; a dict of shapes is one State, a list is a shape, a dtype and a unit."""
    rng = np.random.default_rng(0)

    def leaf(shape: Any) -> Any:
        shape, dtype, unit = shape if isinstance(shape, list) else (shape, jnp.float32, None)
        w = jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), jnp.complex64)
        w = w if dtype == jnp.complex64 else w.real.astype(dtype)
        return w if unit is None else w * unit

    is_shape = lambda x: isinstance(x, (tuple, list))  # noqa: E731
    return {key: brainstate.ParamState(jax.tree.map(leaf, s, is_leaf=is_shape)) for key, s in shapes.items()}


def slopes(weights: Weights, t: int) -> dict[str, Any]:
    """The gradients of update ``t``, with the dtypes and units of the weights."""
    rng = np.random.default_rng(100 + t)

    def slope(w: Any) -> Any:
        g = rng.normal(size=w.shape) + 1j * rng.normal(size=w.shape)
        return jnp.asarray(g if jnp.iscomplexobj(w) else g.real, w.dtype)

    return jax.tree.map(slope, {key: state.value for key, state in weights.items()})


def loss_of(weights: Weights) -> Callable[[Any], Any]:
    """A loss with a coupling between the entries of a weight, and a target for each update."""

    def loss(targets: Any) -> Any:
        pairs = jax.tree.map(lambda w, target: (w - target, w), {key: s.value for key, s in weights.items()}, targets)
        errors = jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple))
        return sum(jnp.sum(error**4 + 0.1 * error**2) + 0.1 * jnp.sum(w) ** 2 for error, w in errors)

    return loss


def values(run: Run) -> dict[str, np.ndarray]:
    """The numbers of the weights by name."""
    tree = {key: state.value for key, state in run.weights.items()}
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='.'): np.array(leaf) for path, leaf in leaves}


def put(run: Run, numbers: dict[str, np.ndarray]) -> None:
    """Set the weights to what :func:`values` gave."""
    tree = {key: state.value for key, state in run.weights.items()}
    leaves = [jnp.asarray(numbers[name]) for name in values(run)]
    for key, value in jax.tree.unflatten(jax.tree.structure(tree), leaves).items():
        run.weights[key].value = value


# the runs


def adam() -> Run:
    """The greatest second moments; a rate that is reduced when a metric stays."""
    weights = states(w=(2, 2), b=(3,))
    optimizer = bo.Adam(bo.ReduceLROnPlateau(0.1, factor=0.5, patience=0, cooldown=1), amsgrad=True, grad_clip_norm=1.0)
    optimizer.register_trainable_weights(weights)

    def update(t: int) -> None:
        optimizer.update(slopes(weights, t))
        optimizer.lr.step([3.0, 3.5, 2.0, 2.5, 2.1, 1.0, 1.5][t])

    return Run(optimizer, weights, update)


def sgd() -> Run:
    """Momentum, and a schedule; names of several parts; weights that ascend."""
    weights = states(layer={'kernel': (2, 2), 'bias': (2,)}, scale=())
    optimizer = bo.SGD(
        bo.StepLR(0.1, 2, 0.5), momentum=0.9, dampening=0.1, weight_decay=0.01, grad_clip_value=0.8, maximize=True
    ).register_trainable_weights(weights)

    def update(t: int) -> None:
        optimizer.update(slopes(weights, t))
        optimizer.lr.step()

    return Run(optimizer, weights, update)


def rmsprop() -> Run:
    """What all optimizers take, among it a weight of half precision and gradients that overflow."""
    weights = states(w=(2, 2), half=[(3,), jnp.bfloat16, None], b=(3,))
    decay = bo.StepLR(0.1, 2, 0.5)
    optimizer = bo.RMSprop(
        bo.ExponentialLR(0.05, 0.9),
        momentum=0.5,
        centered=True,
        weight_decay=decay,
        no_decay='b',
        grokfast=1.0,
        cautious=True,
        constraints={'w': constraints.keep_sign()},
        loss_scale=bo.DynamicLossScale(4.0, growth_interval=2),
        master_weights=True,
        metrics=True,
    ).register_trainable_weights(weights)

    def update(t: int) -> None:
        g = slopes(weights, t)
        optimizer.update({**g, 'b': g['b'].at[0].set(jnp.inf)} if t in (1, 5) else g)
        optimizer.lr.step()
        decay.step()

    return Run(optimizer, weights, update)


def added_groups() -> Run:
    """Three groups with options of their own, one of which is assigned later; an update that is skipped."""
    weights = states(a=(2, 2), b=(3,), c=(2,))
    optimizer = bo.AdamW(
        bo.CosineAnnealingWarmRestarts(0.1, T_0=2, T_mult=2),
        grad_clip_norm=1.0,
        grad_clip_over='group',
        on_nonfinite='skip',
    ).register_trainable_weights({'a': weights['a']})
    optimizer.add_param_group({'b': weights['b']}, lr=0.3, weight_decay=0.1, betas=(0.8, 0.95))
    optimizer.add_param_group({'c': weights['c']}, lr_scale=0.5, maximize=True)

    def update(t: int) -> None:
        g = slopes(weights, t)
        optimizer.update({**g, 'a': g['a'] * jnp.nan} if t == 1 else g)
        optimizer.lr.step()
        if t == 2:
            optimizer.param_groups[1]['weight_decay'] = 0.2
            optimizer.param_groups[2]['lr_scale'] = 0.25

    return Run(optimizer, weights, update)


def chosen_groups() -> Run:
    """Groups that patterns choose; weights with units, one of them in a box."""
    weights = states(cell={'v_rest': [(3,), jnp.float32, u.mV], 'tau': [(), jnp.float32, u.ms]}, w=(2, 2), b=(3,))
    optimizer = bo.Lamb(
        lambda count: 0.1 / (1 + count),
        weight_decay=0.1,
        groups={'cell.*': {'lr_scale': 0.5, 'betas': (0.5, 0.9)}, 'b': {'weight_decay': 0.0}},
        constraints={'v_rest': constraints.box(-0.0015 * u.volt, 0.4 * u.mV)},
        grad_clip_norm=2.0,
        norm_unit='own',
    ).register_trainable_weights(weights)
    return Run(optimizer, weights, lambda t: optimizer.update(slopes(weights, t)))


def muon() -> Run:
    """Two kinds of groups; a group that is told its kind."""
    weights = states(hidden=(2, 3), bias=(3,), readout=(3, 2), late=(2, 2))
    optimizer = bo.Muon(0.05, adamw_lr=0.02, ns_steps=3, adjust_lr_fn='match_rms_adamw')
    optimizer.register_trainable_weights({key: weights[key] for key in ('hidden', 'bias', 'readout')})
    optimizer.add_param_group({'late': weights['late']}, algorithm='muon', momentum=0.5)
    return Run(optimizer, weights, lambda t: optimizer.update(slopes(weights, t)))


def soap() -> Run:
    """Bases that are renewed; a rate that is set by hand."""
    weights = states(w=(2, 3), b=(3,))
    optimizer = bo.SOAP(0.03, precondition_frequency=2, shampoo_beta=0.8).register_trainable_weights(weights)

    def update(t: int) -> None:
        optimizer.update(slopes(weights, t))
        if t == 2:
            optimizer.lr = 0.07

    return Run(optimizer, weights, update)


def prodigy() -> Run:
    """An estimate for each of two groups."""
    weights = states(w=(2, 2), b=(3,))
    optimizer = bo.Prodigy(d0=0.01, use_bias_correction=True, weight_decay=0.1, safeguard_warmup=True)
    optimizer.register_trainable_weights({'w': weights['w']})
    optimizer.add_param_group({'b': weights['b']}, lr=0.5)
    return Run(optimizer, weights, lambda t: optimizer.update(slopes(weights, t)))


def lbfgs() -> Run:
    """A line search, which is told the loss."""
    weights = states(w=(2, 2), b=(3,))
    optimizer = bo.LBFGS(memory_size=3, linesearch='zoom').register_trainable_weights(weights)
    loss = loss_of(weights)
    targets = slopes(weights, 0)
    return Run(optimizer, weights, lambda t: optimizer.minimize(loss, targets))


def lookahead() -> Run:
    """Around an optimizer of ours, whose schedule follows the updates."""
    weights = states(w=(2, 2), b=(3,))
    optimizer = bo.Lookahead(bo.Adam(lambda count: 0.1 / (1 + count), amsgrad=True), sync_period=3, weight_decay=0.01)
    optimizer.register_trainable_weights(weights)
    return Run(optimizer, weights, lambda t: optimizer.update(slopes(weights, t)))


def optax_optimizer() -> Run:
    """A transformation of optax, which has a schedule of its own; one of ours on top."""
    weights = states(w=(2, 2), b=(3,))
    tx = optax.adamw(optax.exponential_decay(0.1, 2, 0.5), nesterov=True)
    optimizer = bo.OptaxOptimizer(tx, bo.WarmupScheduler(1.0, 3, 0.1), grokfast=0.5).register_trainable_weights(weights)

    def update(t: int) -> None:
        optimizer.update(slopes(weights, t))
        optimizer.lr.step()

    return Run(optimizer, weights, update)


def sam() -> Run:
    """Around Adam with a schedule; its radius is assigned later."""
    weights = states(w=(2, 2), b=(3,))
    optimizer = bo.SAM(bo.Adam(bo.StepLR(0.1, 2, 0.5)), rho=0.1).register_trainable_weights(weights)
    loss = loss_of(weights)

    def update(t: int) -> None:
        optimizer.minimize(loss, slopes(weights, t))
        optimizer.lr.step()
        if t == 2:
            optimizer.rho = 0.2

    return Run(optimizer, weights, update)


def adafactor() -> Run:
    """Rows and columns in half precision; a weight that is frozen until after the recording."""
    weights = states(w=(2, 3), b=(3,), frozen=(2, 2), half=[(2, 2), jnp.bfloat16, None])
    optimizer = bo.Adafactor(beta1=0.9, weight_decay=0.01, state_dtype='bfloat16', rounding='stochastic')
    optimizer.freeze('frozen')
    optimizer.register_trainable_weights(weights)

    def update(t: int) -> None:
        if t == HALF + 1:
            optimizer.unfreeze('frozen')
        optimizer.update(slopes(weights, t))

    return Run(optimizer, weights, update)


def asgd() -> Run:
    """Averages that have begun; a complex weight; schedules one after the other."""
    weights = states(w=(2, 2), z=[(2,), jnp.complex64, None])
    optimizer = bo.ASGD(
        bo.SequentialLR([bo.LinearLR(0.1, total_iters=2), bo.PolynomialLR(0.1, 9)], [3]), lambd=0.01, t0=2.0, alpha=0.5
    ).register_trainable_weights(weights)

    def update(t: int) -> None:
        optimizer.update(slopes(weights, t))
        optimizer.lr.step()

    return Run(optimizer, weights, update)


def schedule_free() -> Run:
    """A warm-up; a group that a function chooses, which misses updates, and so has a count of its own."""
    weights = states(w=(2, 2), b=(3,))
    vectors = {lambda name, w: w.ndim == 1: {'weight_decay': 0.01, 'maximize': True}}
    optimizer = bo.ScheduleFreeAdamW(
        0.1, warmup_steps=3, r=0.5, weight_decay=0.1, grad_clip_adaptive=0.5, groups=vectors
    ).register_trainable_weights(weights)

    def update(t: int) -> None:
        g = slopes(weights, t)
        optimizer.update({'w': g['w']} if t in (1, 5) else g, partial=True)

    return Run(optimizer, weights, update)


def sophia() -> Run:
    """The Hessian from random signs on every other update; a constant loss scale."""
    weights = states(w=(2, 2), b=(3,))
    optimizer = bo.Sophia(0.05, (0.9, 0.8), gamma=0.5, update_period=2, seed=3, loss_scale=8.0)
    optimizer.register_trainable_weights(weights)
    loss = loss_of(weights)
    return Run(optimizer, weights, lambda t: optimizer.minimize(loss, slopes(weights, t)))


RUNS = (
    adam, sgd, rmsprop, added_groups, chosen_groups, muon, soap, prodigy, lbfgs, lookahead, optax_optimizer, sam,
    adafactor, asgd, schedule_free, sophia,
)  # fmt: skip


def runs() -> dict[str, Callable[[], Run]]:
    """What builds each run anew, by its name."""
    return {build.__name__: build for build in RUNS}


# files


def train(run: Run, first: int, last: int) -> None:
    for t in range(first, last):
        run.update(t)


def save(optimizer: Any, path: Path) -> None:
    files.save(path, optimizer.state_dict()) if isinstance(optimizer, bo.SAM) else optimizer.save(path)


def load(optimizer: Any, path: Path) -> None:
    optimizer.load_state_dict(files.load(path)) if isinstance(optimizer, bo.SAM) else optimizer.load(path)


def recordings(where: Path) -> list[tuple[str, Path]]:
    """The runs and their files, one a format."""
    found = [(name, where / f'{name}{suffix}') for name in runs() for suffix in SUFFIXES]
    return [(name, path) for name, path in found if path.suffix == SUFFIXES[0] or name in IN_ALL_FORMATS]


def main(where: Path) -> None:
    where.mkdir(exist_ok=True)
    for name, build in runs().items():
        run = build()
        train(run, 0, HALF)
        for _, path in (pair for pair in recordings(where) if pair[0] == name):
            save(run.optimizer, path)
        half = values(run)
        train(run, HALF, END)
        files.save(where / f'{name}.weights.npz', {'half': half, 'end': values(run)})
    sizes = [path.stat().st_size for path in where.iterdir()]
    print(f'{len(runs())} runs in {len(sizes)} files of {sum(sizes) / 1e3:.0f} kB in {where}')


if __name__ == '__main__':
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE / 'formats')
