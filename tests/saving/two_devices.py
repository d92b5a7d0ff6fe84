"""On two devices: restore to another sharding and save in the background as in docs/checkpoints.md; donate."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from internals import place_slot
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import braintools_optim as bo

PAGE = (Path(__file__).parents[2] / 'docs' / 'checkpoints.md').read_text()
recipe: dict[str, Any] = {'brainstate': brainstate, 'jax': jax, 'jnp': jnp}
for function in re.findall(r'^def .*?(?=\n\n\n)', PAGE, flags=re.MULTILINE | re.DOTALL):
    exec(function, recipe)
arrays, put = recipe['arrays'], recipe['put']


class Model(brainstate.nn.Module):
    def __init__(self, sharding: Any = None) -> None:
        super().__init__()
        w = jnp.arange(8.0).reshape(4, 2)
        self.w = brainstate.ParamState(w if sharding is None else jax.device_put(w, sharding))
        self.b = brainstate.ParamState(jnp.ones((2, 2), jnp.bfloat16))


def build(sharding: Any = None) -> tuple[Model, bo.Optimizer]:
    model = Model(sharding)
    optimizer = bo.Adam(bo.StepLR(0.1, 2, 0.5), weight_decay=0.1)
    optimizer.register_trainable_weights(model.states(brainstate.ParamState))
    return model, optimizer


def train(model: Model, optimizer: bo.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.update({path: jnp.cos(s.value) for path, s in model.states(brainstate.ParamState).items()})
        optimizer.lr.step()


def everything(model: Model, optimizer: bo.Optimizer) -> dict[str, np.ndarray]:
    return {name: np.array(x) for name, x in arrays(model, optimizer).items()}


model, optimizer = build()
train(model, optimizer, 3)
optimizer.save(f'{sys.argv[1]}/half.npz')
half = everything(model, optimizer)
with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    checkpointer.save(f'{sys.argv[1]}/step', args=ocp.args.StandardSave(arrays(model, optimizer)))
    train(model, optimizer, 3)  # meanwhile, in the same buffers
    checkpointer.wait_until_finished()
    end = everything(model, optimizer)
    over = NamedSharding(Mesh(np.array(jax.devices()), ('x',)), PartitionSpec('x'))
    for sharding in (None, over):
        model, optimizer = build(sharding)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays(model, optimizer))
        put(checkpointer.restore(f'{sys.argv[1]}/step', args=ocp.args.StandardRestore(target)), model, optimizer)
        found = everything(model, optimizer)
        assert found.keys() == half.keys()
        assert all(np.array_equal(half[name], found[name]) for name in half)
        train(model, optimizer, 3)
        found = everything(model, optimizer)
        assert all(np.array_equal(end[name], found[name]) for name in end)
        if sharding is not None:
            assert model.w.value.sharding == optimizer.opt_state.value['exp_avg']['w'].sharding == over

# a file is loaded into the sharding of the optimizer state
model, optimizer = build(over)
place_slot(optimizer, 'exp_avg', 'w', over)
optimizer.load(f'{sys.argv[1]}/half.npz')
assert optimizer.opt_state.value['exp_avg']['w'].sharding == over
# a buffer shared on several devices is copied before plan, because jax fails if it refuses one
w, read_only = (brainstate.ParamState(jax.device_put(jnp.arange(8.0), over)) for _ in range(2))


@bo.jit
def double(x: Any) -> Any:
    w.value = w.value + x
    return read_only.value * 2


for i in range(8):
    before = np.array(w.value)
    buffers = [shard.data for shard in w.value.addressable_shards]
    same = w.value if i == 4 else jax.make_array_from_single_device_arrays((8,), over, buffers)
    if i == 6:
        read_only.value = same
    x = same if i in (4, 5) else jax.device_put(before, over)
    result = double(x)
    assert np.array_equal(w.value, 2 * before)
    assert np.array_equal(x, before)
    assert np.array_equal(result, 2 * read_only.value)

adam = bo.Adam(0.1).register_trainable_weights({'w': w, 'v': read_only})
adam.donate_weights = True
read_only.value = w.value
for _ in range(2):
    adam.update({'w': w.value, 'v': w.value})
    assert np.array_equal(w.value, read_only.value)
print('done', jax.device_count())
