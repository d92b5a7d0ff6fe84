"""Train a recurrent spiking network on handwritten digits, with a scheduled learning rate and clipped gradients.

The 1797 images of scikit-learn's digits dataset (8 x 8 pixels, included in scikit-learn) are encoded as
random spike trains: brighter pixels fire more often. The spikes drive recurrently connected leaky
integrate-and-fire neurons, and a leaky readout accumulates the evidence for each digit. RAdam or Adam of
``braintools_optim`` trains all weights with surrogate gradients. The learning rate first increases
linearly and then follows a cosine decay. The gradients are clipped by their global norm.

    pip install -e '.[examples]'
    python examples/train_spiking_digits.py
    python examples/train_spiking_digits.py --no-clip --output without_clipping.png

The script prints the accuracy on the held-out third of the images, and saves a picture of the spikes and the training.
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
from picture import Activity, draw
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


def train(args: argparse.Namespace) -> tuple[History, Activity]:
    """Train a network; return the metrics of each update, the accuracy after each epoch, and the activity."""
    x_train, x_test, y_train, y_test = load_images(args.seed)
    n_batches = len(x_train) // args.batch_size
    if n_batches == 0:
        raise SystemExit(f'--batch-size must be at most {len(x_train)}, the number of training images.')
    brainstate.random.seed(args.seed)
    rng = np.random.default_rng(args.seed)
    network = brainstate.nn.init_all_states(SpikingNetwork(x_train.shape[1], args.hidden, 10))
    train_step, test_step = build_steps(network, build_optimizer(args, args.epochs * n_batches), args.steps)

    history = defaultdict(list)
    with tqdm(total=args.epochs * n_batches, unit='update', desc='compiling ...') as bar:
        for _ in range(args.epochs):
            # Use full batches only, because another shape would be compiled again; skip the remaining images.
            for batch in rng.permutation(len(x_train))[: n_batches * args.batch_size].reshape(n_batches, -1):
                brainstate.nn.reset_all_states(network, batch_size=len(batch))
                for name, value in train_step(x_train[batch], y_train[batch]).items():
                    history[name].append(float(value))
                shown = {name: f'{np.mean(history[name][-n_batches:]):.3g}' for name in ('loss', 'accuracy', 'norm')}
                bar.set_description('training', refresh=False)
                bar.set_postfix(shown, lr=f'{history["lr"][-1]:.2e}', refresh=False)
                bar.update()
            brainstate.nn.reset_all_states(network, batch_size=len(x_test))
            history['test accuracy'].append(float(test_step(x_test, y_test)))
    return history, record(network, x_test[0], y_test[0], args.steps)


def report(history: History, args: argparse.Namespace) -> None:
    """Print the gradient norms, the number of clipped updates and the test accuracy."""
    norms = np.array(history['norm'])
    clipped = 'would have been clipped' if args.no_clip else 'were clipped'
    print(f'gradient norm before clipping: median {np.median(norms):.2f}, maximum {norms.max():.2f}')
    print(f'{(norms > args.clip_norm).sum()} of {len(norms)} updates {clipped} at {args.clip_norm:g}')
    print(f'test accuracy: {history["test accuracy"][-1]:.1%}')


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
    parser.add_argument('--output', type=Path, default=Path('spiking_digits.png'), help='file for the picture')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    brainstate.environ.set(dt=1 * u.ms)
    history, activity = train(args)
    report(history, args)
    draw(history, activity, None if args.no_clip else args.clip_norm, args.output)


if __name__ == '__main__':
    main()
