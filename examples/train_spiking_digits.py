"""Train a recurrent spiking network on handwritten digits, with a scheduled learning rate and clipped gradients.

The images are encoded as random spike trains, see ``digits.py``. RAdam or Adam of ``braintools_optim`` trains all
weights with surrogate gradients. The learning rate first increases linearly and then follows a cosine decay. The
gradients are clipped by their global norm.

    pip install -e '.[examples]'
    python examples/train_spiking_digits.py
    python examples/train_spiking_digits.py --no-clip --output without_clipping.png

The script prints the accuracy on the held-out third of the images, and saves a picture of the spikes and the training.
"""

import argparse

import brainstate
import brainunit as u
import numpy as np
from digits import History, argument_parser, build_network, build_optimizer, load_images, record, train
from picture import draw


def report(history: History, args: argparse.Namespace) -> None:
    """Print the gradient norms, the number of clipped updates and the test accuracy."""
    norms = np.array(history['norm'])
    clipped = 'would have been clipped' if args.no_clip else 'were clipped'
    print(f'gradient norm before clipping: median {np.median(norms):.2f}, maximum {norms.max():.2f}')
    print(f'{(norms > args.clip_norm).sum()} of {len(norms)} updates {clipped} at {args.clip_norm:g}')
    print(f'test accuracy: {history["test accuracy"][-1]:.1%}')


def main() -> None:
    args = argument_parser((__doc__ or '').partition('\n')[0], 'spiking_digits.png').parse_args()
    brainstate.environ.set(dt=1 * u.ms)
    images = load_images(args.seed)
    network = build_network(args)
    history = train(network, build_optimizer(images, args), images, args)
    report(history, args)
    activity = record(network, images.x_test[0], images.y_test[0], args.steps)
    draw(history, activity, None if args.no_clip else args.clip_norm, args.output)


if __name__ == '__main__':
    main()
