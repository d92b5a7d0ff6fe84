"""The network, the data and the training loop of the examples on handwritten digits.

The 1797 images of scikit-learn's digits dataset (8 x 8 pixels, included in scikit-learn) are encoded as
random spike trains: brighter pixels fire more often. The spikes drive recurrently connected leaky
integrate-and-fire neurons, and a leaky readout accumulates the evidence for each digit.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import brainpy
import brainstate
import braintools
import brainunit as u
import jax
import numpy as np
from picture import Activity
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from braintools_optim import Adam, CosineAnnealingLR, Optimizer, RAdam, WarmupScheduler, global_norm

MAX_RATE = 200 * u.Hz  # the firing rate of the brightest pixels
OPTIMIZERS: dict[str, type[Optimizer]] = {'radam': RAdam, 'adam': Adam}
History = dict[str, list[float]]


class Images(NamedTuple):
    """Images with brightness from 0 to 1, and their digits."""

    x_train: np.ndarray
    x_test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray


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


def load_images(seed: int) -> Images:
    """Return two thirds of the images for the training, and the others for the test."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return Images(*train_test_split(images, digits, test_size=1 / 3, stratify=digits, random_state=seed))


def build_network(args: argparse.Namespace) -> SpikingNetwork:
    """Build a network whose weights, and the spikes that encode the images later, follow from the seed."""
    brainstate.random.seed(args.seed)
    return brainstate.nn.init_all_states(SpikingNetwork(64, args.hidden, 10))


def encode(images: jax.Array, n_steps: int) -> jax.Array:
    """Return spike trains, time first; the firing probability in each step is proportional to the pixel brightness."""
    probability = images * (MAX_RATE * brainstate.environ.get_dt())
    # brainstate.random.bernoulli checks the probability in a callback, which jax refuses on more than one device.
    return (brainstate.random.rand(n_steps, *images.shape) < probability).astype(images.dtype)


def n_batches(images: Images, args: argparse.Namespace) -> int:
    """Return the number of full batches in an epoch."""
    if number := len(images.x_train) // args.batch_size:
        return number
    raise SystemExit(f'--batch-size must be at most {len(images.x_train)}, the number of training images.')


def build_optimizer(images: Images, args: argparse.Namespace, **options: Any) -> Optimizer:
    """Build an optimizer whose schedule counts updates: warm-up for a tenth of them, then cosine decay."""
    n_updates = args.epochs * n_batches(images, args)
    warmup = n_updates // 10
    cosine = CosineAnnealingLR(args.lr, T_max=n_updates - warmup)
    schedule = WarmupScheduler(cosine, warmup_epochs=warmup, warmup_start_lr=args.lr / 100)
    clip_norm = None if args.no_clip else args.clip_norm
    # The global norm covers weights in nA and unitless weights; norm_unit='own' states that this is intended.
    return OPTIMIZERS[args.optimizer](lr=schedule, grad_clip_norm=clip_norm, norm_unit='own', **options)


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


def train(
    network: SpikingNetwork,
    optimizer: Optimizer,
    images: Images,
    args: argparse.Namespace,
    place: Callable[[np.ndarray], Any] = np.asarray,
    name: str = 'training',
) -> History:
    """Train the network; return the metrics of each update and the accuracy after each epoch.

    ``place`` puts the images of a batch, and their digits, on the devices.
    """
    train_step, test_step = build_steps(network, optimizer, args.steps)
    rng, batches = np.random.default_rng(args.seed), n_batches(images, args)
    history = defaultdict(list)
    with tqdm(total=args.epochs * batches, unit='update', desc='compiling ...') as bar:
        for _ in range(args.epochs):
            # Use full batches only, because another shape would be compiled again; skip the remaining images.
            for batch in rng.permutation(len(images.x_train))[: batches * args.batch_size].reshape(batches, -1):
                brainstate.nn.reset_all_states(network, batch_size=len(batch))
                metrics = train_step(place(images.x_train[batch]), place(images.y_train[batch]))
                for metric, value in metrics.items():
                    history[metric].append(float(value))
                shown = {
                    metric: f'{np.mean(history[metric][-batches:]):.3g}' for metric in ('loss', 'accuracy', 'norm')
                }
                bar.set_description(name, refresh=False)
                bar.set_postfix(shown, lr=f'{history["lr"][-1]:.2e}', refresh=False)
                bar.update()
            brainstate.nn.reset_all_states(network, batch_size=len(images.x_test))
            history['test accuracy'].append(float(test_step(place(images.x_test), place(images.y_test))))
    return history


def record(network: SpikingNetwork, image: np.ndarray, digit: int, n_steps: int) -> Activity:
    """Return the activity of the network while it sees one image."""

    def step(spikes: jax.Array) -> tuple[jax.Array, ...]:
        evidence = network(spikes)
        return network.neurons.get_spike() > 0, network.neurons.V.value / u.mV, evidence

    brainstate.nn.reset_all_states(network, batch_size=1)
    spikes = encode(image[None], n_steps)
    found = brainstate.transform.for_loop(step, spikes)
    fired, potentials, evidence = (np.asarray(x)[:, 0] for x in found)
    threshold = float(network.neurons.V_th / u.mV)
    shape = image.reshape(8, 8), int(digit), np.asarray(spikes)[:, 0]
    return Activity(*shape, fired, potentials, threshold, evidence)


def positive_int(text: str) -> int:
    """Parse an integer >= 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'{number} is not >= 1')
    return number


def argument_parser(description: str, output: str) -> argparse.ArgumentParser:
    """Return a parser of the options of a training run."""
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
    parser.add_argument('--output', type=Path, default=Path(output), help='file for the picture')
    return parser
