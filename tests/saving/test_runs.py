"""Whole runs in one file: weights with tuple keys, units and random keys come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo
from braintools_optim import files

SUFFIXES = ['.npz', '.safetensors', '.msgpack']
formats = pytest.mark.parametrize('suffix', SUFFIXES)


class Cell(brainstate.nn.Module):
    """A model with units, a random key, a statistic, half precision, and a hidden state, which is not saved."""

    def __init__(self, scale: float = 1.0, size: int = 3):
        super().__init__()
        self.layers = [brainstate.nn.Linear(size, 2), brainstate.nn.Linear(2, 1)]
        self.v = brainstate.ParamState(
            {'rest': jnp.arange(3.0) * scale * u.mV, 'tau': jnp.asarray(2.0 * scale) * u.ms**0.5}
        )
        self.half = brainstate.ParamState(jnp.full(2, 0.1 * scale, jnp.bfloat16))
        self.mean = brainstate.BatchState(jnp.full(2, scale))
        self.key = brainstate.LongTermState(jax.random.key(int(scale)))
        self.plain = brainstate.LongTermState({'n': 3, 'x': 0.5 * scale * u.ms})
        self.hidden = brainstate.HiddenState(jnp.full(2, scale))


def numbers(model: Cell) -> list[Any]:
    """Return the bits of all States, and their structure with units."""
    values = {path: state.value for path, state in model.states().items()}
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, values))
    return [
        structure,
        *[np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves],
    ]


def assert_identical(a: list[Any], b: list[Any]) -> None:
    assert a[0] == b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def trained(model: Cell) -> bo.Optimizer:
    optimizer = bo.Adam(0.1).register_trainable_weights(model.states(brainstate.ParamState))
    values = {path: state.value for path, state in model.states(brainstate.ParamState).items()}
    optimizer.update(jax.tree.map(jnp.ones_like, values))
    return optimizer


@formats
def test_run_is_restored_bit_for_bit(suffix: str, tmp_path: Path) -> None:
    path, model = tmp_path / f'run{suffix}', Cell()
    optimizer = trained(model)
    files.save_run(path, model=model, optimizer=optimizer, epoch=3, seeds=jax.random.key(7))
    other = Cell(2.0)
    another = bo.Adam(0.1).register_trainable_weights(other.states(brainstate.ParamState))
    more = files.load_run(path, model=other, optimizer=another)
    assert more.keys() == {'epoch', 'seeds'}
    assert more['epoch'] == 3
    assert more['seeds'] == jax.random.key(7)
    assert other.hidden.value.tolist() == [2.0, 2.0]
    other.hidden.value = model.hidden.value
    assert_identical(numbers(model), numbers(other))
    saved = optimizer.state_dict()
    assert jax.tree.all(jax.tree.map(np.array_equal, saved, another.state_dict()))


@formats
def test_states_and_their_values_are_written(suffix: str, tmp_path: Path) -> None:
    model = Cell()
    states = model.states(brainstate.ParamState)
    values = {path: state.value for path, state in states.items()}
    for tree in (states, values):
        files.save(tmp_path / f'x{suffix}', tree)
        found = files.load(tmp_path / f'x{suffix}')
        assert found.keys() == values.keys()
        assert jax.tree.structure(found) == jax.tree.structure(values)  # with the units
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(values), strict=True):
            assert isinstance(a, np.ndarray)
            assert (a.dtype, a.tobytes()) == (b.dtype, np.asarray(b).tobytes())


class Pair(NamedTuple):
    x: jax.Array
    y: jax.Array


@formats
def test_keys_and_leaves_come_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'x{suffix}'
    tree: dict[Any, Any] = {
        'a/b': {1: 1, '1': 2, (1,): np.ones(1), ('1',): np.zeros(1), ((1, 'a'), 'b'): None, '(1,)': 3},
        (): jnp.ones(2, jnp.bfloat16),
        'units': [3.0 * u.mV, np.arange(2.0) * u.nA / u.cm**2, 1 * u.UNITLESS, np.float32(0.1) * u.meter],
        'keys': {impl: jax.random.split(jax.random.key(3, impl=impl), 2) for impl in ('threefry2x32', 'rbg')},
        '~': {'~': 'dict'},
    }
    files.save(path, tree)
    found = files.load(path)
    assert list(found['a/b']) == list(tree['a/b'])
    assert found['a/b'][((1, 'a'), 'b')] is None
    assert found['a/b'][(1,)].tolist() == [1.0]
    assert found['a/b'][('1',)].tolist() == [0.0]
    assert found['~'] == {'~': 'dict'}
    assert found[()].dtype == jnp.bfloat16
    for a, b in zip(found['units'], tree['units'], strict=True):
        assert u.get_unit(a) == u.get_unit(b)
        assert str(u.get_unit(a)) == str(u.get_unit(b))
        np.testing.assert_array_equal(u.get_mantissa(a), u.get_mantissa(b))
    for impl, keys in tree['keys'].items():
        assert found['keys'][impl].dtype == keys.dtype
        assert jnp.array_equal(jax.random.normal(found['keys'][impl][1]), jax.random.normal(keys[1]))


def test_values_of_any_structure_are_restored(tmp_path: Path) -> None:
    states = {'pair': brainstate.ParamState(Pair(jnp.ones(2), (jnp.zeros(1), [jnp.ones(1)]))), 'n': brainstate.State(3)}
    files.save_run(tmp_path / 'x.npz', model=states)
    states['pair'].value = jax.tree.map(lambda x: x + 5, states['pair'].value)
    states['n'].value = 4
    assert files.load_run(tmp_path / 'x.npz', model=states) == {}
    assert isinstance(states['pair'].value, Pair)
    assert jax.tree.map(lambda x: x.tolist(), states['pair'].value) == Pair([1.0, 1.0], ([0.0], [[1.0]]))
    assert int(states['n'].value) == 3


def test_model_that_differs_is_refused_as_a_whole(tmp_path: Path) -> None:
    path, model = tmp_path / 'run.npz', Cell()
    files.save_run(path, model=model, optimizer=trained(model))
    other = Cell(2.0, size=4)
    other.v.value = {'rest': jnp.ones(3) * u.volt, 'other': jnp.ones(1)}
    other.half.value = jnp.ones(2)
    other.more = brainstate.ParamState(jnp.ones(1))
    optimizer = trained(other)
    before, state = numbers(other), optimizer.state_dict()
    with pytest.raises(ValueError, match='The file does not fit this model, which is unchanged') as caught:
        files.load_run(path, model=other, optimizer=optimizer)
    for part in (
        "unit of v.rest: 'mV' there, 'V' here",
        'v.other: not there',
        'v.tau: not here',
        'half: bfloat16[2] there, float64[2] here',
        'more: not there',
        'layers.0.weight.weight: float32[3, 2] there, float32[4, 2] here',
    ):
        assert part in str(caught.value)
    assert_identical(before, numbers(other))
    assert jax.tree.all(jax.tree.map(np.array_equal, state, optimizer.state_dict()))


def test_optimizer_that_differs_leaves_the_model_unchanged(tmp_path: Path) -> None:
    path, model = tmp_path / 'run.npz', Cell()
    files.save_run(path, model=model, optimizer=trained(model))
    other = Cell(2.0)
    before = numbers(other)
    optimizer = bo.Adam(0.1, amsgrad=True).register_trainable_weights(other.states(brainstate.ParamState))
    with pytest.raises(ValueError, match='amsgrad'):
        files.load_run(path, model=other, optimizer=optimizer)
    assert_identical(before, numbers(other))


def test_optimizer_without_slots_refuses_weights_of_another_shape() -> None:
    saved = bo.SGD(0.1).register_trainable_weights({'w': brainstate.ParamState(jnp.ones((2, 3)))}).state_dict()
    other = bo.SGD(0.1).register_trainable_weights({'w': brainstate.ParamState(jnp.ones((3, 2)))})
    with pytest.raises(ValueError, match=r'shape of w: \[2, 3\] there, \[3, 2\] here'):
        other.load_state_dict(saved)
    saved['opt_state']['step.w'] = np.asarray(3, np.int32)
    assert other.load_state_dict(saved, strict=False)
    assert other.state_dict()['opt_state']['step.w'] == 0


def test_missing_parts_of_a_run_are_named(tmp_path: Path) -> None:
    weights = {'w': brainstate.ParamState(jnp.ones(2))}
    optimizer = bo.SGD(0.1).register_trainable_weights(weights)
    files.save_run(tmp_path / 'x.npz', model=weights, epoch=3)
    with pytest.raises(ValueError, match=r'x\.npz holds no optimizer. There are: epoch, model'):
        files.load_run(tmp_path / 'x.npz', model=weights, optimizer=optimizer)
    files.save_run(tmp_path / 'x.npz', model=weights, optimizer=optimizer)
    with pytest.raises(ValueError, match=r'holds a whole run: files\.load_run'):
        optimizer.load(tmp_path / 'x.npz')
