"""On eight devices of one process, or of two processes: train, and save and restore as in docs/checkpoints.md.

``processes.py FOLDER CASES`` trains in one process and restores what two have saved, on another mesh.
``processes.py FOLDER CASES PORT RANK`` is one of two processes, which train, save, and check what they refuse.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import braintools_optim as bo
from braintools_optim import files

FOLDER, NAMES, PORT, RANK = Path(sys.argv[1]), sys.argv[2].split(','), *map(int, sys.argv[3:] or (0, 0))
recipe: dict[str, Any] = {'brainstate': brainstate, 'jax': jax, 'jnp': jnp, 'np': np, 'ocp': ocp}
for page in ('devices.md', 'checkpoints.md'):
    text = (Path(__file__).parents[2] / 'docs' / page).read_text()
    for function in re.findall(r'^def .*?(?=\n\n\n)', text, flags=re.MULTILINE | re.DOTALL):
        exec(function, recipe)
if PORT:
    recipe['start'](f'127.0.0.1:{PORT}', 2, RANK)
assert jax.device_count() == 8

MESH = Mesh(np.array(jax.devices()).reshape(4, 2), ('data', 'model'))  # two processes have two rows each
OTHER = Mesh(np.array(jax.devices()[:6]).reshape(2, 3)[:, :2], ('data', 'model'))
SPECS = {'first': PartitionSpec(), 'bias': PartitionSpec(), 'last': PartitionSpec('data', 'model')}
CASES: dict[str, Callable[[], bo.Optimizer]] = {
    'Adam': lambda: bo.Adam(bo.CosineAnnealingLR(0.05, T_max=9), grad_clip_norm=0.1, metrics='weights'),
    'split': lambda: bo.Adam(
        bo.StepLR(0.05, 2, 0.5), grad_clip_norm=0.1, metrics=True, shard_memory_over='data', average=bo.EMA(0.5)
    ),
    'Adafactor': lambda: bo.Adafactor(bo.StepLR(0.05, 2, 0.5), on_nonfinite='skip', metrics=True),
    'Muon': lambda: bo.Muon(
        bo.ReduceLROnPlateau(0.05, patience=0), adamw_lr=0.01, grad_clip_norm=0.1, accumulate_steps=2
    ),
}


def spread(x: Any, *axes: str, mesh: Mesh = MESH) -> jax.Array:
    """Return an array that every process has, split over the axes of the mesh."""
    spread: jax.Array = recipe['spread'](x, NamedSharding(mesh, PartitionSpec(*axes)))
    return spread


def gathered(tree: Any) -> dict[str, np.ndarray]:
    """Return all leaves as NumPy arrays, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    several = [x for _, x in leaves if isinstance(x, jax.Array) and not x.is_fully_addressable]
    if several:
        whole = iter(multihost_utils.process_allgather(several, tiled=True))
    found = [next(whole) if isinstance(x, jax.Array) and not x.is_fully_addressable else x for _, x in leaves]
    return {jax.tree_util.keystr(path): np.array(x) for (path, _), x in zip(leaves, found, strict=True)}


class Net(brainstate.nn.Module):
    def __init__(self, mesh: Mesh = MESH) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        for name, shape in (('first', (32, 64)), ('bias', (64,)), ('last', (64, 8))):
            w = rng.normal(size=shape).astype(np.float32) / 8
            setattr(self, name, brainstate.ParamState(spread(w, *SPECS[name], mesh=mesh)))

    def loss(self, x: Any, y: Any) -> Any:
        return jnp.mean((jnp.tanh(x @ self.first.value + self.bias.value) @ self.last.value - y) ** 2)


class Run:
    """A training by ``update``, inside ``jit`` and by ``minimize``, in turns."""

    def __init__(self, name: str, mesh: Mesh = MESH) -> None:
        self.mesh, self.net, self.optimizer = mesh, Net(mesh), CASES[name]()
        weights = self.net.states(brainstate.ParamState)
        self.optimizer.register_trainable_weights(weights)
        gradients = brainstate.transform.grad(self.net.loss, weights, return_value=True)
        self.gradients = bo.jit(gradients)

        def step(x: Any, y: Any) -> Any:
            grads, loss = gradients(x, y)
            self.optimizer.update(grads)
            return loss

        self.step = bo.jit(step)

    def update(self, t: int, x: Any, y: Any) -> Any:
        if t % 3 == 0:
            grads, loss = self.gradients(x, y)
            self.optimizer.update(grads)
            return loss
        return self.step(x, y) if t % 3 == 1 else self.optimizer.minimize(lambda: self.net.loss(x, y))

    def train(self, steps: range) -> dict[str, np.ndarray]:
        """Return losses, metrics and all arrays after these steps."""
        seen: list[Any] = []
        lr = self.optimizer.lr
        for t in steps:
            rng = np.random.default_rng([t, 1])
            x, y = (rng.normal(size=(16, n)).astype(np.float32) for n in (32, 8))
            rows = NamedSharding(self.mesh, PartitionSpec('data'))
            own = slice(8 * RANK, 8 * RANK + 8) if PORT else slice(None)
            loss = self.update(t, recipe['batch'](x[own], rows), recipe['batch'](y[own], rows))
            lr.step(loss) if isinstance(lr, bo.ReduceLROnPlateau) else lr.step()
            seen.append([float(loss), *(self.optimizer.log().values() if self.optimizer.metrics_state else ())])
        return {'seen': np.array(seen), **self.arrays()}

    def arrays(self) -> dict[str, np.ndarray]:
        return gathered(recipe['arrays'](self.net, self.optimizer))

    def save(self, directory: Path) -> None:
        recipe['save'](directory, self.net, self.optimizer)

    def restore(self, directory: Path) -> None:
        recipe['restore'](directory, self.net, self.optimizer)


def check_layout(name: str, optimizer: bo.Optimizer) -> None:
    """Each slot is split like its weight, and the slots of a replicated weight as the option asks."""
    slots = optimizer.opt_state.value.slots
    if name in ('Adam', 'split'):
        first, last = slots['exp_avg']['first'], slots['exp_avg']['last']
        assert last.sharding.is_equivalent_to(NamedSharding(MESH, SPECS['last']), 2)
        assert first.addressable_shards[0].data.shape == ((32, 16) if name == 'split' else (32, 64))
        assert last.addressable_shards[0].data.shape == (16, 4)
    assert all(x.sharding.device_set == {*jax.devices()} for x in jax.tree.leaves(slots))


def check_methods(net: Net, optimizer: bo.Optimizer) -> None:
    """Methods that look at weights or slots, which one process does not hold."""
    assert 'first' in str(optimizer)
    weights = {name: state.value for name, state in net.states(brainstate.ParamState).items()}
    if isinstance(optimizer, bo.Adam) and 'average' in optimizer.opt_state.value:
        with optimizer.eval_weights():
            assert net.last.value.sharding.is_equivalent_to(weights['last',].sharding, 2)
    optimizer.freeze('last')
    optimizer.unfreeze('last')
    optimizer.reset('last')
    optimizer.lr = 0.01
    optimizer.update(weights)
    optimizer.reset()
    assert optimizer.step_count.value == 0


def check_diagnosis() -> None:
    """The error about gradients that are not finite names them and counts their entries, over all processes."""
    net = Net()
    optimizer = bo.Adam(on_nonfinite='raise').register_trainable_weights(net.states(brainstate.ParamState))
    bad = np.ones((64, 8), np.float32)
    bad[[3, 60], 0] = np.nan, np.inf  # an entry of each process
    grads = {
        'first': spread(np.zeros((32, 64), np.float32), 'data'),
        'bias': spread(np.full(64, 2, np.float32), 'data'),
    }
    expected = r'last \(1 NaN, 1 inf of 512\)\nall zero: first\nlargest norms: bias 16$'
    with pytest.raises(FloatingPointError, match=expected):
        optimizer.update({**grads, 'last': spread(bad, *SPECS['last'])})


def check_refusals() -> None:
    """A file cannot hold arrays of which each process has a part; a file that is there stays as it is."""
    net = Net()
    optimizer = bo.SGD(momentum=0.9).register_trainable_weights(net.states(brainstate.ParamState))
    own = FOLDER / f'own{RANK}'
    own.mkdir()
    files.save(own / 'run.npz', {'epoch': 1})
    hint = r'\[64, 8\] is split over 2 processes, .* orbax\.checkpoint\.StandardCheckpointer\(\)\.save\(directory'
    for name, call in {
        'opt_state.momentum_buffer.last': lambda: optimizer.save(own / 'run.npz'),
        'last': lambda: files.save_run(own / 'run.npz', model=net, optimizer=optimizer),
        'weights/0': lambda: files.save(own / 'run.npz', {'weights': [net.last.value]}),
        'momentum_buffer.last': lambda: optimizer.torch_state_dict(['first', 'bias', 'last']),
    }.items():
        with pytest.raises(ValueError, match=f'^{name} of shape {hint}'):
            call()
    assert [path.name for path in own.iterdir()] == ['run.npz']
    assert files.load(own / 'run.npz') == {'epoch': 1}


def check_files() -> None:
    """Arrays that every process has go to one file, which one process can write; all processes must read the same."""
    w = brainstate.ParamState(spread(np.arange(6, dtype=np.float32)))
    optimizer = bo.SGD(bo.StepLR(0.1, 2), momentum=0.9, metrics=True, on_nonfinite='skip')
    optimizer.register_trainable_weights({'w': w})
    optimizer.update({'w': w.value})

    @bo.jit
    def step(grads: Any) -> None:
        optimizer.update(grads)
        optimizer.lr.step()

    step({'w': w.value * jnp.nan})  # the norm is NaN in the metrics
    if RANK == 0:
        optimizer.save(FOLDER / 'one.npz')
        assert np.isnan(optimizer.log()['grad_norm'])
        assert 'StepLR' in str(optimizer)
    expected = np.array(optimizer.opt_state.value['momentum_buffer']['w'])
    for _ in range(3):  # both at once
        files.save_run(FOLDER / 'both.npz', model={'w': w}, optimizer=optimizer)
    multihost_utils.sync_global_devices('saved')
    optimizer.reset()
    files.load_run(FOLDER / 'both.npz', model={'w': w}, optimizer=optimizer)
    buffer = optimizer.opt_state.value['momentum_buffer']['w']
    np.testing.assert_array_equal(buffer, expected)
    assert buffer.sharding.device_set == {*jax.devices()}
    state = optimizer.state_dict()
    state['opt_state']['momentum_buffer.w'][0] += RANK
    with pytest.raises(ValueError, match='Process 1 and process 0 load different states'):
        optimizer.load_state_dict(state)
    np.testing.assert_array_equal(optimizer.opt_state.value['momentum_buffer']['w'], expected)
    w.value = spread(np.ones(8, np.float32), 'data')
    optimizer = bo.SGD(momentum=0.9).register_trainable_weights({'w': w})
    one = bo.SGD(momentum=0.9).register_trainable_weights({'w': brainstate.ParamState(jnp.ones(8))})
    one.update({'w': jnp.arange(8.0)})
    for load, there in (
        (optimizer.load_state_dict, one.state_dict()),
        (lambda found: optimizer.load_torch_state_dict(found, ['w']), one.torch_state_dict(['w'])),
    ):
        load(there)
        assert optimizer.opt_state.value['momentum_buffer']['w'].sharding == w.value.sharding
        assert optimizer.step_count.value.sharding.device_set == {*jax.devices()}


def train_in_two(name: str) -> None:
    run = Run(name)
    check_layout(name, run.optimizer)
    half = run.train(range(6))
    check_layout(name, run.optimizer)
    run.save(FOLDER / name)
    end = run.train(range(6, 9))
    if RANK == 0:
        np.savez(FOLDER / f'{name}_half.npz', **half)
        np.savez(FOLDER / f'{name}_end.npz', **end)
    run.restore(FOLDER / name)
    again = run.arrays()
    assert all(np.array_equal(half[key], again[key]) for key in again)
    check_methods(run.net, run.optimizer)


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key in found:
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-4, atol=1e-6, err_msg=key)


def compare(name: str) -> None:
    """Train in one process, and continue the run of two processes on another mesh."""
    half, end = (dict(np.load(FOLDER / f'{name}_{at}.npz')) for at in ('half', 'end'))
    run = Run(name)
    close(run.train(range(6)), half)
    close(run.train(range(6, 9)), end)
    run = Run(name, OTHER)
    run.restore(FOLDER / name)
    found = run.arrays()
    assert found.keys() == half.keys() - {'seen'}
    for key, x in found.items():
        np.testing.assert_array_equal(x, half[key], err_msg=key)
    assert run.net.last.value.sharding == NamedSharding(OTHER, SPECS['last'])
    close(run.train(range(6, 9)), end)


if __name__ == '__main__':
    for name in NAMES:
        (train_in_two if PORT else compare)(name)
    if PORT:
        check_diagnosis()
        check_refusals()
        check_files()
