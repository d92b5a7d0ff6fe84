"""Memory of each device and bytes moved by a step at scale: ``python -m benchmarks.scale [--smoke] [--output PATH]``.

The update is compiled for 8, 64 and 512 devices of the CPU from shapes and layouts alone, so that no memory for the
weights is needed. The script takes some minutes.
"""

from __future__ import annotations

import argparse
import datetime
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import braintools_optim as optim
from benchmarks.report import save, scale_tables
from braintools_optim.weights.sharding import Layout, beside

__all__ = ['COLLECTIVE', 'Transformer', 'bytes_per_device', 'collective_bytes', 'compiled_update']

Shapes = Mapping[str, Any]  # jax.ShapeDtypeStruct with a sharding
KINDS = 'all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast'
COLLECTIVE = re.compile(rf' = (.+?) ({KINDS})(?:-start)?\(')
"""The results and the kind of a collective in the text of a compiled program."""
ARRAY = re.compile(r'f32\[([\d,]*)\]')
OPTIMIZERS: dict[str, Callable[[], optim.Optimizer]] = {
    'SGD': lambda: optim.SGD(momentum=0.9),
    'Adam': optim.Adam,
    'Adafactor': optim.Adafactor,
}


class Transformer(NamedTuple):
    """The size of a transformer, which has matrices, biases and scales of norms."""

    width: int
    layers: int
    tokens: int = 32_768

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all weights."""
        d = self.width
        matrices = {'qkv': (d, 3 * d), 'out': (d, d), 'up': (d, 4 * d), 'down': (4 * d, d)}
        biases = {f'{name}_bias': shape[1:] for name, shape in matrices.items()}
        layer = {**matrices, **biases, 'norm1': (d,), 'norm2': (d,)}
        layers = {f'layer{i:02}.{name}': shape for i in range(self.layers) for name, shape in layer.items()}
        return {'embedding': (self.tokens, d), **layers}

    def replicated(self, mesh: Mesh) -> Shapes:
        """Return the weights as shapes that are replicated over a mesh."""
        whole = NamedSharding(mesh, PartitionSpec())
        return {key: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole) for key, shape in self.shapes().items()}


# 512 devices can split the matrices of these widths.
MODELS = {'1e8': Transformer(1024, 6, 24_576), '1e9': Transformer(2048, 18), '1e10': Transformer(5120, 32)}
SMALL = {'1e4': Transformer(32, 1, 64)}


def compiled_update(optimizer: optim.Optimizer, weights: Shapes, over: str | None) -> tuple[Any, Any]:
    """Return the optimizer state as shapes with shardings, and the compiled update of the States' values.

    The update is what ``optimizer.update`` compiles with ``shard_memory_over=over``, for weights that need no memory.
    """
    layout, pure = Layout.of(weights, over), optim.to_optax(optimizer)

    def init(weights: Any) -> Any:
        return beside(pure.init(weights), weights, layout)

    def update(weights: Any, grads: Any, state: Any) -> Any:
        changes, state = pure.update(grads, state, weights)
        new = {key: w + changes[key] for key, w in weights.items()}
        return layout.kept(new, new) if over else new, beside(state, weights, layout)

    places = jax.jit(init).lower(weights).compile().output_shardings
    state = jax.tree.map(with_sharding, jax.eval_shape(init, weights), places)
    return state, jax.jit(update, donate_argnums=(0, 2)).lower(weights, weights, state).compile()


def with_sharding(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that the shards of all arrays take on one device."""
    leaves: list[jax.ShapeDtypeStruct] = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def collective_bytes(program: str) -> dict[str, int]:
    """Return the bytes of the results of each kind of collective in a compiled program."""
    found: dict[str, int] = {}
    for results, kind in COLLECTIVE.findall(program):
        sizes = [math.prod(int(n) for n in shape.split(',') if n) for shape in ARRAY.findall(results)]
        found[kind] = found.get(kind, 0) + 4 * sum(sizes)
    return found


def gradient_bytes(weights: Shapes, state: Any, devices: int) -> float:
    """Return the bytes that a ring sends from each device for the sum of the gradients.

    The gradient of a weight with a slot of the same shape that is split is only scattered. All others are summed on
    every device.
    """
    split = set()
    for path, slot in jax.tree_util.tree_leaves_with_path(state):
        key = getattr(path[-1], 'key', None)
        if key in weights and slot.shape == weights[key].shape and not slot.sharding.is_fully_replicated:
            split.add(key)
    sent = [w.size * w.dtype.itemsize * (1 if key in split else 2) for key, w in weights.items()]
    return sum(sent) * (devices - 1) / devices


def row(model: str, weights: Shapes, name: str, mesh: Mesh, over: str | None) -> dict[str, Any]:
    """Compile an update and return the row of the results, in bytes of each device."""
    state, compiled = compiled_update(OPTIMIZERS[name](), weights, over)
    found, n = collective_bytes(compiled.as_text()), mesh.size
    if unknown := found.keys() - {'all-reduce', 'all-gather'}:
        raise ValueError(f'There is no formula for the bytes that {", ".join(unknown)} move.')
    in_update = (2 * found.get('all-reduce', 0) + found.get('all-gather', 0)) * (n - 1) / n
    result = {
        'model': model,
        'number': sum(w.size for w in weights.values()),
        'optimizer': name,
        'devices': n,
        'ZeRO-1': over is not None,
        'weights': bytes_per_device(weights),
        'state': bytes_per_device(state),
        'temporary': compiled.memory_analysis().temp_size_in_bytes,
        'moved for gradients': round(gradient_bytes(weights, state, n)),
        'moved in the update': round(in_update),
    }
    print(model, name, f'{n} devices', 'with' if over else 'without', 'ZeRO-1', flush=True)
    return result


def measure(models: Mapping[str, Transformer], devices: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return a row for each model, number of devices and optimizer, without and with ZeRO-1."""
    rows = []
    for n in devices:
        mesh = Mesh(np.array(jax.devices()[:n]), ('data',))
        for model, size in models.items():
            weights = size.replicated(mesh)
            rows += [row(model, weights, name, mesh, over) for name in OPTIMIZERS for over in (None, 'data')]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--smoke', action='store_true', help='only check that everything runs, with a small model')
    parser.add_argument('--output', type=Path, help='a JSON file, such as benchmarks/results/scale.json')
    args = parser.parse_args()
    devices = (2, 4) if args.smoke else (8, 64, 512)
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', max(devices))
    rows = measure(SMALL if args.smoke else MODELS, devices)
    result = {'date': datetime.date.today().isoformat(), 'jax': jax.__version__, 'scale': rows}
    print('\n'.join(scale_tables(result)))
    if args.output:
        save(result, args.output, 'scale')


if __name__ == '__main__':
    main()
