"""Which optimizer trains small spiking networks best: the same tasks, rates and seeds for each.

    python -m benchmarks.board                        # everything that is not recorded yet
    python -m benchmarks.board --tasks digits         # one task

Every result is written as soon as it is known, so the script may be stopped at any time and started again. All rates
and seeds of an optimizer on a task are trained by one compiled function.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from brainstate.transform import for_loop

import braintools_optim as optim
from benchmarks.harness import medians

__all__ = ['CHOICES', 'OPTIMIZERS', 'TASKS', 'train']

Array = jax.Array
Schedule = Callable[[Array], Array]
Make = Callable[[Array], optim.Optimizer]
N_STEPS, N_HIDDEN, BATCH, N_UPDATES, N_SEEDS, N_CURVE = 20, 32, 32, 200, 3, 20
TIMED, N_TIMED, REPETITIONS = 'digits', 40, 41
"""The task on which the time of an update is measured, how many updates run in a call, and how many calls."""
RATES = np.geomspace(3e-4, 3.0, 9)
RESULTS = Path(__file__).parent / 'results' / 'board.json'


# tasks: spike trains of shape (samples, steps, inputs), and classes


class Task(NamedTuple):
    """Training and test samples, and the accuracy to reach."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    target: float
    reads_end: bool = False
    """Whether the answer is read at the last step instead of all steps."""


def split(x: np.ndarray, y: np.ndarray, target: float, reads_end: bool = False) -> Task:
    n = len(x) * 2 // 3
    return Task(x[:n].astype(np.float32), y[:n], x[n:].astype(np.float32), y[n:], target, reads_end)


def at_times(times: np.ndarray) -> np.ndarray:
    """Return one spike for each input at a time between 0 and 1."""
    steps = np.minimum((times * N_STEPS).astype(int), N_STEPS - 1)
    return np.arange(N_STEPS)[None, :, None] == steps[:, None, :]


def digits() -> Task:
    """Handwritten digits of 8 x 8 pixels, whose brightness is a firing rate."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    rate = 0.3 * images[order] / 16
    return split(rng.random((len(rate), N_STEPS, 64)) < rate[:, None], labels[order], target=0.85)


def yin_yang() -> Task:
    """Points of a yin-yang sign: in the dots, in yin or in yang. Coordinates are times of spikes (Kriener et al.)."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (12000, 2))
    x, y = points.T
    right, left = np.hypot(x - 0.75, y - 0.5), np.hypot(x - 0.25, y - 0.5)
    dots = (right < 0.1) | (left < 0.1)
    yin = (right <= 0.1) | ((left > 0.1) & (left <= 0.25)) | ((y > 0.5) & (right > 0.25))
    label = np.where(dots, 2, np.where(yin, 1, 0))
    inside = np.hypot(x - 0.5, y - 0.5) <= 0.5
    chosen = np.concatenate([np.flatnonzero(inside & (label == k))[:450] for k in range(3)])
    chosen = rng.permutation(chosen)
    times = np.concatenate([points, 1 - points, np.zeros((len(points), 1))], axis=1)[chosen]
    return split(np.repeat(at_times(times), 4, axis=2), label[chosen], target=0.9)


def randman() -> Task:
    """Spike times on smooth random curves, one for each of 10 classes (Zenke and Vogels)."""
    rng = np.random.default_rng(0)
    samples, n_in, harmonics = 240, 20, np.arange(1, 4)
    trains, labels = [], []
    for label in range(10):
        s = rng.random((samples, 1, 1))
        size, phase = rng.normal(size=(2, n_in, len(harmonics)))
        curve = (size / harmonics * np.sin(2 * np.pi * (harmonics * s + phase))).sum(axis=2)
        low, high = curve.min(axis=0), curve.max(axis=0)
        trains.append(at_times((curve - low) / (high - low)))
        labels += [label] * samples
    order = rng.permutation(len(labels))
    return split(np.concatenate(trains)[order], np.array(labels)[order], target=0.9)


def evidence() -> Task:
    """Which half of the inputs fires more during 12 steps; the answer is read after a silence of 8 steps."""
    rng = np.random.default_rng(0)
    choice = rng.integers(2, size=2400)
    first_half = np.arange(20) < 10
    rate = np.where(first_half == (choice[:, None] == 0), 0.2, 0.12)[:, None]
    spikes = rng.random((len(choice), N_STEPS, 20)) < rate
    spikes[:, 12:] = False
    return split(spikes, choice, target=0.9, reads_end=True)


TASKS = {'digits': digits, 'yin-yang': yin_yang, 'randman': randman, 'evidence': evidence}


# the network: recurrent LIF neurons with trained time constants, and a leaky readout


@jax.custom_jvp
def spike(v: Array) -> Array:
    return (v > 0).astype(v.dtype)


@spike.defjvp
def spike_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + 5 * jnp.abs(v)) ** 2


def init(key: Array, n_in: int, n_out: int) -> dict[str, Array]:
    keys = jax.random.split(key, 3)
    return {
        'inward.weight': 2.0 * jax.random.normal(keys[0], (n_in, N_HIDDEN)) / n_in**0.5,
        'recurrent.weight': 0.3 * jax.random.normal(keys[1], (N_HIDDEN, N_HIDDEN)) / N_HIDDEN**0.5,
        'output.weight': jax.random.normal(keys[2], (N_HIDDEN, n_out)) / N_HIDDEN**0.5,
        'tau': jnp.full(N_HIDDEN, 2.0),  # through a sigmoid, the decay of a step
    }


def outputs(w: dict[str, Array], x: Array, reads_end: bool) -> Array:
    decay = jax.nn.sigmoid(w['tau'])

    def step(state: tuple[Array, Array, Array], x: Array) -> tuple[tuple[Array, Array, Array], Array]:
        v, fired, out = state
        v = decay * (v - fired) + x @ w['inward.weight'] + fired @ w['recurrent.weight']
        fired = spike(v - 1.0)
        out = 0.9 * out + fired @ w['output.weight']
        return (v, fired, out), out

    zeros = jnp.zeros((len(x), N_HIDDEN))
    start = zeros, zeros, jnp.zeros((len(x), w['output.weight'].shape[1]))
    _, out = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return out[-1] if reads_end else out.mean(axis=0)


# what is compared


def cosine(rate: Array, warmup: float = 0.05) -> Schedule:
    """Return a warm-up for a part of the updates, and a cosine to zero."""
    start = max(int(warmup * N_UPDATES), 1)

    def schedule(count: Array) -> Array:
        done = jnp.clip((count - start) / (N_UPDATES - start), 0.0, 1.0)
        return rate * jnp.minimum((count + 1) / start, 1.0) * 0.5 * (1 + jnp.cos(jnp.pi * done))

    return schedule


def warmup_only(rate: Array) -> Schedule:
    """Return the warm-up without the cosine, for optimizers whose averages stand in for a decay of the rate."""
    return lambda count: rate * jnp.minimum((count + 1) / (0.05 * N_UPDATES), 1.0)


def chosen(cls: Any, **options: Any) -> Make:
    return lambda rate: cls(lr=cosine(rate), **{'grad_clip_norm': 1.0, **options})


OPTIMIZERS: dict[str, Make] = {
    'SGD': chosen(optim.SGD),
    'Momentum': chosen(optim.Momentum),
    'Signum': chosen(optim.Signum),
    'Lion': chosen(optim.Lion),
    'RMSprop': chosen(optim.RMSprop),
    'Adagrad': chosen(optim.Adagrad),
    'Adafactor': chosen(optim.Adafactor),
    'Adam': chosen(optim.Adam),
    'AdamW': chosen(optim.AdamW, weight_decay=0.01),
    'RAdam': chosen(optim.RAdam),
    'Nadam': chosen(optim.Nadam),
    'Adan': chosen(optim.Adan),
    'AdaBelief': chosen(optim.AdaBelief),
    'ADOPT': chosen(optim.ADOPT),
    'Lamb': chosen(optim.Lamb),
    'Novograd': chosen(optim.Novograd),
    'SOAP': chosen(optim.SOAP),
    'Muon': chosen(optim.Muon, adjust_lr_fn='match_rms_adamw'),  # one rate for all weights
    'ScheduleFreeSGD': lambda rate: optim.ScheduleFreeSGD(lr=warmup_only(rate), grad_clip_norm=1.0),
    'ScheduleFreeAdamW': lambda rate: optim.ScheduleFreeAdamW(lr=warmup_only(rate), grad_clip_norm=1.0),
    'Lookahead(Adam)': lambda rate: optim.Lookahead(optim.Adam(lr=cosine(rate)), grad_clip_norm=1.0),
    'SAM(Adam)': lambda rate: optim.SAM(optim.Adam(lr=cosine(rate), grad_clip_norm=1.0)),
    'Prodigy': chosen(optim.Prodigy, safeguard_warmup=True),
    'DAdaptAdamW': chosen(optim.DAdaptAdamW),
    'DoG': chosen(optim.DoG),
    'PolyakSGD': chosen(optim.PolyakSGD),
    'Sophia': chosen(optim.Sophia),
    'AdEMAMix': chosen(optim.AdEMAMix),
    'MADGRAD': chosen(optim.MADGRAD),
    'Yogi': chosen(optim.Yogi),
    'Adamax': chosen(optim.Adamax),
    'MomentumNesterov': chosen(optim.MomentumNesterov),
    'Lars': chosen(optim.Lars),
    'Fromage': chosen(optim.Fromage),
    'SM3': chosen(optim.SM3),
    'Adadelta': chosen(optim.Adadelta),
}
CLIPPED = {'Adam': optim.Adam, 'SGD': optim.SGD}
CLIPPING: dict[str, dict[str, float | None]] = {
    'no clipping': {},
    'norm 0.3': {'grad_clip_norm': 0.3},
    'norm 0.1': {'grad_clip_norm': 0.1},
    'adaptive 0.1': {'grad_clip_adaptive': 0.1},
    'adaptive 0.01': {'grad_clip_adaptive': 0.01},
    'value 0.1': {'grad_clip_value': 0.1},
    'value 0.01': {'grad_clip_value': 0.01},
}
"""What is compared with the norm 1, the clipping of all optimizers above."""
WARMUPS = {'no warm-up': 0.0, 'warm-up 20%': 0.2}
CHOICES: dict[str, Make] = {
    f'{name}, {clip}': chosen(cls, **{'grad_clip_norm': None, **options})
    for name, cls in CLIPPED.items()
    for clip, options in CLIPPING.items()
} | {
    f'{name}, {part}': lambda rate, cls=cls, warmup=warmup: cls(lr=cosine(rate, warmup), grad_clip_norm=1.0)
    for name, cls in CLIPPED.items()
    for part, warmup in WARMUPS.items()
}


class Training:
    """One network with its optimizer and the batches of a task."""

    def __init__(self, make: Make, task: Task, rate: Array, key: Array):
        self.task, self.x, self.y = task, jnp.asarray(task.x), jnp.asarray(task.y)
        weights = init(key, task.x.shape[2], int(task.y.max()) + 1)
        self.weights = {name: brainstate.ParamState(w) for name, w in weights.items()}
        self.optimizer = make(rate).register_trainable_weights(self.weights)

    def outputs(self, x: Array) -> Array:
        return outputs({name: w.value for name, w in self.weights.items()}, x, self.task.reads_end)

    def update(self, key: Array) -> Array:
        """Make one update on a random batch, and return the loss before."""
        chosen = jax.random.randint(key, (BATCH,), 0, len(self.x))
        x, y = self.x[chosen], self.y[chosen]
        loss: Array = self.optimizer.minimize(
            lambda: optax.softmax_cross_entropy_with_integer_labels(self.outputs(x), y).mean()
        )
        return loss

    def accuracy(self) -> Array:
        """Return the accuracy on the test samples, of averaged weights if the optimizer has any."""
        optimizer = self.optimizer
        with optimizer.eval_weights() if optimizer.has_evaluation else contextlib.nullcontext():
            return (self.outputs(jnp.asarray(self.task.x_test)).argmax(axis=1) == jnp.asarray(self.task.y_test)).mean()


def run(make: Make, task: Task, rate: Array, key: Array) -> tuple[Array, Array]:
    """Train one network; return the mean loss of each twentieth of the updates, and the accuracy after it."""
    first, batches = jax.random.split(key)
    training = Training(make, task, rate, first)

    def part(keys: Array) -> tuple[Array, Array]:
        return for_loop(training.update, keys).mean(), training.accuracy()

    curves: tuple[Array, Array] = for_loop(part, jax.random.split(batches, (N_CURVE, N_UPDATES // N_CURVE)))
    return curves


def train(make: Make, task: Task) -> dict[str, Any]:
    """Train all rates and seeds; return the best rate by its training loss, and the accuracies with this rate."""
    keys = jax.random.split(jax.random.key(0), N_SEEDS)
    over_seeds = jax.vmap(partial(run, make, task), (None, 0))
    started = time.perf_counter()
    losses, right = jax.jit(jax.vmap(over_seeds, (0, None)))(jnp.asarray(RATES, jnp.float32), keys)
    last = jnp.nan_to_num(losses[..., -2:].mean(axis=(1, 2)), nan=jnp.inf)
    best = int(last.argmin())
    curve = np.asarray(right[best])  # seeds, parts
    reached = np.where(curve >= task.target, np.arange(1, N_CURVE + 1), np.inf).min(axis=1) * (N_UPDATES // N_CURVE)
    return {
        'rate': float(f'{RATES[best]:.3g}'),
        'accuracy': [round(float(a), 4) for a in curve[:, -1]],
        'updates to target': [int(u) if np.isfinite(u) else None for u in reached],
        'accuracy by rate': [round(float(a), 4) for a in right[:, :, -1].mean(axis=1)],
        'seconds': round(time.perf_counter() - started, 1),
    }


def gradient_norms(task: Task) -> list[float]:
    """Return the norms that 5%, 50% and 95% of the gradients stay below while Adam trains, to compare thresholds."""

    def norms(key: Array) -> Array:
        first, batches = jax.random.split(key)
        training = Training(chosen(optim.Adam, metrics=True), task, jnp.asarray(0.03), first)

        def norm(key: Array) -> Array:
            training.update(key)
            return training.optimizer.metrics['grad_norm']

        found: Array = for_loop(norm, jax.random.split(batches, N_UPDATES))
        return found

    found = jax.jit(jax.vmap(norms))(jax.random.split(jax.random.key(0), N_SEEDS))
    return [float(f'{x:.2g}') for x in np.quantile(found, [0.05, 0.5, 0.95])]


# time


def updates(make: Make, task: Task) -> Callable[[], Array]:
    """Return a compiled function that trains one network for N_TIMED updates."""
    keys = jax.random.split(jax.random.key(0), N_TIMED)

    def train(rate: Array, keys: Array) -> Array:
        losses: Array = for_loop(Training(make, task, rate, keys[0]).update, keys)
        return losses

    return partial(jax.jit(train), jnp.asarray(0.01), keys)


def milliseconds(make: Make, task: Task, of_sgd: Callable[[], Array]) -> dict[str, float]:
    """Return the time of an update, and that of an update of SGD, measured in turns."""
    times = medians({'update': updates(make, task), 'update of SGD': of_sgd}, REPETITIONS)
    return {name: float(f'{ms / N_TIMED:.3g}') for name, ms in times.items()}


def measured(rows: dict[str, Any], choices: list[str], task: Task, timed: bool) -> Iterator[tuple[str, Any]]:
    """Add to the rows of a task what they lack, and yield each result."""
    for choice in choices:
        if choice not in rows:
            rows[choice] = train((OPTIMIZERS | CHOICES)[choice], task)
            yield choice, rows[choice]
    untimed = [choice for choice in choices if timed and choice in OPTIMIZERS and 'ms' not in rows[choice]]
    of_sgd = updates(OPTIMIZERS['SGD'], task)
    for choice in untimed:
        rows[choice]['ms'] = milliseconds(OPTIMIZERS[choice], task, of_sgd)
        yield choice, rows[choice]['ms']


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS), help='tasks to train')
    choices = [*OPTIMIZERS, *CHOICES]
    parser.add_argument('--choices', nargs='+', choices=choices, default=choices, help='what to compare')
    parser.add_argument('--output', type=Path, default=RESULTS, help='file for the results')
    args = parser.parse_args()
    found = json.loads(args.output.read_text()) if args.output.exists() else {'board': {}}
    setting = {'updates': N_UPDATES, 'batch': BATCH, 'neurons': N_HIDDEN, 'steps': N_STEPS, 'rates': len(RATES)}
    versions = {'braintools_optim': optim.__version__, 'jax': jax.__version__}
    found |= {'date': f'{datetime.date.today()}', 'versions': versions, 'setting': setting | {'seeds': N_SEEDS}}
    tasks = {name: TASKS[name]() for name in args.tasks}
    found.setdefault('targets', {}).update({name: task.target for name, task in tasks.items()})
    for name, task in tasks.items():
        rows = found['board'].setdefault(name, {})
        if name not in found.setdefault('gradient norms', {}):
            found['gradient norms'][name] = gradient_norms(task)
        for choice, result in measured(rows, args.choices, task, timed=name == TIMED):
            print(f'{choice}, {name}: {result}', flush=True)
            args.output.write_text(json.dumps(found) + '\n')


if __name__ == '__main__':
    main()
