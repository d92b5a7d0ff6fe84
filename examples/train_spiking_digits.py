"""Train a recurrent spiking network on handwritten digits, with a scheduled learning rate and clipped gradients.

The 1797 images of scikit-learn's digits dataset (8 x 8 pixels, included in scikit-learn) are encoded as
random spike trains: brighter pixels fire more often. The spikes drive recurrently connected leaky
integrate-and-fire neurons, and a leaky readout accumulates the evidence for each digit. RAdam or Adam of
``braintools_optim`` trains all weights with surrogate gradients. The learning rate first increases
linearly and then follows a cosine decay. The gradients are clipped by their global norm.

    pip install -e '.[examples]'
    python examples/train_spiking_digits.py
    python examples/train_spiking_digits.py --no-clip --output without_clipping.png

The script prints the accuracy on the held-out third of the images and saves plots of the training.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import brainpy
import brainstate
import braintools
import brainunit as u
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from braintools_optim import Adam, CosineAnnealingLR, Optimizer, RAdam, WarmupScheduler, global_norm

MAX_RATE = 200 * u.Hz  # the firing rate of the brightest pixels
OPTIMIZERS: dict[str, type[Optimizer]] = {'radam': RAdam, 'adam': Adam}
History = dict[str, list[float]]


class SpikingNetwork(brainstate.nn.Module):
    """Recurrent LIF neurons that receive input spikes as synaptic currents in nA, followed by a leaky readout."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int):
        super().__init__()
        # With these scales, neurons start neither silent nor firing steadily; in both cases gradients would be poor.
        feedforward, recurrent = (braintools.init.KaimingNormal(scale, unit=u.nA) for scale in (0.3, 0.05))
        no_current = braintools.init.ZeroInit(unit=u.nA)
        self.feedforward = brainstate.nn.Linear(n_in, n_hidden, w_init=feedforward, b_init=no_current)
        self.recurrent = brainstate.nn.Linear(n_hidden, n_hidden, w_init=recurrent, b_init=None)
        self.synapse = brainpy.state.Expon(n_hidden, tau=5 * u.ms, g_initializer=no_current)
        self.neurons = brainpy.state.LIF(
            n_hidden,
            R=100 * u.Mohm,
            tau=20 * u.ms,
            V_rest=-65 * u.mV,
            V_reset=-65 * u.mV,
            V_th=-50 * u.mV,
            V_initializer=braintools.init.Constant(-65 * u.mV),
            spk_fun=braintools.surrogate.ReluGrad(),
        )
        small = braintools.init.KaimingNormal(0.02)
        self.readout = brainpy.state.LeakyRateReadout(n_hidden, n_out, tau=20 * u.ms, w_init=small)

    def update(self, spikes: jax.Array) -> jax.Array:
        current = self.synapse(self.feedforward(spikes) + self.recurrent(self.neurons.get_spike()))
        return self.readout(self.neurons(current))


def load_images(seed: int) -> list[np.ndarray]:
    """Return x_train, x_test, y_train and y_test: images with brightness from 0 to 1, and their digits."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return train_test_split(images, digits, test_size=1 / 3, stratify=digits, random_state=seed)


def encode(images: jax.Array, n_steps: int) -> jax.Array:
    """Return spike trains, time first; the firing probability in each step is proportional to the pixel brightness."""
    probability = images * (MAX_RATE * brainstate.environ.get_dt())
    return brainstate.random.bernoulli(probability, (n_steps, *images.shape)).astype(images.dtype)


def build_optimizer(args: argparse.Namespace, n_updates: int) -> Optimizer:
    """Build an optimizer whose schedule counts updates: warm-up for a tenth of them, then cosine decay."""
    warmup = n_updates // 10
    cosine = CosineAnnealingLR(args.lr, T_max=n_updates - warmup)
    schedule = WarmupScheduler(cosine, warmup_epochs=warmup, warmup_start_lr=args.lr / 100)
    clip_norm = None if args.no_clip else args.clip_norm
    # The global norm covers weights in nA and unitless weights; norm_unit='own' states that this is intended.
    return OPTIMIZERS[args.optimizer](lr=schedule, grad_clip_norm=clip_norm, norm_unit='own')


def build_steps(network: SpikingNetwork, optimizer: Optimizer, n_steps: int) -> tuple[Callable, Callable]:
    """Return two compiled functions of images and digits: a training step and a function that returns the accuracy."""
    weights = network.states(brainstate.ParamState)
    optimizer.register_trainable_weights(weights)

    def forward(images: jax.Array, digits: jax.Array) -> tuple[jax.Array, jax.Array]:
        evidence = brainstate.transform.for_loop(network, encode(images, n_steps)).mean(axis=0)
        loss = braintools.metric.softmax_cross_entropy_with_integer_labels(evidence, digits).mean()
        return loss, (evidence.argmax(axis=-1) == digits).mean()

    gradient = brainstate.transform.grad(forward, weights, has_aux=True, return_value=True)

    @brainstate.transform.jit
    def train_step(images: jax.Array, digits: jax.Array) -> dict[str, jax.Array]:
        grads, loss, accuracy = gradient(images, digits)
        lr = optimizer.current_lr
        optimizer.update(grads)
        optimizer.lr.step()
        return {'loss': loss, 'accuracy': accuracy, 'lr': lr, 'norm': global_norm(grads)}

    @brainstate.transform.jit
    def test_step(images: jax.Array, digits: jax.Array) -> jax.Array:
        return forward(images, digits)[1]

    return train_step, test_step


def train(args: argparse.Namespace) -> History:
    """Train a new network, and return the metrics of each update and the test accuracy after each epoch."""
    x_train, x_test, y_train, y_test = load_images(args.seed)
    n_batches = len(x_train) // args.batch_size
    if n_batches == 0:
        raise SystemExit(f'--batch-size must be at most {len(x_train)}, the number of training images.')
    brainstate.random.seed(args.seed)
    rng = np.random.default_rng(args.seed)
    network = brainstate.nn.init_all_states(SpikingNetwork(x_train.shape[1], args.hidden, 10))
    train_step, test_step = build_steps(network, build_optimizer(args, args.epochs * n_batches), args.steps)

    history = defaultdict(list)
    with tqdm(total=args.epochs * n_batches, unit='update') as bar:
        for _ in range(args.epochs):
            # Use full batches only, because another shape would be compiled again; skip the remaining images.
            for batch in rng.permutation(len(x_train))[: n_batches * args.batch_size].reshape(n_batches, -1):
                brainstate.nn.reset_all_states(network, batch_size=len(batch))
                for name, value in train_step(x_train[batch], y_train[batch]).items():
                    history[name].append(float(value))
                shown = {name: f'{np.mean(history[name][-n_batches:]):.3g}' for name in ('loss', 'accuracy', 'norm')}
                bar.set_postfix(shown, lr=f'{history["lr"][-1]:.2e}', refresh=False)
                bar.update()
            brainstate.nn.reset_all_states(network, batch_size=len(x_test))
            history['test accuracy'].append(float(test_step(x_test, y_test)))
    return history


def report(history: History, args: argparse.Namespace) -> None:
    """Print the gradient norms, the number of clipped updates and the test accuracy."""
    norms = np.array(history['norm'])
    clipped = 'would have been clipped' if args.no_clip else 'were clipped'
    print(f'gradient norm before clipping: median {np.median(norms):.2f}, maximum {norms.max():.2f}')
    print(f'{(norms > args.clip_norm).sum()} of {len(norms)} updates {clipped} at {args.clip_norm:g}')
    print(f'test accuracy: {history["test accuracy"][-1]:.1%}')


def plot(history: History, args: argparse.Namespace) -> None:
    """Plot loss, accuracy, learning rate and gradient norm, and save the figure to ``args.output``."""
    epochs = np.arange(1, args.epochs + 1)
    updates = np.linspace(0, args.epochs, len(history['loss']), endpoint=False)
    mean = {name: np.reshape(history[name], (args.epochs, -1)).mean(axis=1) for name in ('loss', 'accuracy', 'norm')}

    def plot_updates(panel: Axes, name: str, color: str) -> None:
        panel.semilogy(updates, history[name], '.', color=color, alpha=0.25, markersize=3, label='each update')
        panel.semilogy(epochs - 0.5, mean[name], '.-', color=color, label='mean over an epoch')

    figure = Figure(figsize=(10, 6.5), layout='constrained')
    (loss, accuracy), (lr, norm) = figure.subplots(2, 2, sharex=True)
    plot_updates(loss, 'loss', 'C0')
    loss.set(title='Loss', ylabel='cross-entropy (nats)')
    accuracy.plot(epochs - 0.5, 100 * mean['accuracy'], '.-', color='C0', label='training, mean over an epoch')
    accuracy.plot(epochs, 100 * np.array(history['test accuracy']), '.-', color='C1', label='test, after each epoch')
    accuracy.set(title='Accuracy', ylabel='correct (%)')
    lr.plot(updates, history['lr'], color='C2')
    lr.set(title='Learning rate: linear warm-up, then cosine', ylabel='learning rate', xlabel='epoch')
    plot_updates(norm, 'norm', 'C3')
    label = f'clip at {args.clip_norm:g}' + (' (disabled)' if args.no_clip else '')
    norm.axhline(args.clip_norm, color='black', linestyle='--', linewidth=1.2, label=label)
    norm.set(title='Gradient norm before clipping', ylabel='global norm of the gradients', xlabel='epoch')
    for panel in (loss, accuracy, norm):
        panel.legend(frameon=False, markerscale=1.5)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[['top', 'right']].set_visible(False)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=150)
    print(f'saved plots to {args.output.resolve()}')


def positive_int(text: str) -> int:
    """Parse an integer >= 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'{number} is not >= 1')
    return number


def parse_args() -> argparse.Namespace:
    description = (__doc__ or '').partition('\n')[0]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--epochs', type=positive_int, default=40, help='passes over the training images')
    parser.add_argument('--batch-size', type=positive_int, default=32, help='images per update')
    parser.add_argument('--hidden', type=positive_int, default=128, help='number of recurrent neurons')
    parser.add_argument('--steps', type=positive_int, default=80, help='time steps of 1 ms per image')
    parser.add_argument('--optimizer', choices=OPTIMIZERS, default='radam', help='optimization algorithm')
    parser.add_argument('--lr', type=float, default=0.02, help='maximum learning rate')
    parser.add_argument('--clip-norm', type=float, default=1.0, help='maximum global norm of the gradients')
    parser.add_argument('--no-clip', action='store_true', help='do not clip the gradients')
    parser.add_argument('--seed', type=int, default=0, help='random seed of the split, weights, batches and spikes')
    parser.add_argument('--output', type=Path, default=Path('spiking_digits.png'), help='file for the plots')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    brainstate.environ.set(dt=1 * u.ms)
    history = train(args)
    report(history, args)
    plot(history, args)


if __name__ == '__main__':
    main()
