"""On eight devices: slots that are split over an axis of the mesh take an eighth, and training goes as without."""

from __future__ import annotations

import functools
import sys
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import loss_arguments
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tables.optimizers import OPTIMIZERS, row_of

import braintools_optim as bo
from benchmarks.scale import COLLECTIVE

MESH = Mesh(np.array(jax.devices()).reshape(4, 2), ('data', 'model'))
SHAPES = {'w': (64, 32), 'split': (48, 64), 'small': (4,)}
SPECS = {'w': PartitionSpec(), 'split': PartitionSpec(None, 'model'), 'small': PartitionSpec()}


def build(kind: type[bo.Optimizer], over: str | None, dtype: Any = jnp.float32) -> Any:
    optimizer: Any = kind(**row_of(kind).required(), shard_memory_over=over, master_weights=dtype != jnp.float32)
    rng = np.random.default_rng(0)
    states = {
        key: brainstate.ParamState(
            jax.device_put(jnp.asarray(rng.normal(size=shape), dtype), NamedSharding(MESH, SPECS[key]))
        )
        for key, shape in SHAPES.items()
    }
    return optimizer.register_trainable_weights(states), states


def gradients(states: dict[str, brainstate.ParamState], t: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng([t, 7])
    return {
        key: jax.device_put(rng.normal(size=s.value.shape).astype(s.value.dtype), s.value.sharding)
        for key, s in states.items()
    }


def bytes_per_device(tree: Any) -> int:
    device = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device]
    return sum(shard.data.nbytes for shard in shards)


def layouts(tree: Any) -> list[Any]:
    """Return which part of each array each device holds."""
    return [str(x.sharding.devices_indices_map(x.shape)) for x in jax.tree.leaves(tree)]


def check(kind: type[bo.Optimizer]) -> None:
    (ours, states), (theirs, same) = build(kind, 'data'), build(kind, None)
    at_first = layouts(ours.opt_state.value)
    for t in range(3):
        for optimizer, own in ((ours, states), (theirs, same)):
            grads = gradients(own, t)
            optimizer.update(grads, **loss_arguments(optimizer, grads))
    assert layouts(ours.opt_state.value) == at_first, kind
    for key, state in states.items():
        assert state.value.sharding.is_equivalent_to(NamedSharding(MESH, SPECS[key]), state.value.ndim), key
        np.testing.assert_allclose(state.value, same[key].value, rtol=1e-4, atol=1e-5, err_msg=f'{kind.__name__} {key}')
    full = theirs.opt_state.value
    large = [x for x in jax.tree.leaves(full) if x.size >= 1024]
    saved = bytes_per_device(full) - bytes_per_device(ours.opt_state.value)
    if large and kind.__name__ not in ('SOAP', 'LBFGS'):
        assert saved >= 0.7 * bytes_per_device(large), (kind, saved, bytes_per_device(large))
    print(kind.__name__, bytes_per_device(full), bytes_per_device(ours.opt_state.value))


def check_ways() -> None:
    """Both jits, ``minimize``, donated weights, master copies, load, reset, further weights, averages, accumulation."""
    optimizer, states = build(bo.Adam, 'data', jnp.bfloat16)
    at_first = layouts(optimizer.opt_state.value)
    grads = gradients(states, 0)
    optimizer.donate_weights = True
    for run in (optimizer.update, brainstate.transform.jit(optimizer.update), bo.jit(optimizer.update)):
        run(grads)
        assert layouts(optimizer.opt_state.value) == at_first
    optimizer.minimize(lambda: sum(jnp.sum(s.value.astype(jnp.float32)) for s in states.values()))
    optimizer.load_state_dict(optimizer.state_dict())
    assert layouts(optimizer.opt_state.value) == at_first
    optimizer.reset()
    optimizer.freeze('w')
    optimizer.unfreeze('w')
    assert layouts(optimizer.opt_state.value) == at_first
    late = brainstate.ParamState(jax.device_put(jnp.ones((64, 64)), NamedSharding(MESH, PartitionSpec())))
    optimizer.add_param_group({'late': late})
    optimizer.update({**grads, 'late': jnp.ones((64, 64))})
    assert optimizer.opt_state.value['exp_avg']['late'].addressable_shards[0].data.shape == (16, 64)
    averaged = bo.Adam(shard_memory_over='data', average=bo.EMA(), accumulate_steps=2)
    averaged.register_trainable_weights({'late': late})
    before = layouts(averaged.opt_state.value)
    for _ in range(2):
        averaged.update({'late': jnp.ones((64, 64))})
    assert layouts(averaged.opt_state.value) == before
    assert averaged.opt_state.value['average']['late'].addressable_shards[0].data.shape == (16, 64)


def check_communication() -> None:
    """Data parallelism: each device updates its share of the weights, and the new weights are gathered."""
    found = {}
    for over in (None, 'data'):
        w = brainstate.ParamState(jax.device_put(jnp.ones((64, 32)), NamedSharding(MESH, PartitionSpec())))
        optimizer = bo.Adam(shard_memory_over=over).register_trainable_weights({'w': w})
        x = jax.device_put(np.ones((8, 64), np.float32), NamedSharding(MESH, PartitionSpec('data')))

        def step(x: Any, w: Any = w, optimizer: Any = optimizer) -> None:
            optimizer.update(brainstate.transform.grad(lambda: jnp.sum((x @ w.value) ** 2), {'w': w})())

        run: Any = bo.jit(step)
        text = run.lower(x).compile().as_text()
        found[over] = {name for _, name in COLLECTIVE.findall(text)}
        run(x)
        assert w.value.sharding.is_fully_replicated
    assert found[None] == {'all-reduce'}
    assert found['data'] >= {'all-gather'}
    print('collectives', found)


def check_temporary_memory() -> None:
    """An update takes little more memory than a share of the weights, and leaves frozen weights where they are."""
    start = {name: jnp.ones((256, 64)) for name in 'abcd'}
    places = NamedSharding(MESH, PartitionSpec())
    for kind in (bo.Momentum, bo.Adam):
        weights = {key: brainstate.ParamState(jax.device_put(w, places)) for key, w in start.items()}
        optimizer = kind(shard_memory_over='data').register_trainable_weights(weights)
        optimizer.freeze('a')
        grads = {key: state.value for key, state in weights.items()}
        run: Any = bo.jit(optimizer.update)
        compiled = run.lower(grads).compile()
        taken = compiled.memory_analysis().temp_size_in_bytes / sum(w.nbytes for w in start.values())
        assert taken < 0.5, (kind, taken)
        gathered = [name for _, name in COLLECTIVE.findall(compiled.as_text()) if name == 'all-gather']
        assert len(gathered) == 3, (kind, gathered)


def check_refusals() -> None:
    for over, place, match in (
        (
            'rows',
            lambda w: jax.device_put(w, NamedSharding(MESH, PartitionSpec())),
            "Must be an axis of .*'data', 'model'",
        ),
        ('data', lambda w: w, 'w must be put on a mesh'),
    ):
        optimizer = bo.Adam(shard_memory_over=over)
        with pytest.raises(ValueError, match=f'Invalid shard_memory_over={over!r}.*{match}'):
            optimizer.register_trainable_weights({'w': brainstate.ParamState(place(jnp.ones((8, 8))))})
        assert optimizer.opt_state is None
    for wrong in (3, ('data',)):
        with pytest.raises(TypeError, match='Invalid shard_memory_over='):
            bo.Adam(shard_memory_over=wrong)  # type: ignore[arg-type]


def check_norm_axis() -> None:
    """Inside ``shard_map`` each shard has a part of the weights; the norm is that of all parts."""
    rng = np.random.default_rng(0)
    w, g = (rng.normal(size=(8, 3)).astype(np.float32) for _ in range(2))
    rows = PartitionSpec(('data', 'model'))

    def step(w: Any, g: Any, tx: Any) -> Any:
        state = tx.init({'w': w})
        updates, _ = tx.update({'w': g}, state, {'w': w})
        return w + updates['w']

    for options in ({}, {'on_nonfinite': 'skip'}):
        split = bo.to_optax(bo.Momentum(0.5, grad_clip_norm=0.3, norm_axis_name=('data', 'model'), **options))
        whole = bo.to_optax(bo.Momentum(0.5, grad_clip_norm=0.3, **options))
        on_shards = functools.partial(step, tx=split)
        run = jax.jit(jax.shard_map(on_shards, mesh=MESH, in_specs=rows, out_specs=rows, check_vma=False))
        np.testing.assert_allclose(run(w, g), step(w, g, whole), rtol=1e-5)
        bad = np.array(g)
        bad[5, 1] = np.nan
        if options:
            np.testing.assert_array_equal(run(w, bad), w)
    for wrong in (3, (), ('data', 3)):
        with pytest.raises(TypeError, match='Invalid norm_axis_name='):
            bo.Adam(norm_axis_name=wrong)  # type: ignore[arg-type]


if __name__ == '__main__':
    check_ways()
    check_communication()
    check_temporary_memory()
    check_refusals()
    check_norm_axis()
    for kind in OPTIMIZERS if sys.argv[1] == 'all' else [bo.Adam, bo.SGD, bo.Adafactor, bo.Muon]:
        if kind not in (bo.SAM, bo.LBFGS):
            check(kind)
