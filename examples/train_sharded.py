"""Train the spiking network of train_spiking_digits.py over all devices, with data parallelism and then with ZeRO-1.

Every device holds all weights and computes the gradients of its share of each batch; XLA sums the gradients over the
devices. In the first run every device also holds the whole optimizer state. In the second run,
``shard_memory_over='data'`` leaves each device with a share of the state. Both runs compute the same updates up to
rounding.

    pip install -e '.[examples]'
    python examples/train_sharded.py
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/train_sharded.py

The last command takes a CPU for eight devices. The script prints the accuracy of both runs on held-out images and the
bytes of optimizer state on each device, and saves a picture of the spikes and of both runs.
"""

import argparse
import functools

import brainstate
import brainunit as u
import jax
import numpy as np
from digits import Images, argument_parser, build_network, build_optimizer, load_images, record, train
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from picture import Activity, ShardedRun, draw_sharded

from braintools_optim import Optimizer

RUNS = {'data parallel': None, 'ZeRO-1': 'data'}
"""The axis of the mesh over which the optimizer state is split."""


def run(name: str, images: Images, mesh: Mesh, args: argparse.Namespace) -> tuple[ShardedRun, Activity]:
    """Train a network; return the metrics of the training, and what the network does while it sees one image."""
    network, optimizer = build_network(args), build_optimizer(images, args, shard_memory_over=RUNS[name])
    # If the random key moved in the first step, the second one would compile again.
    for state in (*network.states(brainstate.ParamState).values(), brainstate.random.DEFAULT):
        state.value = jax.device_put(state.value, NamedSharding(mesh, PartitionSpec()))
    split_batch = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec('data')))
    history = train(network, optimizer, images, args, split_batch, name)
    activity = record(network, images.x_test[0], images.y_test[0], args.steps)
    return ShardedRun(name, history, bytes_by_device(optimizer)), activity


def bytes_by_device(optimizer: Optimizer) -> list[int]:
    """Return how many bytes of the optimizer state each device holds."""
    shards = [shard for x in jax.tree.leaves(optimizer.opt_state.value) for shard in x.addressable_shards]
    return [sum(shard.data.nbytes for shard in shards if shard.device == device) for device in jax.devices()]


def parse_args(n_devices: int) -> argparse.Namespace:
    parser = argument_parser((__doc__ or '').partition('\n')[0], 'spiking_digits_sharded.png')
    parser.set_defaults(epochs=30, batch_size=64, lr=0.03)
    args = parser.parse_args()
    if args.batch_size < n_devices:
        parser.error(f'--batch-size must be at least {n_devices}, the number of devices')
    args.batch_size -= args.batch_size % n_devices  # each device gets as many images as the others
    return args


def main() -> None:
    mesh = Mesh(np.array(jax.devices()), ('data',))
    args = parse_args(mesh.size)
    brainstate.environ.set(dt=1 * u.ms)
    images = load_images(args.seed)
    n_test = len(images.x_test) - len(images.x_test) % mesh.size
    images = images._replace(x_test=images.x_test[:n_test], y_test=images.y_test[:n_test])
    print(
        f'{mesh.size} x {jax.devices()[0].device_kind}, {args.batch_size // mesh.size} images of each batch on a device'
    )
    results = [run(name, images, mesh, args) for name in RUNS]
    for result, _ in results:
        accuracy, held = result.history['test accuracy'][-1], max(result.bytes_by_device)
        print(f'{result.name}: test accuracy {accuracy:.1%}, {held} bytes of optimizer state per device')
    clip_norm = None if args.no_clip else args.clip_norm
    draw_sharded([result for result, _ in results], results[-1][1], clip_norm, args.output)


if __name__ == '__main__':
    main()
